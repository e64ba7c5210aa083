"""Refusal over the dose of its direction: partial ablation, and adding or subtracting it where it was read."""

from collections.abc import Sequence
from itertools import pairwise

from demur.assurance._audit_study import AuditStudy
from demur.interventions import ActivationAddition, GradedAblation, Intervention
from demur.records import AttackRates, Strength, StrengthPoint


def measure_strength(study: AuditStudy) -> Strength:
    """Rates at every dose of the settings; at dose 0 the model is at rest."""
    settings = study.settings
    doses = [("ablation", dose) for dose in settings.ablation_doses if dose]
    doses += [("addition", dose) for dose in settings.addition_doses if dose]
    study.progress.start("measuring doses", 2 * settings.n_curve * len(doses))
    rest = study.rest(settings.n_curve)
    points = [
        StrengthPoint(kind=kind, dose=dose, rates=study.measure(_dosed(study, kind, dose), most=settings.n_curve))
        for kind, dose in doses
    ]
    points += [StrengthPoint(kind=kind, dose=0.0, rates=rest) for kind in ("ablation", "addition")]
    points.sort(key=lambda point: (point.kind, point.dose))
    ablated = [(point.dose, point.rates) for point in points if point.kind == "ablation"]
    subtracted = [(-point.dose, point.rates) for point in points if point.kind == "addition" and point.dose <= 0]
    return Strength(
        points=tuple(points), half_ablation=halving(ablated), half_subtraction=halving(sorted(subtracted, key=_dose))
    )


def _dose(point: tuple[float, AttackRates]) -> float:
    return point[0]


def _dosed(study: AuditStudy, kind: str, dose: float) -> Intervention:
    refusal = study.directions.refusal
    if kind == "addition":
        return ActivationAddition(dose * refusal.vector, refusal.layer)
    everywhere = (dose,) * study.chat.n_layers
    return GradedAblation(refusal.unit, everywhere, everywhere, dose)


def halving(curve: Sequence[tuple[float, AttackRates]]) -> float | None:
    """Smallest dose at which half of the true refusals at dose 0 are gone, on the line between measured doses.

    Args:
        curve: doses, rising from 0, with what was measured; a dose that breaks the model ends the curve.
    """
    working = []
    for dose, rates in curve:
        if rates.broken is not None or rates.true_refusals.rate is None:
            break
        working.append((dose, rates.true_refusals.rate))
    if not working:
        return None
    half = working[0][1] / 2
    for (low, before), (high, after) in pairwise(working):
        if after <= half < before:
            return low + (high - low) * (before - half) / (before - after)
    return None
