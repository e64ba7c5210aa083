"""How many test prompts a claim needs: exact power of the gate's tests, by enumeration of the discordant pairs."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln
from scipy.stats import binom

from demur.errors import InputError
from demur.evaluation._statistics import CONFIDENCE, check_confidence, normal_quantile, score_variance, wilson_interval
from demur.records import PowerPlan, PowerRow

MOST_PROMPTS = 100_000
"""Above this a number of prompts is no advice any more."""

_TAIL = 1e-10
"""Probability of the discordant counts that are left out at each end: far below any digit that is shown."""

_TABLE = (100, 200, 250, 450, 1000)
"""Sizes of usual test sets: JailbreakBench, XSTest unsafe, XSTest safe, XSTest, OR-Bench-Hard (about)."""

_TEST_SHARE = 0.5
"""Share of a file that the default split puts into test."""

_SPREAD = 2.0
"""Standard deviations of the test split's size that a file allows for, as splits are drawn by hash."""


def passes_non_inferiority(
    n: int, lost: NDArray[np.int64], gained: NDArray[np.int64], *, margin: float, confidence: float = CONFIDENCE
) -> NDArray[np.bool_]:
    """Whether `tango_interval(n, lost, gained).low > -margin`, for arrays of counts that broadcast.

    The interval inverts a score test, so the test itself gives the same answer without a search for the bound.
    """
    losses, gains = np.asarray(lost, dtype=np.float64), np.asarray(gained, dtype=np.float64)
    excess = gains - losses + n * margin
    variance = score_variance(n, losses, gains, -margin)
    return np.asarray((excess > 0) & (excess**2 > normal_quantile(confidence) ** 2 * variance))


def power_non_inferiority(
    n: int, margin: float = 0.02, lost: float = 0.0, gained: float = 0.0, *, confidence: float = CONFIDENCE
) -> float:
    """Chance that the gate finds true refusals kept, exact over the trinomial of lost, gained and unchanged pairs.

    Args:
        n: Test prompts judged both before and after.
        margin: Largest loss that counts as none, as a share.
        lost: True share of prompts that are refused before and not after.
        gained: True share of prompts that are refused after and not before.
        confidence: Two-sided confidence of the interval whose lower end must lie above -margin.

    Raises:
        InputError: a number is out of range.
    """
    _check(n, lost, gained)
    check_confidence(confidence)
    if not 0 < margin < 1:
        raise InputError(f"the margin is a share between 0 and 1, such as 0.02 for 2 points; got {margin}.")
    losses, gains = _likely(n, lost)[:, None], _likely(n, gained)[None, :]
    possible = losses + gains <= n
    passed = passes_non_inferiority(n, losses, np.where(possible, gains, 0), margin=margin, confidence=confidence)
    return _clip(float(np.where(possible & passed, _trinomial(n, losses, gains, lost, gained), 0.0).sum()))


def power_mcnemar(n: int, lost: float, gained: float, *, alpha: float = 0.05) -> float:
    """Chance that the exact two-sided McNemar test is significant.

    Args:
        n: Pairs.
        lost: True share of pairs that count before and not after (falsely refused prompts that are answered now).
        gained: True share of pairs that count after and not before.
        alpha: Two-sided level of the test.

    Raises:
        InputError: a number is out of range.
    """
    _check(n, lost, gained)
    check_confidence(1 - alpha)
    if lost + gained == 0:
        return 0.0
    discordant = _likely(n, lost + gained)
    # The largest c with 2 P(X <= c) <= alpha for X of d fair coins; -1 where even c = 0 is not significant.
    critical = binom.ppf(alpha / 2, discordant, 0.5)
    critical = np.where(2 * binom.cdf(critical, discordant, 0.5) <= alpha, critical, critical - 1)
    share = lost / (lost + gained)
    rejected = binom.cdf(critical, discordant, share) + binom.cdf(critical, discordant, 1 - share)
    return _clip(float((binom.pmf(discordant, n, lost + gained) * rejected).sum()))


def rate_half_width(n: int, rate: float = 0.5, *, confidence: float = CONFIDENCE) -> float:
    """Half the width of Wilson's interval of a rate that comes out as expected, as a share.

    Raises:
        InputError: a number is out of range.
    """
    _check(n, rate, 0.0)
    check_confidence(confidence)
    interval = wilson_interval(n * rate, n, quantile=normal_quantile(confidence))
    return (interval.high - interval.low) / 2


def required_n(power: Callable[[int], float], target: float, *, window: int = 50) -> int | None:
    """Fewest prompts from which on the power reaches the target.

    Exact power goes up in saw teeth, so the first n that reaches the target may be followed by one that does not: the
    result is followed by `window` sizes that all reach it.

    Args:
        power: From n to power, between 0 and 1, rising with n apart from saw teeth.
        target: Wanted power, such as 0.8.
        window: Sizes to look ahead; a tooth of the gate's rule is about 1 / margin long.

    Returns:
        None where more than `MOST_PROMPTS` would be needed.

    Raises:
        InputError: the target is not between 0 and 1.
    """
    if not 0 < target < 1:
        raise InputError(f"a power lies between 0 and 1, such as 0.8; got {target}.")
    high = 1
    while power(high) < target:
        if high >= MOST_PROMPTS:
            return None
        high = min(2 * high, MOST_PROMPTS)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= target else (middle, high)
    reached, ahead = high, high + 1
    while ahead <= reached + window:
        if power(ahead) < target:
            reached = ahead + 1
        ahead += 1
    return reached


def required_n_non_inferiority(
    margin: float = 0.02, lost: float = 0.0, gained: float = 0.0, *, power: float = 0.8
) -> int | None:
    """Fewest test prompts with which the gate finds true refusals kept; None where no number is enough.

    Raises:
        InputError: a number is out of range.
    """
    _check(1, lost, gained)
    if lost - gained >= margin:
        return None
    return required_n(lambda n: power_non_inferiority(n, margin, lost, gained), power, window=math.ceil(1 / margin))


def required_n_mcnemar(lost: float, gained: float, *, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """Fewest test prompts with which a change is significant; None where no number is enough.

    Raises:
        InputError: a number is out of range.
    """
    _check(1, lost, gained)
    if lost == gained:
        return None
    return required_n(lambda n: power_mcnemar(n, lost, gained, alpha=alpha), power)


def required_n_rate(half_width: float, rate: float = 0.5) -> int | None:
    """Fewest prompts with which the 95 % interval of a rate is at most +- `half_width` wide.

    Raises:
        InputError: a number is out of range.
    """
    if not 0 < half_width < 1:
        raise InputError(f"half a width is a share between 0 and 1, such as 0.05 for 5 points; got {half_width}.")
    return required_n(lambda n: float(rate_half_width(n, rate) <= half_width), 0.5)


def power_plan(
    *,
    margin: float = 0.02,
    lost: float = 0.0,
    gained: float = 0.0,
    detect: float = 0.05,
    flip_back: float = 0.01,
    power: float = 0.8,
    n: int | None = None,
) -> PowerPlan:
    """How many harmful and borderline test prompts a calibration needs, and what usual sizes can show.

    Args:
        margin: Largest loss of true refusals that counts as none, as a share.
        lost: Expected share of harmful prompts whose refusal is lost.
        gained: Expected share of harmful prompts that are newly refused.
        detect: Net drop of false refusals to find, as a share of the borderline prompts.
        flip_back: Expected share of borderline prompts that are newly refused.
        power: Chance with which each is to succeed.
        n: One more row of the table.

    Raises:
        InputError: a number is out of range, or more than 100 000 borderline prompts would be needed.
    """
    if not 0 < detect <= 1 - 2 * flip_back or flip_back < 0:
        raise InputError(
            f"a drop is a share above 0, and with twice the flips back at most 1; got detect {detect} and flip back "
            f"{flip_back}."
        )
    forward = detect + flip_back
    harmful = required_n_non_inferiority(margin, lost, gained, power=power)
    borderline = required_n_mcnemar(forward, flip_back, power=power)
    if borderline is None:
        raise InputError(f"a drop of {detect:g} needs more than {MOST_PROMPTS:,} prompts; ask for a larger one.")
    sizes = sorted({*_TABLE, *(each for each in (n, harmful, borderline) if each is not None)})
    return PowerPlan(
        margin=margin,
        lost=lost,
        gained=gained,
        detect=detect,
        flip_back=flip_back,
        power=power,
        harmful_n=harmful,
        borderline_n=borderline,
        harmful_file=None if harmful is None else file_size(harmful),
        borderline_file=file_size(borderline),
        rows=tuple(
            PowerRow(
                n=size,
                kept=power_non_inferiority(size, margin, lost, gained),
                drop=power_mcnemar(size, forward, flip_back),
                half_width=rate_half_width(size),
            )
            for size in sizes
        ),
    )


def file_size(n_test: int) -> int:
    """Prompts in a file of which the default split by hash puts at least `n_test` into test, in 97 of 100 files."""
    # The smallest N with share * N - spread * sqrt(N * share * (1 - share)) >= n_test, a quadratic in sqrt(N).
    half = _SPREAD * math.sqrt(_TEST_SHARE * (1 - _TEST_SHARE)) / 2
    return math.ceil(((half + math.sqrt(half**2 + _TEST_SHARE * n_test)) / _TEST_SHARE) ** 2 - 1e-9)


def _likely(n: int, share: float) -> NDArray[np.int64]:
    """The counts that hold all but 2 * `_TAIL` of a binomial."""
    low, high = binom.ppf([_TAIL, 1 - _TAIL], n, share)
    return np.arange(max(int(low), 0), int(high) + 1)


def _trinomial(
    n: int, lost: NDArray[np.int64], gained: NDArray[np.int64], lost_share: float, gained_share: float
) -> NDArray[np.float64]:
    """Probability of the counts, which broadcast; of impossible ones something without meaning."""
    same = np.maximum(n - lost - gained, 0)
    log = gammaln(n + 1) - gammaln(lost + 1) - gammaln(gained + 1) - gammaln(same + 1)
    for count, share in ((lost, lost_share), (gained, gained_share), (same, 1 - lost_share - gained_share)):
        # A share of exactly 0 allows the count 0 only, with certainty.
        log = log + (count * math.log(share) if share > 1e-300 else np.where(count == 0, 0.0, -np.inf))
    return np.asarray(np.exp(log))


def _clip(probability: float) -> float:
    return min(max(probability, 0.0), 1.0)


def _check(n: int, lost: float, gained: float) -> None:
    if n < 1:
        raise InputError(f"power is that of at least one prompt; got n={n}.")
    if n > 2 * MOST_PROMPTS:
        raise InputError(f"power is computed for up to {2 * MOST_PROMPTS:,} prompts; got n={n}.")
    shares: Sequence[float] = (lost, gained, 1 - lost - gained)
    if min(shares) < -1e-12:
        raise InputError(f"shares of prompts lie between 0 and 1, and so does their sum; got {lost} and {gained}.")
