"""`demur judge`: a judge against human labels."""

# ruff: noqa: PLC0415, FBT002
from pathlib import Path
from typing import Annotated

import typer

from demur.cli._console import Out
from demur.cli._options import Json, JudgeCache, JudgeSettings, JudgeSpec, Rubric, app, load_judge
from demur.records import JudgeCost
from demur.reports import corrected_lines


@app.command()
def judge(
    labels: Annotated[
        Path, typer.Option("--labels", metavar="FILE", help="JSON Lines with prompt, completion, human_label, model.")
    ],
    spec: JudgeSpec = "phrase",
    rubric: Rubric = "strict",
    judge_option: JudgeSettings = None,
    judge_cache: JudgeCache = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Run folder whose rates are corrected for the judge's errors.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Measure a judge on answers that people have labelled."""
    out = Out(as_json=as_json)
    with out.working("loading the judge and the labels", quiet=True):
        from demur.evaluation import judge_cost, measure_judge, read_labels

        answers = read_labels(labels)
        judging = load_judge(spec, rubric, judge_option, judge_cache)
    try:
        with out.working(f"judging {len(answers)} answers with {judging.id}"):
            quality = measure_judge(judging, answers)
    finally:
        cost = judge_cost(judging)
        if cost is not None:
            out.note(_cost(cost))
    quality = quality.model_copy(update={"cost": cost})
    out.judge_quality(quality)
    document = quality.model_dump(mode="json", by_alias=True)
    if run is not None:
        from demur.calibration import correct_run

        corrected = correct_run(run, quality, labels=str(labels))
        for line in corrected_lines(corrected):
            out.say(line)
        document["corrected"] = corrected.model_dump(mode="json", by_alias=True)
    out.json(document)
    return 0


def _cost(cost: JudgeCost) -> str:
    tokens = f"{cost.input_tokens:,} tokens in, {cost.output_tokens:,} out"
    least = "" if not cost.uncounted else f", at least ({cost.uncounted} replies said no tokens)"
    money = "" if cost.money is None else f"; money: {cost.money:.4g}"
    asked = f"asked {cost.questions} questions with {cost.requests} requests ({cost.retries} retries)"
    return f"{asked}: {tokens}{least}{money}"
