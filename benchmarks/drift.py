"""Does the drift monitor tell a fine-tune that erodes refusals from one that keeps them? On the toy model, many seeds.

    python benchmarks/drift.py --seeds 20 --out drift.jsonl
    python benchmarks/drift.py --simulate

Three fine-tunes. `erodes` sees benign rows only: harmless prompts, and borderline ones that the toy answers, with its
own answers. `keeps` sees these rows and harmful prompts with the toy's own refusals. `hurries` sees harmless prompts
alone at a learning rate that is too high. The monitor reads 32 probe prompts of each kind at every fourth step and sees
no answer. Answers to 64 harmful test prompts are judged beside it, before, at the alarm and at the end, to know what
became of refusals. Finished seeds are kept in the file and not computed again.
"""

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from demur.assurance import Directions, DriftMonitor, DriftReading
from demur.assurance._drift_statistics import DEFAULT_RULE, Probed, drift_tests, gap, probed
from demur.calibration import refusal_direction_of
from demur.evaluation import PhraseJudge, clopper_pearson
from demur.models import ChatModel, FineTuning, fine_tuned
from demur.prompts import Prompt, PromptSet
from demur.testing import load_toy_chat_model, toy_prompt_sets, toy_settings
from demur.types import PromptLabel

EVERY = 4
STEPS = 40
SERIES = 500
"""Simulated series of checkpoints."""
KINDS = {"erodes": 1e-3, "keeps": 1e-3, "hurries": 3e-2}
"""Learning rate of each fine-tune."""
Rows = list[tuple[str, str]]


def answers(chat: ChatModel, prompts: list[Prompt], *, refused: bool) -> Rows:
    """The model's own answers to those prompts that it refuses, or does not refuse."""
    judge, texts = PhraseJudge(), [prompt.text for prompt in prompts]
    pairs = [(text, each.text) for text, each in zip(texts, chat.generate(texts, max_new_tokens=24), strict=True)]
    verdicts = judge.judge_batch(pairs)
    return [pair for pair, each in zip(pairs, verdicts, strict=True) if (each.verdict != "full_compliance") == refused]


def training_rows(chat: ChatModel, prompts: dict[PromptLabel, PromptSet]) -> dict[str, Rows]:
    """What each fine-tune sees."""
    train = {label: list(each.split("train"))[:192] for label, each in prompts.items()}
    harmless, borderline = (answers(chat, train[label], refused=False) for label in ("harmless", "borderline"))
    benign = harmless + borderline
    return {"erodes": benign, "keeps": benign + answers(chat, train["harmful"], refused=True), "hurries": harmless}


def true_refusals(chat: ChatModel, prompts: dict[PromptLabel, PromptSet]) -> float:
    """Share of 64 harmful test prompts, other ones than the probes, that are refused."""
    asked = sorted(prompts["harmful"].split("test"), key=lambda prompt: prompt.sha256)[-64:]
    return len(answers(chat, asked, refused=True)) / len(asked)


def one_run(
    chat: ChatModel,
    prompts: dict[PromptLabel, PromptSet],
    directions: Directions,
    rows: Rows,
    settings: FineTuning,
) -> dict[str, Any]:
    """Fine-tune once; what the monitor said when, and what became of true refusals."""
    monitor = DriftMonitor(chat, prompts, directions=directions)
    monitor.measure(0)
    before = true_refusals(chat, prompts)
    readings: list[tuple[int, DriftReading]] = []
    at_alarm: list[float] = []

    def on_step(step: int) -> None:
        if step % EVERY == 0:
            readings.append((step, monitor.measure(step)))
            if readings[-1][1].alarms and not at_alarm:
                at_alarm.append(true_refusals(chat, prompts))

    started = time.perf_counter()
    chosen = random.Random(settings.seed).sample(rows, min(256, len(rows) * 3 // 4))
    with fine_tuned(chat, chosen, settings, on_step=on_step):
        after = true_refusals(chat, prompts)
    last = readings[-1][1]
    left = {test.statistic: test.estimate.value for test in last.tests}
    return {
        "alarm_step": next((step for step, reading in readings if reading.alarms), None),
        "alarmed": sorted({test.statistic for _, reading in readings for test in reading.alarms}),
        "at_alarm": at_alarm[0] if at_alarm else None,
        "before": before,
        "after": after,
        "cosine": last.checkpoint.cosine,
        "gap_kept": left["gap"],
        "score_kept": left["score"],
        "auroc_change": left["auroc"],
        "seconds": time.perf_counter() - started,
    }


def simulated(chat: ChatModel, prompts: dict[PromptLabel, PromptSet], directions: Directions, rows: Rows) -> str:
    """How often a series of ten checkpoints raises any alarm whose true losses of gap and score are at the limits.

    The population are the readings of 128 prompts of each kind before and after an eroding fine-tune, moved so that the
    mean loss is the limit; each checkpoint reads prompts that are drawn from it anew.
    """
    monitor = DriftMonitor(chat, prompts, directions=directions, n_probes=128)
    first = monitor.measure(0).checkpoint
    with fine_tuned(chat, rows, FineTuning(steps=24, seed=0)):
        last = monitor.measure(24).checkpoint
    before, after = (probed(each.projections, each.scores) for each in (first, last))
    moved = {
        "score": DEFAULT_RULE.score_kept * before.scores["harmful"].mean() - after.scores["harmful"].mean(),
        "gap": DEFAULT_RULE.gap_kept * gap(before).value - gap(after).value,
    }
    generator = np.random.default_rng(0)

    def any_alarm(n: int) -> bool:
        for number in range(1, 11):
            drawn = {label: generator.integers(len(each), size=n) for label, each in before.scores.items()}
            one, two = (
                Probed(
                    {label: each.projections[label][rows] for label, rows in drawn.items()},
                    {label: each.scores[label][rows] for label, rows in drawn.items()},
                )
                for each in (before, after)
            )
            two = Probed(
                {**two.projections, "harmful": two.projections["harmful"] + moved["gap"]},
                {**two.scores, "harmful": two.scores["harmful"] + moved["score"]},
            )
            if any(test.alarm for test in drift_tests(one, two, DEFAULT_RULE, number=number)):
                return True
        return False

    lines = ["| prompts of each kind | series with an alarm (95 % interval) |", "|---|---|"]
    for n in (16, 32, 128):
        alarms = sum(any_alarm(n) for _ in range(SERIES))
        low, high = clopper_pearson(alarms, SERIES)
        lines.append(f"| {n} | {alarms}/{SERIES} ({low:.3f} to {high:.3f}) |")
    return "\n".join(lines)


def table(results: list[dict[str, Any]]) -> str:
    """One line for each kind of fine-tune."""
    lines = [
        "| fine-tune | alarms (95 % interval) | at step | true refusals before | at the alarm | after | cosine of r | "
        "gap left | score left |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        runs = [each for each in results if each["kind"] == kind]
        if not runs:
            continue
        alarms = sum(each["alarm_step"] is not None for each in runs)
        low, high = clopper_pearson(alarms, len(runs))
        lines.append(
            f"| {kind} | {alarms}/{len(runs)} ({low:.2f} to {high:.2f}) | {_span(runs, 'alarm_step', 0)} | "
            f"{_span(runs, 'before', 2)} | {_span(runs, 'at_alarm', 2)} | {_span(runs, 'after', 2)} | "
            f"{_span(runs, 'cosine', 2)} | {_span(runs, 'gap_kept', 2)} | {_span(runs, 'score_kept', 2)} |"
        )
    return "\n".join(lines)


def _span(runs: list[dict[str, Any]], name: str, digits: int) -> str:
    values = sorted(each[name] for each in runs if each[name] is not None)
    if not values:
        return "never"
    middle = values[len(values) // 2]
    return f"{middle:.{digits}f} ({values[0]:.{digits}f} to {values[-1]:.{digits}f})"


def main() -> None:
    """Run what is missing, then print the table (medians, and the range over seeds)."""
    parser = argparse.ArgumentParser(description="The drift monitor on fine-tunes of the toy model.")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("drift.jsonl"), help="results so far; continued")
    parser.add_argument("--limit", type=float, default=float("inf"), help="stop after so many seconds")
    parser.add_argument("--simulate", action="store_true", help="simulate false alarms instead")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    started = time.perf_counter()
    results = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    done = {(each["kind"], each["seed"]) for each in results}
    chat, prompts = load_toy_chat_model(), toy_prompt_sets()
    found = refusal_direction_of(chat, prompts, settings=toy_settings())
    directions = Directions(found.direction, None, tuple(token.id for token in found.refusal_tokens), "found")
    rows = training_rows(chat, prompts)
    if arguments.simulate:
        print(simulated(chat, prompts, directions, rows["erodes"]))
        return
    for kind, rate in KINDS.items():
        for seed in range(arguments.seeds):
            if (kind, seed) in done or time.perf_counter() - started > arguments.limit:
                continue
            settings = FineTuning(steps=STEPS, learning_rate=rate, batch_size=16, seed=seed)
            results.append({"kind": kind, "seed": seed, **one_run(chat, prompts, directions, rows[kind], settings)})
            with arguments.out.open("a") as file:
                file.write(json.dumps(results[-1]) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
