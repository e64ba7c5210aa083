"""The gate's false-pass rate: exact, by enumeration of every test set, where the true loss equals the margin.

Whether "true refusals kept" passes depends on the lost and gained pairs alone, so the refusal rate of the base model
matters only through which shares of them are possible.
"""

import math
from functools import cache

import numpy as np
import pytest
from scipy.stats import multinomial

from demur.evaluation import power_non_inferiority, tango_interval
from demur.evaluation._gate import _kept
from demur.evaluation._power import passes_non_inferiority
from demur.evaluation._statistics import paired_comparison

SIZES = (100, 150, 189, 200, 250, 320, 480, 1000)
MARGINS = (0.01, 0.02, 0.05)
GAINS = (0.0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
LARGEST = {0.01: 0.0285, 0.02: 0.0265, 0.05: 0.0262}
"""By margin; nominal 0.025. The score test is asymptotic: the worst cases of the grids below are 0.0279 (margin 1
point, n = 111, 3 % newly refused), 0.0260 (2 points, n = 100, 3 %) and 0.0256 (5 points, n = 60, 20 %)."""


@cache
def most_lost(n, gained, margin):
    """The most lost pairs with which `tango_interval` passes; -1 if none. Its lower end falls with every lost pair."""
    low, high = -1, n - gained + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if tango_interval(n, middle, gained).low > -margin else (low, middle)
    return low


def size_of(n, margin, gain):
    """P(pass) at the boundary, from the interval itself; the gains left out hold less than 1e-6."""
    gains = range(int(n * gain + 8 * math.sqrt(n * gain) + 8))
    lost = gain + margin
    total = 0.0
    for gained in gains:
        most = most_lost(n, gained, margin)
        if most < 0:
            continue
        losses = np.arange(most + 1)
        counts = np.stack([losses, np.full_like(losses, gained), n - losses - gained], axis=1)
        total += float(multinomial.pmf(counts, n, [lost, gain, 1 - lost - gain]).sum())
    return total


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("n", SIZES[:5])
def test_false_passes_at_the_margin_are_rare(n, margin):
    """With the interval that the gate looks at, for every discordance structure of the grid."""
    sizes = {gain: size_of(n, margin, gain) for gain in GAINS}
    assert max(sizes.values()) <= LARGEST[margin], sizes


@pytest.mark.parametrize("margin", MARGINS)
def test_false_passes_over_a_finer_grid(margin):
    """With the score test, which is the same rule (see the test below) and fast enough for a fine grid."""
    sizes = {
        (n, gain): power_non_inferiority(n, margin, margin + gain, gain)
        for n in (*SIZES, *range(60, 400, 17))
        for gain in (*GAINS, 0.001, 0.004, 0.015, 0.04, 0.2)
    }
    worst = max(sizes, key=lambda key: sizes[key])
    assert sizes[worst] <= LARGEST[margin], (worst, sizes[worst])
    # The rule uses its level up: elsewhere in the grid it is not far below the nominal 2.5 %.
    assert sizes[worst] > 0.02


@pytest.mark.parametrize("margin", MARGINS)
def test_a_larger_loss_passes_more_rarely(margin):
    at, beyond = (power_non_inferiority(300, margin, loss + 0.01, 0.01) for loss in (margin, 1.5 * margin))
    assert beyond < at / 2


@pytest.mark.parametrize("n", [60, 100, 189, 250, 1000])
@pytest.mark.parametrize("margin", MARGINS)
def test_the_score_test_is_the_interval_rule(n, margin):
    for gained in range(12):
        most = most_lost(n, gained, margin)
        around = np.array([each for each in (most - 1, most, most + 1, most + 2) if 0 <= each <= n - gained])
        expected = [tango_interval(n, int(lost), gained).low > -margin for lost in around]
        assert passes_non_inferiority(n, around, np.array(gained), margin=margin).tolist() == expected


@pytest.mark.parametrize("n", [100, 250])
def test_the_rule_of_the_gate_is_that_interval(n):
    for gained in range(4):
        for lost in range(8):
            before = [True] * (n - gained) + [False] * gained
            after = [False] * lost + [True] * (n - lost)
            rule = _kept("true_refusals_kept", "true refusals", "harmful", paired_comparison(before, after), 0.02)
            assert (rule.decision == "pass") == (lost <= most_lost(n, gained, 0.02))


@pytest.mark.parametrize("base_rate", [0.6, 0.9, 1.0])
@pytest.mark.parametrize("n", [100, 400])
def test_false_passes_simulated_from_answers(n, base_rate):
    """From single answers through the public comparison, for several refusal rates of the base model."""
    generator = np.random.default_rng(20_241)
    runs, margin, passed = 1000, 0.02, 0
    gained_share = 0.05 * (1 - base_rate)
    given_loss = (margin + gained_share) / base_rate
    given_gain = gained_share / (1 - base_rate) if base_rate < 1 else 0.0
    for _ in range(runs):
        before = generator.random(n) < base_rate
        after = np.where(before, generator.random(n) >= given_loss, generator.random(n) < given_gain)
        passed += paired_comparison(before.tolist(), after.tolist()).low > -margin
    exact = power_non_inferiority(n, margin, margin + gained_share, gained_share)
    assert passed / runs == pytest.approx(exact, abs=3 * math.sqrt(0.025 * 0.975 / runs))
