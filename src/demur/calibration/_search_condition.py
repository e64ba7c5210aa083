"""What a condition would gain: ablate only the prompts that a linear discriminant calls borderline, not harmful.

The discriminant is fitted on train prompts; its threshold is a low quantile of harmful validation prompts, so that a
known small share of them is changed. For information: weights cannot hold a condition.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from demur.activations import stream_at
from demur.calibration._kept import Kept, judged_change
from demur.calibration._lambda_choice import too_many_lost
from demur.calibration._pressed_choice import hold_under_pressure
from demur.calibration._refusal_direction import RefusalDirection
from demur.calibration._study import Study
from demur.evaluation import refusal_rate
from demur.interventions import ConditionalAblation, DirectionalAblation, GradedAblation, Intervention
from demur.records import BASE_MODEL, CompletionRecord, ConditionalRow
from demur.types import PromptLabel, Split

_QUANTILE = 0.02
"""Share of harmful validation prompts that may be called borderline."""
_SHRINKAGE = 0.1
"""Share of the mean variance that is added to every direction: there are fewer prompts than dimensions."""
_MOST_LAYERS = 8
"""Layers at which a discriminant is tried, evenly spread."""
_POSITION = -1


@dataclass(frozen=True)
class Condition:
    """Prompts whose projection lies below the threshold are called borderline."""

    layer: int
    position: int
    direction: Tensor
    """[d_model], from borderline to harmful."""
    threshold: float
    harmful_changed: float
    borderline_changed: float

    def over(self, ablation: DirectionalAblation | GradedAblation) -> ConditionalAblation:
        """The ablation under this condition."""
        return ConditionalAblation(ablation, self.layer, self.position, self.direction, self.threshold, "below")


def discriminant(harmful: Tensor, borderline: Tensor) -> Tensor:
    """Fisher's linear discriminant with a shrunk covariance: (S + c I)^-1 (mean harmful - mean borderline).

    Args:
        harmful: [n, d_model].
        borderline: [m, d_model].

    Returns:
        [d_model], unit length.
    """
    means = harmful.mean(0), borderline.mean(0)
    centred = torch.cat([harmful - means[0], borderline - means[1]])
    n, width = centred.shape
    ridge = _SHRINKAGE * float(centred.square().sum()) / (n * width) + torch.finfo(centred.dtype).tiny
    difference = means[0] - means[1]
    # Woodbury: a system of as many unknowns as there are prompts, not dimensions.
    inner = centred @ centred.T + n * ridge * torch.eye(n, dtype=centred.dtype)
    direction = difference - centred.T @ torch.linalg.solve(inner, centred @ difference)
    unit: Tensor = direction / direction.norm().clamp_min(torch.finfo(centred.dtype).tiny)
    return unit


def fit_condition(study: Study) -> Condition:
    """The layer at which most borderline validation prompts fall below the quantile of the harmful ones."""
    layers = study.allowed_layers
    step = max(1, -(-len(layers) // _MOST_LAYERS))
    tried = [_at(study, layer) for layer in layers[step - 1 :: step] or layers]
    return max(tried, key=lambda each: (each.borderline_changed, -each.layer))


def _at(study: Study, layer: int) -> Condition:
    def read(label: PromptLabel, split: Split) -> Tensor:
        texts = study.texts(label, split)
        size = study.settings.batch_size
        return stream_at(study.chat, texts, layer=layer, position=_POSITION, batch_size=size)

    direction = discriminant(read("harmful", "train"), read("borderline", "train"))
    harmful, borderline = (read(label, "validation") @ direction for label in ("harmful", "borderline"))
    threshold = float(torch.quantile(harmful, _QUANTILE, interpolation="lower"))
    return Condition(
        layer,
        _POSITION,
        direction,
        threshold,
        harmful_changed=float((harmful < threshold).double().mean()),
        borderline_changed=float((borderline < threshold).double().mean()),
    )


def conditional_rows(study: Study, refusal: RefusalDirection, chosen: Intervention) -> tuple[ConditionalRow, ...]:
    """Judged validation answers of the refusal direction and of the chosen ablation, both under one condition."""
    condition = fit_condition(study)
    rows = [_row(study, condition, "refusal_direction", DirectionalAblation(refusal.direction.vector))]
    if isinstance(chosen, DirectionalAblation | GradedAblation):
        rows.append(_row(study, condition, "operating_point", chosen))
    return tuple(rows)


def lost_at_rest(study: Study, before: Sequence[CompletionRecord], after: Sequence[CompletionRecord]) -> str:
    """What is lost of the true refusals, in words; empty where the limit holds."""
    if not too_many_lost(study, before, after):
        return ""
    change = judged_change(before, after)
    return f"true refusals {100 * change.difference:+.1f} points on {change.n} prompts"


def lost_under_pressure(study: Study, intervention: Intervention) -> str:
    """What is lost of them under pressure, in words; empty where the limit holds."""
    pressed = hold_under_pressure(study, intervention)
    return pressed.note if pressed.kept == Kept.lost else ""


def _row(
    study: Study,
    condition: Condition,
    ablated: Literal["refusal_direction", "operating_point"],
    ablation: DirectionalAblation | GradedAblation,
) -> ConditionalRow:
    intervention = condition.over(ablation)
    study.progress.start("trying a condition", 2 * len(study.split("harmful", "validation")))

    def answers(label: PromptLabel, change: Intervention | None) -> list[CompletionRecord]:
        return study.runner.complete(
            study.split(label, "validation"),
            condition=BASE_MODEL if change is None else f"conditional {ablated}",
            split="validation",
            intervention=change,
            keep_text=False,
            until_settled=True,
        )

    before, after = answers("harmful", None), answers("harmful", intervention)
    return ConditionalRow(
        ablated=ablated,
        layer=condition.layer,
        position=condition.position,
        threshold=condition.threshold,
        harmful_changed=condition.harmful_changed,
        borderline_changed=condition.borderline_changed,
        false_refusal_rate=refusal_rate(answers("borderline", intervention)),
        true_refusal_rate=refusal_rate(after),
        note=lost_at_rest(study, before, after) or lost_under_pressure(study, intervention),
        fingerprint=intervention.fingerprint,
    )
