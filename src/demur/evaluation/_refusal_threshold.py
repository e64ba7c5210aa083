"""From which refusal score on a model refuses, learned from its own judged answers.

Arditi et al. (2024, section 2.3) take 0: the refusal tokens are then likelier than all others together. That holds for
the models that they publish. A model that begins its refusals with one of several likely words refuses far below 0.
Plain arithmetic on scores and verdicts; knows nothing about models.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from demur.errors import InputError

_Floats = NDArray[np.float64]
_FLATTEST = 1e-6
_RESAMPLES = 500


class ThresholdFit(NamedTuple):
    """A threshold with its uncertainty, and the probability of a refusal around it."""

    value: float
    low: float
    high: float
    slope: float
    wrong: int


def fit_threshold(refused: Sequence[float], answered: Sequence[float], *, seed: int = 0) -> ThresholdFit:
    """The score that tells refusals from answers best, each kind counting half (Youden's J); ties in the middle.

    Args:
        refused: scores of prompts that were refused, log-odds.
        answered: scores of prompts that were answered.
        seed: of the bootstrap over both.

    Returns:
        The threshold, a 95 % percentile bootstrap interval, the slope of the logistic curve through it, and how many
        scores lie on the wrong side.

    Raises:
        InputError: a kind has no score, or one is not finite.
    """
    above, below = np.asarray(refused, dtype=np.float64), np.asarray(answered, dtype=np.float64)
    if not above.size or not below.size or not np.isfinite([*above, *below]).all():
        raise InputError(
            f"a threshold needs finite scores of refusals and of answers; got {above.size} and {below.size}."
        )
    value = _best(above, below)
    generator = np.random.default_rng(seed)
    drawn = [_best(generator.choice(above, above.size), generator.choice(below, below.size)) for _ in range(_RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    wrong = int((above <= value).sum() + (below > value).sum())
    return ThresholdFit(value, min(float(low), value), max(float(high), value), _slope(above, below, value), wrong)


def _best(above: _Floats, below: _Floats) -> float:
    """The middle of the widest run of thresholds with the largest J."""
    scores = np.unique(np.concatenate([above, below]))
    # One threshold between any two neighbours, one below all, one above all: at these J takes every value it can.
    edges = np.concatenate([[scores[0] - 1.0], (scores[:-1] + scores[1:]) / 2, [scores[-1] + 1.0]])
    missed = np.searchsorted(np.sort(above), edges, side="right") / above.size
    raised = 1 - np.searchsorted(np.sort(below), edges, side="right") / below.size
    j = 1 - missed - raised
    best = np.flatnonzero(j >= j.max() - 1e-12)
    gaps = np.concatenate([[0.0], np.diff(scores), [0.0]])  # width of the interval that an edge stands for
    return float(edges[best[gaps[best].argmax()]])


def _slope(above: _Floats, below: _Floats, value: float) -> float:
    """Of the logistic curve that is 1/2 at `value`, by maximum likelihood, each kind counting half.

    Where the kinds do not overlap nothing bounds it; then, as in any case, it is at most such that nine of ten scores
    lie where the curve is below 5 or above 95 %.
    """
    x = np.concatenate([above, below]) - value
    target = np.concatenate([np.ones(above.size), np.zeros(below.size)])
    weight = np.concatenate([np.full(above.size, 0.5 / above.size), np.full(below.size, 0.5 / below.size)])

    def gradient(slope: float) -> float:
        p = 1 / (1 + np.exp(-np.clip(slope * x, -500, 500)))
        return float((weight * (p - target) * x).sum())

    # The loss is convex, so its gradient crosses 0 once; where it never falls, a higher score says nothing.
    steepest = max(math.log(0.95 / 0.05) / max(float(np.quantile(np.abs(x), 0.1)), 1e-6), 2 * _FLATTEST)
    if gradient(_FLATTEST) >= 0:
        return _FLATTEST
    return steepest if gradient(steepest) <= 0 else float(brentq(gradient, _FLATTEST, steepest, xtol=1e-10))


def refusal_probability(score: float, value: float, slope: float | None) -> float:
    """P(refusal | score) by the learned curve; without one 1 above the threshold and 0 up to it."""
    if slope is None or math.isnan(score):
        return float(score > value)
    return 1 / (1 + math.exp(-max(-500.0, min(500.0, slope * (score - value)))))
