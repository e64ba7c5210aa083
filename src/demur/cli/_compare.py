"""`demur compare-methods`: the baselines and demur in one table."""

# ruff: noqa: PLC0415, FBT002
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table as ConsoleTable

from demur.cli._console import Out
from demur.cli._defaults import in_run_folder, prompt_sources
from demur.cli._options import (
    DatedFolder,
    Device,
    Dtype,
    Json,
    JudgeCache,
    JudgeSettings,
    JudgeSpec,
    Leakage,
    ModelName,
    NearDuplicates,
    OptionalBorderline,
    OptionalHarmful,
    OptionalHarmless,
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
from demur.records import MethodsTable
from demur.reports import Table, methods_tables, write_methods_report


@app.command("compare-methods")
def compare_methods(
    model: ModelName,
    harmful: OptionalHarmful = None,
    harmless: OptionalHarmless = None,
    borderline: OptionalBorderline = None,
    folder: DatedFolder = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Calibration of this model; without one demur calibrates here.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Rows to measure, separated by commas, such as self-cd,scans,demur.")
    ] = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    system: System = None,
    template_option: TemplateOptions = None,
    response_prefix: ResponsePrefix = "",
    trust_remote_code: RemoteCode = False,
    margin: Annotated[float | None, typer.Option(help="As in calibrate; by default that of --run.")] = None,
    gate_kl_limit: Annotated[float | None, typer.Option(help="As in calibrate; by default that of --run.")] = None,
    kl_limit: Annotated[float | None, typer.Option(help="As in calibrate; by default that of --run.")] = None,
    induce_minimum: Annotated[float | None, typer.Option(help="As in calibrate; by default that of --run.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="As in calibrate; by default that of --run.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="As in calibrate; by default that of --run.")] = None,
    near_duplicates: NearDuplicates = "0.5",
    leakage: Leakage = PromptRemedy.refuse,
    repeats: Repeats = PromptRemedy.refuse,
    judge: JudgeSpec = "phrase",
    rubric: Rubric = "strict",
    judge_option: JudgeSettings = None,
    judge_cache: JudgeCache = None,
    as_json: Json = False,
) -> int:
    """Compare methods against false refusals: prompts, steering, decoding, demur. Same prompts, same judge, paired."""
    out = Out(as_json=as_json)
    with out.progress(folder) as progress:
        sources = prompt_sources(harmful, harmless, borderline)
        with progress.working("reading options and prompts", quiet=True):
            from demur.calibration import CalibrationSettings, method_names, settings_of
            from demur.calibration import compare_methods as run_comparison
            from demur.prompts import load_prompt_sets
            from demur.records import RunFolder

            given: dict[str, Any] = {
                "margin": margin,
                "gate_kl_limit": gate_kl_limit,
                "kl_limit": kl_limit,
                "induce_minimum": induce_minimum,
                "max_new_tokens": max_new_tokens,
                "batch_size": batch_size,
            }
            names = None if methods is None else [name.strip() for name in methods.split(",") if name.strip()]
            method_names(names)  # a typo is told before a model is loaded
            settings = CalibrationSettings() if run is None else settings_of(RunFolder(run))
            settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
            prompts = load_prompt_sets(
                harmful=sources[0],
                harmless=sources[1],
                borderline=sources[2],
                near_duplicates=threshold(near_duplicates),
                leakage=leakage.value,
                repeats=repeats.value,
            )
            judging = load_judge(judge, rubric, judge_option, judge_cache)
        chat = load_model(
            model, revision, dtype, device, system, template_option, response_prefix, trust_remote_code, progress
        )

        def attempt(folder: Path) -> MethodsTable:
            return run_comparison(
                chat, prompts, out=folder, run=run, settings=settings, judge=judging, methods=names, progress=progress
            )

        folder, table = in_run_folder(folder, model, "compare-methods", out, attempt)
    _show(out, table)
    with out.working("writing the report", quiet=True):
        page = write_methods_report(folder)
    out.say(f"report: {page}")
    out.json(table.model_dump(mode="json", by_alias=True))
    return 0


def _show(out: Out, table: MethodsTable) -> None:
    rates, differences, properties = methods_tables(table)
    for each in (rates, differences):
        out.say(each.caption)
        out.results.print(_drawn(each))
    for row in properties.rows:
        name, what, *facts = (cell.text for cell in row)
        said = ", ".join(f"{heading}: {fact}" for heading, fact in zip(properties.columns[2:], facts, strict=True))
        out.say(f"{name}: {what} [{said}]")
    for warning in table.warnings:
        out.say(f"warning: {warning}")
    out.decided("none, a comparison", (), table.warnings)
    for skipped, reason in table.skipped.items():
        out.say(f"{skipped} was not measured: {reason}")


def _drawn(table: Table) -> ConsoleTable:
    drawn = ConsoleTable(show_edge=False, pad_edge=False)
    for heading in table.columns:
        drawn.add_column(heading, overflow="fold")
    for row in table.rows:
        drawn.add_row(*(escape("\n".join((cell.text, *cell.details))) for cell in row))
    return drawn
