"""Thresholds from order statistics: their false-positive rate is known without a model of the scores."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from demur.errors import InputError

Side = Literal["above", "below"]
_ROUNDING = 1e-9
"""0.29 * 100 is a little below 29 in floating point."""


class Cut(NamedTuple):
    """A threshold and what it rests on."""

    value: float
    k: int
    """Rank from the flagged end: k - 1 of the scores lie strictly beyond the threshold, or fewer."""
    n: int

    @property
    def attained(self) -> float:
        """The rate k / (n + 1): no new exchangeable score lies strictly beyond the threshold with a larger chance."""
        return self.k / (self.n + 1)


def order_statistic(scores: Sequence[float], *, rate: float, side: Side = "above", what: str = "prompts") -> Cut:
    """The threshold beyond which a new score lies with a chance of at most `rate` (split conformal prediction).

    A new score is exchangeable with the n given ones, so its rank among n + 1 is uniform: it lies strictly beyond the
    k-th most extreme of them with a chance of at most k / (n + 1). Ties only make it smaller.

    Args:
        scores: of prompts that must not be flagged.
        rate: the chance that is allowed, between 0 and 1.
        side: which scores are flagged.
        what: the prompts in words, for the message.

    Raises:
        InputError: the rate is no share, a score is NaN or infinite, or there are too few scores for the rate.
    """
    if not 0 < rate < 1:
        raise InputError(f"a false-positive rate lies between 0 and 1, such as 0.05; got {rate}.")
    if not all(math.isfinite(score) for score in scores):
        raise InputError(f"a score of {what} is NaN or infinite, so no threshold can be set.")
    n = len(scores)
    k = math.floor(rate * (n + 1) + _ROUNDING)
    if k < 1:
        needed = math.ceil(1 / rate - _ROUNDING) - 1
        raise InputError(
            f"{n} validation {what} cannot hold a false-positive rate of {rate:g}: the smallest that they can is "
            f"{1 / (n + 1):.3g}. Give {needed} or more of them, or ask for a rate of at least that."
        )
    beyond = sorted(scores, reverse=side == "above")
    return Cut(float(beyond[k - 1]), k, n)


def widest(cuts: Sequence[Cut], *, side: Side = "above") -> float:
    """One threshold for several kinds of prompts: the most lenient of their cuts keeps the rate of each."""
    values = [cut.value for cut in cuts]
    return max(values) if side == "above" else min(values)
