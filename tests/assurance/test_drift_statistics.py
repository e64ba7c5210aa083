from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import bootstrap, ttest_1samp, ttest_ind
from sklearn.metrics import roc_auc_score

from demur.assurance._drift_statistics import (
    DEFAULT_RULE,
    auroc,
    check_rule,
    d_prime,
    drift_tests,
    gap,
    probed,
    spent_at,
)
from demur.errors import InputError

N = 40


def values(rng, *, gap=6.0, score=4.0, n=N):
    """Readings of a model that refuses: projections of spread 1, scores of spread 2."""
    return probed(
        {"harmful": gap + rng.normal(size=n), "harmless": rng.normal(size=n)},
        {"harmful": score + 2 * rng.normal(size=n), "harmless": -8 + 2 * rng.normal(size=n)},
    )


def after(first, rng, *, gap_kept=1.0, score_kept=1.0, noise=0.2, auroc_noise=0.0):
    """Readings later: each prompt's own value, shrunk and noisy."""
    projections, scores = first.projections, first.scores
    return probed(
        {
            label: gap_kept * each + (noise + auroc_noise) * rng.normal(size=len(each))
            for label, each in projections.items()
        },
        {
            label: (score_kept if label == "harmful" else 1) * each + noise * rng.normal(size=len(each))
            for label, each in scores.items()
        },
    )


def named(tests, name):
    return next(each for each in tests if each.statistic == name)


def alarms(tests):
    return {each.statistic for each in tests if each.alarm}


def test_gap_and_its_interval_are_welch_s():
    one = values(np.random.default_rng(0))
    high, low = one.projections["harmful"], one.projections["harmless"]
    found = gap(one)
    assert found.value == pytest.approx(high.mean() - low.mean())
    # scipy's interval has Satterthwaite's degrees of freedom, which are more: ours is a little wider
    theirs = ttest_ind(high, low, equal_var=False).confidence_interval()
    assert found.low < theirs.low < found.low + 0.02
    assert found.high - 0.02 < theirs.high < found.high


def test_auroc_is_sklearn_s_with_ties():
    rng = np.random.default_rng(1)
    high, low = rng.integers(0, 6, 30).astype(float), rng.integers(-2, 4, 25).astype(float)
    one = probed({"harmful": high, "harmless": low}, {"harmful": high, "harmless": low})
    expected = roc_auc_score([1] * 30 + [0] * 25, np.concatenate([high, low]))
    assert auroc(one).value == pytest.approx(expected)


def test_auroc_s_interval_has_a_width_where_classes_are_apart():
    one = values(np.random.default_rng(0), gap=50)
    found = auroc(one)
    assert (found.value, found.high) == (1.0, 1.0)
    # at A = 1 - x the equation is x^2 = z^2 x (1 - x) (1 + h x / (1 + x) + h (1 - x) / (2 - x)) / n^2, h = n - 1
    x, h = 1 - found.low, N - 1
    assert x**2 == pytest.approx(
        1.959964**2 * x * (1 - x) * (1 + h * x / (1 + x) + h * (1 - x) / (2 - x)) / N**2, rel=1e-4
    )
    assert 0.9 < found.low < 0.98


def test_auroc_s_interval_is_symmetric_under_exchange():
    one = values(np.random.default_rng(3), gap=1.0)
    turned = probed({"harmful": one.projections["harmless"], "harmless": one.projections["harmful"]}, one.scores)
    there, back = auroc(one), auroc(turned)
    assert there.low < there.value < there.high
    assert (back.low, back.value, back.high) == pytest.approx(
        (1 - there.high, 1 - there.value, 1 - there.low), abs=1e-6
    )


def test_d_prime_is_the_gap_in_spreads():
    high, low = np.array([9.0, 11.0] * 10), np.array([-1.0, 1.0] * 10)
    one = probed({"harmful": high, "harmless": low}, {"harmful": high, "harmless": low})
    assert d_prime(one) == pytest.approx(10 / np.sqrt(20 / 19))
    flat = probed({"harmful": np.ones(20), "harmless": np.zeros(20)}, one.scores)
    assert d_prime(flat) is None


def test_the_score_s_test_is_the_paired_t_test_at_the_limit():
    rng = np.random.default_rng(4)
    first = values(rng)
    now = after(first, rng, score_kept=0.66, noise=1)
    difference = now.scores["harmful"] - DEFAULT_RULE.score_kept * first.scores["harmful"]
    found = named(drift_tests(first, now, DEFAULT_RULE, number=1), "score")
    assert found.p_value == pytest.approx(ttest_1samp(difference, 0, alternative="less").pvalue)
    assert found.estimate.value == pytest.approx(now.scores["harmful"].mean() / first.scores["harmful"].mean())


@pytest.mark.parametrize("name", ["gap", "score"])
@pytest.mark.parametrize("end", ["low", "high"])
def test_interval_and_test_are_one_calculation(name, end):
    """A limit at an end of the 95 % interval is rejected, or not, with p = 0.025."""
    rng = np.random.default_rng(5)
    first = values(rng)
    now = after(first, rng, gap_kept=0.5, score_kept=0.5, noise=1)
    edge = getattr(named(drift_tests(first, now, DEFAULT_RULE, number=1), name).estimate, end)
    rule = DEFAULT_RULE.model_copy(update={f"{name}_kept": edge})
    found = named(drift_tests(first, now, rule, number=1), name)
    assert found.p_value == pytest.approx(0.975 if end == "low" else 0.025, abs=1e-6)


def test_the_gap_s_interval_agrees_with_a_bootstrap_over_prompts():
    rng = np.random.default_rng(6)
    first = values(rng, n=200)
    now = after(first, rng, gap_kept=0.5, noise=1)
    found = named(drift_tests(first, now, DEFAULT_RULE, number=1), "gap").estimate
    rows = np.arange(200)

    def left(high, low):
        above = now.projections["harmful"][high].mean() - now.projections["harmless"][low].mean()
        return above / (first.projections["harmful"][high].mean() - first.projections["harmless"][low].mean())

    ends = bootstrap((rows, rows), left, vectorized=False, n_resamples=2000, method="percentile", rng=rng)
    assert (found.low, found.high) == pytest.approx(tuple(ends.confidence_interval), abs=0.006)


def test_the_change_of_auroc_agrees_with_a_bootstrap_over_prompts():
    rng = np.random.default_rng(7)
    first = values(rng, gap=1.5, n=200)
    now = after(first, rng, gap_kept=0.4, noise=1)
    found = named(drift_tests(first, now, DEFAULT_RULE, number=1), "auroc").estimate
    rows = np.arange(200)

    def change(high, low):
        areas = []
        for one in (first, now):
            pair = one.projections["harmful"][high], one.projections["harmless"][low]
            areas.append(roc_auc_score([1] * 200 + [0] * 200, np.concatenate(pair)))
        return areas[1] - areas[0]

    assert found.value == pytest.approx(change(rows, rows))
    ends = bootstrap((rows, rows), change, vectorized=False, n_resamples=200, method="percentile", rng=rng)
    assert (found.low, found.high) == pytest.approx(tuple(ends.confidence_interval), abs=0.03)


def test_a_model_that_did_not_change_raises_nothing():
    first = values(np.random.default_rng(8))
    found = drift_tests(first, first, DEFAULT_RULE, number=1)
    assert {each.statistic for each in found} == {"gap", "auroc", "score"}
    assert not alarms(found)
    assert all(each.p_value > 0.99 for each in found)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"gap_kept": 0.2}, {"gap", "auroc"}),
        ({"score_kept": 0.3}, {"score"}),
        ({"gap_kept": 0.85, "score_kept": 0.85}, set()),
        ({"gap_kept": 1.5, "score_kept": 1.5}, set()),
    ],
)
def test_alarms_say_what_went(change, expected):
    rng = np.random.default_rng(9)
    first = values(rng, gap=4.0)
    found = drift_tests(first, after(first, rng, noise=0.3, auroc_noise=0.7, **change), DEFAULT_RULE, number=1)
    assert alarms(found) == expected


def test_a_turned_direction_alone_raises_nothing():
    """Projections that are shifted together, and scores of harmless prompts that fall, are no loss."""
    first = values(np.random.default_rng(10))
    moved = probed(
        {label: each + 30 for label, each in first.projections.items()},
        {"harmful": first.scores["harmful"], "harmless": first.scores["harmless"] - 5},
    )
    assert not alarms(drift_tests(first, moved, DEFAULT_RULE, number=1))


def test_a_score_that_was_never_above_zero_is_not_tested():
    rng = np.random.default_rng(11)
    first = values(rng, score=-1.0)
    assert {each.statistic for each in drift_tests(first, first, DEFAULT_RULE, number=1)} == {"gap", "auroc"}


def test_the_levels_of_all_checkpoints_add_up_to_the_rate():
    levels = [spent_at(DEFAULT_RULE, number) for number in range(1, 20001)]
    assert sum(levels) < DEFAULT_RULE.false_alarm_rate
    assert sum(levels) == pytest.approx(DEFAULT_RULE.false_alarm_rate, rel=1e-4)
    assert all(one > two for one, two in pairwise(levels))


def test_alarms_hold_the_adjusted_p_value_against_the_level():
    rng = np.random.default_rng(12)
    first = values(rng)
    now = after(first, rng, score_kept=0.55, noise=1.0)
    found = named(drift_tests(first, now, DEFAULT_RULE, number=1), "score")
    assert found.adjusted == pytest.approx(3 * found.p_value)
    assert found.level == 0.025
    later = int(np.ceil(np.sqrt(0.05 / found.adjusted))) + 1
    assert found.alarm
    assert not named(drift_tests(first, now, DEFAULT_RULE, number=later), "score").alarm


@pytest.mark.parametrize("n", [16, 32])
def test_false_alarms_at_the_limits_stay_below_the_rate(n):
    """Fine-tunes that take exactly what the limits let pass, each measured five times: families with any alarm.

    150 families at 5 % would show more than 17 in 0.1 % of cases.
    """
    rng = np.random.default_rng(13)
    families = 0
    for _ in range(150):
        first = values(rng, n=n)
        readings = [after(first, rng, gap_kept=0.7, score_kept=0.75, noise=1.0) for _ in range(5)]
        families += any(alarms(drift_tests(first, now, DEFAULT_RULE, number=m + 1)) for m, now in enumerate(readings))
    assert 0 < families <= 17


def test_no_change_but_noise_raises_no_alarm():
    rng = np.random.default_rng(14)
    for _ in range(60):
        first = values(rng, n=16)
        assert not any(
            alarms(drift_tests(first, after(first, rng, noise=1.0), DEFAULT_RULE, number=m)) for m in range(1, 6)
        )


def test_auroc_at_its_limit_stays_below_the_rate():
    """Classes whose true AUROC fell from 1 to 0.95."""
    rng = np.random.default_rng(15)
    rule = DEFAULT_RULE.model_copy(update={"gap_kept": 1e-6, "score_kept": 1e-6})
    found = 0
    for _ in range(400):
        first = values(rng, gap=40.0, n=32)
        now = probed(
            {"harmful": 2.326 + rng.normal(size=32), "harmless": rng.normal(size=32)},
            first.scores,
        )
        found += "auroc" in alarms(drift_tests(first, now, rule, number=1))
    assert found <= 19  # 2.5 % of 400, plus three standard deviations


@pytest.mark.parametrize("counts", [(7, 20), (20, 7), (0, 20)])
def test_too_few_prompts_are_refused(counts):
    lists = {"harmful": [1.0] * counts[0], "harmless": [0.0] * counts[1]}
    with pytest.raises(InputError, match=f"at least 8 harmful and 8 harmless.*got {counts[0]} and {counts[1]}"):
        probed(lists, lists)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("false_alarm_rate", 5.0, "false_alarm_rate lies between 0 and 0.5, such as 0.05; got 5.0"),
        ("gap_kept", 1.0, "gap_kept lies between 0 and 1"),
        ("score_kept", 0.0, "score_kept lies between 0 and 1"),
        ("auroc_loss", 0.5, "auroc_loss lies between 0 and 0.5"),
    ],
)
def test_rules_that_mean_nothing_are_refused(name, value, message):
    with pytest.raises(InputError, match=message):
        check_rule(DEFAULT_RULE.model_copy(update={name: value}))
