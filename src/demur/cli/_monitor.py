"""`demur monitor`: fit what watches a live model's refusal."""

# ruff: noqa: PLC0415, FBT002
from pathlib import Path
from typing import Annotated

import typer

from demur.cli._console import Out
from demur.cli._defaults import new_folder
from demur.cli._options import (
    Device,
    Dtype,
    Harmful,
    Harmless,
    Json,
    Leakage,
    ModelName,
    NearDuplicates,
    PromptRemedy,
    RemoteCode,
    Repeats,
    ResponsePrefix,
    Revision,
    System,
    TemplateOptions,
    app,
    load_model,
)
from demur.cli._options import near_duplicates as threshold
from demur.records import MonitorRecord
from demur.reports import monitor_lines


@app.command()
def monitor(
    model: ModelName,
    harmful: Harmful,
    harmless: Harmless,
    to: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder of monitor.json, monitor.safetensors and their page. Without one: a new one, "
            "demur-runs/MODEL-monitor-DATE.",
        ),
    ] = None,
    borderline: Annotated[
        str | None, typer.Option(metavar="SRC", help="Prompts that look unsafe but are fine; they must not be flagged.")
    ] = None,
    suppressed: Annotated[
        str | None,
        typer.Option(
            metavar="SRC",
            help="Prompts whose refusal is suppressed, such as harmful test prompts with adversarial suffixes: how "
            "many are flagged? They set nothing.",
        ),
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Calibration that gives r and w'; without one r is found here.")
    ] = None,
    rate: Annotated[
        float, typer.Option("--false-positive-rate", help="Of every flag, for each kind of prompts it must spare.")
    ] = 0.05,
    answers: Annotated[
        int, typer.Option(help="Test prompts of each kind along whose answers r is read; 0: none.")
    ] = 32,
    max_new_tokens: Annotated[int, typer.Option(help="Longest of those answers, in tokens.")] = 32,
    batch_size: Annotated[int, typer.Option(help="Prompts in one pass.")] = 32,
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
    as_json: Json = False,
) -> int:
    """Fit a monitor: reads refusal of a live model, flags prompts that look harmful and lose their refusal."""
    out = Out(as_json=as_json)
    folder = new_folder(to, model, "monitor")
    with out.progress(folder) as progress:
        with progress.working("reading options and prompts", quiet=True):
            from demur.assurance import MonitorSettings, fit_monitor
            from demur.prompts import load_prompt_sets, load_prompts

            settings = MonitorSettings(rate=rate, batch_size=batch_size, answers=answers, max_new_tokens=max_new_tokens)
            prompts = load_prompt_sets(
                harmful=harmful,
                harmless=harmless,
                borderline=borderline,
                near_duplicates=threshold(near_duplicates),
                leakage=leakage.value,
                repeats=repeats.value,
            )
            settings.check(prompts)
            given = None if suppressed is None else load_prompts(suppressed, label="harmful", repeats=repeats.value)
        chat = load_model(
            model, revision, dtype, device, system, template_option, response_prefix, trust_remote_code, progress
        )
        record = fit_monitor(chat, prompts, out=folder, run=run, suppressed=given, settings=settings, progress=progress)
    _show(out, record, folder)
    return 0


def _show(out: Out, record: MonitorRecord, folder: Path) -> None:
    for line in monitor_lines(record):
        out.say(line)
    out.decided("none, a monitor")
    out.pages(folder, word="page")
    out.json(record.model_dump(mode="json", by_alias=True))
