"""Rates and paired differences of prompts that come in clusters.

Prompts of one XSTest type, of one OR-Bench category, paraphrases of one seed, or one prompt under several conditions
answer alike, so n of them say less than n independent ones. The interval here is for *new clusters* of the same kind.

It is the score interval (Wilson, Tango) at the effective number of prompts, n / design effect, with a t quantile, as in
Korn and Graubard (1998) for surveys. Three choices make it hold where a plain sandwich interval fails:

* The variance is the delete-one-cluster jackknife (CV3 of MacKinnon, Nielsen and Webb 2023), which stays honest for
  clusters of unequal size. A design effect below 1 counts as 1.
* The degrees of freedom are the effective number of clusters minus 1 (Carter, Schnepel and Steigerwald 2017), so one
  dominating cluster is seen.
* Few clusters in which anything happens tell little about how alike clusters are, and the estimated design effect of
  rare events is far too small. It is therefore averaged with the worst one (clusters that answer as one), which counts
  as one informative cluster. With no event at all the effective n is thus the effective number of clusters.

In simulations with beta-binomial clusters (5 to 500 of 1 to 10 or of 25 prompts, rates from 0.5 % to 98 %,
correlations within clusters from 0 to 0.5) the 95 % interval covers in 93.5 % to 100 % of the runs; without the third
choice it falls below 10 %.
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from demur.errors import InputError
from demur.evaluation._statistics import CONFIDENCE, Interval, check_confidence, score_interval, wilson_interval
from demur.records import ClusteredComparison, ClusteredRate, Clustering

FEW_CLUSTERS = 10
"""Below this, t quantiles and the jackknife are guesses themselves; the usual advice is 20 to 50."""

_Counts = NDArray[np.float64]


def clustered_rate(
    flags: Sequence[bool | None], clusters: Sequence[Hashable], *, confidence: float = CONFIDENCE
) -> ClusteredRate:
    """Share of the judged prompts whose flag is true, with an interval that knows about clusters.

    Args:
        flags: One flag per prompt; None where the judge could not judge.
        clusters: The cluster of each prompt, in the same order: any values that can be compared, such as a category.
        confidence: Two-sided confidence of the interval.

    Returns:
        With clusters of one prompt each it is Wilson's interval with a t quantile. With fewer than two clusters the
        interval is 0 to 1, as nothing is known about others.

    Raises:
        InputError: flags and clusters differ in number, or the confidence is not between 0 and 1.
    """
    check_confidence(confidence)
    _check_lengths(len(flags), len(clusters), "flags")
    judged = [(flag, cluster) for flag, cluster in zip(flags, clusters, strict=True) if flag is not None]
    sizes, hits = _per_cluster([cluster for _, cluster in judged], [[flag for flag, _ in judged]])
    k, n = int(hits.sum()), len(judged)
    clustering, interval = rate_interval(hits[0], sizes, confidence=confidence)
    return ClusteredRate(
        k=k,
        n=n,
        rate=k / n if n else None,
        low=interval.low,
        high=interval.high,
        unjudged=len(flags) - n,
        clustering=clustering,
    )


def clustered_difference(
    before: Sequence[bool | None],
    after: Sequence[bool | None],
    clusters: Sequence[Hashable],
    *,
    confidence: float = CONFIDENCE,
) -> ClusteredComparison:
    """Compare two runs on the same prompts, which come in clusters.

    Args:
        before: One flag per prompt for the base model; None where its completion was not judged.
        after: The flags of the changed model for the same prompts in the same order.
        clusters: The cluster of each prompt, in the same order.
        confidence: Two-sided confidence of the interval.

    Returns:
        Tango's score interval at the effective number of pairs, with a t quantile; -1 to 1 with fewer than two
        clusters.

    Raises:
        InputError: the three differ in number, or the confidence is not between 0 and 1.
    """
    check_confidence(confidence)
    _check_lengths(len(before), len(clusters), "flags before")
    _check_lengths(len(after), len(clusters), "flags after")
    pairs = [
        (one, two, cluster)
        for one, two, cluster in zip(before, after, clusters, strict=True)
        if one is not None and two is not None
    ]
    sizes, changed = _per_cluster(
        [cluster for _, _, cluster in pairs],
        [[one and not two for one, two, _ in pairs], [two and not one for one, two, _ in pairs]],
    )
    lost, gained = int(changed[0].sum()), int(changed[1].sum())
    found = difference_interval(changed[0], changed[1], sizes, confidence=confidence)
    return ClusteredComparison(
        n=len(pairs),
        lost=lost,
        gained=gained,
        difference=(gained - lost) / len(pairs) if pairs else 0.0,
        low=found.interval.low,
        high=found.interval.high,
        p_value=found.p_value,
        clustering=found.clustering,
    )


class RateInterval(NamedTuple):
    """What clusters make of a rate."""

    clustering: Clustering
    interval: Interval


class DifferenceInterval(NamedTuple):
    """What clusters make of a paired difference."""

    clustering: Clustering
    interval: Interval
    p_value: float


def rate_interval(hits: _Counts, sizes: _Counts, *, confidence: float = CONFIDENCE) -> RateInterval:
    """`clustered_rate` on counts: flags that are true and judged prompts, [cluster] each."""
    k, n = float(hits.sum()), float(sizes.sum())
    informative = int(min((hits > 0).sum(), (hits < sizes).sum()))
    clustering = _clustering(hits, sizes, independent=k / n * (1 - k / n) if n else 0.0, informative=informative)
    if len(sizes) < 2:
        return RateInterval(clustering, Interval(0.0, 1.0))
    quantile = _t_quantile(confidence, clustering)
    interval = wilson_interval(k / clustering.design_effect, clustering.effective_n, quantile=quantile)
    return RateInterval(clustering, interval)


def difference_interval(
    lost: _Counts, gained: _Counts, sizes: _Counts, *, confidence: float = CONFIDENCE
) -> DifferenceInterval:
    """`clustered_difference` on counts: pairs lost, pairs gained and all judged pairs, [cluster] each."""
    n, discordant = float(sizes.sum()), float((lost + gained).sum())
    change = gained - lost
    independent = discordant / n - (change.sum() / n) ** 2 if n else 0.0
    informative = int(((lost + gained) > 0).sum())
    clustering = _clustering(change, sizes, independent=independent, informative=informative)
    if len(sizes) < 2:
        return DifferenceInterval(clustering, Interval(-1.0, 1.0), 1.0)
    effect, quantile = clustering.design_effect, _t_quantile(confidence, clustering)
    interval = score_interval(
        clustering.effective_n, float(lost.sum()) / effect, float(gained.sum()) / effect, quantile=quantile
    )
    # The score statistic of no difference is McNemar's, so the test and the interval always agree.
    statistic = abs(float(change.sum())) / math.sqrt(discordant * effect) if discordant else 0.0
    p_value = 2 * float(stdtr(clustering.degrees_of_freedom, -statistic))
    return DifferenceInterval(clustering, interval, p_value)


def _clustering(totals: _Counts, sizes: _Counts, *, independent: float, informative: int) -> Clustering:
    """Design effect of the mean of something whose sum per cluster is `totals`.

    Args:
        totals: sum over the prompts of each cluster.
        sizes: prompts of each cluster.
        independent: variance over prompts.
        informative: clusters that tell about the spread between clusters.
    """
    n, count = float(sizes.sum()), len(sizes)
    worst = float((sizes**2).sum()) / n if n else 1.0
    effect = worst
    if informative and independent > 0 and count > 1:
        without = (totals.sum() - totals) / (n - sizes)
        variance = (count - 1) / count * float(((without - totals.sum() / n) ** 2).sum())
        # n - 1 makes the design effect of clusters of one prompt exactly 1.
        estimated = max(variance * (n - 1) / independent, 1.0)
        effect = (informative * estimated + worst) / (informative + 1)
    return Clustering(
        clusters=count,
        informative=informative,
        design_effect=effect,
        effective_n=n / effect,
        degrees_of_freedom=n / worst - 1 if n else 0.0,
        note=_note(count, informative),
    )


def _note(clusters: int, informative: int) -> str:
    if clusters < 2:
        return "Fewer than two clusters say nothing about other clusters."
    if clusters < FEW_CLUSTERS:
        return f"Only {clusters} clusters: the interval is wide, and still less certain than its confidence says."
    if informative < 2:
        return "Something happened in fewer than two clusters: clusters are taken to answer as one."
    return ""


def _t_quantile(confidence: float, clustering: Clustering) -> float:
    return float(stdtrit(clustering.degrees_of_freedom, (1 + confidence) / 2))


def _per_cluster(clusters: Sequence[Hashable], columns: Sequence[Sequence[bool]]) -> tuple[_Counts, _Counts]:
    """Prompts per cluster, [cluster], and true flags per cluster of each column, [column, cluster]."""
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    index = np.array([numbers[cluster] for cluster in clusters], dtype=np.int64)
    counts = [np.bincount(index, weights=np.array(column, dtype=float), minlength=len(numbers)) for column in columns]
    return np.bincount(index, minlength=len(numbers)).astype(np.float64), np.stack(counts)


def _check_lengths(flags: int, clusters: int, what: str) -> None:
    if flags != clusters:
        raise InputError(f"each prompt has one flag and one cluster; got {flags} {what} and {clusters} clusters.")
