"""Rates with intervals, and paired comparisons of them.

Everything here works on plain flags and numbers: it knows nothing about models, prompts or judges.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import stdtrit
from scipy.stats import binomtest, norm

from demur.errors import InputError
from demur.records import Mean, PairedComparison, Rate

CONFIDENCE = 0.95
"""Two-sided confidence of every interval that demur reports unless it says otherwise."""

Number = TypeVar("Number", float, NDArray[np.float64])


class Interval(NamedTuple):
    """A two-sided confidence interval."""

    low: float
    high: float


def rate(verdict_flags: Sequence[bool | None], *, degenerate: int = 0) -> Rate:
    """Share of the judged prompts whose flag is true, with its two-sided 95 % Wilson (1927) interval.

    Args:
        verdict_flags: One flag per prompt; None where the judge could not judge. Those count in `unjudged`, not in `n`.
        degenerate: Completions that were flagged empty, repetitive or garbled; carried along as given.

    Returns:
        The rate as a share between 0 and 1; with nothing judged, `rate` is None and the interval is 0 to 1.
    """
    judged = [flag for flag in verdict_flags if flag is not None]
    k, n = sum(judged), len(judged)
    interval = wilson_interval(k, n, quantile=normal_quantile(CONFIDENCE))
    return Rate(
        k=k,
        n=n,
        rate=k / n if n else None,
        low=interval.low,
        high=interval.high,
        unjudged=len(verdict_flags) - n,
        degenerate=degenerate,
    )


def clopper_pearson(k: int, n: int, *, confidence: float = CONFIDENCE) -> Interval:
    """The exact two-sided interval of a share (Clopper and Pearson 1934), for bounds that are claimed.

    Args:
        k: Prompts counted.
        n: Prompts judged; 0 gives the interval 0 to 1.
        confidence: Two-sided confidence, between 0 and 1.

    Raises:
        InputError: k is not between 0 and n, or the confidence is not between 0 and 1.
    """
    check_confidence(confidence)
    if not 0 <= k <= n:
        raise InputError(f"a rate counts k of n prompts with 0 <= k <= n; got k={k}, n={n}.")
    if n == 0:
        return Interval(0.0, 1.0)
    found = binomtest(k, n).proportion_ci(confidence_level=confidence, method="exact")
    return Interval(float(found.low), float(found.high))


def wilson_interval(k: float, n: float, *, quantile: float) -> Interval:
    """Score interval of a share (Wilson 1927). Counts may be fractional, and the quantile that of another law."""
    if n == 0:
        return Interval(0.0, 1.0)
    share, excess = k / n, quantile**2 / n
    centre = (share + excess / 2) / (1 + excess)
    half = math.sqrt(max(share * (1 - share), 0.0) * excess + excess**2 / 4) / (1 + excess)
    # At 0 and at 1 the bound is the share itself; the sums above miss it by a rounding.
    return Interval(max(min(centre - half, share), 0.0), min(max(centre + half, share), 1.0))


def normal_quantile(confidence: float) -> float:
    """Quantile of the normal law that leaves half of 1 - confidence above it: 1.96 for 0.95."""
    return float(norm.ppf((1 + confidence) / 2))


def paired_comparison(
    before: Sequence[bool | None], after: Sequence[bool | None], *, confidence: float = CONFIDENCE
) -> PairedComparison:
    """Compare two runs on the same prompts: exact McNemar test and Tango's score interval of the difference.

    Args:
        before: One flag per prompt for the base model; None where its completion was not judged.
        after: The flags of the changed model for the same prompts in the same order.
        confidence: Two-sided confidence of the interval. At 0.95, "lower end > -margin" is a test of
            non-inferiority at the one-sided level 0.025.

    Returns:
        Differences are after minus before, as shares of the pairs in which both were judged. With no such pair the
        difference is 0, its interval -1 to 1 and the p-value 1: nothing is known.

    Raises:
        InputError: the two runs have different lengths, or the confidence is not between 0 and 1.
    """
    check_confidence(confidence)
    if len(before) != len(after):
        raise InputError(
            f"a paired comparison needs both runs on the same prompts; got {len(before)} before and {len(after)} after."
        )
    pairs = [(b, a) for b, a in zip(before, after, strict=True) if b is not None and a is not None]
    n = len(pairs)
    lost = sum(b and not a for b, a in pairs)
    gained = sum(a and not b for b, a in pairs)
    interval = tango_interval(n, lost, gained, confidence=confidence)
    return PairedComparison(
        n=n,
        lost=lost,
        gained=gained,
        difference=(gained - lost) / n if n else 0.0,
        low=interval.low,
        high=interval.high,
        p_value=float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0,
    )


def tango_interval(n: float, lost: float, gained: float, *, confidence: float = CONFIDENCE) -> Interval:
    """Score interval of a paired difference of shares, (gained - lost) / n (Tango 1998, Statistics in Medicine 17).

    It inverts the score test of a non-zero difference, so "the lower end is above -margin" is exactly Tango's test of
    non-inferiority; unlike Wald's interval it neither collapses without discordant pairs nor leaves -1 to 1.

    Args:
        n: Pairs.
        lost: Pairs that count before and not after.
        gained: Pairs that count after and not before. Counts may be fractional, for planning a sample size.
        confidence: Two-sided confidence, between 0 and 1.

    Raises:
        InputError: a count is negative, lost + gained exceeds n, or the confidence is not between 0 and 1.
    """
    check_confidence(confidence)
    return score_interval(n, lost, gained, quantile=normal_quantile(confidence))


def score_interval(n: float, lost: float, gained: float, *, quantile: float) -> Interval:
    """`tango_interval` for a quantile that need not be the normal one."""
    # Scaled fractional counts may exceed n by rounding alone; 1e-9 pairs cannot change an interval.
    if lost < 0 or gained < 0 or lost + gained > n + 1e-9:
        raise InputError(f"lost and gained are parts of n pairs; got n={n}, lost={lost}, gained={gained}.")
    if n == 0:
        return Interval(-1.0, 1.0)
    # The lower end is minus the upper end with the two runs swapped: one search serves both.
    return Interval(-_tango_upper(n, gained, lost, quantile), _tango_upper(n, lost, gained, quantile))


def _tango_upper(n: float, lost: float, gained: float, z: float) -> float:
    estimate = (gained - lost) / n
    if estimate >= 1.0:
        return 1.0

    def excess(difference: float) -> float:
        """Squared score statistic minus z squared, times the variance: its root above the estimate is the bound."""
        return float((gained - lost - n * difference) ** 2 - z**2 * score_variance(n, lost, gained, difference))

    # Without discordant pairs the estimate itself is a second root, as its variance is 0: start just above it.
    start = estimate + 1e-12
    if excess(1.0) <= 0:
        return 1.0
    return _root(excess, start, 1.0)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    if function(low) >= 0:  # the bound lies within 1e-12 of the estimate, which only a huge n can do
        return low
    return float(brentq(function, low, high, xtol=1e-12))


def score_variance(n: float, lost: Number, gained: Number, difference: float) -> Number:
    """Variance of gained - lost under a true `difference`, at the constrained maximum likelihood (Tango's q21).

    The counts may be arrays. Rounding can make a zero negative: (x + |x|) / 2 is max(x, 0) for numbers and arrays.
    """
    a = 2 * n
    b = -gained - lost + (2 * n - gained + lost) * difference
    c = -lost * (difference * (1 - difference))
    square = b * b - 4 * a * c
    root: Number = ((square + abs(square)) / 2) ** 0.5
    probability_lost = (root - b) / (2 * a)
    variance = n * (2 * probability_lost + difference * (1 - difference))
    return (variance + abs(variance)) / 2


def net_change(before: Sequence[float], after: Sequence[float], *, confidence: float = CONFIDENCE) -> Interval:
    """Interval of the mean paired change of refusal probabilities, after minus before: both ways, over all prompts.

    Losses alone, of prompts that were picked by a noisy score, would show regression to the mean as a loss. Where all
    values are 0 or 1 this is Tango's interval; else Student's.

    Args:
        before: P(refusal) of each prompt, 0 to 1.
        after: the same after a change.
        confidence: two-sided.

    Raises:
        InputError: different lengths, or no prompt.
    """
    check_confidence(confidence)
    if len(before) != len(after) or not before:
        raise InputError(f"a net change needs the same prompts twice; got {len(before)} and {len(after)}.")
    one, two = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if np.isin(one, (0.0, 1.0)).all() and np.isin(two, (0.0, 1.0)).all():
        lost, gained = int(((one == 1) & (two == 0)).sum()), int(((one == 0) & (two == 1)).sum())
        return tango_interval(len(one), lost, gained, confidence=confidence)
    change = two - one
    if len(change) < 2:
        return Interval(-1.0, 1.0)
    half = float(stdtrit(len(change) - 1, (1 + confidence) / 2)) * float(change.std(ddof=1)) / len(change) ** 0.5
    mean = float(change.mean())
    return Interval(max(-1.0, mean - half), min(1.0, mean + half))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values adjusted for being several (Holm 1979): those below alpha hold together at the level alpha.

    It controls the chance of any false claim among the metrics, whatever their dependence, and is never weaker than
    Bonferroni's.

    Args:
        p_values: By name of the metric, between 0 and 1.

    Returns:
        Adjusted p-values under the same names, in the order given.

    Raises:
        InputError: a p-value is not between 0 and 1.
    """
    for name, value in p_values.items():
        if not 0 <= value <= 1:
            raise InputError(f"a p-value lies between 0 and 1; that of {name!r} is {value}.")
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda each: p_values[each])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def bootstrap_mean(values: Sequence[float], *, seed: int, resamples: int = 2000) -> Mean:
    """Mean over prompts with its two-sided 95 % percentile bootstrap interval (Efron 1979), resampling prompts.

    Args:
        values: One finite number per prompt, in any unit; the result has the same unit.
        seed: Seed of the resampling; the same values and seed give the same interval.
        resamples: Bootstrap samples. 2000 put about 50 of them outside each end, enough for two stable digits.

    Returns:
        For a single value, low = high = that value: the interval says nothing about other prompts then.

    Raises:
        InputError: no value, a value that is not finite, or no resamples.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise InputError("the mean over prompts needs at least one prompt; got none.")
    if not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array))[0])
        raise InputError(f"the mean over prompts needs finite values; value {bad} of {array.size} is {array[bad]}.")
    if resamples < 1:
        raise InputError(f"the bootstrap needs at least one resample; got {resamples}.")
    generator = np.random.default_rng(seed)
    # One resample at a time: an index table of all of them would need gigabytes for some ten thousand prompts.
    means = np.array([array[generator.integers(array.size, size=array.size)].mean() for _ in range(resamples)])
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    mean = float(array.mean())
    # Sums of equal values differ in the last digit by their order; the interval of a mean must not exclude it.
    return Mean(
        mean=mean,
        low=min(float(low), mean),
        high=max(float(high), mean),
        n=int(array.size),
        largest=float(array.max()),
    )


def check_confidence(confidence: float) -> None:
    """Refuse a confidence that is no share, such as 95."""
    if not 0 < confidence < 1:
        raise InputError(f"a confidence lies between 0 and 1, such as 0.95; got {confidence}.")
