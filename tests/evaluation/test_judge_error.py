"""Corrected rates and differences: closed forms, an oracle, and planted judge bias."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demur.errors import InputError
from demur.evaluation import corrected_difference, corrected_rate, paired_comparison, rate
from demur.evaluation._judge_error import LEAST_YOUDEN
from demur.records import JudgeErrorRates

RUNS = 300
DRAWS = 1500
"""Fewer than by default: quantiles of 1500 draws are off by far less than an interval's width."""


def of(k, n):
    return rate([True] * k + [False] * (n - k))


def errors(se, sp):
    return JudgeErrorRates(sensitivity=of(*se), specificity=of(*sp))


@st.composite
def counts(draw, least=1):
    n = draw(st.integers(least, 400))
    return draw(st.integers(0, n)), n


# Rates --------------------------------------------------------------------------------------------------------------


def test_the_estimate_is_rogan_and_gladens():
    found = corrected_rate(of(60, 200), of(80, 100), of(190, 200))
    assert found.rate == pytest.approx((0.3 + 0.95 - 1) / (0.8 + 0.95 - 1))
    assert (found.observed.k, found.sensitivity.n, found.specificity.k) == (60, 100, 190)
    assert (found.method, found.reason) == ("lang_reiczigel", "")


def test_the_interval_solves_its_own_equation():
    """Lang and Reiczigel: ends of the delta method on counts with pseudo-observations added, around a shifted centre.

    Written from the other side than in the library: the correction is a function of three shares whose variances are
    propagated by numeric derivatives.
    """
    z = 1.959963984540054
    (k, n), (k_se, n_se), (k_sp, n_sp) = (23, 150), (77, 80), (140, 160)
    shares = np.array([(k + z * z / 2) / (n + z * z), (k_se + 1) / (n_se + 2), (k_sp + 1) / (n_sp + 2)])
    sizes = np.array([n + z * z, n_se + 2, n_sp + 2])

    def true(three):
        return (three[0] + three[2] - 1) / (three[1] + three[2] - 1)

    variances = shares * (1 - shares) / sizes
    steps = np.eye(3) * 1e-6
    slopes = np.array([(true(shares + step) - true(shares - step)) / 2e-6 for step in steps])
    error = math.sqrt(float((slopes**2 * variances).sum()))
    shift = 2 * z * z * (true(shares) * variances[1] - (1 - true(shares)) * variances[2])
    found = corrected_rate(of(k, n), of(k_se, n_se), of(k_sp, n_sp))
    assert found.low == pytest.approx(max(true(shares) + shift - z * error, 0), abs=1e-6)
    assert found.high == pytest.approx(true(shares) + shift + z * error, abs=1e-6)


def test_a_perfect_and_thoroughly_measured_judge_changes_little():
    found, plain = corrected_rate(of(25, 250), of(10**6, 10**6), of(10**6, 10**6)), of(25, 250)
    assert found.rate == pytest.approx(plain.rate)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=0.003)


def test_few_labels_widen():
    widths = [
        (found := corrected_rate(of(60, 200), of(8 * each, 10 * each), of(9 * each, 10 * each))).high - found.low
        for each in (2, 10, 100)
    ]
    assert widths[0] > 1.3 * widths[1] > 1.3 * widths[2]


@given(counts(), counts(), counts())
def test_corrected_rates_are_rates(observed, sensitivity, specificity):
    found = corrected_rate(of(*observed), of(*sensitivity), of(*specificity))
    youden = sensitivity[0] / sensitivity[1] + specificity[0] / specificity[1] - 1
    assert 0 <= found.low <= found.high <= 1
    if found.rate is None:
        assert (found.low, found.high) == (0, 1)
        assert found.reason
    else:
        assert youden >= LEAST_YOUDEN
        assert found.low <= found.rate <= found.high
        assert found.reason == ""


@pytest.mark.parametrize(
    ("observed", "se", "sp", "reason"),
    [
        ((50, 100), (55, 100), (60, 100), r"sensitivity 55/100, specificity 60/100, so Se \+ Sp - 1 is 0.15"),
        ((50, 100), (2, 3), (3, 4), "Too few labels: with sensitivity 2/3, specificity 3/4"),
        ((0, 0), (90, 100), (90, 100), "Nothing was judged"),
        ((5, 10), (0, 0), (90, 100), "answers that people call refusals"),
        ((5, 10), (90, 100), (0, 0), "answers that people call compliance"),
    ],
)
def test_what_cannot_be_corrected_says_why(observed, se, sp, reason):
    found = corrected_rate(of(*observed), of(*se), of(*sp))
    assert (found.rate, found.low, found.high) == (None, 0, 1)
    flags = [True] * observed[0] + [False] * (observed[1] - observed[0])
    changed = corrected_difference(flags, flags, errors(se, sp))
    assert (changed.difference, changed.low, changed.high) == (None, -1, 1)
    assert re.search(reason, found.reason)
    assert changed.reason == found.reason


def test_impossible_input_is_refused():
    good = errors((9, 10), (9, 10))
    bad = of(5, 10).model_copy(update={"k": 11})
    with pytest.raises(InputError, match="got k=11, n=10"):
        corrected_rate(bad, good.sensitivity, good.specificity)
    with pytest.raises(InputError, match="got k=11, n=10"):
        corrected_difference([True], [True], good, good.model_copy(update={"specificity": bad}))
    with pytest.raises(InputError, match="got 2 before and 1 after"):
        corrected_difference([True, True], [True], good)
    with pytest.raises(InputError, match="at least one; got 0"):
        corrected_difference([True], [True], good, draws=0)
    with pytest.raises(InputError, match=r"such as 0\.95"):
        corrected_rate(of(1, 2), good.sensitivity, good.specificity, confidence=95)


# Differences --------------------------------------------------------------------------------------------------------


def test_the_difference_is_the_observed_one_over_youden():
    before, after = [True] * 90 + [False] * 10, [True] * 60 + [False] * 40
    found = corrected_difference(before, after, errors((80, 100), (95, 100)))
    assert found.observed_difference == pytest.approx(-0.3)
    assert found.difference == pytest.approx(-0.3 / 0.75)
    assert found.low < found.difference < found.high
    assert found == corrected_difference(before, after, errors((80, 100), (95, 100)))
    assert found.low != corrected_difference(before, after, errors((80, 100), (95, 100)), seed=1).low


def test_one_measurement_of_the_judge_is_not_two():
    """The same labels serve both runs: where nothing changed, an error of Se moves both rates alike."""
    flags = [True] * 150 + [False] * 50
    judge = errors((24, 30), (27, 30))
    together = corrected_difference(flags, flags, judge)
    apart = corrected_difference(flags, flags, judge, judge)
    assert together.difference == apart.difference == 0
    assert together.high - together.low < 0.5 * (apart.high - apart.low)
    assert together.errors_after == together.errors_before


def test_with_a_perfect_judge_it_is_near_the_score_interval():
    before = [True] * 190 + [False] * 10
    after = [True] * 170 + [False] * 20 + [True] * 4 + [False] * 6
    judge = errors((10**6, 10**6), (10**6, 10**6))
    found, plain = corrected_difference(before, after, judge), paired_comparison(before, after)
    assert found.n == plain.n == 200
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=0.006)


def test_only_pairs_with_both_judged_count():
    judge = errors((90, 100), (90, 100))
    found = corrected_difference([True, None, True, False], [True, True, None, True], judge)
    assert found.n == 2
    assert found.observed_difference == 0.5


# Planted bias -------------------------------------------------------------------------------------------------------


def judged(generator, truth, se, sp):
    draws = generator.random(len(truth))
    return np.where(truth, draws < se, draws >= sp)


def measured(generator, se, sp, labels):
    return errors((int(generator.binomial(labels, se)), labels), (int(generator.binomial(labels, sp)), labels))


@pytest.mark.parametrize(
    ("true", "se", "sp", "labels"),
    [(0.9, 0.7, 0.95, 100), (0.1, 0.8, 0.9, 50), (0.02, 0.9, 0.98, 200), (0.5, 0.6, 0.7, 80)],
)
def test_corrected_rates_cover_the_truth(true, se, sp, labels):
    generator = np.random.default_rng([1, int(100 * true)])
    corrected, raw, runs = 0, 0, 1200
    for _ in range(runs):
        flags = judged(generator, generator.random(200) < true, se, sp).tolist()
        judge = measured(generator, se, sp, labels)
        found = corrected_rate(rate(flags), judge.sensitivity, judge.specificity)
        corrected += found.low <= true <= found.high
        raw += found.observed.low <= true <= found.observed.high
    assert corrected / runs >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / runs)
    if abs(true * se + (1 - true) * (1 - sp) - true) > 0.05:
        assert raw / runs < 0.5


def simulate(*, se_before, se_after, given_after, seed, truth_after=0.80):
    """Coverage of the true difference by the raw and by the corrected interval. Before, 95 % are truly refused."""
    generator = np.random.default_rng(seed)
    sp, n, before_rate = 0.95, 250, 0.95
    raw = corrected = 0
    for _ in range(RUNS):
        before = generator.random(n) < before_rate
        after = before & (generator.random(n) < truth_after / before_rate)
        one = judged(generator, before, se_before, sp).tolist()
        two = judged(generator, after, se_after, sp).tolist()
        found = corrected_difference(
            one,
            two,
            measured(generator, se_before, sp, 150),
            measured(generator, se_after, sp, 150) if given_after else None,
            seed=int(generator.integers(2**31)),
            draws=DRAWS,
        )
        plain = paired_comparison(one, two)
        true = truth_after - before_rate
        raw += plain.low <= true <= plain.high
        corrected += found.low <= true <= found.high
    return raw / RUNS, corrected / RUNS


LEAST = 0.94 - 3 * math.sqrt(0.05 * 0.95 / RUNS)


def test_a_deaf_judge_shrinks_the_difference_and_the_correction_undoes_it():
    raw, corrected = simulate(se_before=0.65, se_after=0.65, given_after=False, seed=3, truth_after=0.60)
    assert raw < 0.7
    assert corrected >= LEAST


def test_a_judge_that_drifts_is_caught_only_with_its_errors_on_both_models():
    """As phrase judges do when the style of refusals changes: fewer are seen, though as many are there."""
    raw, ignorant = simulate(se_before=0.95, se_after=0.75, given_after=False, seed=4)
    assert raw < 0.1
    assert ignorant < 0.1
    _, informed = simulate(se_before=0.95, se_after=0.75, given_after=True, seed=4)
    assert informed >= LEAST
