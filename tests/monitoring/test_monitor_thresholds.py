"""The guarantee of an order statistic, and the discriminant against another implementation."""

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.stats import beta
from sklearn.covariance import LedoitWolf

from demur.errors import InputError, ModelError
from demur.evaluation import clopper_pearson
from demur.monitoring import discriminant, order_statistic, widest


@pytest.mark.parametrize("rate", [0.2, 0.34, 0.5, 0.8])
def test_among_all_orders_of_n_and_one_more_exactly_the_attained_share_is_flagged(rate):
    orders = list(permutations(range(6)))
    cuts = [order_statistic(order[:5], rate=rate) for order in orders]
    flagged = sum(order[5] > cut.value for order, cut in zip(orders, cuts, strict=True))
    assert flagged / len(orders) == pytest.approx(cuts[0].attained)
    assert cuts[0].attained <= rate < cuts[0].attained + 1 / 6


def test_ties_flag_no_more_than_the_rate():
    values = (0, 0, 0, 1, 1, 1)
    orders = list(permutations(values))
    flagged = sum(order[5] > order_statistic(order[:5], rate=0.34).value for order in orders)
    assert flagged / len(orders) <= 2 / 6


def test_the_lower_side_is_the_upper_one_mirrored():
    scores = [0.3, -1.0, 2.0, 0.5, 0.1]
    above = order_statistic(scores, rate=0.4)
    below = order_statistic([-score for score in scores], rate=0.4, side="below")
    assert (below.value, below.k, below.n) == (-above.value, above.k, above.n) == (-0.5, 2, 5)


def test_a_rate_that_is_a_round_number_of_ranks_is_used_whole():
    assert order_statistic(list(range(99)), rate=0.29).k == 29


@pytest.mark.parametrize(("n", "needed"), [(18, 19), (0, 19)])
def test_too_few_scores_say_what_is_attainable(n, needed):
    with pytest.raises(InputError, match=f"{n} validation harmless prompts cannot hold.*0.05.*Give {needed} or more"):
        order_statistic([0.0] * n, rate=0.05, what="harmless prompts")
    assert order_statistic([0.0] * needed, rate=0.05).k == 1


@pytest.mark.parametrize("rate", [0.0, 1.0, 5.0, float("nan")])
def test_what_is_no_share_is_refused(rate):
    with pytest.raises(InputError, match="lies between 0 and 1"):
        order_statistic([0.0] * 100, rate=rate)


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="NaN or infinite"):
        order_statistic([0.0, float("nan")] * 50, rate=0.5)


def test_one_threshold_for_several_kinds_keeps_the_rate_of_each():
    cuts = [order_statistic(scores, rate=0.5) for scores in ([1.0, 2.0, 3.0], [5.0, 6.0, 7.0])]
    assert widest(cuts) == 6.0
    assert widest(cuts, side="below") == 2.0


@pytest.mark.parametrize(("k", "n"), [(1, 19), (8, 160), (3, 40)])
def test_the_share_beyond_an_order_statistic_is_bounded_as_beta_says(k, n):
    # The law that the record's `bound` rests on, from uniform scores: P(share beyond <= bound) = 0.95.
    bound = clopper_pearson(k - 1, n, confidence=0.9).high
    assert bound == pytest.approx(beta.ppf(0.95, k, n + 1 - k))
    draws = np.random.default_rng(0).random((20000, n))
    beyond = 1 - np.sort(draws, axis=1)[:, n - k]
    assert np.mean(beyond <= bound) == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize(("n", "d"), [(20, 50), (60, 10)])
def test_the_discriminant_is_that_of_scikit_learns_shrunk_covariance(n, d):
    generator = np.random.default_rng(n)
    mixing = generator.normal(size=(d, d))
    positive, negative = generator.normal(size=(n, d)) @ mixing + 1, generator.normal(size=(n + 7, d)) @ mixing
    centred = np.concatenate([positive - positive.mean(0), negative - negative.mean(0)])
    covariance = LedoitWolf(assume_centered=True).fit(centred).covariance_
    difference = positive.mean(0) - negative.mean(0)
    wanted = np.linalg.solve(covariance, difference)
    found = discriminant(torch.tensor(positive), torch.tensor(negative)).numpy()
    assert found == pytest.approx(wanted / (wanted @ difference), rel=1e-6)
    assert found @ difference == pytest.approx(1.0)


def test_a_discriminant_without_spread_is_the_difference():
    positive, negative = torch.tensor([[2.0, 0.0]] * 3), torch.tensor([[0.0, 0.0]] * 4)
    assert discriminant(positive, negative).tolist() == [0.5, 0.0]


@pytest.mark.parametrize("broken", [torch.zeros(4, 3), torch.full((4, 3), float("nan"))])
def test_prompts_that_cannot_be_told_apart_are_said_to_be(broken):
    with pytest.raises(ModelError, match="cannot be told apart"):
        discriminant(broken, torch.zeros(5, 3))
