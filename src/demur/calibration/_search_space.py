"""The points that a search can try, and the intervention that each stands for."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from demur.directions import Direction, orthogonalize
from demur.errors import InputError
from demur.interventions import (
    ActivationAddition,
    Combined,
    DirectionalAblation,
    GradedAblation,
    Intervention,
    LayerKernel,
)
from demur.records import AblationStrengths, OperatingPoint, SearchPoint

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_STRONGEST = 1.4
"""Above 1 a write is turned round; a little of that makes up for what other writers keep."""
_ADDITIONS = (0.0, 0.02, 0.05, 0.1, 0.2)
"""Multiples of r. Most trials should have none: a point with an addition cannot be exported."""


@dataclass(frozen=True)
class SearchSpace:
    """All points of one model: where w' comes from, how strongly each write loses it, and whether r is added."""

    w: Tensor
    """False-refusal directions, [position, layer, d_model]."""
    r_candidates: Tensor
    """Refusal directions, [position, layer, d_model]."""
    r: Direction
    """The selected refusal direction."""
    positions: tuple[int, ...]
    allowed_layers: int
    """Directions come from the layers below this one."""
    n_layers: int

    @cached_property
    def distributions(self) -> "dict[str, BaseDistribution]":
        """Optuna's names for the dimensions."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution  # noqa: PLC0415 (an extra)

        return {
            "lambda": FloatDistribution(0.0, 1.0),
            "position": CategoricalDistribution(self.positions),
            "layer": FloatDistribution(0.0, float(max(self.allowed_layers - 1, 0))),
            "attention": FloatDistribution(0.0, _STRONGEST),
            "mlp": FloatDistribution(0.0, _STRONGEST),
            "embeddings": FloatDistribution(0.0, _STRONGEST),
            "centre": FloatDistribution(0.0, float(self.n_layers - 1)),
            "width": FloatDistribution(1.0, float(max(self.n_layers, 2))),
            "edge": FloatDistribution(0.0, 1.0),
            "addition": CategoricalDistribution(_ADDITIONS),
        }

    def as_in_the_grid(self, strength: float, position: int, layer: int) -> dict[str, Any]:
        """The values of a point of the lambda grid."""
        return {
            "lambda": strength,
            "position": position,
            "layer": float(layer),
            "attention": 1.0,
            "mlp": 1.0,
            "embeddings": 1.0,
            "centre": (self.n_layers - 1) / 2,
            "width": float(max(self.n_layers, 2)),
            "edge": 1.0,
            "addition": 0.0,
        }

    def vector(self, point: SearchPoint) -> Tensor:
        """W' of a point, [d_model]; between two layers those of both, mixed by the distance."""
        return self._between(orthogonalize(self.w, self.r_candidates, strength=point.lambda_), point)

    def sources(self, point: SearchPoint) -> tuple[Tensor, Tensor]:
        """W and r at the place of a point, each [d_model]."""
        return self._between(self.w, point), self._between(self.r_candidates, point)

    def _between(self, stack: Tensor, point: SearchPoint) -> Tensor:
        rows = stack[self.positions.index(point.position)]
        lower = int(point.layer)
        share = point.layer - lower
        return rows[lower].clone() if not share else (1 - share) * rows[lower] + share * rows[lower + 1]

    def operating_point(self, point: SearchPoint) -> tuple[Intervention, OperatingPoint]:
        """The intervention of a point, and what a record says of it."""
        strengths = self._strengths(point)
        uniform = set(strengths.attention) | set(strengths.mlp) | {strengths.embeddings} == {1.0}
        method = "ablate_false_refusal_direction" if uniform else "graded_ablation"
        described = {
            "method": "graded_ablation_and_addition" if point.addition else method,
            "lambda_": point.lambda_,
            "position": point.position,
            "layer": round(point.layer),
            "sites": "all_writes",
            "fingerprint": "",
            "source_layer": point.layer if point.layer != int(point.layer) else None,
            "strengths": None if uniform else strengths,
            "addition": point.addition or None,
        }
        draft = OperatingPoint.model_validate(described)
        intervention = intervention_of(draft, self.vector(point), self.r)
        return intervention, draft.model_copy(update={"fingerprint": intervention.fingerprint})

    def _strengths(self, point: SearchPoint) -> AblationStrengths:
        def over(peak: float) -> tuple[float, ...]:
            return LayerKernel(peak, point.centre, point.width, peak * point.edge).over(self.n_layers)

        return AblationStrengths(attention=over(point.attention), mlp=over(point.mlp), embeddings=point.embeddings)


def intervention_of(point: OperatingPoint, vector: Tensor, r: Direction | None) -> Intervention:
    """The intervention that an operating point stands for.

    Args:
        point: what a record says.
        vector: w', [d_model].
        r: the refusal direction; needed where it is added.

    Raises:
        InputError: it is added and not given.
    """
    ablation: Intervention = DirectionalAblation(vector)
    if point.strengths is not None:
        strengths = point.strengths
        ablation = GradedAblation(vector, strengths.attention, strengths.mlp, strengths.embeddings)
    if point.addition is None:
        return ablation
    if r is None:
        raise InputError("this operating point adds the refusal direction, and the run holds none; calibrate again.")
    return Combined((ablation, ActivationAddition(point.addition * r.vector, r.layer)))
