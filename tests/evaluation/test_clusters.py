"""Clustered rates and differences: closed forms, an independent jackknife, coverage by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from demur.errors import InputError
from demur.evaluation import clustered_difference, clustered_rate, paired_comparison, rate, tango_interval
from demur.evaluation._clusters import FEW_CLUSTERS, difference_interval, rate_interval

FLAGS = st.sampled_from([True, False, None])
ROWS = st.lists(st.tuples(FLAGS, FLAGS, st.integers(0, 6)), max_size=60)


def wilson(share, n, quantile):
    centre = (share + quantile**2 / (2 * n)) / (1 + quantile**2 / n)
    half = quantile / (1 + quantile**2 / n) * math.sqrt(share * (1 - share) / n + quantile**2 / (4 * n * n))
    return centre - half, centre + half


def spread(counts, size):
    """Flags and clusters: of each cluster of `size` prompts, so many are true."""
    flags = [number < count for count in counts for number in range(size)]
    return flags, [cluster for cluster in range(len(counts)) for _ in range(size)]


# Rates --------------------------------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), min_size=2, max_size=80))
def test_clusters_of_one_prompt_are_no_clusters(flags):
    found = clustered_rate(flags, range(len(flags)))
    n = len(flags)
    assert found.clustering.design_effect == pytest.approx(1)
    assert found.clustering.degrees_of_freedom == pytest.approx(n - 1)
    low, high = wilson(sum(flags) / n, n, student.ppf(0.975, n - 1))
    assert (found.low, found.high) == pytest.approx((max(low, 0), min(high, 1)), abs=1e-9)


def test_the_design_effect_is_that_of_a_jackknife():
    sizes, hits = [4, 10, 7, 9, 12, 3, 8, 6, 11, 5, 10, 4], [3, 1, 5, 9, 2, 0, 4, 6, 1, 2, 7, 3]
    flags = [number < hit for size, hit in zip(sizes, hits, strict=True) for number in range(size)]
    clusters = [f"type {index}" for index, size in enumerate(sizes) for _ in range(size)]
    n, k = sum(sizes), sum(hits)
    without = [(k - hit) / (n - size) for size, hit in zip(sizes, hits, strict=True)]
    variance = (len(sizes) - 1) / len(sizes) * sum((each - k / n) ** 2 for each in without)
    estimated = variance / (k / n * (1 - k / n) / (n - 1))
    worst = sum(size**2 for size in sizes) / n
    informative = 10  # two clusters hold no false flag, and one no true one: the fewer count
    found = clustered_rate(flags, clusters)
    assert found.clustering.informative == informative
    assert found.clustering.design_effect == pytest.approx((informative * estimated + worst) / (informative + 1))
    assert found.clustering.effective_n == pytest.approx(n / found.clustering.design_effect)
    assert found.clustering.degrees_of_freedom == pytest.approx(n**2 / sum(size**2 for size in sizes) - 1)
    assert found.clustering.note == ""
    plain = rate(flags)
    assert found.high - found.low > 1.2 * (plain.high - plain.low)
    assert (found.k, found.n, found.rate) == (plain.k, plain.n, plain.rate)


def test_the_jackknife_variance_is_near_the_sandwich_of_statsmodels():
    """A second estimator of the same thing: CR1 of a regression on a constant."""
    import statsmodels.api as sm

    generator = np.random.default_rng(4)
    clusters = np.repeat(np.arange(60), 8)
    flags = generator.random(480) < np.repeat(generator.beta(1.0, 2.0, size=60), 8)
    fit = sm.OLS(flags.astype(float), np.ones(480)).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    found = clustered_rate(flags.tolist(), clusters.tolist())
    share = flags.mean()
    variance = found.clustering.design_effect * share * (1 - share) / 479
    assert math.sqrt(variance) == pytest.approx(float(fit.bse[0]), rel=0.04)


def test_clusters_that_answer_as_one_count_once():
    flags, clusters = spread([10] * 15 + [0] * 25, 10)
    found = clustered_rate(flags, clusters)
    assert found.clustering.effective_n == pytest.approx(40, rel=0.05)


def test_an_even_spread_is_no_better_than_independence():
    flags, clusters = spread([3] * 40, 10)
    found = clustered_rate(flags, clusters)
    assert found.clustering.design_effect == pytest.approx((40 * 1 + 10) / 41)


@pytest.mark.parametrize(("count", "edge"), [(0, "low"), (10, "high")])
def test_no_variation_leaves_the_effective_number_of_clusters(count, edge):
    found = clustered_rate(*spread([count] * 30, 10))
    z = student.ppf(0.975, 29)
    assert found.clustering.effective_n == pytest.approx(30)
    assert getattr(found, edge) == pytest.approx(count / 10, abs=1e-12)
    assert found.high - found.low == pytest.approx(z * z / (30 + z * z))
    assert "fewer than two clusters" in found.clustering.note


def test_one_dominating_cluster_is_seen():
    flags = [True, False] * 300
    even = clustered_rate(flags, [index // 60 for index in range(600)])
    uneven = clustered_rate(flags, [0 if index < 500 else 1 + index % 9 for index in range(600)])
    assert even.clustering.clusters == uneven.clustering.clusters == 10
    assert uneven.clustering.degrees_of_freedom < 1 < even.clustering.degrees_of_freedom
    assert uneven.high - uneven.low > 2 * (even.high - even.low)


def test_few_clusters_are_named_and_wide():
    flags, clusters = spread([5, 5, 5, 5], 10)
    found = clustered_rate(flags, clusters)
    assert found.clustering.note.startswith("Only 4 clusters")
    assert found.high - found.low > 1.4 * (rate(flags).high - rate(flags).low)
    many = clustered_rate(*spread([5] * FEW_CLUSTERS, 10))
    assert many.clustering.note == ""


@pytest.mark.parametrize("flags", [[], [None, None, None], [True, False, True]])
def test_one_cluster_says_nothing_about_others(flags):
    found = clustered_rate(flags, ["only"] * len(flags))
    assert (found.low, found.high) == (0, 1)
    assert "say nothing about other clusters" in found.clustering.note
    assert found.unjudged == sum(flag is None for flag in flags)
    changed = clustered_difference(flags, flags, ["only"] * len(flags))
    assert (changed.low, changed.high, changed.p_value) == (-1, 1, 1)


@given(ROWS)
def test_rates_lie_in_their_intervals(rows):
    flags, clusters = [one for one, _, _ in rows], [cluster for _, _, cluster in rows]
    found = clustered_rate(flags, clusters)
    assert 0 <= found.low <= found.high <= 1
    assert found.rate is None or found.low - 1e-9 <= found.rate <= found.high + 1e-9
    assert found.clustering.design_effect >= 1
    assert (found.k, found.n, found.unjudged) == (rate(flags).k, rate(flags).n, rate(flags).unjudged)


@given(ROWS, st.randoms(use_true_random=False))
def test_names_and_order_of_clusters_do_not_count(rows, random):
    one = clustered_difference(*zip(*rows, strict=True)) if rows else clustered_difference([], [], [])
    shuffled = [(before, after, f"cluster {cluster}") for before, after, cluster in random.sample(rows, len(rows))]
    two = clustered_difference(*zip(*shuffled, strict=True)) if rows else clustered_difference([], [], [])
    assert (one.n, one.lost, one.gained, one.difference) == (two.n, two.lost, two.gained, two.difference)
    assert (one.low, one.high, one.p_value) == pytest.approx((two.low, two.high, two.p_value), abs=1e-9)


# Differences --------------------------------------------------------------------------------------------------------


@given(ROWS)
def test_the_difference_is_that_of_the_plain_comparison(rows):
    before, after = [one for one, _, _ in rows], [two for _, two, _ in rows]
    found = clustered_difference(before, after, [cluster for _, _, cluster in rows])
    plain = paired_comparison(before, after)
    assert (found.n, found.lost, found.gained, found.difference) == (
        plain.n,
        plain.lost,
        plain.gained,
        plain.difference,
    )
    assert -1 <= found.low <= found.difference + 1e-9
    assert found.difference - 1e-9 <= found.high <= 1
    assert 0 <= found.p_value <= 1


@given(ROWS)
def test_swapping_before_and_after_mirrors(rows):
    before, after, clusters = ([row[column] for row in rows] for column in range(3))
    there, back = clustered_difference(before, after, clusters), clustered_difference(after, before, clusters)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-9)
    assert there.p_value == pytest.approx(back.p_value)


@settings(max_examples=200)
@given(ROWS)
def test_the_test_agrees_with_the_interval(rows):
    found = clustered_difference(*(zip(*rows, strict=True) if rows else ([], [], [])))
    if abs(found.p_value - 0.05) > 1e-6:
        assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0)


def test_pairs_in_clusters_of_one_are_plain_pairs_with_a_t_quantile():
    before, after = [True] * 12 + [False] * 88, [False] * 9 + [True] * 3 + [True] * 2 + [False] * 86
    found = clustered_difference(before, after, range(100))
    normal = 2 * student.cdf(student.ppf(0.975, 99), 10**9) - 1  # the confidence at which z is that t quantile
    expected = tango_interval(100, 9, 2, confidence=normal)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-6)


def test_no_change_leaves_the_bound_of_the_clusters():
    found = clustered_difference([True] * 400, [True] * 400, [index // 10 for index in range(400)])
    t = student.ppf(0.975, 39)
    assert (found.low, found.high) == pytest.approx((-t * t / (40 + t * t), t * t / (40 + t * t)), rel=1e-6)
    assert found.p_value == 1


def test_the_same_loss_counts_less_in_one_cluster_than_spread():
    before = [True] * 400
    clusters = [index // 10 for index in range(400)]
    spread_out = clustered_difference(before, [index % 50 != 0 for index in range(400)], clusters)
    together = clustered_difference(before, [index >= 8 for index in range(400)], clusters)
    assert spread_out.lost == together.lost == 8
    assert together.low < spread_out.low - 0.02
    assert together.p_value > 0.2 > 0.06 > spread_out.p_value


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clustered_rate([True], []), "got 1 flags and 0 clusters"),
        (lambda: clustered_difference([True], [True], [1, 2]), "got 1 flags before and 2 clusters"),
        (lambda: clustered_difference([True], [], [1]), "got 0 flags after and 1 clusters"),
        (lambda: clustered_rate([True], [1], confidence=95), r"such as 0\.95"),
        (lambda: clustered_difference([True], [True], [1], confidence=0), r"such as 0\.95"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


# Coverage -----------------------------------------------------------------------------------------------------------

RUNS = 400
TOLERANCE = 0.93 - 3 * math.sqrt(0.05 * 0.95 / RUNS)
"""Nominal 0.95; Wilson's own coverage swings by 2 points with n, and the rest is the error of the simulation."""


def sizes_of(count, generator):
    return generator.integers(1, 11, size=count).astype(float)


@pytest.mark.parametrize("count", [20, 50, 200, 500])
@pytest.mark.parametrize("correlation", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("true", [0.02, 0.3, 0.97])
def test_rate_coverage(count, correlation, true):
    generator = np.random.default_rng([count, int(10 * correlation), int(100 * true)])
    sizes, covered = sizes_of(count, generator), 0
    concentration = (1 - correlation) / correlation if correlation else None
    for _ in range(RUNS):
        shares = (
            true if concentration is None else generator.beta(true * concentration, (1 - true) * concentration, count)
        )
        interval = rate_interval(generator.binomial(sizes.astype(int), shares).astype(float), sizes).interval
        covered += interval.low <= true <= interval.high
    assert covered / RUNS >= TOLERANCE


@pytest.mark.parametrize("count", [20, 200, 500])
@pytest.mark.parametrize("correlation", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("lost", "gained"), [(0.02, 0.0), (0.03, 0.01), (0.3, 0.1)])
def test_difference_coverage(count, correlation, lost, gained):
    generator = np.random.default_rng([count, int(10 * correlation), int(100 * lost)])
    sizes, covered = sizes_of(count, generator), 0
    shares = np.tile([lost, gained, 1 - lost - gained], (count, 1))
    for _ in range(RUNS // 2):
        if correlation:
            gammas = generator.standard_gamma(np.maximum(shares, 1e-12) * (1 - correlation) / correlation)
            drawn = gammas / np.maximum(gammas.sum(1, keepdims=True), 1e-300)
            drawn[~np.isfinite(drawn).all(1) | (np.abs(drawn.sum(1) - 1) > 1e-9)] = [0, 0, 1]
        else:
            drawn = shares
        tables = generator.multinomial(sizes.astype(int), drawn)
        interval = difference_interval(tables[:, 0].astype(float), tables[:, 1].astype(float), sizes).interval
        covered += interval.low <= gained - lost <= interval.high
    assert covered / (RUNS // 2) >= 0.93 - 3 * math.sqrt(0.05 * 0.95 / (RUNS // 2))


def test_ignoring_clusters_covers_far_too_rarely():
    """The control: what the clustered interval is for."""
    generator = np.random.default_rng(8)
    plain = clustered = 0
    for _ in range(200):
        hits = generator.binomial(10, generator.beta(0.3, 0.7, size=40))
        flags, clusters = spread(hits.tolist(), 10)
        one, two = rate(flags), clustered_rate(flags, clusters)
        plain += one.low <= 0.3 <= one.high
        clustered += two.low <= 0.3 <= two.high
    assert plain < 150
    assert clustered > 180
