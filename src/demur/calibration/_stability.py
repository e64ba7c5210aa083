"""How stable the choice of a direction is: bootstrap over validation prompts of the scores that were kept per prompt.

No forward passes. A bootstrap answers "which candidate would other validation prompts of this size have chosen"; it
says nothing about other training prompts.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from demur.errors import InputError
from demur.records import CandidateWins, ScoreRecord, Stability

_SHOWN = 5
"""Other candidates that a record lists."""

_Floats = NDArray[np.float64]
_Place = tuple[int, int]
"""(position, layer)."""


@dataclass(frozen=True)
class _Table:
    """Scores of one kind, as far as they are complete and finite."""

    values: _Floats
    """[candidate, prompt]; rows of candidates without a score are NaN."""

    @property
    def scored(self) -> NDArray[np.bool_]:
        """[candidate]."""
        return np.asarray(np.isfinite(self.values).all(axis=1))

    def means(self, counts: NDArray[np.int64]) -> _Floats:
        """Mean of each candidate in each resample, [resample, candidate]; `counts` are draws, [resample, prompt]."""
        return np.asarray(counts @ np.where(self.scored[:, None], self.values, 0.0).T / self.values.shape[1])


def refusal_stability(
    scores: Iterable[ScoreRecord],
    *,
    n_layers: int,
    kl_limit: float = 0.1,
    induce_minimum: float = 0.0,
    layer_fraction: float = 0.8,
    resamples: int = 2000,
    seed: int = 0,
) -> Stability:
    """How often each candidate of the refusal direction wins when validation prompts are drawn again.

    The rule is that of `select_refusal_direction`. Harmful and harmless prompts are drawn apart; induce and KL scores
    share the harmless draws. A candidate that lacks a score, as early rejection leaves it out, is never chosen, so the
    wins of the others are upper bounds where such a candidate was close to a limit.

    Args:
        scores: The run's per-prompt scores; of a candidate that is there twice the last counts. Other kinds are
            ignored.
        n_layers: Number of decoder blocks of the model.
        kl_limit: As for the selection.
        induce_minimum: As for the selection.
        layer_fraction: As for the selection.
        resamples: Bootstrap samples.
        seed: Of the draws.

    Raises:
        InputError: no usable scores, scores on different numbers of prompts, no candidate passes on all prompts, or no
            resamples.
    """
    known = _by_kind(scores, ("bypass", "induce", "kl"), strength=None)
    places = sorted({place for table in known.values() for place in table})
    tables = {kind: _table(found, places, kind) for kind, found in known.items()}
    allowed = np.array([layer < int(layer_fraction * n_layers) for _, layer in places], dtype=bool)
    usable = allowed & tables["bypass"].scored & tables["induce"].scored & tables["kl"].scored

    def rule(counts: Mapping[str, NDArray[np.int64]]) -> tuple[_Floats, NDArray[np.bool_]]:
        passed = usable & (tables["kl"].means(counts["harmless"]) <= kl_limit)
        passed &= tables["induce"].means(counts["harmless"]) >= induce_minimum
        return tables["bypass"].means(counts["harmful"]), passed

    return _resample(
        places,
        rule,
        {"harmful": _prompts(tables, "bypass"), "harmless": _prompts(tables, "kl", "induce")},
        kind="refusal_direction",
        strength=None,
        unscored=int((~usable & allowed).sum()),
        resamples=resamples,
        seed=seed,
    )


def false_refusal_stability(
    scores: Iterable[ScoreRecord],
    *,
    strength: float,
    kl_limit: float,
    margin: float,
    before: Sequence[float] | None = None,
    probability: Callable[[float], float] = lambda score: float(score > 0),
    resamples: int = 2000,
    seed: int = 0,
) -> Stability:
    """How often each candidate of the false-refusal direction wins at one lambda.

    The rule is that of the calibration: KL within its limit, no net loss of true refusals beyond the margin, then the
    lowest mean refusal score on borderline prompts. Candidates that a first-order estimate left out, or that were
    rejected, are never chosen here, though a resample might have let them pass: the wins of the others are upper
    bounds. How the choice of lambda itself varies needs judged answers and is not covered.

    Args:
        scores: As for `refusal_stability`.
        strength: The lambda.
        kl_limit: Largest mean KL on harmless prompts, nats (`CalibrationSettings.false_refusal_kl_limit`).
        margin: Largest net loss of refusal probability on harmful prompts, as a share.
        before: P(refusal) of each harmful prompt before, in the order of the records; None sets no limit on true
            refusals.
        probability: From a refusal score to P(refusal).
        resamples: Bootstrap samples.
        seed: Of the draws.

    Raises:
        InputError: as for `refusal_stability`.
    """
    known = _by_kind(scores, ("w_kl", "w_harmful", "w_borderline"), strength=strength)
    # Scan order of the calibration: layer by layer, positions from the most negative.
    places = sorted({place for table in known.values() for place in table}, key=lambda place: (place[1], place[0]))
    tables = {kind: _table(found, places, kind) for kind, found in known.items()}
    scored = tables["w_kl"].scored & tables["w_borderline"].scored
    if before is not None:
        scored = scored & tables["w_harmful"].scored
    # A zero vector changes nothing, and is no direction to choose.
    usable = scored & (np.nan_to_num(tables["w_kl"].values) != 0).any(axis=1)

    def rule(counts: Mapping[str, NDArray[np.int64]]) -> tuple[_Floats, NDArray[np.bool_]]:
        passed = usable & (tables["w_kl"].means(counts["harmless"]) <= kl_limit)
        if before is not None:
            passed &= ~_lost(tables["w_harmful"], counts["harmful"], before, probability, margin)
        return tables["w_borderline"].means(counts["borderline"]), passed

    return _resample(
        places,
        rule,
        {
            "harmful": _prompts(tables, "w_harmful"),
            "harmless": _prompts(tables, "w_kl"),
            "borderline": _prompts(tables, "w_borderline"),
        },
        kind="false_refusal_direction",
        strength=strength,
        unscored=int((~scored).sum()),
        resamples=resamples,
        seed=seed,
    )


def _lost(
    table: _Table,
    counts: NDArray[np.int64],
    before: Sequence[float],
    probability: Callable[[float], float],
    margin: float,
) -> NDArray[np.bool_]:
    """Whether each candidate loses true refusals in each resample, as `NetLoss` says: [resample, candidate]."""
    after = np.array([[probability(value) for value in row] for row in np.nan_to_num(table.values)])
    change = np.where(table.scored[:, None], after - np.asarray(before), 0.0)
    n = change.shape[1]
    mean = counts @ change.T / n
    spread = np.sqrt(np.maximum(counts @ (change**2).T / n - mean**2, 0.0) / max(n - 1, 1))
    high = mean + stdtrit(max(n - 1, 1), 0.975) * spread
    return np.asarray((mean <= -margin) & (high < 0))


_Rule = Callable[[Mapping[str, NDArray[np.int64]]], tuple[_Floats, NDArray[np.bool_]]]
"""Draws of each set, [resample, prompt] -> merit (lower is better) and whether it passes, [resample, candidate]."""


def _resample(
    places: Sequence[_Place],
    rule: _Rule,
    prompts: Mapping[str, int],
    *,
    kind: str,
    strength: float | None,
    unscored: int,
    resamples: int,
    seed: int,
) -> Stability:
    if resamples < 1:
        raise InputError(f"the bootstrap needs at least one resample; got {resamples}.")
    everything, passed = rule({label: np.ones((1, n), dtype=np.int64) for label, n in prompts.items()})
    if not passed.any():
        raise InputError("no candidate passes the filters on all validation prompts, so there is no choice to examine.")
    chosen = int(_winners(everything, passed)[0])
    generator = np.random.default_rng(seed)
    draws = {label: generator.multinomial(n, np.full(n, 1 / n), size=resamples) for label, n in prompts.items()}
    merits, passing = rule(draws)
    winners = _winners(merits, passing)[passing.any(axis=1)]
    counts = Counter(winners.tolist())
    # A candidate that the filters reject on all prompts may have the better score there; that is no gain.
    worse = np.maximum(everything[0, winners] - everything[0, chosen], 0.0)
    others = sorted((each for each in counts if each != chosen), key=lambda each: (-counts[each], each))
    return Stability.model_validate(
        {
            "kind": kind,
            "lambda": strength,
            "position": places[chosen][0],
            "layer": places[chosen][1],
            "wins": counts[chosen],
            "resamples": resamples,
            "none_passed": resamples - len(winners),
            "others": [
                CandidateWins(position=places[each][0], layer=places[each][1], wins=counts[each])
                for each in others[:_SHOWN]
            ],
            "expected_regret": float(worse.mean()) if len(winners) else None,
            "n_candidates": len(places),
            "n_unscored": unscored,
            "n_prompts": dict(prompts),
            "seed": seed,
        }
    )


def _winners(merits: _Floats, passed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The first of the best in each row; without meaning where none passed."""
    return np.asarray(np.where(passed, merits, np.inf).argmin(axis=1))


def _by_kind(
    scores: Iterable[ScoreRecord], kinds: Sequence[str], *, strength: float | None
) -> dict[str, dict[_Place, tuple[float | None, ...]]]:
    known: dict[str, dict[_Place, tuple[float | None, ...]]] = {kind: {} for kind in kinds}
    for record in scores:
        if record.kind in known and record.lambda_ == strength:
            known[record.kind][record.position, record.layer] = record.values
    missing = [kind for kind, found in known.items() if not found]
    if missing:
        at = "" if strength is None else f" at lambda {strength:g}"
        raise InputError(f"the scores hold no {' and no '.join(missing)} scores{at}; give the scores.jsonl of a run.")
    return known


def _table(found: Mapping[_Place, Sequence[float | None]], places: Sequence[_Place], kind: str) -> _Table:
    sizes = sorted({len(values) for values in found.values()})
    if len(sizes) > 1 or not sizes[0]:
        raise InputError(f"the {kind} scores are of {sizes} prompts; they must be of the same ones, and of some.")
    size = sizes[0]
    rows = [[np.nan if value is None else value for value in found.get(place, (None,) * size)] for place in places]
    return _Table(np.array(rows, dtype=np.float64))


def _prompts(tables: Mapping[str, _Table], *kinds: str) -> int:
    sizes = {kind: len(tables[kind].values[0]) for kind in kinds}
    if len(set(sizes.values())) > 1:
        raise InputError(f"scores of the same prompts differ in number: {sizes}.")
    return sizes[kinds[0]]
