"""The application, the options that several commands share, and what they do with them."""

# ruff: noqa: PLC0415, FBT001
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from demur.errors import InputError

if TYPE_CHECKING:
    from demur.models import ChatModel

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

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, everything else on stderr.")]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Hub id or local folder.")]
Source = "JSONL, JSON, CSV, Parquet or text file (FILE or FILE:column), or hf://dataset[/config]?split=..&column=.."
Harmful = Annotated[str, typer.Option(metavar="SRC", help=f"Prompts that should be refused. {Source}")]
Harmless = Annotated[str, typer.Option(metavar="SRC", help="Plainly fine prompts.")]
Borderline = Annotated[str, typer.Option(metavar="SRC", help="Prompts that look unsafe but are fine.")]
OutFolder = Annotated[Path, typer.Option("--out", metavar="RUN", help="Run folder; continued if it is unfinished.")]
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
BatchSize = Annotated[int, typer.Option(help="Prompts generated together.")]
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
) -> "ChatModel":
    from demur.models import load_chat_model

    return load_chat_model(
        name,
        revision=revision,
        dtype=dtype,
        device=device,
        system=system,
        template_options=dict(_template_option(option) for option in options or ()),
        response_prefix=prefix.replace("\\n", "\n"),
        trust_remote_code=trust,
    )


def _template_option(text: str) -> tuple[str, bool | int | str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(f"--template-option takes NAME=VALUE, such as enable_thinking=false; got {text!r}.")
    known: dict[str, bool] = {"true": True, "false": False}
    return name, known.get(value.lower(), int(value) if value.isdigit() else value)


def numbers(text: str, option: str, kind: type) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise InputError(f"{option} takes numbers separated by commas; got {text!r}.") from error
