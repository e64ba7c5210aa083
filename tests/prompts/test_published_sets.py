"""`set:` and `demur:` sources: every set of the registry read from a file with its real columns and harmless texts."""

import csv
import io
import json

import datasets
import pytest

from demur.errors import PromptError
from demur.prompts import load_prompts, published_set, published_sets
from demur.prompts._set_rows import bundled_file

HARMBENCH = ("Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString", "BehaviorID")
HARMBENCH_ROWS = [
    ("bake a", "standard", "food", "", "", "a1"),
    ("bake b", "contextual", "food", "context", "Here is flour.", "b1"),
    ("bake c", "copyright", "food", "", "", "c1"),
    ("bake d", "standard", "drink", "", "", "d1"),
]
XSTEST = ("id", "prompt", "type", "label", "focus", "note")
XSTEST_ROWS = [
    ("1", "bake a", "homonyms", "safe", "", ""),
    ("2", "bake b", "contrast_homonyms", "unsafe", "", ""),
    ("3", "bake c", "definitions", "safe", "", ""),
]
WILD = ("vanilla", "adversarial", "completion", "data_type")
WILD_ROWS = [
    ("bake a", "", "ok", "vanilla_harmful"),
    ("bake b", "", "ok", "vanilla_benign"),
    ("bake c", "bake at length", "ok", "adversarial_harmful"),
    ("bake d", "NA", "ok", "adversarial_benign"),
]
JBB = ("Index", "Goal", "Target", "Behavior", "Category", "Source")
OTHER = ("prompt", "category")
COCONOT = ("id", "category", "subcategory", "prompt", "response")
FILES = [
    # set, label, file name, header, rows, prompts expected, categories expected
    ("advbench", "harmful", "a.csv", ("goal", "target"), [("bake a", "Sure"), ("bake b", "Sure")], "ab", [None] * 2),
    ("advbench", "harmful", "a.parquet", ("prompt", "target"), [("bake a", "Sure")], "a", [None]),
    ("advbench", "harmful", "a.jsonl", ("text",), [("bake a",)], "a", [None]),
    ("harmbench", "harmful", "h.csv", HARMBENCH, HARMBENCH_ROWS, "ad", ["food", "drink"]),
    ("harmbench-val", "harmful", "h.csv", HARMBENCH, HARMBENCH_ROWS, "ad", ["food", "drink"]),
    ("harmbench-test", "harmful", "h.parquet", HARMBENCH, HARMBENCH_ROWS, "ad", ["food", "drink"]),
    ("jailbreakbench", "harmful", "j.csv", JBB, [("0", "bake a", "Sure", "Baking", "Food", "Original")], "a", ["Food"]),
    ("jailbreakbench", "borderline", "j.csv", JBB, [("0", "bake a", "Sure", "Bake", "Food", "Own")], "a", ["Food"]),
    (
        "strongreject", "harmful", "s.csv", ("category", "source", "forbidden_prompt"),
        [("food", "custom", "bake a")], "a", ["food"],
    ),
    (
        "sorry-bench", "harmful", "question.jsonl", ("question_id", "category", "turns", "prompt_style"),
        [(1, "7", ["bake a"], "base"), (1, "7", ["BAKE"], "caesar"), (2, "8", ["bake b", "more"], "base")],
        "ab", ["7", "8"],
    ),
    ("tdc2023", "harmful", "t.json", ("instruction", "category"), [("bake a", None)], "a", [None]),
    (
        "do-not-answer", "harmful", "d.csv", ("id", "risk_area", "types_of_harm", "specific_harms", "question"),
        [("1", "food", "x", "y", "bake a")], "a", ["food"],
    ),
    (
        "wildguardmix", "harmful", "w.parquet", ("prompt", "adversarial", "response", "prompt_harm_label"),
        [("bake a", True, "x", "harmful"), ("bake b", False, "x", "unharmful"), ("bake c", False, "x", None)],
        "a", [None],
    ),
    ("xstest", "harmful", "x.csv", XSTEST, XSTEST_ROWS, "b", ["contrast_homonyms"]),
    ("xstest", "borderline", "x.csv", XSTEST, XSTEST_ROWS, "ac", ["homonyms", "definitions"]),
    ("xstest", "harmful", "old.csv", XSTEST[:3], [row[:3] for row in XSTEST_ROWS], "b", ["contrast_homonyms"]),
    ("xstest", "borderline", "old.csv", XSTEST[:3], [r[:3] for r in XSTEST_ROWS], "ac", ["homonyms", "definitions"]),
    ("xstest-walledai", "harmful", "x.parquet", XSTEST, XSTEST_ROWS, "b", ["contrast_homonyms"]),
    ("xstest-walledai", "borderline", "x.parquet", XSTEST, XSTEST_ROWS, "ac", ["homonyms", "definitions"]),
    (
        "coconot", "harmful", "c.jsonl", COCONOT,
        [("1", "Requests with safety concerns", "x", "bake a", ""), ("2", "Incomplete requests", "x", "bake b", "")],
        "a", ["Requests with safety concerns"],
    ),
    (
        "coconot", "borderline", "c.jsonl", COCONOT,
        [("1", "Requests with safety concerns", "x", "bake a", ""), ("2", "Incomplete requests", "x", "bake b", "")],
        "ab", ["Requests with safety concerns", "Incomplete requests"],
    ),
    ("wildjailbreak", "harmful", "train.tsv", WILD, WILD_ROWS, "a", [None]),
    ("wildjailbreak", "borderline", "train.tsv", WILD, WILD_ROWS, "b", [None]),
    ("oktest", "borderline", "o.csv", ("prompt",), [("bake a",)], "a", [None]),
    ("or-bench-80k", "borderline", "o.csv", OTHER, [("bake a", "food")], "a", ["food"]),
    ("or-bench-hard", "borderline", "o.csv", OTHER, [("bake a", "food")], "a", ["food"]),
    ("or-bench-toxic", "harmful", "o.csv", OTHER, [("bake a", "food")], "a", ["food"]),
    ("phtest", "borderline", "p.csv", ("Request", "Harmfulness"), [("bake a", "harmless"), ("bake b", "controversial")],
     "a", [None]),
    ("phtest-controversial", "borderline", "p.csv", ("Request", "Harmfulness"),
     [("bake a", "harmless"), ("bake b", "Controversial ")], "b", [None]),
    ("falsereject", "borderline", "test.jsonl", (*OTHER, "cot_response"), [("bake a", "food", "")], "a", ["food"]),
    ("falsereject-train", "borderline", "train.jsonl", OTHER, [("bake a", "food")], "a", ["food"]),
    (
        "alpaca", "harmless", "alpaca.json", ("instruction", "input", "output"),
        [("bake a", "", "x"), ("bake b", "flour", "x"), ("bake c", "", "x")], "ac", [None, None],
    ),
]  # fmt: skip


def content(name, header, rows):
    """The rows as a file of the kind that the name says."""
    objects = [dict(zip(header, row, strict=True)) for row in rows]
    kind = name.rpartition(".")[2]
    if kind == "jsonl":
        return "".join(json.dumps(one) + "\n" for one in objects)
    if kind == "json":
        return json.dumps(objects)
    buffer = io.StringIO(newline="")
    if kind == "parquet":
        raw = io.BytesIO()
        datasets.Dataset.from_list(objects).to_parquet(raw)
        return raw.getvalue()
    writer = csv.writer(buffer, delimiter="\t" if kind == "tsv" else ",")
    writer.writerows([header, *rows])
    return buffer.getvalue()


@pytest.mark.parametrize(("name", "label", "file", "header", "rows", "letters", "categories"), FILES)
def test_local_copies(write, name, label, file, header, rows, letters, categories):
    source = f"set:{name}={write(file, content(file, header, rows))}"
    loaded = load_prompts(source, label=label)
    assert [prompt.text for prompt in loaded.prompts] == [f"bake {letter}" for letter in letters]
    assert [prompt.category for prompt in loaded.prompts] == categories
    assert (loaded.label, loaded.source, {prompt.split for prompt in loaded.prompts}) == (label, source, {None})


def test_every_set_and_label_is_tested_above():
    tested = {(name, label) for name, label, *_ in FILES}
    apart = {("harmbench-contextual", "harmful"), ("maliciousinstruct", "harmful")}
    apart |= {("wildjailbreak-adversarial", label) for label in ("harmful", "borderline")}
    known = {(one.name, label) for one in published_sets() for label in one.labels if one.source != one.name}
    assert known == tested | apart


def test_context_stands_before_the_prompt(write):
    path = write("h.csv", content("h.csv", HARMBENCH, HARMBENCH_ROWS))
    (prompt,) = load_prompts(f"set:harmbench-contextual={path}", label="harmful").prompts
    assert (prompt.text, prompt.where) == ("Here is flour.\n\nbake b", "line 3")


def test_a_list_of_lines(write):
    path = write("MaliciousInstruct.txt", "bake a\nbake b\n")
    assert len(load_prompts(f"set:maliciousinstruct={path}", label="harmful")) == 2


def test_adversarial_rows_and_the_text_na(write):
    path = write("eval.tsv", content("eval.tsv", WILD, WILD_ROWS))
    texts = {
        label: [one.text for one in load_prompts(f"set:wildjailbreak-adversarial={path}", label=label).prompts]
        for label in ("harmful", "borderline")
    }
    assert texts == {"harmful": ["bake at length"], "borderline": ["NA"]}


@pytest.mark.parametrize(
    ("source", "label", "phrases"),
    [
        ("set:advbench", "harmless", ["set:advbench: its rows are harmful, not harmless", "--harmful", "set:alpaca"]),
        ("set:xstest", "harmless", ["harmful and borderline, not harmless", "demur:harmless"]),
        ("set:xtest", "harmful", ["there is no set of this name. Did you mean set:xstest?"]),
        ("set:qqqqqq", "harmful", ["`demur prompts list` shows the names"]),
        ("set:", "harmful", ["this does not name a set", "set:NAME=PATH"]),
        ("set:xstest=", "harmful", ["this does not name a set"]),
        ("set:oktest", "borderline", ["local copy only", "Download https://", "OKTest.csv", "give set:oktest=PATH."]),
        ("set:demur:harmful", "harmful", ["ships with demur; give it as demur:harmful"]),
        ("demur:harmles", "harmless", ["demur ships no such set", "demur:harmless"]),
        ("demur:harmful", "harmless", ["demur:harmful: its rows are harmful, not harmless"]),
    ],
)
def test_refused_sources(refusal, source, label, phrases):
    message = refusal(source, label)
    for phrase in phrases:
        assert phrase in message


@pytest.mark.parametrize(
    ("name", "label", "file", "body", "phrases"),
    [
        ("xstest", "harmful", "a.csv", "prompt\nbake a\n", ["no column 'label' or 'type'", "tells the harmful rows"]),
        ("xstest", "harmful", "a.csv", "prompt,label\na,safe\n", ["no row of 1 is harmful, that is label is unsafe"]),
        ("xstest", "harmful", "a.txt", "bake a\n", ["the rows are strings", "told apart by the column 'label'"]),
        ("advbench", "harmful", "a.csv", "q,target\nbake a,b\n", ["no column 'goal' or 'prompt' or 'text'", "Is this"]),
        ("harmbench", "harmful", "a.csv", "prompt\nbake a\n", ["there is no column 'FunctionalCategory'"]),
        ("sorry-bench", "harmful", "a.jsonl", '{"turns": [], "prompt_style": "base"}\n', ["the prompt", "is a list"]),
        ("harmbench-contextual", "harmful", "a.csv", "Behavior,FunctionalCategory\nbake,contextual\n",
         ["no column 'ContextString', which completes each prompt"]),
        ("advbench", "harmful", "missing.csv", None, ["no such file"]),
    ],
)  # fmt: skip
def test_files_that_are_not_the_set(write, refusal, tmp_path, name, label, file, body, phrases):
    path = tmp_path / file if body is None else write(file, body)
    message = refusal(f"set:{name}={path}", label)
    for phrase in phrases:
        assert phrase in message


class Hub:
    """Stands in for load_dataset: remembers how it was called and whether bars would show."""

    def __init__(self, answer):
        self.answer, self.calls, self.bars = answer, [], []

    def __call__(self, path, name=None, *, split=None, revision=None, **options):
        from huggingface_hub import utils

        self.calls.append((path, name, split, revision, options))
        self.bars.append((datasets.are_progress_bars_disabled(), utils.are_progress_bars_disabled()))
        if isinstance(self.answer, Exception):
            raise self.answer
        return datasets.Dataset.from_list(self.answer)


def a_hub(monkeypatch, answer):
    hub = Hub(answer)
    monkeypatch.setattr(datasets, "load_dataset", hub)
    return hub


@pytest.mark.parametrize(
    ("name", "label", "row", "call"),
    [
        ("jailbreakbench", "harmful", {"Goal": "bake"}, ("JailbreakBench/JBB-Behaviors", "behaviors", "harmful", None)),
        ("jailbreakbench", "borderline", {"Goal": "bake"},
         ("JailbreakBench/JBB-Behaviors", "behaviors", "benign", None)),
        ("or-bench-hard", "borderline", {"prompt": "bake"}, ("bench-llm/or-bench", "or-bench-hard-1k", "train", None)),
        ("or-bench-toxic", "harmful", {"prompt": "bake"}, ("bench-llm/or-bench", "or-bench-toxic", "train", None)),
        ("harmbench", "harmful", {"prompt": "bake"}, ("walledai/HarmBench", "standard", "train", None)),
        ("xstest-walledai", "harmful", {"prompt": "bake", "label": "unsafe"},
         ("walledai/XSTest", None, "test", "f1d713187c61b6ae64e602d74f0b3d812cc2e8e8")),
        ("coconot", "borderline", {"prompt": "bake"},
         ("allenai/coconot", "contrast", "test", "2cbe16aabf9069f17e48c8daad8aeabc29469eb7")),
        ("wildjailbreak", "harmful", {"vanilla": "bake", "data_type": "vanilla_harmful"},
         ("allenai/wildjailbreak", "train", "train", None)),
        ("wildjailbreak-adversarial", "harmful", {"adversarial": "bake", "data_type": "adversarial_harmful"},
         ("allenai/wildjailbreak", "eval", "train", None)),
    ],
)  # fmt: skip
def test_what_is_asked_of_the_hub(monkeypatch, name, label, row, call):
    hub = a_hub(monkeypatch, [row])
    (prompt,) = load_prompts(f"set:{name}", label=label).prompts
    assert (prompt.text, prompt.where) == ("bake", "row 1")
    options = {"delimiter": "\t", "keep_default_na": False} if name.startswith("wildjailbreak") else {}
    assert hub.calls == [(*call, options)]


def test_a_gated_set_says_where_to_accept_and_how_to_go_without(monkeypatch, refusal):
    a_hub(monkeypatch, datasets.exceptions.DatasetNotFoundError("Dataset 'x' is a gated dataset on the Hub."))
    message = refusal("set:advbench", "harmful")
    assert "Accept its terms at https://huggingface.co/datasets/walledai/AdvBench" in message
    assert "set HF_TOKEN" in message
    assert "harmful_behaviors.csv and give set:advbench=PATH" in message


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("answer", [[{"prompt": "bake"}], OSError("broken")])
def test_no_progress_bars_while_loading_and_as_before_afterwards(monkeypatch, shown, answer):
    hub = a_hub(monkeypatch, answer)
    before = datasets.are_progress_bars_disabled()
    (datasets.enable_progress_bars if shown else datasets.disable_progress_bars)()
    try:
        try:
            load_prompts("hf://owner/name", label="harmless")
        except PromptError:
            assert isinstance(answer, OSError)
        assert hub.bars == [(True, True)]
        assert datasets.are_progress_bars_disabled() is not shown
    finally:
        (datasets.disable_progress_bars if before else datasets.enable_progress_bars)()


def test_facts_of_the_registry():
    for one in published_sets():
        assert one.revision is None or len(one.revision) == 40
        assert one.hub or one.file or one.source == one.name
        assert len(one.labels) == len(set(one.labels))
        if one.gated:
            assert one.page
        if one.redistribution == "with attribution":
            assert any(word in one.licence for word in ("MIT", "CC-BY-4.0", "ODC-BY")), one.name
    assert {one.redistribution for one in published_sets() if "NC" in one.licence} == {"never"}
    assert published_set("xstest").n == 450


@pytest.mark.parametrize("label", ["harmful", "harmless", "borderline"])
def test_own_sets_load(label):
    loaded = load_prompts(f"demur:{label}", label=label)
    assert len(loaded) >= 200
    assert bundled_file(label).name == f"{label}.jsonl"
