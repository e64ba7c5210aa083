"""Calibration end to end on the toy: generated tokens and seconds, against the naive order of the same decisions.

The naive order judges answers first: at every lambda, those of every candidate to all validation prompts, and only then
asks which candidates keep true refusals. Ours asks the scores first, and generates at one candidate per lambda.
What is generated is counted at the blocks, as rows of passes over one token, whoever calls the model.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

from _common import Result, Work, arguments, counted, finish

import demur
from demur.activations import mean_activations
from demur.calibration import CalibrationSettings
from demur.calibration._false_refusal_direction import find_operating_point
from demur.calibration._lambda_choice import too_many_lost
from demur.calibration._refusal_direction import find_refusal_direction
from demur.calibration._study import Study
from demur.directions import difference_in_means, orthogonalize
from demur.evaluation import PhraseJudge, Runner, is_refusal
from demur.interventions import DirectionalAblation
from demur.models import ChatModel
from demur.records import BASE_MODEL, CompletionRecord, RunFolder
from demur.testing import load_toy_chat_model, toy_prompt_sets
from demur.types import PromptLabel, SilentProgress

PUBLISHED = 200 * 100 * 100
"""Tokens of a search of 200 trials, each judged on 100 prompts of at most 100 tokens."""


def main() -> None:
    """Count the decision in both orders, and a whole `demur.calibrate`."""
    parser = arguments(__doc__)
    parser.add_argument("--validation", type=int, default=64, help="prompts of each kind whose answers are judged")
    options = parser.parse_args()
    lambdas = (1.0, 0.8, 0.6, 0.0)
    if options.smoke:
        options.validation, lambdas = 24, (0.7, 0.6)
    settings = CalibrationSettings(
        max_new_tokens=32,
        batch_size=128,
        n_train=64 if options.smoke else 128,
        n_scored=8 if options.smoke else 32,
        n_validation=options.validation,
        lambdas=lambdas,
        pressure=False,
    )
    chat = load_toy_chat_model()
    result = Result("Calibration", ("what", "generated tokens", "tokens x layers", "seconds", "false refusals left"))
    ours, rate = timed(result, "ours: up to the operating point", chat, lambda: decide(chat, settings))
    limit = 1 if options.smoke else None
    what = "naive: every candidate's answers first" + ("" if limit is None else f" ({limit} candidate a lambda)")
    naive, naive_rate = timed(result, what, chat, lambda: decide_naively(chat, settings, limit))
    result.ratio("generated tokens of the naive order / ours", naive.generated / ours.generated)
    result.ratio("seconds of the naive order / ours", result.rows[1][3] / result.rows[0][3])
    result.ratio("share of false refusals left, ours minus naive", rate - naive_rate)
    result.ratio(
        "generated tokens, ours / 200 trials x 100 prompts x 100 tokens", ours.generated / PUBLISHED, at_most=0.1
    )
    if not options.smoke:
        whole, _ = timed(result, "demur.calibrate, whole, with its test measurements", chat, lambda: whole_run(chat))
        result.ratio("generated tokens of a whole calibration / the published search", whole.generated / PUBLISHED)
    result.notes.append(
        f"The first two: {options.validation} validation prompts of each kind, {len(lambdas)} values of lambda, no "
        "pressure. The last: the toy's own settings."
    )
    finish(result, options)


def timed(result: Result, what: str, chat: ChatModel, run: Any) -> tuple[Work, float]:
    """Count one way of deciding."""
    start = time.perf_counter()
    with counted(chat) as work:
        rate = run()
    seconds = time.perf_counter() - start
    result.rows.append((what, work.generated, work.tokens_times_layers, seconds, f"{rate:.1%}"))
    return work, rate


def study_of(chat: ChatModel, settings: CalibrationSettings, folder: str) -> Study:
    """A calibration whose records are thrown away."""
    runner = Runner(chat, PhraseJudge(), max_new_tokens=settings.max_new_tokens, batch_size=settings.batch_size)
    return Study(chat, toy_prompt_sets(), settings, RunFolder(folder), runner, SilentProgress())


def decide(chat: ChatModel, settings: CalibrationSettings) -> float:
    """The library's order; the share of borderline validation prompts that is still refused."""
    with tempfile.TemporaryDirectory() as folder:
        study = study_of(chat, settings, folder)
        curve = find_operating_point(study, find_refusal_direction(study)).curve
    chosen = next(point for point in curve if point.chosen)
    assert chosen.false_refusal_rate is not None
    assert chosen.false_refusal_rate.rate is not None
    return chosen.false_refusal_rate.rate


def decide_naively(chat: ChatModel, settings: CalibrationSettings, limit: int | None) -> float:
    """Answers of every candidate at every lambda, then the fewest false refusals among those that keep true ones."""
    with tempfile.TemporaryDirectory() as folder:
        study = study_of(chat, settings, folder)
        refusal = find_refusal_direction(study)
        borderline = study.fitted_prompts("borderline", refused=True)
        w = difference_in_means(mean_activations(chat, borderline, n_positions=len(study.positions)), refusal.harmless)
        before = refusals(study, None)
        places = [(position, layer) for position in study.positions for layer in study.allowed_layers][:limit]
        found = [1.0]
        for strength in settings.lambdas:
            vectors = orthogonalize(w, refusal.candidates, strength=strength)
            for place in places:
                if vectors[place].norm() == 0:
                    continue
                after = refusals(study, DirectionalAblation(vectors[place]))
                if not too_many_lost(study, before["harmful"], after["harmful"]):
                    found.append(sum(map(bool, map(is_refusal, after["borderline"]))) / len(after["borderline"]))
    return min(found)


def refusals(study: Study, intervention: DirectionalAblation | None) -> dict[PromptLabel, list[CompletionRecord]]:
    """Judged answers to the validation prompts."""
    labels: tuple[PromptLabel, PromptLabel] = ("harmful", "borderline")
    return {
        label: study.runner.complete(
            study.split(label, "validation"), condition=BASE_MODEL, split="validation", intervention=intervention
        )
        for label in labels
    }


def whole_run(chat: ChatModel) -> float:
    """`demur.calibrate` as in the demo; the false refusal rate on test prompts."""
    settings = CalibrationSettings(max_new_tokens=32, batch_size=128)
    with tempfile.TemporaryDirectory() as folder:
        summary = demur.calibrate(chat, toy_prompt_sets(), out=Path(folder) / "run", settings=settings)
    after = summary.metrics.false_refusal_rate.after
    assert after is not None
    assert after.rate is not None
    return after.rate


if __name__ == "__main__":
    main()
