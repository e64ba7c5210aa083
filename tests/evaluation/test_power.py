"""Power and sample size: published table, full enumeration, closed forms, simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, multinomial, norm

from demur.errors import InputError
from demur.evaluation import (
    paired_comparison,
    power_mcnemar,
    power_non_inferiority,
    power_plan,
    rate,
    rate_half_width,
    required_n_mcnemar,
    required_n_non_inferiority,
    required_n_rate,
    tango_interval,
)
from demur.evaluation._power import MOST_PROMPTS, file_size, required_n

SHARES = st.floats(0, 0.3)


def test_the_table_of_net_shifts_and_flips_back():
    """Two-sided 5 %; columns are net shift / flips back in points: 3/1, 5/1, 5/3, 10/3."""
    table = {
        100: (0.10, 0.32, 0.22, 0.66),
        200: (0.36, 0.73, 0.50, 0.94),
        250: (0.48, 0.84, 0.60, 0.98),
        450: (0.79, 0.99, 0.88, 1.00),
        1000: (0.99, 1.00, 1.00, 1.00),
    }
    columns = ((0.03, 0.01), (0.05, 0.01), (0.05, 0.03), (0.10, 0.03))
    for n, expected in table.items():
        found = [power_mcnemar(n, shift + back, back) for shift, back in columns]
        # 0.4750 and 0.2230 are printed as .48 and .22: half a unit of the last digit, and a little for ties.
        assert found == pytest.approx(expected, abs=0.0051)


def enumerated(n, lost, gained, decided):
    counts = np.array([(a, b, n - a - b) for a in range(n + 1) for b in range(n + 1 - a)])
    probabilities = multinomial.pmf(counts, n, [lost, gained, 1 - lost - gained])
    flags = [decided(n, int(a), int(b)) for a, b, _ in counts]
    return float(probabilities[flags].sum())


@pytest.mark.parametrize(
    ("lost", "gained"), [(0.0, 0.0), (0.05, 0.0), (0.0, 0.1), (0.1, 0.05), (0.5, 0.5), (0.3, 0.0), (0.02, 0.98)]
)
@pytest.mark.parametrize("n", [1, 7, 40])
def test_both_powers_against_all_tables(n, lost, gained):
    def kept(n, a, b):
        return tango_interval(n, a, b, confidence=0.8).low > -0.15

    def significant(_n, a, b):
        return a + b > 0 and binomtest(a, a + b).pvalue <= 0.05 * (1 + 1e-9)

    assert power_non_inferiority(n, 0.15, lost, gained, confidence=0.8) == pytest.approx(
        enumerated(n, lost, gained, kept), abs=1e-8
    )
    assert power_mcnemar(n, lost, gained) == pytest.approx(enumerated(n, lost, gained, significant), abs=1e-8)


def test_fewer_than_six_one_way_flips_are_never_significant():
    assert power_mcnemar(5, 1.0, 0.0) == 0
    assert power_mcnemar(6, 1.0, 0.0) == pytest.approx(1)


def test_a_model_that_loses_nothing_needs_189_prompts_for_two_points():
    z = float(norm.ppf(0.975))
    assert required_n_non_inferiority(0.02) == 189 == math.floor(z * z * (1 / 0.02 - 1)) + 1
    assert (power_non_inferiority(188), power_non_inferiority(189)) == (0, 1)
    before = [True] * 189
    assert paired_comparison(before, before).low > -0.02 > paired_comparison(before[1:], before[1:]).low


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3000), SHARES, SHARES, st.sampled_from([0.01, 0.02, 0.05]))
def test_powers_are_probabilities_and_fall_with_the_loss(n, lost, gained, margin):
    here = power_non_inferiority(n, margin, lost, gained)
    more = power_non_inferiority(n, margin, lost + 0.05, gained)
    assert 0 <= more <= here + 1e-8 <= 1 + 1e-8
    assert power_mcnemar(n, lost, gained) == pytest.approx(power_mcnemar(n, gained, lost), abs=1e-8)
    assert 0 <= power_mcnemar(n, lost, gained) <= 1


def test_power_against_simulation():
    generator = np.random.default_rng(7)
    passed = 0
    for lost, gained, _ in generator.multinomial(450, [0.005, 0.005, 0.99], size=600).tolist():
        passed += tango_interval(450, lost, gained).low > -0.02
    exact = power_non_inferiority(450, 0.02, 0.005, 0.005)
    assert exact > 0.8
    assert passed / 600 == pytest.approx(exact, abs=3 * math.sqrt(exact * (1 - exact) / 600))


# Sample sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lost", "gained"), [(0.005, 0.005), (0.0025, 0.0), (0.01, 0.01), (0.01, 0.0)])
def test_the_required_number_is_enough_and_nearly_the_fewest(lost, gained):
    found = required_n_non_inferiority(0.02, lost, gained, power=0.8)
    assert min(power_non_inferiority(found + more, 0.02, lost, gained) for more in range(50)) >= 0.8
    assert power_non_inferiority(found - 1, 0.02, lost, gained) < 0.8


def test_the_required_number_to_see_a_drop():
    found = required_n_mcnemar(0.06, 0.01)
    assert power_mcnemar(found, 0.06, 0.01) >= 0.8 > power_mcnemar(found - 1, 0.06, 0.01)
    assert required_n_mcnemar(0.06, 0.01, power=0.9) > found
    assert required_n_mcnemar(0.06, 0.01, alpha=0.01) > found
    assert required_n_mcnemar(0.01, 0.06) == found


def test_what_no_number_can_show_is_none():
    assert required_n_non_inferiority(0.02, 0.03, 0.01) is None
    assert required_n_non_inferiority(0.02, 0.0199, 0.0) is None
    assert required_n_mcnemar(0.01, 0.01) is None


def test_a_saw_tooth_is_stepped_over():
    teeth = {40: 0.9, 41: 0.7, 42: 0.9, 60: 0.7}
    assert required_n(lambda n: teeth.get(n, 0.0 if n < 40 else 1.0), 0.8) == 61
    assert required_n(lambda n: teeth.get(n, 0.0 if n < 40 else 1.0), 0.8, window=5) == 42
    assert required_n(lambda n: float(n >= MOST_PROMPTS), 0.8) == MOST_PROMPTS
    assert required_n(lambda _n: 0.0, 0.8) is None


def test_half_widths():
    for n, k in ((100, 0), (250, 25), (40, 20)):
        found = rate([True] * k + [False] * (n - k))
        assert rate_half_width(n, k / n) == pytest.approx((found.high - found.low) / 2)
    assert required_n_rate(0.05) == 381
    assert rate_half_width(381) <= 0.05 < rate_half_width(380)


@given(st.integers(1, 5000))
def test_a_file_of_that_size_nearly_always_gives_enough_test_prompts(n):
    size = file_size(n)
    assert size / 2 - math.sqrt(size) >= n - 1e-6
    assert (size - 1) / 2 - math.sqrt(size - 1) < n


# The plan -----------------------------------------------------------------------------------------------------------


def test_the_plan_puts_it_together():
    plan = power_plan(lost=0.005, gained=0.005, detect=0.1, flip_back=0.03, n=320)
    assert plan.harmful_n == required_n_non_inferiority(0.02, 0.005, 0.005)
    assert plan.borderline_n == required_n_mcnemar(0.13, 0.03)
    assert (plan.harmful_file, plan.borderline_file) == (file_size(plan.harmful_n), file_size(plan.borderline_n))
    assert [row.n for row in plan.rows] == sorted({100, 200, 250, 450, 1000, 320, plan.harmful_n, plan.borderline_n})
    row = next(row for row in plan.rows if row.n == 320)
    assert row.kept == power_non_inferiority(320, 0.02, 0.005, 0.005)
    assert row.drop == power_mcnemar(320, 0.13, 0.03)
    assert row.half_width == rate_half_width(320)
    assert power_plan(lost=0.02).harmful_n is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: power_non_inferiority(0), "got n=0"),
        (lambda: power_non_inferiority(10**7), "up to 200,000 prompts; got n=10000000"),
        (lambda: power_non_inferiority(10, 0.0), "such as 0.02 for 2 points; got 0.0"),
        (lambda: power_non_inferiority(10, 0.02, 0.7, 0.4), "got 0.7 and 0.4"),
        (lambda: power_mcnemar(10, -0.1, 0.4), "got -0.1 and 0.4"),
        (lambda: power_mcnemar(10, 0.1, 0.0, alpha=0.0), "a confidence lies between"),
        (lambda: required_n_non_inferiority(power=1.0), "such as 0.8; got 1.0"),
        (lambda: required_n_rate(0.0), "such as 0.05 for 5 points; got 0.0"),
        (lambda: power_plan(detect=0.0), "got detect 0.0"),
        (lambda: power_plan(detect=0.9, flip_back=0.2), "got detect 0.9 and flip back 0.2"),
        (lambda: power_plan(detect=1e-5), "a drop of 1e-05 needs more than 100,000 prompts"),
        (lambda: power_plan(n=-3), "got n=-3"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
