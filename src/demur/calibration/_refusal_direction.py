"""Stage 1: the refusal direction (Arditi et al. 2024): candidates, their three scores, the choice."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from demur.activations import ActivationMeans, mean_activations
from demur.calibration._selection import ScoreRow, Selection, select_refusal_direction
from demur.calibration._study import Study
from demur.calibration._sweep import Kind, Place, sweep_ablation, sweep_addition
from demur.directions import Direction, difference_in_means
from demur.evaluation import kl_divergences, refusal_scores
from demur.records import DirectionCard

_NORM_EPSILON = 1e-8
"""Added to a candidate's norm before dividing, as published: rounding noise at layer 0 stays a zero vector."""


@dataclass(frozen=True)
class RefusalDirection:
    """The selected refusal direction and all candidates."""

    direction: Direction
    candidates: Tensor
    """[position, layer, d_model], float64: harmful minus harmless."""
    harmless: ActivationMeans
    selection: Selection
    card: DirectionCard


def find_refusal_direction(study: Study) -> RefusalDirection:
    """Fit on train, score on validation, choose by the published rule.

    Raises:
        SelectionError: no candidate passes the filters.
        ModelError: the model does not refuse, refuses everything, or has non-finite activations.
    """
    harmful = study.fitted_prompts("harmful", refused=True)
    harmless = study.fitted_prompts("harmless", refused=False)
    means = {}
    study.progress.start("reading activations", len(harmful) + len(harmless))
    for name, texts in (("harmful", harmful), ("harmless", harmless)):
        means[name] = mean_activations(
            study.chat,
            texts,
            n_positions=len(study.positions),
            batch_size=study.settings.batch_size,
            progress=study.progress,
        )
    candidates = difference_in_means(means["harmful"], means["harmless"])
    rows = _score(study, candidates)
    selection = select_refusal_direction(
        rows,
        n_layers=study.chat.n_layers,
        kl_limit=study.settings.kl_limit,
        induce_minimum=study.settings.induce_minimum,
        layer_fraction=study.settings.layer_fraction,
    )
    chosen = selection.selected
    direction = Direction(candidates[chosen.position, chosen.layer].clone(), chosen.position, chosen.layer)
    card = DirectionCard(
        position=chosen.position,
        position_text=study.chat.template.post_instruction_texts()[chosen.position],
        layer=chosen.layer,
        norm=direction.norm,
        scores={
            "bypass_score": chosen.bypass_score,
            "induce_score": chosen.induce_score,
            "kl_score": chosen.kl_score,
            "base_score_harmful": float(study.base_scores("harmful", "validation").mean()),
            "base_score_harmless": float(study.base_scores("harmless", "validation").mean()),
        },
        n_candidates=candidates.shape[0] * candidates.shape[1],
        n_survivors=selection.survivors,
        n_fit={"harmful": means["harmful"].n, "harmless": means["harmless"].n},
    )
    return RefusalDirection(direction, candidates, means["harmless"], selection, card)


def unit_candidates(candidates: Tensor, places: Sequence[Place]) -> Tensor:
    """[place, d_model]: the candidates at `places` with unit length; numerically zero ones stay zero."""
    vectors = torch.stack([candidates[position, layer] for position, layer in places])
    return torch.div(vectors, vectors.norm(dim=-1, keepdim=True) + _NORM_EPSILON)


def _score(study: Study, candidates: Tensor) -> list[ScoreRow]:
    """Bypass, induce and KL of every candidate of the allowed layers, one layer at a time."""
    harmful = study.scored_validation("harmful", refused=True)
    harmless = study.scored_validation("harmless", refused=False)
    encoded_harmful = study.encode("harmful", "validation", harmful)
    encoded_harmless = study.encode("harmless", "validation", harmless)
    base = study.base_logits("harmless", "validation")[harmless]

    def read_score(logits: Tensor, _indices: Sequence[int]) -> Tensor:
        return refusal_scores(logits, study.token_ids)

    def read_kl(logits: Tensor, indices: Sequence[int]) -> Tensor:
        return kl_divergences(base[list(indices)], logits)

    study.progress.start("scoring refusal directions", 3 * len(study.allowed_layers))
    rows: list[ScoreRow] = []
    for layer in study.allowed_layers:
        places = [(position, layer) for position in study.positions]
        kinds: tuple[Kind, Kind, Kind] = ("bypass", "induce", "kl")
        for kind in kinds:
            if any(study.scores.get(kind, place) is None for place in places):
                units = unit_candidates(candidates, places)
                if kind == "bypass":
                    values = sweep_ablation(study.chat, encoded_harmful, units, read_score, rows=study.rows)
                elif kind == "kl":
                    values = sweep_ablation(study.chat, encoded_harmless, units, read_kl, rows=study.rows)
                else:
                    raw = torch.stack([candidates[place] for place in places])
                    values = sweep_addition(study.chat, encoded_harmless, raw, read_score, layer=layer, rows=study.rows)
                study.scores.add(kind, places, values)
            study.progress.advance()
        rows.extend(
            ScoreRow(
                position=place[0],
                layer=layer,
                bypass=study.scores.mean("bypass", place),
                induce=study.scores.mean("induce", place),
                kl=study.scores.mean("kl", place),
            )
            for place in places
        )
    return rows
