"""Stage 2: the false-refusal direction and lambda (Wang et al. 2025), with true refusals as a constraint.

The published code ranks candidates by what they do to false refusals alone; here a candidate must also keep the true
refusals on validation prompts, at the level of scores first and of judged answers at the end.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from demur.activations import mean_activations
from demur.calibration._pressed_choice import lost_under_pressure
from demur.calibration._refusal_direction import RefusalDirection
from demur.calibration._study import Study
from demur.calibration._sweep import ZERO_NORM, Kind, Place, score_missing, sweep_ablation
from demur.directions import Direction, cosine, difference_in_means, orthogonalize
from demur.errors import SelectionError
from demur.evaluation import bootstrap_mean, is_refusal, kl_divergences, refusal_rate, refusal_scores, tango_interval
from demur.interventions import DirectionalAblation
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
    intervention: DirectionalAblation
    card: DirectionCard
    operating_point: OperatingPoint
    candidates: tuple[FalseRefusalScores, ...]
    curve: tuple[LambdaPoint, ...]
    baseline: LambdaBaseline


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
    scored: list[FalseRefusalScores] = []
    best: dict[float, _Best | None] = {}
    study.progress.start("scoring false-refusal directions", len(study.settings.lambdas) * len(study.allowed_layers))
    for strength in study.settings.lambdas:
        vectors = orthogonalize(w, refusal.candidates, strength=strength)
        rows = _score(study, vectors, strength)
        scored.extend(rows)
        kept = [row for row in rows if not row.rejected_by and vectors[row.position, row.layer].norm() > ZERO_NORM]
        chosen = min(kept, key=_borderline_score) if kept else None
        best[strength] = None if chosen is None else _Best(chosen, vectors[chosen.position, chosen.layer])
    before = _judged_base(study)
    curve, point = _choose(study, best, before)
    baseline = LambdaBaseline(
        true_refusal_rate=refusal_rate(before["harmful"]), false_refusal_rate=refusal_rate(before["borderline"])
    )
    return _calibrated(study, refusal, w, point, scored, curve, baseline, n_fit=means.n)


def _score(study: Study, vectors: Tensor, strength: float) -> list[FalseRefusalScores]:
    """KL on harmless, then true refusals, then false refusals: each only for candidates that passed the one before."""
    limits = study.settings
    chosen: dict[Kind, tuple[PromptLabel, list[int]]] = {
        "w_kl": ("harmless", study.scored_validation("harmless", refused=None)),
        "w_harmful": ("harmful", study.scored_validation("harmful", refused=True)),
        "w_borderline": ("borderline", study.scored_validation("borderline", refused=None)),
    }
    encoded = {kind: study.encode(label, "validation", indices) for kind, (label, indices) in chosen.items()}
    base = study.base_logits("harmless", "validation")[chosen["w_kl"][1]]

    def measure(kind: Kind, places: Sequence[Place]) -> None:
        def read(logits: Tensor, indices: Sequence[int]) -> Tensor:
            if kind == "w_kl":
                return kl_divergences(base[list(indices)], logits)
            return refusal_scores(logits, study.token_ids)

        def run(missing: Tensor) -> Tensor:
            return sweep_ablation(study.chat, encoded[kind], missing, read, rows=study.rows)

        label, indices = chosen[kind]
        unchanged = torch.zeros(len(indices)) if kind == "w_kl" else study.base_scores(label, "validation")[indices]
        score_missing(study.scores, kind, places, vectors, run, unchanged, strength)

    results: list[FalseRefusalScores] = []
    for layer in study.allowed_layers:
        places = [(position, layer) for position in study.positions]
        measure("w_kl", places)
        mild = [p for p in places if study.scores.mean("w_kl", p, strength) <= limits.false_refusal_kl_limit]
        measure("w_harmful", mild)
        safe = [p for p in mild if _kept(study, p, strength) >= 1 - limits.margin]
        measure("w_borderline", safe)
        results.extend(_row(study, place, strength, mild=place in mild, safe=place in safe) for place in places)
        study.progress.advance()
    return results


def _borderline_score(row: FalseRefusalScores) -> float:
    return math.inf if row.borderline_score is None else row.borderline_score


def _kept(study: Study, place: Place, strength: float) -> float:
    values = study.scores.get("w_harmful", place, strength) or ()
    return sum(value > 0 for value in values) / len(values)


def _row(study: Study, place: Place, strength: float, *, mild: bool, safe: bool) -> FalseRefusalScores:
    kl = study.scores.mean("w_kl", place, strength)
    return FalseRefusalScores(
        lambda_=strength,
        position=place[0],
        layer=place[1],
        kl_score=kl if math.isfinite(kl) else None,
        harmful_kept=_kept(study, place, strength) if mild else None,
        borderline_score=study.scores.mean("w_borderline", place, strength) if safe else None,
        rejected_by=() if safe else ("true_refusals",) if mild else ("kl",),
    )


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
        "KL limit (--gate-kl-limit). Where w and r are nearly parallel, one direction cannot separate the two."
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
