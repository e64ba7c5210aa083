"""The commands of the main job. Each one reads its options, makes one library call, and writes what came back.

Libraries that load torch are imported inside the commands: `demur --help`, `report` and `select` start at once.
"""

# ruff: noqa: PLC0415, FBT002
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from demur.cli._console import Out
from demur.cli._defaults import in_run_folder, next_lines, prompt_sources
from demur.cli._helpers import sharing_cores
from demur.cli._options import (
    EXIT_CODES,
    BatchSize,
    DatedFolder,
    Device,
    Dtype,
    GateKl,
    Json,
    JudgeSettings,
    JudgeSpec,
    Leakage,
    Margin,
    MaxNewTokens,
    ModelName,
    NearDuplicates,
    OptionalBorderline,
    OptionalHarmful,
    OptionalHarmless,
    Pressure,
    PressurePrompts,
    Processes,
    PromptRemedy,
    RemoteCode,
    Repeats,
    ResponsePrefix,
    Revision,
    Rubric,
    SampledPrompts,
    Search,
    System,
    TemplateOptions,
    Trials,
    Variants,
    VerdictTokens,
    app,
    judgements,
    load_judge,
    load_model,
    load_variants,
    near_duplicates,
    numbers,
)
from demur.records import RunFolder, Summary
from demur.reports import write_pages, write_reports


class Format(StrEnum):
    """Forms of an export."""

    adapter = "adapter"
    merged = "merged"


def finish(out: Out, summary: Summary, run: Path) -> int:
    """Report, table, JSON and exit code of a measured run."""
    with out.working("writing the report", quiet=True):
        html, _ = write_reports(run)
    out.summary(summary)
    out.say(f"report: {html}")
    if summary.kind == "calibration":
        for line in next_lines(summary, run):
            out.say(line)
    out.json(summary.model_dump(mode="json", by_alias=True))
    return EXIT_CODES[summary.gate.decision] if summary.gate is not None else 0


@app.command()
def calibrate(
    model: ModelName,
    harmful: OptionalHarmful = None,
    harmless: OptionalHarmless = None,
    borderline: OptionalBorderline = None,
    run: DatedFolder = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    system: System = None,
    template_option: TemplateOptions = None,
    response_prefix: ResponsePrefix = "",
    trust_remote_code: RemoteCode = False,
    near: NearDuplicates = "0.5",
    leakage: Leakage = PromptRemedy.refuse,
    repeats: Repeats = PromptRemedy.refuse,
    variant: Variants = None,
    judge: JudgeSpec = "phrase",
    rubric: Rubric = "strict",
    judge_option: JudgeSettings = None,
    lambdas: Annotated[str | None, typer.Option(help="Grid of lambda, such as 1,0.9,0.8.")] = None,
    search: Search = False,
    trials: Trials = 200,
    refusal_tokens: Annotated[str | None, typer.Option(help="Token ids of the refusal score, such as 40,2121.")] = None,
    refusal_threshold: Annotated[
        float | None,
        typer.Option(help="Refusal score from which a prompt counts as refused; learned if not given, 0 as published."),
    ] = None,
    verdict_tokens: VerdictTokens = 0,
    pressure: Pressure = True,
    margin: Margin = 0.02,
    gate_kl_limit: GateKl = 0.1,
    kl_limit: Annotated[float, typer.Option(help="KL limit of refusal directions, nats.")] = 0.1,
    induce_minimum: Annotated[
        float | None,
        typer.Option(help="Smallest induce score of refusal directions; the refusal threshold if not given."),
    ] = None,
    layer_fraction: Annotated[float, typer.Option(help="Share of the layers that directions come from.")] = 0.8,
    n_train: Annotated[int, typer.Option(help="Most train prompts of each set.")] = 128,
    n_validation: Annotated[int, typer.Option(help="Most validation prompts of each set.")] = 256,
    n_pressure: PressurePrompts = 96,
    n_sampled: SampledPrompts = 96,
    processes: Processes = 1,
    max_new_tokens: MaxNewTokens = 128,
    batch_size: BatchSize = 0,
    seed: Annotated[int, typer.Option(help="Of random control directions and bootstrap intervals.")] = 0,
    as_json: Json = False,
) -> int:
    """Find both directions, choose an operating point, measure it on test prompts, decide the gate."""
    out = Out(as_json=as_json)
    with out.progress(run) as progress:
        sources = prompt_sources(harmful, harmless, borderline)
        with progress.working("reading options and prompts", quiet=True):
            from demur.calibration import CalibrationSettings
            from demur.calibration import calibrate as run_calibration
            from demur.prompts import load_prompt_sets

            defaults = CalibrationSettings()
            tokens = None if refusal_tokens is None else numbers(refusal_tokens, "--refusal-tokens", int)
            settings = CalibrationSettings(
                kl_limit=kl_limit,
                induce_minimum=induce_minimum,
                layer_fraction=layer_fraction,
                margin=margin,
                gate_kl_limit=gate_kl_limit,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                seed=seed,
                refusal_tokens=tokens,
                refusal_threshold=refusal_threshold,
                verdict_tokens=verdict_tokens,
                n_train=n_train,
                n_validation=n_validation,
                n_pressure=n_pressure,
                n_sampled=n_sampled,
                pressure=pressure,
                search=search,
                trials=trials,
                lambdas=defaults.lambdas if lambdas is None else numbers(lambdas, "--lambdas", float),
            )
            prompts = load_prompt_sets(
                harmful=sources[0],
                harmless=sources[1],
                borderline=sources[2],
                near_duplicates=near_duplicates(near),
                leakage=leakage.value,
                repeats=repeats.value,
            )
            variants = load_variants(variant)
        with sharing_cores(processes):
            chat = load_model(
                model, revision, dtype, device, system, template_option, response_prefix, trust_remote_code, progress
            )

            def attempt(folder: Path) -> Summary:
                with progress.working("loading the judge", quiet=True):
                    verdicts = load_judge(judge, rubric, judge_option, judgements(folder))
                return run_calibration(
                    chat, prompts, out=folder, variants=variants, settings=settings, judge=verdicts, progress=progress
                )

            run, summary = in_run_folder(run, model, "calibrate", out, attempt)
    return finish(out, summary, run)


@app.command()
def evaluate(
    model: ModelName,
    harmful: OptionalHarmful = None,
    harmless: OptionalHarmless = None,
    borderline: OptionalBorderline = None,
    folder: DatedFolder = None,
    run: Annotated[Path | None, typer.Option("--run", help="Calibration whose operating point is applied.")] = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    system: System = None,
    template_option: TemplateOptions = None,
    response_prefix: ResponsePrefix = "",
    trust_remote_code: RemoteCode = False,
    near: NearDuplicates = "0.5",
    leakage: Leakage = PromptRemedy.refuse,
    repeats: Repeats = PromptRemedy.refuse,
    variant: Variants = None,
    judge: JudgeSpec = "phrase",
    rubric: Rubric = "strict",
    judge_option: JudgeSettings = None,
    verdict_tokens: VerdictTokens = 0,
    pressure: Pressure = True,
    n_pressure: PressurePrompts = 96,
    n_sampled: SampledPrompts = 96,
    margin: Margin = 0.02,
    gate_kl_limit: GateKl = 0.1,
    max_new_tokens: MaxNewTokens = 128,
    batch_size: BatchSize = 0,
    as_json: Json = False,
) -> int:
    """Measure a model on test prompts without choosing anything; with --run, before and after its operating point."""
    out = Out(as_json=as_json)
    with out.progress(folder) as progress:
        sources = prompt_sources(harmful, harmless, borderline)
        with progress.working("reading options and prompts", quiet=True):
            from demur.calibration import CalibrationSettings
            from demur.calibration import evaluate as run_evaluation
            from demur.prompts import TESTED, load_prompt_sets

            settings = CalibrationSettings(
                margin=margin,
                gate_kl_limit=gate_kl_limit,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                verdict_tokens=verdict_tokens,
                n_pressure=n_pressure,
                n_sampled=n_sampled,
                pressure=pressure,
            )
            prompts = load_prompt_sets(
                harmful=sources[0],
                harmless=sources[1],
                borderline=sources[2],
                minimum=TESTED,
                near_duplicates=near_duplicates(near),
                leakage=leakage.value,
                repeats=repeats.value,
            )
            variants = load_variants(variant)
        chat = load_model(
            model, revision, dtype, device, system, template_option, response_prefix, trust_remote_code, progress
        )

        def attempt(folder: Path) -> Summary:
            with progress.working("loading the judge", quiet=True):
                verdicts = load_judge(judge, rubric, judge_option, judgements(folder))
            return run_evaluation(
                chat,
                prompts,
                out=folder,
                run=run,
                variants=variants,
                settings=settings,
                judge=verdicts,
                progress=progress,
            )

        folder, summary = in_run_folder(folder, model, "evaluate", out, attempt)
    return finish(out, summary, folder)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a calibration whose gate passed.")],
    form: Annotated[Format, typer.Option("--format", help="LoRA adapter or merged checkpoint.")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="New or empty folder.")],
    low_memory: Annotated[
        bool,
        typer.Option("--low-memory", help="Edit the checkpoint on disk, shard by shard; merged only."),
    ] = False,
    as_json: Json = False,
) -> int:
    """Write the calibrated model, if its gate passed, and check it after reloading."""
    out = Out(as_json=as_json)
    folder = RunFolder(run)
    layout = folder.read_summary().layout if folder.summary.exists() else None
    if layout is not None and layout.verdict == "removed_not_identical":
        out.note(
            "this model has a norm after its writes: the exported weights remove the direction exactly, but are not "
            f"the same as removing it at run time (logits differ by up to {layout.fold_difference:.2g}). What was "
            "measured, and what the gate decided on, is the exported form."
        )
    with out.working(f"exporting the {form.value}", quiet=True):
        from demur.calibration import export as run_export

        record = run_export(run, form=form.value, to=to, low_memory=low_memory)
    check = "Not reloaded."
    if record.logit_difference is not None:
        check = (
            f"Reloaded in a fresh process: largest logit difference {record.logit_difference:.2g}, "
            f"{record.identical_answers} of {record.checked_prompts} answers identical."
        )
    out.say(f"{form.value} written to {to}. {check}")
    out.json(record.model_dump(mode="json", by_alias=True))
    return 0


@app.command()
def inspect(
    model: ModelName,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    system: System = None,
    template_option: TemplateOptions = None,
    response_prefix: ResponsePrefix = "",
    trust_remote_code: RemoteCode = False,
    as_json: Json = False,
) -> int:
    """List and prove every writer of the residual stream; say how exact an edit of the weights is."""
    from demur.errors import LayoutError
    from demur.records import Inspection

    out = Out(as_json=as_json)
    with out.progress() as progress:
        try:
            chat = load_model(
                model, revision, dtype, device, system, template_option, response_prefix, trust_remote_code, progress
            )
            with progress.working("comparing hooks with folded weights", quiet=True):
                from demur.interventions import inspect_model

                inspection = inspect_model(chat)
        except LayoutError as error:
            inspection = Inspection(
                model=model, architecture="", dtype=dtype, verdict="not_supported", reason=str(error)
            )
    out.inspection(inspection)
    out.json(inspection.model_dump(mode="json", by_alias=True))
    return LayoutError.exit_code if inspection.verdict == "not_supported" else 0


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, an audit, a drift, a suite or a gate.")],
    as_json: Json = False,
) -> int:
    """Rebuild the report, as HTML and as markdown, from the records; loads no model."""
    out = Out(as_json=as_json)
    with out.working("writing the report", quiet=True):
        pages = write_pages(run)
        html, markdown = pages[0] if pages and not RunFolder(run).summary.exists() else write_reports(run)
    for each in dict.fromkeys((html, *(page for page, _ in pages))):
        out.say(f"report: {each}")
    out.json({"html": str(html), "markdown": str(markdown)})
    return 0


@app.command()
def select(
    scores: Annotated[Path, typer.Argument(metavar="SCORES.json", help="Table of candidate scores.")],
    kl_limit: Annotated[float, typer.Option(help="Largest KL, nats.")] = 0.1,
    induce_minimum: Annotated[float, typer.Option(help="Smallest induce score.")] = 0.0,
    layer_fraction: Annotated[float, typer.Option(help="Share of the layers that directions come from.")] = 0.8,
    as_json: Json = False,
) -> int:
    """Apply the published selection rule to a table of scores."""
    from demur.calibration import read_score_table, select_refusal_direction

    table = read_score_table(scores)
    selection = select_refusal_direction(
        table.rows,
        n_layers=table.n_layers,
        kl_limit=kl_limit,
        induce_minimum=induce_minimum,
        layer_fraction=layer_fraction,
    )
    chosen = selection.selected
    out = Out(as_json=as_json)
    out.say(
        f"position {chosen.position}, layer {chosen.layer}: bypass {chosen.bypass_score:.3f}, induce "
        f"{chosen.induce_score:.3f}, KL {chosen.kl_score:.4f}; {selection.survivors} of {len(table.rows)} candidates "
        "pass the filters"
    )
    out.json(
        {
            "position": chosen.position,
            "layer": chosen.layer,
            "survivors": selection.survivors,
            "candidates": len(table.rows),
            "bypass_score": chosen.bypass_score,
            "induce_score": chosen.induce_score,
            "kl_score": chosen.kl_score,
        }
    )
    return 0
