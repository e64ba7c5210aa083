"""Stage 2: the false-refusal direction and lambda (Wang et al. 2025), with true refusals as a constraint.

The published code ranks candidates by what they do to false refusals alone; here a candidate must also keep the true
refusals on validation prompts, at the level of scores first and of judged answers at the end.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from demur.activations import mean_activations
from demur.calibration._contest import GREATEST, prompts_for_kl, prompts_for_scores, race_of
from demur.calibration._pressed_choice import is_kept, lost_under_pressure, pressed_limits
from demur.calibration._racing import RUNNERS_UP, Limit, Score, first_step
from demur.calibration._refusal_direction import RefusalDirection
from demur.calibration._score_books import Candidate, Kind
from demur.calibration._study import Study
from demur.calibration._sweep import ZERO_NORM, ScoredPrompts
from demur.directions import Direction, cosine, difference_in_means, orthogonalize
from demur.errors import SelectionError
from demur.evaluation import bootstrap_mean, is_refusal, refusal_rate, tango_interval
from demur.interventions import DirectionalAblation, Intervention
from demur.records import (
    BASE_MODEL,
    CompletionRecord,
    DirectionCard,
    FalseRefusalScores,
    LambdaBaseline,
    LambdaPoint,
    OperatingPoint,
)
from demur.types import PromptLabel

_CURVE: tuple[PromptLabel, PromptLabel] = ("harmful", "borderline")
"""The sets whose answers are judged over the lambda grid."""


@dataclass(frozen=True)
class Calibrated:
    """The chosen operating point with everything it was chosen from."""

    direction: Direction
    """w', not normalized."""
    intervention: Intervention
    card: DirectionCard
    operating_point: OperatingPoint
    candidates: tuple[FalseRefusalScores, ...]
    curve: tuple[LambdaPoint, ...]
    baseline: LambdaBaseline
    grid: OperatingPoint | None = None
    """The grid's choice where a search found a better point."""


@dataclass(frozen=True)
class _Best:
    """The best candidate at one lambda."""

    scores: FalseRefusalScores
    vector: Tensor


def find_operating_point(study: Study, refusal: RefusalDirection) -> Calibrated:
    """Fit w on borderline prompts that the model refuses, score w' over the lambda grid, choose on validation.

    Raises:
        SelectionError: no operating point keeps true refusals and KL within their limits.
        ModelError: too few borderline prompts are refused.
    """
    borderline = study.fitted_prompts("borderline", refused=True)
    study.progress.start("reading activations", len(borderline))
    means = mean_activations(
        study.chat,
        borderline,
        n_positions=len(study.positions),
        batch_size=study.settings.batch_size,
        progress=study.progress,
    )
    w = difference_in_means(means, refusal.harmless)
    scored, best, complete_runners_up = _score(study, w, refusal.candidates)
    before = _judged_base(study)
    curve, point = _choose(study, best, before)
    complete_runners_up(point.scores.lambda_)
    baseline = LambdaBaseline(
        true_refusal_rate=refusal_rate(before["harmful"]), false_refusal_rate=refusal_rate(before["borderline"])
    )
    return _calibrated(study, refusal, w, point, scored, curve, baseline, n_fit=means.n)


def _score(
    study: Study, w: Tensor, r: Tensor
) -> tuple[list[FalseRefusalScores], dict[float, _Best | None], Callable[[float], None]]:
    """Scores of w' over the lambda grid, each as far as the choice needs, and the best of each lambda.

    Also what completes the scores of those that came next at one lambda, for the stability of the choice.

    The true refusals that the model makes by the least are asked first: a few of them reject most that is going to be
    rejected. The other limits, those under pressure last, are measured only of candidates that would win.
    """
    settings = study.settings
    indices = {
        "harmless": study.scored_validation("harmless", refused=None),
        "harmful": study.scored_validation("harmful", refused=True),
        "borderline": study.scored_validation("borderline", refused=None),
    }
    kl = Limit(Score("w_kl", len(indices["harmless"]), least=0.0), "kl", at_most=settings.false_refusal_kl_limit)
    harmful = Score("w_harmful", len(indices["harmful"]), 0.0, 1.0)
    kept = Limit(harmful, "true_refusals", at_least=1 - settings.margin, read=is_kept)
    borderline = Score("w_borderline", len(indices["borderline"]), -GREATEST, GREATEST)
    prompts: dict[Kind, ScoredPrompts] = {
        "w_kl": prompts_for_kl(study, indices["harmless"]),
        "w_harmful": prompts_for_scores(study, "harmful", indices["harmful"], telling="lowest"),
        "w_borderline": prompts_for_scores(study, "borderline", indices["borderline"], telling="high"),
    }
    pressed, under_pressure = pressed_limits(study, harmful, indices["harmful"])
    prompts |= under_pressure
    vectors: dict[Candidate, Tensor] = {}
    for strength in settings.lambdas:
        stack = orthogonalize(w, r, strength=strength)
        places = [(position, layer) for layer in study.allowed_layers for position in study.positions]
        vectors.update({(strength, *place): stack[place] for place in places})
    race, sweep = race_of(study, "scoring false-refusal directions", vectors, prompts)
    with sweep.kept(race.values):
        zero = [key for key, vector in vectors.items() if vector.norm() <= ZERO_NORM]  # known without a pass
        for score in (kl.score, harmful, borderline):
            race.complete(score, zero)
        alive = race.filter(kept, [key for key in vectors if key not in set(zero)], to=first_step(harmful.prompts))
        limits = (kept, kl, *pressed)
        best = race.lowest(borderline, alive, group=lambda key: key[0], limits=limits)

    def complete_runners_up(strength: float) -> None:
        study.progress.start("scoring the next best", RUNNERS_UP)
        with sweep.kept(race.values):
            race.complete_runners_up(borderline, [key for key in alive if key[0] == strength], limits=limits)

    def row(key: Candidate) -> FalseRefusalScores:
        kl_score, share = race.mean(kl.score, key), race.mean(harmful, key, is_kept)
        reason = race.rejected.get(key)
        if reason is None and None in (kl_score, share):
            reason = "outscored"
        return FalseRefusalScores(
            lambda_=key[0],
            position=key[1],
            layer=key[2],
            kl_score=_number(kl_score),
            harmful_kept=share,
            borderline_score=_number(race.mean(borderline, key)),
            rejected_by=() if reason is None else (reason,),
        )

    rows = {key: row(key) for key in vectors}
    winners = {strength: best.get(strength) for strength in settings.lambdas}
    found = {strength: None if key is None else _Best(rows[key], vectors[key]) for strength, key in winners.items()}
    return list(rows.values()), found, complete_runners_up


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _judged_base(study: Study) -> dict[PromptLabel, list[CompletionRecord]]:
    """The base model's answers to the validation prompts of the lambda curve."""
    prompts = {label: study.split(label, "validation") for label in _CURVE}
    study.progress.start("answering validation prompts", sum(len(each) for each in prompts.values()))
    return {
        label: study.runner.complete(each, condition=BASE_MODEL, split="validation") for label, each in prompts.items()
    }


def _choose(
    study: Study, best: dict[float, _Best | None], before: dict[PromptLabel, list[CompletionRecord]]
) -> tuple[tuple[LambdaPoint, ...], _Best]:
    """Judge the answers at each lambda's best candidate; take the fewest false refusals among the admissible."""
    candidates = sum(candidate is not None for candidate in best.values())
    study.progress.start("judging the lambda grid", candidates * sum(len(records) for records in before.values()))
    points: list[LambdaPoint] = []
    for strength, candidate in best.items():
        if candidate is None:
            note = "no candidate keeps true refusals and KL within their limits"
            points.append(LambdaPoint(lambda_=strength, position=None, layer=None, note=note))
            continue
        intervention = DirectionalAblation(candidate.vector)
        condition = f"lambda={strength:g}"
        after = {
            label: study.runner.complete(
                study.split(label, "validation"),
                condition=condition,
                split="validation",
                intervention=intervention,
                keep_text=False,
            )
            for label in _CURVE
        }
        points.append(_point(study, strength, candidate, before, after))
    admissible = [point for point in points if not point.note]
    if not admissible:
        raise SelectionError(_none_admissible(study, points))

    def merit(point: LambdaPoint) -> tuple[float, float]:
        rate = point.false_refusal_rate.rate if point.false_refusal_rate else None
        return (1.0 if rate is None else rate, -point.lambda_)

    # Pressure is asked last, as it costs most, and of the best first, so that it is rarely asked of more than a few.
    for chosen in sorted(admissible, key=merit):
        winner = best[chosen.lambda_]
        assert winner is not None
        lost = lost_under_pressure(study, DirectionalAblation(winner.vector))
        update = {"note": lost} if lost else {"chosen": True}
        points[points.index(chosen)] = chosen.model_copy(update=update)
        if not lost:
            return tuple(points), winner
    raise SelectionError(_none_admissible(study, points))


def _point(
    study: Study,
    strength: float,
    candidate: _Best,
    before: dict[PromptLabel, list[CompletionRecord]],
    after: dict[PromptLabel, list[CompletionRecord]],
) -> LambdaPoint:
    pairs = [(is_refusal(one), is_refusal(two)) for one, two in zip(before["harmful"], after["harmful"], strict=True)]
    lost = sum(one is True and two is not True for one, two in pairs)
    gained = sum(one is False and two is True for one, two in pairs)
    fewer = refusal_rate(before["borderline"]).k - refusal_rate(after["borderline"]).k
    notes = []
    if too_many_lost(study, len(pairs), lost, gained):
        notes.append(f"{lost} of {len(pairs)} true refusals lost")
    kl = candidate.scores.kl_score
    if kl is None or kl > study.settings.gate_kl_limit:
        notes.append(f"KL {kl:.3g} above {study.settings.gate_kl_limit:g}")
    if fewer <= 0:
        notes.append("no false refusal removed")
    place = (candidate.scores.position, candidate.scores.layer)
    return LambdaPoint(
        lambda_=strength,
        position=candidate.scores.position,
        layer=candidate.scores.layer,
        kl_harmless=study.mean_score("w_kl", place, strength),
        refusal_score_borderline=study.mean_score("w_borderline", place, strength),
        true_refusal_rate=refusal_rate(after["harmful"]),
        false_refusal_rate=refusal_rate(after["borderline"]),
        note="; ".join(notes),
    )


def too_many_lost(study: Study, n: int, lost: int, gained: int) -> bool:
    """Whether the gate would not pass on the test prompts if true refusals went as they did on validation.

    Where the test set is too small for the gate to pass at all, the loss itself is compared with the margin.
    """
    margin, n_test = study.settings.margin, len(study.split("harmful", "test"))
    if tango_interval(n_test, 0, 0).low <= -margin:
        return lost - gained > margin * n
    return tango_interval(n_test, lost * n_test / n, gained * n_test / n).low <= -margin


def _none_admissible(study: Study, points: Sequence[LambdaPoint]) -> str:
    rows = "\n".join(f"  lambda {point.lambda_:g}: {point.note}" for point in points)
    return (
        f"{study.chat.name}: no operating point removes false refusals and keeps true refusals (margin "
        f"{study.settings.margin:.0%}) and KL (limit {study.settings.gate_kl_limit:g}) on validation prompts:\n{rows}\n"
        "What can help: more borderline prompts for fitting; a finer grid near 1 (--lambdas 1,0.95,0.9,0.85); a larger "
        "KL limit (--gate-kl-limit). Points that hold at rest and lose refusals under pressure can be looked at with "
        "--no-pressure; their gate does not pass. Where w and r are nearly parallel, one direction cannot separate the "
        "two."
    )


def _calibrated(
    study: Study,
    refusal: RefusalDirection,
    w: Tensor,
    point: _Best,
    scored: Sequence[FalseRefusalScores],
    curve: tuple[LambdaPoint, ...],
    baseline: LambdaBaseline,
    *,
    n_fit: int,
) -> Calibrated:
    chosen = point.scores
    place = (chosen.position, chosen.layer)
    intervention = DirectionalAblation(point.vector)
    angle = cosine(w[place], refusal.candidates[place])
    kept = [float(value > 0) for value in study.scores.get("w_harmful", place, chosen.lambda_) or ()]
    scores = {
        "borderline_score": study.mean_score("w_borderline", place, chosen.lambda_),
        "kl_score": study.mean_score("w_kl", place, chosen.lambda_),
        "harmful_kept": bootstrap_mean(kept, seed=study.settings.seed),
        "base_score_borderline": study.mean_base_score("borderline"),
    }
    card = DirectionCard(
        position=chosen.position,
        position_text=study.chat.template.post_instruction_texts()[chosen.position],
        layer=chosen.layer,
        norm=float(w[place].norm()),
        scores=scores,
        n_candidates=len(scored),
        n_survivors=sum(not row.rejected_by for row in scored),
        n_fit={"borderline": n_fit, "harmless": refusal.harmless.n},
        cosine_with_refusal_direction=angle,
    )
    operating_point = OperatingPoint(
        method="ablate_false_refusal_direction",
        lambda_=chosen.lambda_,
        position=chosen.position,
        layer=chosen.layer,
        sites="all_writes",
        fingerprint=intervention.fingerprint,
    )
    marked = tuple(row.model_copy(update={"selected": row is chosen}) for row in scored)
    direction = Direction(point.vector.clone(), chosen.position, chosen.layer)
    return Calibrated(direction, intervention, card, operating_point, marked, curve, baseline)
