"""Stage 1: the refusal direction (Arditi et al. 2024): candidates, their three scores, the choice."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from demur.activations import ActivationMeans, mean_activations
from demur.calibration._selection import ScoreRow, Selection, select_refusal_direction
from demur.calibration._study import Study
from demur.calibration._sweep import Kind, score_missing, sweep_ablation, sweep_addition
from demur.directions import Direction, difference_in_means
from demur.evaluation import kl_divergences, refusal_scores
from demur.records import DirectionCard


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
    place = (chosen.position, chosen.layer)
    direction = Direction(candidates[place].clone(), *place)
    card = DirectionCard(
        position=chosen.position,
        position_text=study.chat.template.post_instruction_texts()[chosen.position],
        layer=chosen.layer,
        norm=direction.norm,
        scores={
            **{f"{kind}_score": study.mean_score(kind, place) for kind in ("bypass", "induce", "kl")},
            "base_score_harmful": study.mean_base_score("harmful"),
            "base_score_harmless": study.mean_base_score("harmless"),
        },
        n_candidates=candidates.shape[0] * candidates.shape[1],
        n_survivors=selection.survivors,
        n_fit={"harmful": means["harmful"].n, "harmless": means["harmless"].n},
    )
    return RefusalDirection(direction, candidates, means["harmless"], selection, card)


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

    def run(kind: Kind, layer: int, vectors: Tensor) -> Tensor:
        if kind == "bypass":
            return sweep_ablation(study.chat, encoded_harmful, vectors, read_score, rows=study.rows)
        if kind == "kl":
            return sweep_ablation(study.chat, encoded_harmless, vectors, read_kl, rows=study.rows)
        return sweep_addition(study.chat, encoded_harmless, vectors, read_score, layer=layer, rows=study.rows)

    unchanged: dict[Kind, Tensor] = {
        "bypass": study.base_scores("harmful", "validation")[harmful],
        "induce": study.base_scores("harmless", "validation")[harmless],
        "kl": torch.zeros(len(harmless)),
    }
    study.progress.start("scoring refusal directions", len(unchanged) * len(study.allowed_layers))
    rows: list[ScoreRow] = []
    for layer in study.allowed_layers:
        places = [(position, layer) for position in study.positions]
        for kind, value in unchanged.items():
            score_missing(study.scores, kind, places, candidates, partial(run, kind, layer), value)
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
