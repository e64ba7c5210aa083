"""Rates, paired comparisons and bootstrap means: published values, closed forms, theorems, error rates."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from demur.errors import InputError
from demur.evaluation._statistics import (
    Interval,
    bootstrap_mean,
    clopper_pearson,
    holm,
    paired_comparison,
    rate,
    tango_interval,
)
from demur.records import Mean, PairedComparison, Rate

FLAGS = st.lists(st.sampled_from([True, False, None]), max_size=60)
PAIRS = st.lists(st.tuples(*[st.sampled_from([True, False, None])] * 2), max_size=60)


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, int, int]:
    """n pairs, of which `lost` and `gained` are discordant."""
    n = draw(st.integers(1, 2000))
    lost = draw(st.integers(0, n))
    return n, lost, draw(st.integers(0, n - lost))


# Rates --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(0, 100, 0.0, 0.0370), (0, 250, 0.0, 0.0151), (25, 250, 0.0687, 0.1435), (132, 1319, 0.0850, 0.1174)],
)
def test_wilson_values(k, n, low, high):
    found = rate([True] * k + [False] * (n - k))
    assert (found.k, found.n, found.rate) == (k, n, k / n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=2e-4)


def test_wilson_matches_the_formula():
    k, n, z = 7, 31, float(norm.ppf(0.975))
    centre = (k / n + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(k / n * (1 - k / n) / n + z * z / (4 * n * n))
    found = rate([True] * k + [False] * (n - k))
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), rel=1e-9)


def test_unjudged_prompts_are_counted_apart():
    assert rate([True, None, False, None], degenerate=1) == rate([True, False]).model_copy(
        update={"unjudged": 2, "degenerate": 1}
    )


@pytest.mark.parametrize("flags", [[], [None, None]])
def test_a_rate_of_nothing_is_none_and_its_interval_says_nothing(flags):
    assert rate(flags) == Rate(k=0, n=0, rate=None, low=0.0, high=1.0, unjudged=len(flags))


def test_clopper_pearson_values():
    assert clopper_pearson(0, 100).high == pytest.approx(1 - 0.025 ** (1 / 100))
    assert clopper_pearson(100, 100) == pytest.approx((0.025 ** (1 / 100), 1.0))
    assert clopper_pearson(0, 0) == Interval(0.0, 1.0)


@given(st.integers(1, 500), st.data())
def test_clopper_pearson_contains_wilsons_estimate_and_is_monotone(n, data):
    k = data.draw(st.integers(0, n - 1))
    here, above = clopper_pearson(k, n), clopper_pearson(k + 1, n)
    assert here.low <= k / n <= here.high
    assert here.low < above.low
    assert here.high < above.high or above.high == 1.0


@given(FLAGS)
def test_a_rate_lies_in_its_interval(flags):
    found = rate(flags)
    assert 0 <= found.low <= found.high <= 1
    # Wilson's ends at k = 0 and k = n are 0 and 1 up to rounding.
    assert found.rate is None or found.low - 1e-12 <= found.rate <= found.high + 1e-12


@pytest.mark.parametrize(("k", "n"), [(-1, 4), (5, 4)])
def test_impossible_counts_are_refused(k, n):
    with pytest.raises(InputError, match=f"k={k}, n={n}"):
        clopper_pearson(k, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_a_confidence_is_a_share(confidence):
    with pytest.raises(InputError, match=r"such as 0\.95"):
        clopper_pearson(1, 4, confidence=confidence)
    with pytest.raises(InputError, match=r"such as 0\.95"):
        paired_comparison([True], [True], confidence=confidence)


# Paired comparisons -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "lost", "gained", "confidence", "low", "high", "digits"),
    [
        # Tango 1998, contact lenses disinfected by heat or chemically: difference -0.023, 90 % from -0.096 to 0.037.
        (44, 1, 0, 0.90, -0.096, 0.037, 3),
        # R, PropCIs 0.3: scoreci.mp(25, 28, 618, conf.level = 0.90).
        (618, 25, 28, 0.90, -0.0148, 0.0247, 4),
        # Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables, chapter 8 (Bentur; Cavo).
        (21, 7, 1, 0.95, -0.517, -0.026, 3),
        (161, 16, 6, 0.95, -0.124, -0.0054, 3),
    ],
)
def test_tango_published_values(n, lost, gained, confidence, low, high, digits):
    found = tango_interval(n, lost, gained, confidence=confidence)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.6 * 10**-digits)


@given(st.integers(1, 100_000), st.sampled_from([0.8, 0.95, 0.99]))
def test_tango_closed_form_without_discordant_pairs(n, confidence):
    z = float(norm.ppf((1 + confidence) / 2))
    bound = z * z / (n + z * z)
    assert tango_interval(n, 0, 0, confidence=confidence) == pytest.approx((-bound, bound), rel=1e-6)


@given(tables())
def test_tango_bounds_solve_the_score_equation(table):
    n, lost, gained = table
    z = float(norm.ppf(0.975))
    for bound in tango_interval(n, lost, gained):
        if abs(bound) == 1.0:
            continue
        # The score test with the likelihood maximised numerically instead of by Tango's quadratic.
        smallest = max(0.0, -bound) + 1e-15
        grid = np.linspace(smallest, (1 - bound) / 2 - 1e-15, 20_001)
        likelihood = (
            lost * np.log(grid)
            + gained * np.log(grid + bound + 1e-300)
            + (n - lost - gained) * np.log1p(-(2 * grid + bound) + 1e-15)
        )
        best = grid[np.nanargmax(likelihood)]
        step = grid[1] - grid[0]
        statistics = [
            (gained - lost - n * bound) ** 2 / max(n * (2 * q + bound * (1 - bound)), 1e-300)
            for q in (max(best - step, smallest), best + step)
        ]
        assert min(statistics) * (1 - 1e-6) <= z * z <= max(statistics) * (1 + 1e-6)


@given(tables())
def test_tango_contains_the_estimate_and_stays_in_range(table):
    n, lost, gained = table
    found = tango_interval(n, lost, gained)
    assert -1 <= found.low <= (gained - lost) / n <= found.high <= 1


@given(tables())
def test_tango_is_monotone_in_the_counts(table):
    n, lost, gained = table
    if lost + gained < n:
        here = tango_interval(n, lost, gained)
        assert tango_interval(n, lost + 1, gained).low <= here.low + 1e-9
        assert tango_interval(n, lost, gained + 1).high >= here.high - 1e-9


@given(tables(), st.sampled_from([0.5, 0.8, 0.9]))
def test_more_confidence_is_wider(table, confidence):
    narrow, wide = tango_interval(*table, confidence=confidence), tango_interval(*table, confidence=0.99)
    assert wide.low <= narrow.low
    assert narrow.high <= wide.high


@pytest.mark.parametrize(("n", "lost", "gained"), [(10, -1, 0), (10, 6, 5), (0, 1, 0)])
def test_tango_refuses_impossible_counts(n, lost, gained):
    with pytest.raises(InputError, match="parts of n pairs"):
        tango_interval(n, lost, gained)


def test_all_pairs_lost_reach_the_end():
    assert tango_interval(30, 30, 0).low == -1.0
    assert tango_interval(30, 0, 30).high == 1.0


@given(PAIRS)
def test_swapping_before_and_after_mirrors_the_comparison(pairs):
    before, after = [b for b, _ in pairs], [a for _, a in pairs]
    there, back = paired_comparison(before, after), paired_comparison(after, before)
    assert (there.n, there.lost, there.gained) == (back.n, back.gained, back.lost)
    assert there.difference == -back.difference
    assert (there.low, there.high) == (-back.high, -back.low)
    assert there.p_value == back.p_value


def test_only_pairs_with_both_judged_count():
    found = paired_comparison([True, True, None, False, True], [True, False, True, None, False])
    assert (found.n, found.lost, found.gained) == (3, 2, 0)
    assert found.difference == pytest.approx(-2 / 3)


@pytest.mark.parametrize(("lost", "gained", "p"), [(5, 0, 0.0625), (6, 0, 0.03125), (0, 0, 1.0), (3, 3, 1.0)])
def test_exact_mcnemar(lost, gained, p):
    before = [True] * lost + [False] * gained + [True] * 20
    after = [False] * lost + [True] * gained + [True] * 20
    assert paired_comparison(before, after).p_value == pytest.approx(p)


@pytest.mark.parametrize("flags", [([], []), ([None, True], [True, None])])
def test_no_pair_says_nothing(flags):
    assert paired_comparison(*flags) == PairedComparison(
        n=0, lost=0, gained=0, difference=0.0, low=-1.0, high=1.0, p_value=1.0
    )


def test_runs_of_different_length_are_refused():
    with pytest.raises(InputError, match="got 2 before and 1 after"):
        paired_comparison([True, True], [True])


# Several metrics ----------------------------------------------------------------------------------------------------


def test_holm_is_that_of_statsmodels():
    from statsmodels.stats.multitest import multipletests

    generator = np.random.default_rng(3)
    for size in (1, 2, 5, 12):
        for scale in (1.0, 0.02):
            # Rounded, so that some are equal.
            values = (scale * generator.random(size)).round(2).tolist()
            expected = multipletests(values, method="holm")[1]
            found = holm({f"metric {index}": value for index, value in enumerate(values)})
            assert list(found.values()) == pytest.approx(expected.tolist(), abs=1e-12)


def test_holm_by_hand():
    assert holm({"b": 0.03, "a": 0.01, "c": 0.04}) == pytest.approx({"b": 0.06, "a": 0.03, "c": 0.06})
    assert list(holm({"b": 0.03, "a": 0.01})) == ["b", "a"]
    assert holm({}) == {}


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan])
def test_holm_refuses_what_is_no_p_value(value):
    with pytest.raises(InputError, match="that of 'kl' is"):
        holm({"a": 0.5, "kl": value})


# Bootstrap ----------------------------------------------------------------------------------------------------------


def test_bootstrap_of_one_value():
    assert bootstrap_mean([0.25], seed=0) == Mean(mean=0.25, low=0.25, high=0.25, n=1, largest=0.25)


def test_bootstrap_is_reproducible_and_depends_on_the_seed():
    values = np.random.default_rng(5).exponential(size=80).tolist()
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


def test_bootstrap_agrees_with_the_normal_interval_where_that_is_right():
    values = np.random.default_rng(6).normal(3.0, 2.0, size=400)
    found = bootstrap_mean(values.tolist(), seed=1, resamples=4000)
    half = 1.96 * values.std() / math.sqrt(values.size)
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.03)


@settings(max_examples=30)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_bootstrap_contains_its_mean(values):
    found = bootstrap_mean(values, seed=3, resamples=50)
    assert found.low <= found.mean <= found.high
    assert found.largest == max(values)
    assert found.n == len(values)


@pytest.mark.parametrize(("values", "message"), [([], "at least one prompt"), ([1.0, math.nan], "value 1 of 2 is nan")])
def test_bootstrap_refuses_what_has_no_mean(values, message):
    with pytest.raises(InputError, match=message):
        bootstrap_mean(values, seed=0)


def test_bootstrap_needs_resamples():
    with pytest.raises(InputError, match="got 0"):
        bootstrap_mean([1.0, 2.0], seed=0, resamples=0)
