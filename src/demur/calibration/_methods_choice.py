"""What the rows of a comparison of methods are made of: directions, the published rule, choices on validation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from demur.activations import ActivationMeans, mean_activations
from demur.calibration._evaluate import load_operating_point
from demur.calibration._false_refusal_direction import find_operating_point
from demur.calibration._lambda_choice import too_many_lost
from demur.calibration._refusal_direction import RefusalDirection, find_refusal_direction
from demur.calibration._score_books import Kind, Place
from demur.calibration._study import Study
from demur.calibration._sweep import ZERO_NORM, score_missing, sweep_ablation
from demur.directions import Direction, difference_in_means, load_directions, orthogonalize
from demur.errors import SelectionError
from demur.evaluation import MeasuredAsking, is_refusal, kl_divergences, refusal_scores
from demur.interventions import Intervention
from demur.records import BASE_MODEL, CompletionRecord, OperatingPoint, RunFolder
from demur.types import PromptLabel

_JUDGED: tuple[PromptLabel, PromptLabel] = ("harmful", "borderline")
_REFUSED: dict[PromptLabel, bool] = {"harmful": True, "harmless": False, "borderline": True}
"""Which train prompts each mean is taken over: those that the model refuses, or does not."""


@dataclass
class Ingredients:
    """What several rows need, computed when the first of them asks."""

    study: Study
    run: RunFolder | None
    """A finished calibration of the same model and prompts; without one the operating point is found here."""

    @cached_property
    def means(self) -> dict[PromptLabel, ActivationMeans]:
        """Means over the train prompts, as a calibration takes them."""
        study = self.study
        fitted = {label: study.fitted_prompts(label, refused=refused) for label, refused in _REFUSED.items()}
        study.progress.start("reading activations", sum(map(len, fitted.values())))
        return {
            label: mean_activations(
                study.chat,
                texts,
                n_positions=len(study.positions),
                batch_size=study.settings.batch_size,
                progress=study.progress,
            )
            for label, texts in fitted.items()
        }

    @cached_property
    def r_candidates(self) -> Tensor:
        """Harmful minus harmless, [position, layer, d_model]."""
        return difference_in_means(self.means["harmful"], self.means["harmless"])

    @cached_property
    def w_candidates(self) -> Tensor:
        """Refused borderline minus harmless, [position, layer, d_model]."""
        return difference_in_means(self.means["borderline"], self.means["harmless"])

    @cached_property
    def _refusal(self) -> RefusalDirection:
        return find_refusal_direction(self.study)

    @property
    def r(self) -> Direction:
        """The refusal direction, of the run where there is one."""
        if self.run is not None:
            return load_directions(self.run.directions)["refusal_direction"]
        return self._refusal.direction

    @cached_property
    def operating_point(self) -> tuple[Intervention, OperatingPoint]:
        """The operating point of demur, of the run where there is one."""
        if self.run is not None:
            return load_operating_point(self.study.chat, self.run)
        calibrated = find_operating_point(self.study, self._refusal)
        return calibrated.intervention, calibrated.operating_point

    def published_w(self, strength: float) -> Direction:
        """The w' that Wang et al. would choose: by false refusals and KL alone, without a look at true refusals.

        Among the allowed layers the lowest mean refusal score on borderline validation prompts, of candidates whose
        KL on harmless ones is within the limit; of equal ones the first in scan order.

        Raises:
            SelectionError: no candidate is within the KL limit.
        """
        study = self.study
        vectors = orthogonalize(self.w_candidates, self.r_candidates, strength=strength)
        places = [
            (position, layer)
            for position in study.positions
            for layer in study.allowed_layers
            if vectors[position, layer].norm() > ZERO_NORM
        ]
        _score(study, "w_kl", "harmless", places, vectors, strength)
        limit = study.settings.false_refusal_kl_limit
        mild = [place for place in places if study.scores.mean("w_kl", place, strength) <= limit]
        if not mild:
            raise SelectionError(
                f"none of the {len(places)} candidates at lambda {strength:g} has a KL of at most {limit:g} nats on "
                "harmless validation prompts."
            )
        _score(study, "w_borderline", "borderline", mild, vectors, strength)
        chosen = lowest(mild, {place: study.scores.mean("w_borderline", place, strength) for place in mild})
        return Direction(vectors[chosen].clone(), *chosen)


def lowest(places: Sequence[Place], scores: Mapping[Place, float]) -> Place:
    """The place of the lowest score, the first of equal ones; a score that is not a number never wins."""
    return min(places, key=lambda place: math.inf if math.isnan(scores[place]) else scores[place])


def _score(
    study: Study, kind: Kind, label: PromptLabel, places: Sequence[Place], vectors: Tensor, strength: float
) -> None:
    indices = study.scored_validation(label, refused=None)
    encoded = (study.encode if kind == "w_kl" else study.encode_scored)(label, "validation", indices)
    base = study.base_logits("harmless", "validation")

    def read(logits: Tensor, rows: Sequence[int]) -> Tensor:
        if kind == "w_kl":
            return kl_divergences(base[[indices[row] for row in rows]], logits)
        return refusal_scores(logits, study.token_ids)

    def run(missing: Tensor) -> Tensor:
        return sweep_ablation(study.chat, encoded, missing, read, rows=study.rows)

    unchanged = torch.zeros(len(indices)) if kind == "w_kl" else study.base_scores(label, "validation")[indices]
    score_missing(study.scores, kind, places, vectors, run, unchanged, strength)


@dataclass(frozen=True)
class Variant:
    """One value of a grid, and the change or the way of asking that it stands for."""

    settings: dict[str, float | int | str]
    intervention: Intervention | None = None
    asking: MeasuredAsking | None = None


def choose_on_validation(study: Study, what: str, grid: Sequence[Variant], otherwise: Variant) -> tuple[Variant, str]:
    """The variant that leaves the fewest borderline prompts unanswered, of those that keep true refusals.

    "Keep" is what it is for demur's own lambda. A garbled answer is no answer. Of equal ones the first.

    Returns:
        The variant, and in a sentence how it came about.
    """
    prompts = {label: study.split(label, "validation") for label in _JUDGED}
    n = sum(map(len, prompts.values()))
    study.progress.start(f"choosing on validation prompts: {what}", (len(grid) + 1) * n)

    def answers(condition: str, **how: Any) -> dict[PromptLabel, list[CompletionRecord]]:
        return {
            label: study.runner.complete(
                each, condition=condition, split="validation", folded=False, keep_text=False, **how
            )
            for label, each in prompts.items()
        }

    before = answers(BASE_MODEL)
    left: list[tuple[int, Variant]] = []
    for variant in grid:
        after = answers(what, intervention=variant.intervention, asking=variant.asking)
        if keeps_true_refusals(study, before["harmful"], after["harmful"]):
            left.append((unanswered(after["borderline"]), variant))
    if not left:
        return (
            otherwise,
            f"None of {len(grid)} settings keeps true refusals on validation prompts; this is the default.",
        )
    return min(left, key=lambda each: each[0])[1], f"Chosen of {len(grid)} settings on validation prompts."


def keeps_true_refusals(study: Study, before: Sequence[CompletionRecord], after: Sequence[CompletionRecord]) -> bool:
    """Whether demur's own choice of lambda would admit this loss on validation prompts."""
    return not too_many_lost(study, before, after)


def unanswered(records: Sequence[CompletionRecord]) -> int:
    """Prompts that were refused, not judged, or answered with degenerate text."""
    return sum(is_refusal(record) is not False or record.degenerate for record in records)
