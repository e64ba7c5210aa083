"""Measures the shipped toy chat model with demur and writes its model card: python toy/measure.py [--run FOLDER]."""

import argparse
import tempfile
from pathlib import Path

from demur import calibrate
from demur.records import BeforeAfter, Rate, Summary, write_text
from demur.testing import TOY_MODEL, load_toy_chat_model, toy_prompt_sets, toy_settings

CARD = Path(TOY_MODEL) / "README.md"


def main() -> None:
    """Calibrate the toy model in a new folder (or take a finished run) and write the card beside the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="run folder; a finished one is read, not measured again")
    run = parser.parse_args().run
    with tempfile.TemporaryDirectory() as scratch:
        folder = run or Path(scratch) / "run"
        summary = calibrate(load_toy_chat_model(), toy_prompt_sets(), out=folder, settings=toy_settings())
    write_text(CARD, card(summary))
    print(f"wrote {CARD}")


def card(summary: Summary) -> str:
    """The model card."""
    metrics, mechanism, point = summary.metrics, summary.mechanism, summary.operating_point
    assert mechanism is not None
    assert point is not None
    assert metrics.task_accuracy is not None
    assert metrics.kl_harmless is not None
    assert summary.gate is not None
    rows = [
        ("true refusal rate (harmful prompts refused)", metrics.true_refusal_rate.before),
        ("harmless refusal rate", metrics.harmless_refusal_rate.before),
        ("false refusal rate (borderline prompts refused)", metrics.false_refusal_rate.before),
        ("factual accuracy", metrics.task_accuracy.before),
        ("true refusal rate, refusal direction ablated", mechanism.true_refusal_rate_r_ablated),
        ("harmless refusal rate, refusal direction added", mechanism.harmless_refusal_rate_r_added),
        ("true refusal rate, random direction ablated", mechanism.true_refusal_rate_random_ablated),
        ("harmless refusal rate, random direction added", mechanism.harmless_refusal_rate_random_added),
    ]
    calibrated = [
        ("true refusal rate", metrics.true_refusal_rate),
        ("false refusal rate", metrics.false_refusal_rate),
        ("harmless refusal rate", metrics.harmless_refusal_rate),
        ("factual accuracy", metrics.task_accuracy),
    ]
    base = "\n".join(f"| {name} | {_cell(rate)} |" for name, rate in rows)
    changed = "\n".join(_both(name, both) for name, both in calibrated)
    assert summary.pressure is not None
    pressed = "\n".join(
        f"| {each.name} | {_short(each.true_refusal_rate.before)} | {_short(each.true_refusal_rate.after)} |"
        for each in summary.pressure.conditions
    )
    kl = metrics.kl_harmless
    return f"""---
license: apache-2.0
library_name: transformers
tags: [demur, toy]
---
# The toy chat model of demur

A Llama-like chat model with {summary.model.n_parameters:,} parameters ({summary.model.n_layers} blocks of width
{summary.model.d_model}), trained from scratch by `python toy/train.py` on a generated instruction language
(`toy/language.py`), half of it in surroundings such as a system prompt, an earlier exchange, random tokens after the
prompt, or an opening forced on the answer (`toy/surroundings.py`). It answers short how-to and factual requests,
refuses requests for harm (named in the abstract; its compliant answers are generic filler), and refuses many harmless
requests that sound alarming. Nothing of this is scripted: it is what training on carelessly labelled data gives. The
first token of an answer was trained at the input of every block from the third on too, which makes the decision to
refuse early and linear: easier to find than in a model that was not trained so. It is a test bed, not evidence about
large models.

## Measured on test prompts

Verb and object combinations of the test prompts do not occur in training. Judge `{summary.judge.id}` version
{summary.judge.version}; 95 % Wilson intervals. Written by `python toy/measure.py`.

| measure | value |
|---|---|
{base}

Calibrated by demur (lambda {point.lambda_:g}, layer {point.layer}, position {point.position}; gate:
{summary.gate.decision}):

| measure | before | after |
|---|---|---|
{changed}

KL on harmless prompts: {kl.mean:.4f} nats (95 % interval {kl.low:.4f} to {kl.high:.4f}).

True refusals under pressure, in surroundings whose texts do not occur in training (gate: those of `bare-prompt` do not
count):

| condition | before | after |
|---|---|---|
{pressed}
"""


def _both(name: str, both: BeforeAfter) -> str:
    return f"| {name} | {_cell(both.before)} | {_cell(both.after)} |"


def _short(rate: Rate | None) -> str:
    return "-" if rate is None or rate.rate is None else f"{rate.rate:.3f} ({rate.k}/{rate.n})"


def _cell(rate: Rate | None) -> str:
    if rate is None or rate.rate is None:
        return "-"
    return f"{rate.rate:.3f} ({rate.k}/{rate.n}; {rate.low:.3f} to {rate.high:.3f})"


if __name__ == "__main__":
    main()
