"""Stage 1: the refusal direction (Arditi et al. 2024): candidates, their three scores, the choice."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from demur.activations import ActivationMeans, mean_activations
from demur.calibration._contest import GREATEST, prompts_for_kl, prompts_for_scores, race_of
from demur.calibration._racing import Limit, Score
from demur.calibration._score_books import Candidate, Kind
from demur.calibration._selection import (
    ScoreRow,
    Selection,
    chosen_despite_filters,
    nearest_rejected,
    select_refusal_direction,
)
from demur.calibration._study import Study
from demur.calibration._sweep import ZERO_NORM, ScoredPrompts
from demur.directions import Direction, difference_in_means
from demur.errors import SelectionError
from demur.evaluation import refusal_rate
from demur.interventions import ActivationAddition, DirectionalAblation, Intervention
from demur.records import BASE_MODEL, DirectionCard
from demur.types import PromptLabel

KINDS: tuple[Kind, ...] = ("bypass", "induce", "kl")
"""The scores of a refusal direction."""


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
    selection = _select(study, candidates, rows)
    chosen = selection.selected
    place = (chosen.position, chosen.layer)
    direction = Direction(candidates[place].clone(), *place)
    card = DirectionCard(
        position=chosen.position,
        position_text=study.chat.template.post_instruction_texts()[chosen.position],
        layer=chosen.layer,
        norm=direction.norm,
        scores={
            **{
                f"{kind}_score": study.mean_score(kind, place)
                for kind in KINDS
                if study.scores.get(kind, place) is not None
            },
            "base_score_harmful": study.mean_base_score("harmful"),
            "base_score_harmless": study.mean_base_score("harmless"),
        },
        n_candidates=candidates.shape[0] * candidates.shape[1],
        n_survivors=selection.survivors,
        unmet_filters=chosen.rejected_by,
        n_fit={"harmful": means["harmful"].n, "harmless": means["harmless"].n},
    )
    return RefusalDirection(direction, candidates, means["harmless"], selection, card)


def _select(study: Study, candidates: Tensor, rows: Sequence[ScoreRow]) -> Selection:
    """The published rule; where no candidate passes its filters, the judged answers of the nearest ones decide.

    Raises:
        SelectionError: no candidate passes, and no answer changes where the nearest ones are ablated and added.
    """
    limits: dict[str, Any] = {
        "n_layers": study.chat.n_layers,
        "kl_limit": study.settings.kl_limit,
        "induce_minimum": study.induce_minimum,
        "layer_fraction": study.settings.layer_fraction,
    }
    try:
        return select_refusal_direction(rows, **limits)
    except SelectionError as error:
        # A zero vector changes nothing, which no filter of change minds: it would be the nearest.
        directions = [row for row in rows if candidates[row.position, row.layer].norm() > ZERO_NORM]
        near = nearest_rejected(directions, count=_JUDGED, **limits)
        effects = {(row.position, row.layer): _effect(study, candidates, row) for row in near}
        place = max(effects, key=lambda each: effects[each], default=None)
        if place is None or effects[place] <= 0:
            raise error
        selection = chosen_despite_filters(rows, place, **limits)
        study.warnings.append(
            f"No refusal direction passes the published filters ({', '.join(selection.selected.rejected_by)} not met "
            f"by the nearest). Of the {len(near)} nearest, that of layer {place[1]}, position {place[0]} changes "
            "judged answers most where it is ablated and added, and was taken."
        )
        return selection


_JUDGED = 4
"""Candidates whose answers are judged where none passes the filters."""


def _effect(study: Study, candidates: Tensor, row: ScoreRow) -> float:
    """Refusals that ablating a candidate takes from harmful prompts plus those that adding it gives harmless ones.

    As shares of validation prompts, in memory and unrecorded.
    """
    vector = candidates[row.position, row.layer]
    changes: dict[PromptLabel, Intervention] = {
        "harmful": DirectionalAblation(vector),
        "harmless": ActivationAddition(vector, row.layer),
    }
    total = 0.0
    for label, change in changes.items():
        prompts = study.split(label, "validation")[: study.settings.n_scored]
        study.progress.start("judging directions that the filters reject", 2 * len(prompts))
        before = study.runner.complete(prompts, condition=BASE_MODEL, split="validation", until_settled=True)
        after = study.runner.complete(
            prompts,
            condition="candidate",
            split="validation",
            intervention=change,
            folded=False,
            record=False,
            until_settled=True,
        )
        moved = (refusal_rate(after).rate or 0.0) - (refusal_rate(before).rate or 0.0)
        total += moved if label == "harmless" else -moved
    return total


def _score(study: Study, candidates: Tensor) -> list[ScoreRow]:
    """Scores of the candidates of the allowed layers, each as far as the choice needs.

    Filters come in the order of cost over rejection: adding starts at the candidate's layer, so induce is cheapest and
    removes most; then KL; bypass is for those that are left, the likeliest first.
    """
    settings = study.settings
    harmful = study.scored_validation("harmful", refused=True)
    harmless = study.scored_validation("harmless", refused=False)
    bypass = Score("bypass", len(harmful), -GREATEST, GREATEST)
    induce = Limit(Score("induce", len(harmless), -GREATEST, GREATEST), "induce", at_least=study.induce_minimum)
    kl = Limit(Score("kl", len(harmless), least=0.0), "kl", at_most=settings.kl_limit)
    prompts: dict[Kind, ScoredPrompts] = {
        "bypass": prompts_for_scores(study, "harmful", harmful, telling="high"),
        "induce": prompts_for_scores(study, "harmless", harmless, telling="low", adds=True),
        "kl": prompts_for_kl(study, harmless),
    }
    places = [(position, layer) for position in study.positions for layer in study.allowed_layers]
    vectors: dict[Candidate, Tensor] = {(None, *place): candidates[place] for place in places}
    race, sweep = race_of(study, "scoring refusal directions", vectors, prompts)
    with sweep.kept(race.values):
        alive = race.filter(kl, race.filter(induce, vectors))
        if not alive:  # the error says how far off they are
            for limit in (induce, kl):
                race.complete(limit.score, [key for key in vectors if race.rejected[key] != "nan"])
        race.lowest(bypass, alive, group=lambda _: None)
        race.complete_runners_up(bypass, alive)
    scores = {"bypass": bypass, "induce": induce.score, "kl": kl.score}
    rows = []
    for key in vectors:
        means = {name: race.mean(score, key) for name, score in scores.items()}
        decided = race.rejected.get(key)
        told = (decided,) if decided and means.get(decided) is None else ()
        rows.append(ScoreRow(key[1], key[2], **means, rejected_by=told))
    return rows
