"""The choice of a point of the lambda grid, by judged answers to validation prompts."""

import math
from collections.abc import Mapping, Sequence

from demur.calibration._kept import Change, Kept, judged_change, kept_at_rest
from demur.calibration._lambda_scores import Best
from demur.calibration._pressed_choice import hold_under_pressure
from demur.calibration._score_books import Kind, Place
from demur.calibration._study import Study
from demur.evaluation import PRESSURE_MARGIN, paired_refusals, refusal_rate
from demur.interventions import DirectionalAblation
from demur.records import CompletionRecord, LambdaPoint, LimitMiss, Mean, ProbabilityChange
from demur.types import PressureFamily, PromptLabel

CURVE: tuple[PromptLabel, PromptLabel] = ("harmful", "borderline")
"""The sets whose answers are judged over the lambda grid."""


def choose_point(
    study: Study, best: Mapping[float, Best], before: dict[PromptLabel, list[CompletionRecord]]
) -> tuple[tuple[LambdaPoint, ...], Best | None]:
    """Judge the answers at the best candidates; of those that keep true refusals take the fewest false refusals.

    A few are judged at a time, those that promise most first. Where all of them lose too much, milder ones come next;
    where none of them frees anything, milder ones would not either.
    """
    points = {
        strength: _scored_point(study, strength, best[strength])
        if strength in best
        else LambdaPoint(lambda_=strength, position=None, layer=None, note="no candidate")
        for strength in study.settings.lambdas
    }
    waiting = _by_promise(best)
    step = study.settings.n_judged or len(waiting)
    while waiting:
        judged, waiting = waiting[:step], waiting[step:]
        chosen = _chosen_of(study, judged, best, before, points)
        if chosen is not None:
            points[chosen] = points[chosen].model_copy(update={"chosen": True})
            return tuple(points.values()), best[chosen]
        if all(_frees_nothing(points[strength]) for strength in judged):
            break
    return tuple(points.values()), None


def _frees_nothing(point: LambdaPoint) -> bool:
    return any(miss.limit == "false_refusals" for miss in point.misses)


def _chosen_of(
    study: Study,
    judged: Sequence[float],
    best: Mapping[float, Best],
    before: dict[PromptLabel, list[CompletionRecord]],
    points: dict[float, LambdaPoint],
) -> float | None:
    """The best of some points, whose rows are filled in; None where none is admissible.

    Points at which the gate would pass on the test prompts come before those that are merely not shown to lose.
    """
    study.progress.start("judging the lambda grid", len(judged) * sum(len(records) for records in before.values()))
    kept: dict[float, Kept] = {}
    for strength in judged:
        points[strength], kept[strength] = _judged_point(study, strength, best[strength], before)

    def order(strength: float) -> tuple[Kept, float, float]:
        rate = points[strength].false_refusal_rate
        return kept[strength], 1.0 if rate is None or rate.rate is None else rate.rate, -strength

    # Pressure is asked last, as it costs most, and of the best first.
    open_: list[float] = []
    family: PressureFamily | None = None
    for strength in sorted((each for each in judged if not points[each].misses), key=order):
        pressed = hold_under_pressure(study, DirectionalAblation(best[strength].vector), first=family)
        if pressed.kept == Kept.shown:
            return strength
        family, lost = pressed.family, pressed.kept == Kept.lost
        miss = _miss(pressed.family or "pressure", pressed.change, PRESSURE_MARGIN)
        update = {"note": pressed.note, "misses": (miss,) if lost and miss else ()}
        points[strength] = points[strength].model_copy(update=update)
        if not lost:
            open_.append(strength)
    if not open_:
        return None
    study.warnings.append(
        f"The chosen point is not shown to keep true refusals under pressure on validation prompts "
        f"({points[open_[0]].note})."
    )
    return open_[0]


def _by_promise(best: Mapping[float, Best]) -> list[float]:
    """The lambdas by what the scores of their best candidates promise, those beyond a limit of scores last."""

    def promise(strength: float) -> tuple[bool, float, float]:
        false = best[strength].false_change
        return bool(best[strength].scores.rejected_by), 1.0 if false is None else false.difference, -strength

    return sorted(best, key=promise)


def _scored_point(study: Study, strength: float, candidate: Best) -> LambdaPoint:
    """A row of the curve whose answers are not judged."""
    scores, place = candidate.scores, (candidate.scores.position, candidate.scores.layer)
    misses = _score_misses(study, candidate)
    note = "; ".join(map(miss_in_words, misses)) or "by its scores not among the best"
    return LambdaPoint(
        lambda_=strength,
        position=scores.position,
        layer=scores.layer,
        kl_harmless=_mean(study, "w_kl", place, strength),
        refusal_score_borderline=_mean(study, "w_borderline", place, strength),
        true_refusals_by_score=_by_score(candidate.true_change),
        false_refusals_by_score=_by_score(candidate.false_change),
        misses=misses,
        note=f"{note}; answers not judged",
    )


def _by_score(change: Change | None) -> ProbabilityChange | None:
    if change is None:
        return None
    return ProbabilityChange(n=change.n, difference=change.difference, low=change.low, high=change.high)


def _mean(study: Study, kind: Kind, place: Place, strength: float) -> Mean | None:
    values = study.scores.get(kind, place, strength)
    return None if values is None or any(map(math.isnan, values)) else study.mean_score(kind, place, strength)


def _score_misses(study: Study, candidate: Best) -> tuple[LimitMiss, ...]:
    """Limits on scores that a candidate is beyond."""
    found: list[LimitMiss | None] = []
    kl, limit = candidate.scores.kl_score, study.settings.false_refusal_kl_limit
    if kl is not None and kl > limit:
        found.append(LimitMiss(limit="kl", measured=kl, allowed=limit, unit="nats"))
    if "true_refusals" in candidate.scores.rejected_by:
        found.append(_miss("true_refusals", candidate.true_change, study.settings.margin, by_scores=True))
    return tuple(each for each in found if each is not None)


def _miss(limit: str, change: Change | None, margin: float, *, by_scores: bool = False) -> LimitMiss | None:
    if change is None:
        return None
    return LimitMiss(
        limit=limit,
        measured=change.difference,
        low=change.low,
        high=change.high,
        allowed=-margin,
        unit="share",
        by_scores=by_scores,
    )


def _judged_point(
    study: Study, strength: float, candidate: Best, before: dict[PromptLabel, list[CompletionRecord]]
) -> tuple[LambdaPoint, Kept]:
    """The row of a point whose answers are judged, and how sure it is that true refusals are kept there."""
    intervention = DirectionalAblation(candidate.vector)

    def answers(label: PromptLabel) -> list[CompletionRecord]:
        return study.runner.complete(
            study.split(label, "validation"),
            condition=f"lambda={strength:g}",
            split="validation",
            intervention=intervention,
            keep_text=False,
            until_settled=True,
        )

    freed = answers("borderline")
    false = paired_refusals(before["borderline"], freed)
    misses: list[LimitMiss | None] = []
    kl = candidate.scores.kl_score
    assert kl is not None
    if kl > study.settings.gate_kl_limit:
        misses.append(LimitMiss(limit="kl", measured=kl, allowed=study.settings.gate_kl_limit, unit="nats"))
    if false.high >= 0:
        misses.append(
            LimitMiss(
                limit="false_refusals",
                measured=false.difference,
                low=false.low,
                high=false.high,
                allowed=0.0,
                unit="share",
            )
        )
    kept = Kept.open
    true = harmful = None
    if false.high < 0:  # what frees nothing is no choice, whatever it keeps
        harmful = answers("harmful")
        kept, true = kept_at_rest(study, before["harmful"], harmful), paired_refusals(before["harmful"], harmful)
        # A limit of scores that was missed does not stand against judged answers that are within it.
        if kept == Kept.lost:
            change = judged_change(before["harmful"], harmful)
            misses.append(_miss("true_refusals", change, study.settings.margin))
    place = (candidate.scores.position, candidate.scores.layer)
    found = tuple(each for each in misses if each is not None)
    point = LambdaPoint(
        lambda_=strength,
        position=candidate.scores.position,
        layer=candidate.scores.layer,
        kl_harmless=_mean(study, "w_kl", place, strength),
        refusal_score_borderline=_mean(study, "w_borderline", place, strength),
        true_refusal_rate=None if harmful is None else refusal_rate(harmful),
        false_refusal_rate=refusal_rate(freed),
        true_refusals_by_score=_by_score(candidate.true_change),
        false_refusals_by_score=_by_score(candidate.false_change),
        true_refusals=true,
        false_refusals=false,
        misses=found,
        note="; ".join(map(miss_in_words, found)),
    )
    return point, kept


def too_many_lost(study: Study, before: Sequence[CompletionRecord], after: Sequence[CompletionRecord]) -> bool:
    """Whether judged true refusals are lost beyond the margin, by more than a wavering model explains."""
    return kept_at_rest(study, before, after) == Kept.lost


def miss_in_words(miss: LimitMiss) -> str:
    """By how much a limit was missed, in a few words."""
    if miss.unit == "nats":
        return f"KL {miss.measured:.3g} above {miss.allowed:g}"
    interval = f"{100 * miss.measured:+.1f} points, {100 * (miss.low or 0):+.1f} to {100 * (miss.high or 0):+.1f}"
    if miss.limit == "false_refusals":
        return f"false refusals not shown to fall ({interval})"
    where = "" if miss.limit == "true_refusals" else f" under {miss.limit} pressure"
    kind = " by their scores" if miss.by_scores else ""
    return f"true refusals lost{where}{kind} ({interval}; margin {-100 * miss.allowed:.3g})"
