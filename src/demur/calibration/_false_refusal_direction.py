"""Stage 2: the false-refusal direction and lambda (Wang et al. 2025), with true refusals as a constraint.

The published code ranks candidates by what they do to false refusals alone; here a candidate must also keep the true
refusals on validation prompts, at the level of scores first and of judged answers at the end.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from demur.activations import mean_activations
from demur.calibration._lambda_choice import CURVE, choose_point
from demur.calibration._lambda_scores import Best, score_grid
from demur.calibration._refusal_direction import RefusalDirection
from demur.calibration._study import Study
from demur.directions import Direction, cosine, difference_in_means
from demur.errors import SelectionError
from demur.evaluation import bootstrap_mean, refusal_rate
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


class NoOperatingPointError(SelectionError):
    """No point removes false refusals and keeps true ones: a finding, with the frontier that shows it."""

    def __init__(
        self,
        message: str,
        candidates: tuple[FalseRefusalScores, ...],
        curve: tuple[LambdaPoint, ...],
        baseline: LambdaBaseline,
    ) -> None:
        super().__init__(message)
        self.candidates, self.curve, self.baseline = candidates, curve, baseline


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
    scored, best, complete_runners_up = score_grid(study, w, refusal.candidates)
    before = _judged_base(study)
    curve, point = choose_point(study, best, before)
    baseline = LambdaBaseline(
        true_refusal_rate=refusal_rate(before["harmful"]), false_refusal_rate=refusal_rate(before["borderline"])
    )
    if point is None:
        raise NoOperatingPointError(_no_point(study, curve), tuple(scored), curve, baseline)
    complete_runners_up(point.scores.lambda_)
    return _calibrated(study, refusal, w, point, scored, curve, baseline, n_fit=means.n)


def _judged_base(study: Study) -> dict[PromptLabel, list[CompletionRecord]]:
    """The base model's answers to the validation prompts of the lambda curve."""
    prompts = {label: study.split(label, "validation") for label in CURVE}
    study.progress.start("answering validation prompts", sum(len(each) for each in prompts.values()))
    return study.runner.complete_sets(prompts, condition=BASE_MODEL, split="validation", until_settled=True)


def _no_point(study: Study, curve: Sequence[LambdaPoint]) -> str:
    """The finding in a few sentences; the curve has every number."""
    counts = Counter(miss.limit for point in curve for miss in point.misses)
    found = [
        f"at {counts[limit]} of {len(curve)} lambdas {words}"
        for limit, words in (
            ("false_refusals", "no false refusals are freed that could be told from noise"),
            ("true_refusals", "true refusals are lost"),
            ("kl", "the KL on harmless prompts is too large"),
        )
        if counts[limit]
    ]
    pressed = sum(counts[limit] for limit in counts if limit not in ("false_refusals", "true_refusals", "kl"))
    if pressed:
        found.append(f"at {pressed} true refusals are lost under pressure")
    nearest = min(curve, key=_nearness)
    told = f" The nearest is lambda {nearest.lambda_:g}: {nearest.note}." if nearest.note else ""
    return (
        f"No operating point removes false refusals and keeps true refusals (margin {study.settings.margin:.0%}) "
        f"and KL (limit {study.settings.gate_kl_limit:g} nats) on validation prompts: "
        f"{'; '.join(found) or 'none was usable'}.{told} What can help: more borderline prompts for fitting; "
        "a wider margin (--margin, at most 0.05) or KL limit (--gate-kl-limit). Where w and r are nearly parallel, one "
        "direction cannot separate the two."
    )


def _nearness(point: LambdaPoint) -> tuple[int, int, float]:
    """Judged points first, those with the fewest limits missed, then by false refusals left."""
    rate = point.false_refusal_rate
    judged = rate is not None and rate.rate is not None
    return 0 if judged else 1, len(point.misses), rate.rate if rate is not None and rate.rate is not None else 1.0


def _calibrated(
    study: Study,
    refusal: RefusalDirection,
    w: Tensor,
    point: Best,
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
    kept = [study.probability(value) for value in study.scores.get("w_harmful", place, chosen.lambda_) or ()]
    scores = {
        "borderline_score": study.mean_score("w_borderline", place, chosen.lambda_),
        "kl_score": study.mean_score("w_kl", place, chosen.lambda_),
        "refusal_probability_harmful": bootstrap_mean(kept, seed=study.settings.seed),
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
