"""What an audit can look at beside attacks: suffixes, the base model, another model's direction."""

# ruff: noqa: PLC0415
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from demur.cli._suffixes import read_suffixes
from demur.types import PromptLabel

if TYPE_CHECKING:
    from demur.assurance import AuditSettings
    from demur.cli._progress import ConsoleProgress
    from demur.evaluation import Judge
    from demur.models import ChatModel
    from demur.prompts import PromptSet

SuffixFile = Annotated[
    Path | None,
    typer.Option("--suffixes", metavar="FILE", help="Text file with one suffix on each line, to analyse as well."),
]
Base = Annotated[
    str | None,
    typer.Option("--base", metavar="MODEL", help="Base model of MODEL: where along the layers does refusal appear?"),
]
Other = Annotated[
    str | None,
    typer.Option("--other", metavar="MODEL", help="Another model of the same shape: does its direction work here?"),
]


def audit_extras(
    chat: "ChatModel",
    prompts: "Mapping[PromptLabel, PromptSet]",
    *,
    suffixes: Path | None,
    base: str | None,
    other: str | None,
    run: Path | None,
    settings: "AuditSettings",
    judge: "Judge",
    dtype: str,
    device: str,
    trust_remote_code: bool,
    progress: "ConsoleProgress",
) -> dict[str, Any]:
    """The arguments `suffixes`, `base` and `transfer` of an audit, as far as they were asked for."""
    from demur.assurance import PairSettings, SuffixSettings, analyse_suffixes, compare_base, directions_of, transfer
    from demur.models import load_base_model, load_chat_model

    texts = read_suffixes(suffixes)
    if not texts and base is None and other is None:
        return {}
    shared: dict[str, Any] = {
        "max_new_tokens": settings.max_new_tokens,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
    }
    pair = PairSettings(n_train=settings.n_fit, n_test=settings.n_test, **shared)
    loading: dict[str, Any] = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    directions = directions_of(chat, prompts, run=run, progress=progress)
    found: dict[str, Any] = {}
    if texts:
        told = SuffixSettings(n_prompts=settings.n_test, **shared)
        found["suffixes"] = analyse_suffixes(
            chat, prompts, directions, suffixes=texts, settings=told, judge=judge, progress=progress
        )
    if base is not None:
        with progress.working(f"loading {base}"):
            model = load_base_model(base, chat, **loading)
        found["base"] = compare_base(chat, model, prompts, directions, settings=pair, progress=progress)
        del model
    if other is not None:
        template = chat.template
        with progress.working(f"loading {other}"):
            model = load_chat_model(
                other,
                system=template.system,
                template_options=template.options,
                response_prefix=template.response_prefix,
                **loading,
            )
        found["transfer"] = transfer(
            model,
            chat,
            prompts,
            directions_of(model, prompts, progress=progress),
            target_directions=directions,
            settings=pair,
            judge=judge,
            progress=progress,
        )
    return found
