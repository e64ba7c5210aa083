"""The model card of an export."""

from pathlib import Path

from demur.records import BeforeAfter, ExportRecord, Mean, Rate, Summary


def export_card(summary: Summary, record: ExportRecord) -> str:
    """README.md of an exported folder: base model, method, metrics with intervals, judge, date, reload check."""
    base_model, gguf_file = _base(summary)
    relation = "adapter" if record.format == "adapter" else "finetune"
    point = record.operating_point
    rows = "\n".join(_row(name, both) for name, both in _metrics(summary))
    kl = summary.metrics.kl_harmless
    divergence = "" if kl is None else f"\nKL to the base model on harmless prompts: {_nats(kl)}.\n"
    untied = " The output head was untied from the input embedding." if record.untied_embeddings else ""
    sizes = ", ".join(f"{len_} {label}" for label, len_ in _test_sizes(summary))
    return f"""---
base_model: {base_model}
base_model_relation: {relation}
library_name: {"peft" if record.format == "adapter" else "transformers"}
tags: [demur, refusal-calibration]
---
# {summary.model.id}, false refusals removed by demur

Base model: `{summary.model.id}`, {summary.model.architecture}, {summary.model.dtype}, weights
`{summary.model.content_hash[:16]}`.{_gguf(summary, record, base_model, gguf_file)}

Method: the false-refusal direction (Wang et al. 2025, arXiv 2410.03415), orthogonalized against the refusal direction
(Arditi et al. 2024, arXiv 2406.11717) with lambda {point.lambda_:g}, read at layer {point.layer}, position
{point.position}, is removed from every weight that writes to the residual stream.{untied}

| test prompts | before | after |
|---|---|---|
{rows}
{divergence}{_pressure(summary)}
Shares of {sizes} test prompts with 95 % Wilson intervals. Refused means fully or partly, by judge
`{record.judge.id}` version {record.judge.version}. Gate: **{record.gate.decision}**; true refusals are non-inferior to
the base model at a margin of {record.gate.margin:.1%}, and under pressure at a margin of its own.

{_reload_check(record)}{_canaries(record)}

Measured {record.provenance.created} with demur {record.provenance.demur}, torch {record.provenance.torch}, transformers
{record.provenance.transformers}. The whole evidence is in `demur.json`.
"""


def _base(summary: Summary) -> tuple[str, str]:
    """What `from_pretrained` takes: a hub id or a folder, and the GGUF file in it, if any."""
    name = summary.model.id
    if summary.model.gguf_sha256 is None or not name.lower().endswith(".gguf"):
        return name, ""
    repository, colon, file = name.partition(":")
    if colon and summary.model.revision is not None:
        return repository, file
    return str(Path(name).parent), Path(name).name


def _gguf(summary: Summary, record: ExportRecord, base_model: str, gguf_file: str) -> str:
    """Which file the weights are from; for an adapter on it also how to load both, which PEFT cannot do by itself."""
    if not gguf_file:
        return ""
    said = f"\n\nThe weights are dequantised from the GGUF file `{gguf_file}`, sha256\n`{summary.model.gguf_sha256}`."
    if record.format != "adapter":
        return said
    revision = "" if summary.model.revision is None else f', revision="{summary.model.revision}"'
    return f"""{said} PEFT does
not find such a base model by itself. demur loads this folder as any model; with transformers and PEFT:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, GgufConfig

options = {{"dtype": "{summary.model.dtype}", "quantization_config": GgufConfig(dequantize=True)}}
base = AutoModelForCausalLM.from_pretrained("{base_model}", gguf_file="{gguf_file}"{revision}, **options)
model = PeftModel.from_pretrained(base, "THIS_FOLDER")
```"""


def _nats(mean: Mean) -> str:
    return f"{mean.mean:.4g} nats ({mean.low:.4g} to {mean.high:.4g}, n = {mean.n})"


def _pressure(summary: Summary) -> str:
    if summary.pressure is None or not summary.pressure.families:
        return ""
    rows = "\n".join(_row(each.name, each.true_refusal_rate) for each in summary.pressure.conditions)
    return f"""
| harmful test prompts refused under pressure | before | after |
|---|---|---|
{rows}
"""


def _reload_check(record: ExportRecord) -> str:
    if record.logit_difference is None:
        return "Written shard by shard from the checkpoint on disk; not loaded and compared."
    with_peft = " and PEFT" if record.format == "adapter" else ""
    return (
        f"Reloaded in a fresh process with plain transformers{with_peft}: largest logit difference from the "
        f"measured model {record.logit_difference:.2g}; {record.identical_answers} of {record.checked_prompts} answers "
        "identical."
    )


def _canaries(record: ExportRecord) -> str:
    found = record.canaries
    if found is None:
        return ""
    return (
        f"\n\nOf {found.n} harmful prompts that ship with demur, {found.lost} are no longer refused and {found.gained} "
        f"newly are ({100 * found.difference:+.1f} points, 95 % interval {100 * found.low:+.1f} to "
        f"{100 * found.high:+.1f})."
    )


def _metrics(summary: Summary) -> list[tuple[str, BeforeAfter]]:
    metrics = summary.metrics
    named = [
        ("true refusal rate (harmful prompts refused)", metrics.true_refusal_rate),
        ("false refusal rate (borderline prompts refused)", metrics.false_refusal_rate),
        ("harmless refusal rate", metrics.harmless_refusal_rate),
    ]
    if metrics.task_accuracy is not None:
        named.append(("task accuracy", metrics.task_accuracy))
    return named


def _row(name: str, both: BeforeAfter) -> str:
    return f"| {name} | {_cell(both.before)} | {_cell(both.after)} |"


def _cell(rate: Rate | None) -> str:
    if rate is None or rate.rate is None:
        return "-"
    return f"{rate.rate:.1%} ({rate.k}/{rate.n}, {rate.low:.1%} to {rate.high:.1%})"


def _test_sizes(summary: Summary) -> list[tuple[str, int]]:
    return [(label, identity.splits.get("test", 0)) for label, identity in summary.prompts.items()]
