"""`demur capability`: tasks of an evaluation harness, before and after the operating point of a run."""

# ruff: noqa: PLC0415, FBT002
from pathlib import Path
from typing import Annotated

import typer

from demur.cli._console import Out
from demur.cli._options import (
    Device,
    Dtype,
    Json,
    ModelName,
    RemoteCode,
    ResponsePrefix,
    Revision,
    System,
    TemplateOptions,
    app,
    load_model,
)
from demur.records import CapabilityRecord, Mean, RunFolder, TaskMetric, write_record


@app.command()
def capability(
    model: ModelName,
    tasks: Annotated[
        str,
        typer.Option(
            metavar="TASK,...",
            help="mmlu, arc, gsm8k, truthfulqa, wikitext, tinybenchmarks, a task of lm-eval, or a YAML file.",
        ),
    ],
    run: Annotated[Path | None, typer.Option("--run", help="Calibration whose operating point is applied.")] = None,
    limit: Annotated[int | None, typer.Option(help="Most samples of a task.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(help="Examples before each question.")] = None,
    chat_template: Annotated[bool, typer.Option(help="Put questions through the chat template.")] = True,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep responses here, by model and operating point.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Requests in one forward pass.")] = 16,
    seed: Annotated[int, typer.Option(help="Of few-shot examples and bootstrap intervals.")] = 0,
    to: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the record here.")] = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    system: System = None,
    template_option: TemplateOptions = None,
    response_prefix: ResponsePrefix = "",
    trust_remote_code: RemoteCode = False,
    as_json: Json = False,
) -> int:
    """Measure what the model can do; with --run, before and after its operating point, sample by sample."""
    out = Out(as_json=as_json)
    with out.progress(log=None if to is None else to.with_suffix(".log.txt")) as progress:
        with progress.working("reading options and prompts", quiet=True):
            from demur.calibration import load_operating_point
            from demur.capability import measure_capability

            names = [name.strip() for name in tasks.split(",") if name.strip()]
        chat = load_model(
            model, revision, dtype, device, system, template_option, response_prefix, trust_remote_code, progress
        )
        intervention = None if run is None else load_operating_point(chat, RunFolder(run))[0]
        record = measure_capability(
            chat,
            names,
            intervention=intervention,
            limit=limit,
            num_fewshot=num_fewshot,
            batch_size=batch_size,
            apply_chat_template=chat_template,
            cache=cache,
            seed=seed,
            progress=progress,
        )
    if to is not None:
        write_record(to, record)
    for line in _lines(record):
        out.say(line)
    out.json(record.model_dump(mode="json", by_alias=True))
    return 0


def _lines(record: CapabilityRecord) -> list[str]:
    return [
        f"{task.name} {metric.name}{'' if metric.filter == 'none' else f' ({metric.filter})'}, n={task.n}: "
        + _change(metric)
        for task in (*record.groups, *record.tasks)
        for metric in task.metrics
    ]


def _change(metric: TaskMetric) -> str:
    if metric.after is None:
        return f"{metric.before:.4g}"
    text = f"{metric.before:.4g} before, {metric.after:.4g} after"
    if metric.comparison is not None:
        pair = metric.comparison
        text += (
            f"; {100 * pair.difference:+.1f} points ({100 * pair.low:+.1f} to {100 * pair.high:+.1f}), "
            f"{pair.lost} lost, {pair.gained} gained, p={pair.p_value:.2g}"
        )
    elif metric.samples is not None and metric.samples.difference is not None:
        unit = "nats per unit" if metric.samples.unit == "nats_per_unit" else "per sample"
        text += f"; {_interval(metric.samples.difference)} {unit}"
    return text


def _interval(mean: Mean) -> str:
    return f"{mean.mean:+.4g} ({mean.low:+.4g} to {mean.high:+.4g})"
