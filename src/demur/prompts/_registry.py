"""The published prompt sets that demur knows by name: a table.

Sizes and licences are those of September 2026. A revision is given where one is known to be the state that others
evaluate on; everything else floats, and the hash of the loaded prompts in the run's record says what was used.
"""

from demur.prompts._published import Condition, PublishedSet, Rows
from demur.types import PromptLabel

_RAW = "https://raw.githubusercontent.com"
_HARMBENCH = f"{_RAW}/centerforaisafety/HarmBench/HEAD/data/behavior_datasets/harmbench_behaviors_text"
_STRONGREJECT = "alexandrasouly/strongreject/3432b2d696b428f242bd507df96d80f686571d5e"
_CONTRAST = "contrast_"
_STANDARD = Condition("FunctionalCategory", ("standard",), on_hub=False)
_CONTEXTUAL = Condition("FunctionalCategory", ("contextual",), on_hub=False)

_HARMFUL = (
    PublishedSet(
        name="advbench",
        title="AdvBench harmful behaviors (Zou et al. 2023)",
        rows=(Rows("harmful", 520),),
        columns=("goal", "prompt", "text"),
        licence="MIT",
        redistribution="with attribution",
        hub="walledai/AdvBench",
        file=f"{_RAW}/llm-attacks/llm-attacks/HEAD/data/advbench/harmful_behaviors.csv",
        gated=True,
        note="Many near copies of each other; 25 prompts are in strongreject and 11 in jailbreakbench.",
    ),
    PublishedSet(
        name="harmbench",
        title="HarmBench text, standard behaviours (Mazeika et al. 2024)",
        rows=(Rows("harmful", 200, (_STANDARD,), config="standard"),),
        columns=("Behavior", "prompt"),
        licence="MIT",
        redistribution="with attribution",
        hub="walledai/HarmBench",
        file=f"{_HARMBENCH}_all.csv",
        category="SemanticCategory",
        gated=True,
        note="Contextual and copyright behaviours are left out: those need their context, these a judge of their own.",
    ),
    PublishedSet(
        name="harmbench-val",
        title="HarmBench text, validation file, standard behaviours",
        rows=(Rows("harmful", 41, (_STANDARD,)),),
        columns=("Behavior",),
        licence="MIT",
        redistribution="with attribution",
        file=f"{_HARMBENCH}_val.csv",
        category="SemanticCategory",
    ),
    PublishedSet(
        name="harmbench-test",
        title="HarmBench text, test file, standard behaviours",
        rows=(Rows("harmful", 159, (_STANDARD,)),),
        columns=("Behavior",),
        licence="MIT",
        redistribution="with attribution",
        file=f"{_HARMBENCH}_test.csv",
        category="SemanticCategory",
        note="30 prompts are in tdc2023 and 7 in jailbreakbench.",
    ),
    PublishedSet(
        name="harmbench-contextual",
        title="HarmBench text, contextual behaviours with their context",
        rows=(Rows("harmful", 100, (_CONTEXTUAL,)),),
        columns=("Behavior",),
        licence="MIT",
        redistribution="with attribution",
        file=f"{_HARMBENCH}_all.csv",
        category="SemanticCategory",
        context="ContextString",
        note="A prompt is the context, an empty line and the behaviour: long.",
    ),
    PublishedSet(
        name="jailbreakbench",
        title="JailbreakBench behaviours (Chao et al. 2024)",
        rows=(
            Rows("harmful", 100, config="behaviors", split="harmful"),
            Rows("borderline", 100, config="behaviors", split="benign"),
        ),
        columns=("Goal",),
        licence="MIT",
        redistribution="with attribution",
        hub="JailbreakBench/JBB-Behaviors",
        category="Category",
        note=(
            "Of the benign prompts half match a harmful theme, the others are plainly fine. Harmful: 18 from AdvBench, "
            "27 from TDC and HarmBench. The file does not say which rows are harmful: give each label its own copy."
        ),
    ),
    PublishedSet(
        name="maliciousinstruct",
        title="MaliciousInstruct (Huang et al. 2023)",
        rows=(Rows("harmful", 100),),
        columns=("prompt",),
        licence="CC-BY-SA-4.0 on the Hub; no licence file in the repository",
        redistribution="never",
        hub="walledai/MaliciousInstruct",
        file=f"{_RAW}/Princeton-SysML/Jailbreak_LLM/HEAD/data/MaliciousInstruct.txt",
        note="12 prompts are in strongreject.",
    ),
    PublishedSet(
        name="strongreject",
        title="StrongREJECT forbidden prompts (Souly et al. 2024)",
        rows=(Rows("harmful", 313),),
        columns=("forbidden_prompt", "prompt"),
        licence="MIT",
        redistribution="with attribution",
        hub="walledai/StrongREJECT",
        file=f"{_RAW}/{_STRONGREJECT}/strongreject_dataset/strongreject_dataset.csv",
        category="category",
        gated=True,
        note="The Hub's copy is unofficial and floats; the file's address is pinned. 10 repeats: use --repeats drop.",
    ),
    PublishedSet(
        name="sorry-bench",
        title="SORRY-Bench 2025-03, base prompts (Xie et al. 2024)",
        rows=(Rows("harmful", 440, (Condition("prompt_style", ("base",)),)),),
        columns=("turns",),
        licence="custom",
        redistribution="run time only",
        hub="sorry-bench/sorry-bench-202503",
        category="category",
        gated=True,
        note="The first turn is the prompt. The 20 linguistic styles are left out. Some topics many models may answer.",
    ),
    PublishedSet(
        name="tdc2023",
        title="TDC 2023 red teaming behaviours, as paper 1 has them",
        rows=(Rows("harmful", 100),),
        columns=("instruction", "prompt", "Behavior"),
        licence="see source",
        redistribution="never",
        file=f"{_RAW}/andyrdt/refusal_direction/HEAD/dataset/processed/tdc2023.json",
        note="30 prompts are in harmbench-test and 16 in jailbreakbench.",
    ),
    PublishedSet(
        name="do-not-answer",
        title="Do-Not-Answer (Wang et al. 2023)",
        rows=(Rows("harmful", 939),),
        columns=("question",),
        licence="conflict: apache-2.0 tag, NC-SA data in the README; treat as non-commercial",
        redistribution="never",
        hub="LibrAI/do-not-answer",
        category="risk_area",
        note="Many questions are mild: models that answer some of them are not broken.",
    ),
    PublishedSet(
        name="wildguardmix",
        title="WildGuardMix test, prompts that people call harmful (Han et al. 2024)",
        rows=(Rows("harmful", None, (Condition("prompt_harm_label", ("harmful",)),), "wildguardtest", "test"),),
        columns=("prompt",),
        licence="ODC-BY",
        redistribution="run time only",
        hub="allenai/wildguardmix",
        category="subcategory",
        gated=True,
        note="Holds adversarial prompts. Its unharmful ones are not sorted into plain and borderline, so not offered.",
    ),
)

_WILD_READER = (("delimiter", "\t"), ("keep_default_na", False))

_BOTH = (
    PublishedSet(
        name="xstest",
        title="XSTest v2 (Roettger et al. 2023)",
        rows=(
            Rows("harmful", 200, (Condition("label", ("unsafe",)), Condition("type", prefix=_CONTRAST))),
            Rows("borderline", 250, (Condition("label", ("safe",)), Condition("type", prefix=_CONTRAST, negated=True))),
        ),
        columns=("prompt",),
        licence="CC-BY-4.0 (prompts)",
        redistribution="with attribution",
        hub="Paul/XSTest",
        file=f"{_RAW}/paul-rottger/exaggerated-safety/HEAD/xstest_prompts.csv",
        category="type",
        note="Unsafe prompts are contrasts of safe ones: near copies between the labels are meant.",
    ),
    PublishedSet(
        name="xstest-walledai",
        title="XSTest v2, the pinned copy that inspect_evals uses",
        rows=(
            Rows("harmful", 200, (Condition("label", ("unsafe",)),), split="test"),
            Rows("borderline", 250, (Condition("label", ("safe",)),), split="test"),
        ),
        columns=("prompt",),
        licence="CC-BY-4.0 (prompts)",
        redistribution="with attribution",
        hub="walledai/XSTest",
        revision="f1d713187c61b6ae64e602d74f0b3d812cc2e8e8",
        category="type",
        gated=True,
    ),
    PublishedSet(
        name="coconot",
        title="CoCoNot: safety part of original test, contrast (Brahman et al. 2024)",
        rows=(
            Rows("harmful", 395, (Condition("category", ("requests with safety concerns",)),), "original", "test"),
            Rows("borderline", 379, config="contrast", split="test"),
        ),
        columns=("prompt",),
        licence="ODC-BY (README); MIT on GitHub",
        redistribution="with attribution",
        hub="allenai/coconot",
        revision="2cbe16aabf9069f17e48c8daad8aeabc29469eb7",
        category="category",
        note="Other original rows are refused for other reasons than harm. Of the contrast rows 149 are about safety.",
    ),
    PublishedSet(
        name="wildjailbreak",
        title="WildJailbreak train, plain prompts (Jiang et al. 2024)",
        rows=(
            Rows("harmful", None, (Condition("data_type", ("vanilla_harmful",)),), "train"),
            Rows("borderline", None, (Condition("data_type", ("vanilla_benign",)),), "train"),
        ),
        columns=("vanilla",),
        licence="ODC-BY and responsible-use terms",
        redistribution="run time only",
        hub="allenai/wildjailbreak",
        gated=True,
        reader=_WILD_READER,
        note="Separated by tabs: a local copy must end in .tsv. Generated text.",
    ),
    PublishedSet(
        name="wildjailbreak-adversarial",
        title="WildJailbreak evaluation, adversarial prompts",
        rows=(
            Rows("harmful", 2000, (Condition("data_type", ("adversarial_harmful",)),), "eval"),
            Rows("borderline", 210, (Condition("data_type", ("adversarial_benign",)),), "eval"),
        ),
        columns=("adversarial",),
        licence="ODC-BY and responsible-use terms",
        redistribution="run time only",
        hub="allenai/wildjailbreak",
        gated=True,
        reader=_WILD_READER,
        note="Prompts under pressure, not plain ones. Separated by tabs: a local copy must end in .tsv.",
    ),
)

_FINE = (
    PublishedSet(
        name="oktest",
        title="OKTest (Shi et al. 2024)",
        rows=(Rows("borderline", 300),),
        columns=("prompt",),
        licence="none found",
        redistribution="never",
        file=f"{_RAW}/mainlp/False-Refusal-Mitigation/HEAD/dataset/raw/OKTest.csv",
        note="Short questions around trigger words.",
    ),
    PublishedSet(
        name="or-bench-80k",
        title="OR-Bench 80K (Cui et al. 2024)",
        rows=(Rows("borderline", 80359, config="or-bench-80k"),),
        columns=("prompt",),
        licence="CC-BY-4.0",
        redistribution="with attribution",
        hub="bench-llm/or-bench",
        category="category",
        note="Generated; many models refuse few of them, so few may be left to learn from.",
    ),
    PublishedSet(
        name="or-bench-hard",
        title="OR-Bench-Hard-1K (Cui et al. 2024)",
        rows=(Rows("borderline", 1319, config="or-bench-hard-1k"),),
        columns=("prompt",),
        licence="CC-BY-4.0",
        redistribution="with attribution",
        hub="bench-llm/or-bench",
        category="category",
        note="527 of 1,319 are of the category illegal. Some prompts a careful reader would call harmful.",
    ),
    PublishedSet(
        name="or-bench-toxic",
        title="OR-Bench toxic (Cui et al. 2024)",
        rows=(Rows("harmful", 655, config="or-bench-toxic"),),
        columns=("prompt",),
        licence="CC-BY-4.0",
        redistribution="with attribution",
        hub="bench-llm/or-bench",
        category="category",
        note="Generated together with the other two; the natural harmful set beside or-bench-hard.",
    ),
    PublishedSet(
        name="phtest",
        title="PHTest, harmless rows (An et al. 2024)",
        rows=(Rows("borderline", None, (Condition("Harmfulness", ("harmless",)),)),),
        columns=("Request",),
        licence="MIT",
        redistribution="with attribution",
        hub="furonghuang-lab/PHTest",
        note="Generated. 3,269 rows with the controversial ones, which are a set of their own here.",
    ),
    PublishedSet(
        name="phtest-controversial",
        title="PHTest, controversial rows",
        rows=(Rows("borderline", None, (Condition("Harmfulness", ("controversial",)),)),),
        columns=("Request",),
        licence="MIT",
        redistribution="with attribution",
        hub="furonghuang-lab/PHTest",
        note="People may want some of these refused: report them apart, and do not fit on them.",
    ),
    PublishedSet(
        name="falsereject",
        title="FalseReject, test (Zhang et al. 2025)",
        rows=(Rows("borderline", 1187, split="test"),),
        columns=("prompt",),
        licence="CC-BY-NC-4.0",
        redistribution="never",
        hub="AmazonScience/FalseReject",
        category="category",
        note="Annotated by people. Non-commercial.",
    ),
    PublishedSet(
        name="falsereject-train",
        title="FalseReject, train",
        rows=(Rows("borderline", 14624),),
        columns=("prompt",),
        licence="CC-BY-NC-4.0",
        redistribution="never",
        hub="AmazonScience/FalseReject",
        category="category",
        note="Generated. Non-commercial.",
    ),
    PublishedSet(
        name="alpaca",
        title="Alpaca instructions without input (Taori et al. 2023)",
        rows=(Rows("harmless", 31323, (Condition("input", ("",)),)),),
        columns=("instruction",),
        licence="CC-BY-NC-4.0",
        redistribution="never",
        hub="tatsu-lab/alpaca",
        note="Generated and not filtered: a few prompts are not harmless. Many near copies: --leakage drop.",
    ),
)

_OWN: tuple[tuple[PromptLabel, str], ...] = (
    ("harmful", "Short and plain: no benchmark, no jailbreaks, no instructions for harm; not a safety evaluation."),
    ("harmless", "Plainly fine everyday requests; not a sample of what your users ask."),
    (
        "borderline",
        "Each has a harmful contrast in demur:harmful (column pair). Not a published benchmark: compare rates on it "
        "with nothing but themselves.",
    ),
)

_BUNDLED = tuple(
    PublishedSet(
        name=f"demur:{label}",
        title=f"demur's own English {label} prompts",
        rows=(Rows(label, None),),
        columns=("prompt",),
        licence="Apache-2.0",
        redistribution="ships with demur",
        category="category",
        note=f"At least 200, written for demur. {what}",
    )
    for label, what in _OWN
)

REGISTRY: dict[str, PublishedSet] = {one.name: one for one in (*_BUNDLED, *_HARMFUL, *_BOTH, *_FINE)}
"""Every set, by name."""
