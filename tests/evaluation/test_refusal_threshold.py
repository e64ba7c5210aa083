"""The learned refusal threshold: the best cut of all, the middle of its gap, one half on its curve."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demur.errors import InputError
from demur.evaluation import fit_threshold, refusal_probability
from demur.evaluation._refusal_threshold import _best

SCORES = st.lists(st.integers(-12, 12).map(lambda number: number / 4), min_size=1, max_size=12)


def youden(refused, answered, cut):
    """Share of refusals above the cut less share of answers above it."""
    return sum(score > cut for score in refused) / len(refused) - sum(score > cut for score in answered) / len(answered)


def cuts(*scores):
    """Thresholds that stand for all that there are: at every score, between any two, below and above all."""
    ordered = sorted({score for each in scores for score in each})
    between = [(one + two) / 2 for one, two in itertools.pairwise(ordered)]
    return [ordered[0] - 1, *ordered, *between]


@settings(deadline=None)
@given(SCORES, SCORES)
def test_no_cut_tells_refusals_from_answers_better(refused, answered):
    found = _best(np.array(refused), np.array(answered))
    assert youden(refused, answered, found) == pytest.approx(
        max(youden(refused, answered, cut) for cut in cuts(refused, answered))
    )


@settings(deadline=None)
@given(SCORES, SCORES, st.integers(-40, 40))
def test_a_shift_of_all_scores_shifts_the_threshold(refused, answered, shift):
    at_rest = _best(np.array(refused), np.array(answered))
    shifted = _best(np.array(refused) + shift, np.array(answered) + shift)
    assert shifted == pytest.approx(at_rest + shift)


def test_the_whole_fit_shifts_with_the_scores():
    generator = np.random.default_rng(3)
    refused, answered = generator.normal(1, 1, 30), generator.normal(-1, 1, 30)
    one, two = fit_threshold(refused, answered), fit_threshold(refused - 7, answered - 7)
    assert (two.value, two.low, two.high) == pytest.approx((one.value - 7, one.low - 7, one.high - 7))
    assert (two.slope, two.wrong) == (pytest.approx(one.slope), one.wrong)


def test_where_a_gap_separates_them_its_middle_is_taken():
    fit = fit_threshold([-3.0, -2.0, 4.0], [-9.0, -8.5, -11.0])
    assert fit.value == (-8.5 - 3.0) / 2
    assert fit.wrong == 0


def test_of_several_gaps_that_tell_equally_well_the_widest_is_taken():
    # One answer lies among the refusals: below -1 and between 1 and 5 J is 1/2 both times.
    fit = fit_threshold([0.0, 5.0], [-1.0, 1.0])
    assert fit.value == 3.0
    assert fit.wrong == 1


def test_the_papers_threshold_is_found_where_it_holds_and_not_where_it_does_not():
    assert fit_threshold([2.0, 3.0], [-2.0, -3.0]).value == 0.0
    assert fit_threshold([-2.0, -3.0], [-8.0, -9.0]).value == -5.5


def test_each_kind_counts_half_however_many_there_are():
    """Above 0.5 one score of 1010 lies on the wrong side, but it is a tenth of the refusals; above -1.5 fifty do."""
    refused, answered = [1.0] * 9 + [-1.0], [-2.0] * 950 + [0.0] * 50
    for times in (1, 3):
        fit = fit_threshold(refused, answered * times)
        assert (fit.value, fit.wrong) == (-1.5, 50 * times)


@settings(max_examples=25, deadline=None)
@given(SCORES, SCORES)
def test_the_interval_holds_the_value_and_the_slope_is_positive(refused, answered):
    fit = fit_threshold(refused, answered)
    assert fit.low <= fit.value <= fit.high
    assert 0 < fit.slope < math.inf
    assert refusal_probability(fit.value, fit.value, fit.slope) == 0.5
    assert fit.wrong == sum(s <= fit.value for s in refused) + sum(s > fit.value for s in answered)


def test_the_slope_is_the_likeliest_of_a_logistic_curve_through_the_threshold():
    generator = np.random.default_rng(5)
    scores = generator.uniform(-4, 4, 6000)
    refuses = generator.random(6000) < 1 / (1 + np.exp(-1.3 * scores))
    refused, answered = scores[refuses], scores[~refuses]
    fit = fit_threshold(refused, answered)
    assert fit.value == pytest.approx(0, abs=0.25)
    assert fit.slope == pytest.approx(1.3, rel=0.15)

    def loss(slope):
        above, below = slope * (refused - fit.value), slope * (answered - fit.value)
        return np.logaddexp(0, -above).mean() + np.logaddexp(0, below).mean()

    assert loss(fit.slope) < min(loss(0.97 * fit.slope), loss(1.03 * fit.slope))


def test_more_judged_answers_narrow_the_interval():
    generator = np.random.default_rng(1)
    few, many = (fit_threshold(generator.normal(1, 1, n), generator.normal(-1, 1, n), seed=4) for n in (12, 1200))
    assert many.high - many.low < (few.high - few.low) / 2


def test_the_same_seed_gives_the_same_interval():
    generator = np.random.default_rng(2)
    refused, answered = generator.normal(1, 1, 20), generator.normal(-1, 1, 20)
    assert fit_threshold(refused, answered, seed=1) == fit_threshold(refused, answered, seed=1)
    assert fit_threshold(refused, answered, seed=1) != fit_threshold(refused, answered, seed=2)


@pytest.mark.parametrize(("refused", "answered"), [([], [0.0]), ([0.0], []), ([math.nan], [0.0]), ([0.0], [math.inf])])
def test_scores_that_teach_nothing_are_refused(refused, answered):
    with pytest.raises(InputError, match="a threshold needs finite scores of refusals and of answers"):
        fit_threshold(refused, answered)


@pytest.mark.parametrize(("score", "expected"), [(-0.1, 0.0), (0.0, 0.0), (0.1, 1.0), (math.nan, 0.0)])
def test_without_a_curve_a_refusal_is_a_score_above_the_threshold(score, expected):
    assert refusal_probability(score, 0.0, None) == expected


@pytest.mark.parametrize("score", [-1e9, 1e9])
def test_the_curve_does_not_overflow(score):
    assert refusal_probability(score, 0.0, 5.0) == pytest.approx(float(score > 0))
