"""`demur audit`: how brittle is a model's refusal?"""

# ruff: noqa: PLC0415, FBT002
from pathlib import Path
from typing import Annotated, Any

import typer

from demur.cli._audit_extras import Base, Other, SuffixFile, audit_extras
from demur.cli._console import Out
from demur.cli._defaults import in_run_folder
from demur.cli._options import (
    DatedFolder,
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
    Variants,
    app,
    load_judge,
    load_model,
    load_variants,
    numbers,
)
from demur.cli._options import (
    near_duplicates as threshold,
)
from demur.records import Audit

_MARKS = {"severe": "bold red", "high": "red", "moderate": "yellow", "low": "dim", "held": "green"}


@app.command()
def audit(
    model: ModelName,
    harmful: Harmful,
    harmless: Harmless,
    folder: DatedFolder = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Calibration that gives the refusal direction; else it is found here.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="SECTION,...", help="Of ladder, learned, strength, conditions, depth, fine-tuning; default: all."
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer prompts, ranks and steps: a first look.")] = False,
    variant: Variants = None,
    suffixes: SuffixFile = None,
    base: Base = None,
    other: Other = None,
    ranks: Annotated[str | None, typer.Option(help="Directions ablated together, such as 1,2,4,8.")] = None,
    n_test: Annotated[int | None, typer.Option(help="Most test prompts of each set for a rate.")] = None,
    n_curve: Annotated[int | None, typer.Option(help="The same for curves and conditions.")] = None,
    learning_steps: Annotated[int | None, typer.Option(help="Steps of each gradient-trained start.")] = None,
    restarts: Annotated[int | None, typer.Option(help="Starts of the gradient-trained direction.")] = None,
    tuning_steps: Annotated[int | None, typer.Option(help="Most steps of the harmless fine-tuning.")] = None,
    tuning_learning_rate: Annotated[float | None, typer.Option(help="Of the harmless fine-tuning.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Prompts generated together.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of random controls, starts and intervals.")] = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    system: System = None,
    template_option: TemplateOptions = None,
    response_prefix: ResponsePrefix = "",
    trust_remote_code: RemoteCode = False,
    near_duplicates: NearDuplicates = "0.5",
    leakage: Leakage = PromptRemedy.refuse,
    repeats: Repeats = PromptRemedy.refuse,
    judge: JudgeSpec = "phrase",
    rubric: Rubric = "strict",
    judge_option: JudgeSettings = None,
    judge_cache: JudgeCache = None,
    as_json: Json = False,
) -> int:
    """Attack a model's refusal in memory: ablation, trained directions, doses, conditions, fine-tuning. Counts only."""
    out = Out(as_json=as_json)
    with out.progress(folder) as progress:
        with progress.working("reading options and prompts", quiet=True):
            from demur.assurance import AuditSettings, sections_of
            from demur.assurance import audit as run_audit
            from demur.prompts import load_prompt_sets

            given: dict[str, Any] = {
                "ranks": None if ranks is None else numbers(ranks, "--ranks", int),
                "n_test": n_test,
                "n_curve": n_curve,
                "learning_steps": learning_steps,
                "restarts": restarts,
                "tuning_steps": tuning_steps,
                "tuning_learning_rate": tuning_learning_rate,
                "max_new_tokens": max_new_tokens,
                "batch_size": batch_size,
                "seed": seed,
            }
            chosen = {name: value for name, value in given.items() if value is not None}
            settings = AuditSettings.quick(**chosen) if quick else AuditSettings(**chosen)
            sections = sections_of(only)
            prompts = load_prompt_sets(
                harmful=harmful,
                harmless=harmless,
                near_duplicates=threshold(near_duplicates),
                leakage=leakage.value,
                repeats=repeats.value,
            )
            variants = load_variants(variant)
            judging = load_judge(judge, rubric, judge_option, judge_cache)
        chat = load_model(
            model, revision, dtype, device, system, template_option, response_prefix, trust_remote_code, progress
        )
        extras = audit_extras(
            chat,
            prompts,
            suffixes=suffixes,
            base=base,
            other=other,
            run=run,
            settings=settings,
            judge=judging,
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )

        def attempt(folder: Path) -> Audit:
            return run_audit(
                chat,
                prompts,
                out=folder,
                run=run,
                settings=settings,
                sections=sections,
                variants=variants,
                judge=judging,
                progress=progress,
                **extras,
            )

        folder, record = in_run_folder(folder, model, "audit", out, attempt)
    _show(out, record)
    out.pages(folder)
    out.json(record.model_dump(mode="json", by_alias=True))
    return 0


def _show(out: Out, record: Audit) -> None:
    for finding in record.findings:
        style = _MARKS[finding.severity]
        out.results.print(f"[{style}]{finding.severity.ljust(8)}[/] ", end="", highlight=False)
        out.say(finding.title)
        out.say(f"         {finding.evidence}")
    for warning in record.warnings:
        out.say(f"warning: {warning}")
    findings = [f"{finding.severity}: {finding.title}" for finding in record.findings]
    out.decided(f"{len(findings)} findings", findings, record.warnings)
