"""Scores of w' over the lambda grid, by next tokens: which candidate of each lambda has its answers judged."""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from demur.calibration._contest import GREATEST, prompts_for_kl, prompts_for_scores, race_of
from demur.calibration._kept import Change, NetLoss, score_change
from demur.calibration._racing import RUNNERS_UP, Limit, Race, Score
from demur.calibration._score_books import Candidate, Kind
from demur.calibration._screen import screened
from demur.calibration._study import Study
from demur.calibration._sweep import ZERO_NORM, ScoredPrompts
from demur.directions import orthogonalize
from demur.records import FalseRefusalScores


@dataclass(frozen=True)
class Best:
    """The best candidate at one lambda."""

    scores: FalseRefusalScores
    vector: Tensor
    true_change: Change | None
    """Net change of the refusal probability of scored harmful prompts; None where not all were measured."""
    false_change: Change | None
    """The same of borderline prompts."""


def score_grid(
    study: Study, w: Tensor, r: Tensor
) -> tuple[list[FalseRefusalScores], dict[float, Best], Callable[[float], None]]:
    """Scores of w' over the lambda grid, each as far as the choice needs, and the best of each lambda.

    Also what completes the scores of those that came next at one lambda, for the stability of the choice.

    A first-order estimate of all candidates says which are measured. The limits are measured only of candidates that
    would win. Where none of a lambda's candidates is within the limits, the best of those beyond them stands for it.
    """
    settings = study.settings
    indices = {label: study.scored_validation(label, refused=None) for label in ("harmless", "harmful", "borderline")}
    kl = Limit(Score("w_kl", len(indices["harmless"]), least=0.0), "kl", at_most=settings.false_refusal_kl_limit)
    harmful = Score("w_harmful", len(indices["harmful"]), -GREATEST, GREATEST)
    borderline = Score("w_borderline", len(indices["borderline"]), -GREATEST, GREATEST)
    prompts: dict[Kind, ScoredPrompts] = {
        "w_kl": prompts_for_kl(study, indices["harmless"]),
        "w_harmful": prompts_for_scores(study, "harmful", indices["harmful"], telling="high"),
        "w_borderline": prompts_for_scores(study, "borderline", indices["borderline"], telling="high"),
    }
    asked = prompts["w_harmful"]
    before = tuple(study.probability(asked.unchanged[index]) for index in asked.order)
    kept = NetLoss(harmful, "true_refusals", before=before, margin=settings.margin, read=study.probability)
    # Where the score does not tell refusals from answers, judged answers alone decide what is kept.
    limits = (kept, kl) if study.threshold.tells else (kl,)
    vectors = _grid(study, w, r)
    alive = {key: vector for key, vector in vectors.items() if vector.norm() > ZERO_NORM}
    measured = {key: vectors[key] for key in screened(study, alive, each=settings.n_screened)}
    race, sweep = race_of(study, "scoring false-refusal directions", measured, prompts)
    with sweep.kept(race.values):
        best = race.lowest(borderline, list(measured), group=lambda key: key[0], limits=limits)
        beyond = _best_beyond(race, borderline, measured, best)
        for limit in limits:  # the frontier says by how much a limit was missed
            race.complete(limit.score, beyond.values())

    def complete_runners_up(strength: float) -> None:
        study.progress.start("scoring the next best", RUNNERS_UP)
        with sweep.kept(race.values):
            race.complete_runners_up(borderline, [key for key in measured if key[0] == strength], limits=limits)

    base = math.fsum(before)

    def row(key: Candidate) -> FalseRefusalScores:
        after = race.mean(harmful, key, study.probability)
        reason = race.rejected.get(key) or ("outscored" if key in race.outscored else None)
        if key not in measured:
            reason = "estimated" if key in alive else "zero"
        return FalseRefusalScores(
            lambda_=key[0],
            position=key[1],
            layer=key[2],
            kl_score=_number(race.mean(kl.score, key)),
            harmful_kept=None if after is None else _number(after * len(before) / base if base else 1.0),
            borderline_score=_number(race.mean(borderline, key)),
            rejected_by=() if reason is None else (reason,),
        )

    rows = {key: row(key) for key in vectors}

    def change(key: Candidate, score: Score) -> Change | None:
        values = [study.probability(value) for value in race.of(score, key)]
        scored = prompts[cast(Kind, score.kind)]
        one = [study.probability(scored.unchanged[index]) for index in scored.order]
        return score_change(one, values) if len(values) == scored.n and not any(map(math.isnan, values)) else None

    found: dict[float, Best] = {}
    for strength in settings.lambdas:
        key = best.get(strength, beyond.get(strength))
        if key is not None and rows[key].kl_score is not None:  # None: the model overflows under it
            false = change(key, borderline)
            found[strength] = Best(rows[key], vectors[key], change(key, harmful), false)
    return list(rows.values()), found, complete_runners_up


def _best_beyond(
    race: Race[Candidate], score: Score, keys: Iterable[Candidate], best: Mapping[Hashable, Candidate]
) -> dict[float | None, Candidate]:
    """Of each lambda whose candidates are all beyond a limit, the one with the lowest score."""
    found: dict[float | None, Candidate] = {}
    for key in keys:
        mean = race.mean(score, key)
        if key[0] in best or mean is None or math.isnan(mean) or race.rejected.get(key) == "nan":
            continue
        held = found.get(key[0])
        if held is None or mean < (race.mean(score, held) or 0.0):
            found[key[0]] = key
    return found


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _grid(study: Study, w: Tensor, r: Tensor) -> dict[Candidate, Tensor]:
    """W' of every lambda and place, the layers of one lambda after each other."""
    vectors: dict[Candidate, Tensor] = {}
    for strength in study.settings.lambdas:
        stack = orthogonalize(w, r, strength=strength)
        places = [(position, layer) for layer in study.allowed_layers for position in study.positions]
        vectors.update({(strength, *place): stack[place] for place in places})
    return vectors
