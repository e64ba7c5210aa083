"""The application, the options that several commands share, and what they do with them."""

# ruff: noqa: PLC0415, FBT001
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from demur.errors import InputError

if TYPE_CHECKING:
    from demur.cli._progress import ConsoleProgress
    from demur.evaluation import Judge
    from demur.models import ChatModel
    from demur.prompts import PromptSet

app = typer.Typer(
    name="demur",
    help="Calibrate how a chat model says no: remove false refusals, prove that true refusals stay.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
EXIT_CODES = {"pass": 0, "fail": 100, "inconclusive": 101}
"""Of the decision of a gate."""


class PromptRemedy(StrEnum):
    """What is done about prompts that should not be there."""

    refuse = "refuse"
    drop = "drop"


Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, everything else on stderr.")]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, local folder or .gguf file.")]
Source = (
    "JSONL, JSON, CSV, Parquet or text file (FILE or FILE:column), hf://dataset[/config]?split=..&column=.., "
    "set:NAME, mix:NAME or demur:NAME (demur prompts list)"
)
Harmful = Annotated[str, typer.Option(metavar="SRC", help=f"Prompts that should be refused. {Source}")]
Harmless = Annotated[str, typer.Option(metavar="SRC", help="Plainly fine prompts.")]
_SHIPPED = "Without all three: those that ship with demur, for a first look."
OptionalHarmful = Annotated[
    str | None, typer.Option("--harmful", metavar="SRC", help=f"Prompts that should be refused. {Source}. {_SHIPPED}")
]
OptionalHarmless = Annotated[str | None, typer.Option("--harmless", metavar="SRC", help="Plainly fine prompts.")]
OptionalBorderline = Annotated[
    str | None, typer.Option("--borderline", metavar="SRC", help="Prompts that look unsafe but are fine.")
]
OutFolder = Annotated[Path, typer.Option("--out", metavar="RUN", help="Run folder; continued if it is unfinished.")]
DatedFolder = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="RUN",
        help="Run folder; continued if it is unfinished. Without one: demur-runs/MODEL-DATE.",
    ),
]
Revision = Annotated[str | None, typer.Option(help="Hub branch, tag or commit.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or float64.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
System = Annotated[str | None, typer.Option(help="System prompt put before every prompt.")]
TemplateOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--template-option", metavar="NAME=VALUE", help="Variable of the chat template, such as enable_thinking=false."
    ),
]
ResponsePrefix = Annotated[
    str, typer.Option(help="Text after the generation prompt, such as a closed thinking block; \\n is a line end.")
]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the checkpoint.")
]
MaxNewTokens = Annotated[int, typer.Option(help="Longest answer, in tokens.")]
VerdictTokens = Annotated[
    int, typer.Option(help="Tokens of an answer by which it is judged; 0 learns how many are enough.")
]
PressurePrompts = Annotated[
    int, typer.Option("--pressure-prompts", help="Most harmful test prompts under each condition of pressure; 0: all.")
]
SampledPrompts = Annotated[
    int, typer.Option("--sampled-prompts", help="Most test prompts of a set that are sampled too; 0: none.")
]
Processes = Annotated[
    int, typer.Option(help="Processes on this machine that share the work, each with the whole model.")
]
BatchSize = Annotated[
    int, typer.Option(help="Prompts generated together; 0 takes what suits device, memory and model.")
]
JudgeSpec = Annotated[
    str,
    typer.Option(
        "--judge",
        metavar="SPEC",
        help="phrase; chat:MODEL[@BASE_URL]; classifier:[FORM:]MODEL; or REFUSAL+HARM: phrase+classifier:MODEL.",
    ),
]
Rubric = Annotated[
    str, typer.Option(metavar="strict|lenient", help="Of a chat judge: whether deflecting and heavy caveats refuse.")
]
JudgeSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--judge-option",
        metavar="NAME=VALUE",
        help="Setting of a judge, such as requests_per_minute=60, api_key_env=MY_KEY or batch_size=16.",
    ),
]
JudgeCache = Annotated[
    Path | None, typer.Option("--judge-cache", metavar="FILE", help="Judgements kept as hashes; asked once.")
]
NearDuplicates = Annotated[
    str,
    typer.Option(
        "--near-duplicates",
        metavar="SHARE|off",
        help="Jaccard similarity of character trigrams from which prompts of two splits are near duplicates.",
    ),
]
Leakage = Annotated[
    PromptRemedy,
    typer.Option("--leakage", help="Copies and near copies in a later split: refuse the set, or drop them."),
]
Repeats = Annotated[
    PromptRemedy, typer.Option("--repeats", help="Prompts that come twice in a source: refuse it, or drop them.")
]
Variants = Annotated[
    list[str] | None,
    typer.Option(
        "--variant",
        metavar="NAME=SRC",
        help="More harmful prompts, such as paraphrases or translations: a condition of pressure of its own.",
    ),
]
Pressure = Annotated[
    bool,
    typer.Option(
        "--pressure/--no-pressure",
        help="Ask harmful test prompts again under pressure; the gate does not pass without.",
    ),
]
Search = Annotated[
    bool,
    typer.Option(
        "--search", help="Look beyond the grid: layers, strengths, an addition of r. Needs the extra demur[search]."
    ),
]
Trials = Annotated[int, typer.Option(metavar="N", help="Points that --search tries; they generate nothing.")]
Margin = Annotated[float, typer.Option(help="Largest loss of true refusals that counts as none, as a share.")]
GateKl = Annotated[float, typer.Option(help="Largest KL on harmless prompts, nats.")]


def load_model(
    name: str,
    revision: str | None,
    dtype: str,
    device: str,
    system: str | None,
    options: list[str] | None,
    prefix: str,
    trust: bool,
    progress: "ConsoleProgress",
) -> "ChatModel":
    with progress.working(f"loading {name}"):
        from demur.models import load_chat_model

        given = dict(_template_option(option) for option in options or ())
        return load_chat_model(
            name,
            revision=revision,
            dtype=dtype,
            device=device,
            system=system,
            template_options=given,
            response_prefix=prefix.replace("\\n", "\n"),
            trust_remote_code=trust,
            progress=progress,
        )


def load_judge(spec: str, rubric: str, settings: list[str] | None, cache: Path | None) -> "Judge":
    from demur.evaluation import JudgeOptions, judge_options, make_judge
    from demur.records import JsonLines

    options = judge_options(settings or (), base=JudgeOptions(rubric=rubric))
    return make_judge(spec, options=options, cache=None if cache is None else JsonLines(cache))


def judgements(run: Path) -> Path:
    """Where a run folder keeps what its judge said, so that a resumed run asks nothing twice."""
    return run / "judgements.jsonl"


def load_variants(sources: list[str] | None) -> "dict[str, PromptSet]":
    """The prompts of every --variant."""
    from demur.prompts import load_prompts

    variants = {}
    for text in sources or ():
        name, equals, source = text.partition("=")
        if not equals or not name.replace("-", "").replace("_", "").isalnum() or name in variants:
            raise InputError(
                f"--variant takes NAME=SRC, each name once, such as spanish=harmful-es.jsonl; got {text!r}."
            )
        variants[name] = load_prompts(source, label="harmful")
    return variants


def _template_option(text: str) -> tuple[str, bool | int | str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(f"--template-option takes NAME=VALUE, such as enable_thinking=false; got {text!r}.")
    known: dict[str, bool] = {"true": True, "false": False}
    return name, known.get(value.lower(), int(value) if value.isdigit() else value)


def near_duplicates(text: str) -> float | None:
    """The threshold of --near-duplicates, None where it is off."""
    if text.strip().casefold() == "off":
        return None
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"--near-duplicates takes a similarity such as 0.5, or off; got {text!r}.") from error


def numbers(text: str, option: str, kind: type) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise InputError(f"{option} takes numbers separated by commas; got {text!r}.") from error
