"""How well a score tells two kinds of prompts apart: the area under the ROC curve, with an interval that holds at 1."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm, rankdata

from demur.errors import InputError


class Separation(NamedTuple):
    """An area under the ROC curve with its two-sided 95 % interval."""

    auroc: float
    low: float
    high: float


def separation(above: Sequence[float], below: Sequence[float]) -> Separation:
    """Chance that a score of the first kind exceeds one of the second, ties counted half (Mann-Whitney).

    The interval inverts a score test with Hanley and McNeil's variance (Newcombe 2006, Statistics in Medicine 25,
    method 5), so it has a width where no pair is in the wrong order.

    Raises:
        InputError: a kind has no score, or one is NaN.
    """
    m, n = len(above), len(below)
    scores = np.asarray([*above, *below], dtype=float)
    if not m or not n or np.isnan(scores).any():
        raise InputError(f"an area under the curve needs scores of both kinds, none of them NaN; got {m} and {n}.")
    auroc = float((rankdata(scores)[:m].sum() - m * (m + 1) / 2) / (m * n))
    return Separation(auroc, 1 - _upper(1 - auroc, m, n), _upper(auroc, m, n))


def _upper(auroc: float, m: int, n: int) -> float:
    """The area above the estimate at which it would lie just within the interval."""
    quantile, middle = float(norm.ppf(0.975)), (m + n) / 2 - 1

    def excess(area: float) -> float:
        variance = area * (1 - area) * (1 + middle * (1 - area) / (2 - area) + middle * area / (1 + area)) / (m * n)
        return float((auroc - area) ** 2 - quantile**2 * variance)

    start = min(auroc + 1e-12, 1.0)
    return 1.0 if excess(start) >= 0 else float(brentq(excess, start, 1.0, xtol=1e-12))
