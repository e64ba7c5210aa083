"""`demur suffixes`: what suffixes do to refusal."""

# ruff: noqa: PLC0415, FBT002
from pathlib import Path
from typing import Annotated

import typer

from demur.cli._console import Out
from demur.cli._options import (
    Device,
    Dtype,
    Harmful,
    Harmless,
    Json,
    JudgeCache,
    JudgeSettings,
    JudgeSpec,
    Leakage,
    ModelName,
    NearDuplicates,
    PromptRemedy,
    RemoteCode,
    Repeats,
    ResponsePrefix,
    Revision,
    Rubric,
    System,
    TemplateOptions,
    app,
    load_judge,
    load_model,
)
from demur.cli._options import near_duplicates as threshold
from demur.errors import InputError
from demur.records import SuffixAnalysis
from demur.reports import suffix_verdict


@app.command("suffixes")
def suffixes(
    model: ModelName,
    harmful: Harmful,
    harmless: Harmless,
    folder: Annotated[Path, typer.Option("--out", metavar="DIR", help="Gets suffixes.json and its page.")],
    run: Annotated[
        Path | None, typer.Option("--run", help="Calibration that gives r; without one r is found from the prompts.")
    ] = None,
    suffix: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Put after harmful prompts; may be given several times."),
    ] = None,
    suffixes_file: Annotated[
        Path | None, typer.Option("--suffixes", metavar="FILE", help="Text file with one suffix on each line.")
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Search a suffix by gradient; the toy model that ships with demur only.")
    ] = False,
    n_prompts: Annotated[int, typer.Option(metavar="N", help="Most harmful and most harmless test prompts.")] = 128,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 128,
    batch_size: Annotated[int, typer.Option(help="Prompts read or answered together.")] = 32,
    near_duplicates: NearDuplicates = "0.5",
    leakage: Leakage = PromptRemedy.refuse,
    repeats: Repeats = PromptRemedy.refuse,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    system: System = None,
    template_option: TemplateOptions = None,
    response_prefix: ResponsePrefix = "",
    trust_remote_code: RemoteCode = False,
    judge: JudgeSpec = "phrase",
    rubric: Rubric = "strict",
    judge_option: JudgeSettings = None,
    judge_cache: JudgeCache = None,
    as_json: Json = False,
) -> int:
    """Measure what suffixes do to refusal: rates, the refusal direction over layers, heads and their attention."""
    out = Out(as_json=as_json)
    with out.progress(folder) as progress:
        with progress.working("reading options and prompts", quiet=True):
            from demur.assurance import (
                SuffixSearchSettings,
                SuffixSettings,
                analyse_suffixes,
                directions_of,
                require_toy,
            )
            from demur.prompts import load_prompt_sets

            texts = [*(suffix or ()), *read_suffixes(suffixes_file)]
            if not texts and not search:
                raise InputError("give a suffix with --suffix or --suffixes; on the toy model --search finds one.")
            settings = SuffixSettings(
                n_prompts=n_prompts,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                search=SuffixSearchSettings() if search else None,
            )
            prompts = load_prompt_sets(
                harmful=harmful,
                harmless=harmless,
                near_duplicates=threshold(near_duplicates),
                leakage=leakage.value,
                repeats=repeats.value,
            )
            verdicts = load_judge(judge, rubric, judge_option, judge_cache)
        chat = load_model(
            model, revision, dtype, device, system, template_option, response_prefix, trust_remote_code, progress
        )
        if search:
            require_toy(chat)
        directions = directions_of(chat, prompts, run=run, progress=progress)
        record = analyse_suffixes(
            chat, prompts, directions, suffixes=texts, settings=settings, judge=verdicts, out=folder, progress=progress
        )
    _show(out, record)
    out.decided(suffix_verdict(record))
    out.pages(folder, only="suffixes")
    out.json(record.model_dump(mode="json", by_alias=True))
    return 0


def read_suffixes(path: Path | None) -> list[str]:
    """The lines of a text file that hold something.

    Raises:
        InputError: the file cannot be read, or holds no suffix.
    """
    if path is None:
        return []
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read the suffixes in {path}: {error}. Give a text file, one suffix a line."
        ) from error
    if not lines:
        raise InputError(f"{path} holds no suffix; write one on each line.")
    return lines


def _show(out: Out, record: SuffixAnalysis) -> None:
    out.say(suffix_verdict(record))
    for group in record.groups:
        rate = group.refusal_rate
        share = "not judged" if rate.rate is None else f"{rate.rate:.1%} refused ({rate.k}/{rate.n})"
        out.say(f"  {group.what}: {share}, refusal score {group.refusal_score.mean:+.2f}")
