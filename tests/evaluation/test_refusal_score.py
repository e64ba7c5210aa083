"""Refusal score, KL and refusal tokens against the plain formulas."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax, rel_entr, softmax

from demur.evaluation import discover_refusal_tokens, kl_divergences, refusal_scores
from demur.evaluation._refusal_score import LARGEST_SCORE

LOGITS = st.floats(-30, 30, allow_subnormal=False)


def matrices(rows=4, columns=9):
    return arrays(np.float64, (rows, columns), elements=LOGITS)


def naive_score(logits, tokens):
    """Arditi et al. section 2.3 and their code: softmax, sum, two logarithms with 1e-8 inside each."""
    p = softmax(np.asarray(logits, dtype=np.float64))[list(tokens)].sum()
    return math.log(p + 1e-8) - math.log(1 - p + 1e-8)


# Refusal score ------------------------------------------------------------------------------------------------------


@settings(deadline=None)  # the first call warms torch up
@given(matrices(), st.sets(st.integers(0, 8), min_size=1, max_size=8))
def test_the_score_equals_the_published_formula(logits, tokens):
    found = refusal_scores(torch.tensor(logits), sorted(tokens))
    # 1 - p loses digits where p is close to 1: the epsilon bounds what that does to the logarithm to 1e-8 / 1e-16.
    np.testing.assert_allclose(found, [naive_score(row, tokens) for row in logits], rtol=1e-6, atol=1e-6)


def test_several_tokens_count_together():
    logits = torch.log(torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64))
    assert refusal_scores(logits, [0, 1]).item() == pytest.approx(0.0, abs=1e-7)
    assert refusal_scores(logits, [0]).item() == pytest.approx(math.log(0.2 / 0.8), abs=1e-6)


@pytest.mark.parametrize(("logit", "sign"), [(200.0, 1), (-200.0, -1), (math.inf, None), (-math.inf, -1)])
def test_the_score_saturates_at_the_epsilon(logit, sign):
    score = refusal_scores(torch.tensor([[logit, 0.0, 0.0]]), [0]).item()
    if sign is None:  # an infinite logit is no distribution
        assert math.isnan(score)
    else:
        assert score == pytest.approx(sign * LARGEST_SCORE, abs=1e-6)
    assert pytest.approx(18.42, abs=0.005) == LARGEST_SCORE == pytest.approx(math.log(1e8))


@settings(deadline=None)  # the first call warms torch up
@given(matrices(), st.floats(-50, 50))
def test_only_differences_of_logits_count(logits, shift):
    one, two = torch.tensor(logits), torch.tensor(logits + shift)
    torch.testing.assert_close(refusal_scores(one, [0, 3]), refusal_scores(two, [0, 3]), rtol=1e-5, atol=1e-5)


def test_the_sign_says_which_is_likelier():
    logits = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    assert refusal_scores(logits, [0]).sign().tolist() == [1, -1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_logits_are_scored_in_float64(dtype):
    logits = torch.tensor([[60.0, 0.5, -3.0], [0.5, 1.0, 0.0]], dtype=dtype)
    found = refusal_scores(logits, [1])
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, [naive_score(row, [1]) for row in logits.double()], rtol=1e-9)


def test_leading_dimensions_are_kept():
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    found = refusal_scores(logits, [1, 4])
    assert found.shape == (2, 3)
    torch.testing.assert_close(found[1, 2], refusal_scores(logits[1, 2], [1, 4]))


def test_a_nan_stays_a_nan():
    assert refusal_scores(torch.tensor([[math.nan, 1.0], [0.0, 1.0]]), [0]).isnan().tolist() == [True, False]


# KL -----------------------------------------------------------------------------------------------------------------


def oracle_kl(base, changed):
    return rel_entr(softmax(base, axis=-1), softmax(changed, axis=-1)).sum(-1)


@settings(deadline=None)  # the first call warms torch up
@given(matrices(), matrices())
def test_kl_equals_scipy(base, changed):
    found = kl_divergences(torch.tensor(base), torch.tensor(changed))
    np.testing.assert_allclose(found, oracle_kl(base, changed), rtol=1e-6, atol=1e-10)
    assert (found >= 0).all()


@settings(deadline=None)  # the first call warms torch up
@given(matrices())
def test_kl_with_itself_is_exactly_zero(logits):
    assert kl_divergences(torch.tensor(logits), torch.tensor(logits)).tolist() == [0.0] * 4


def test_kl_reads_base_first():
    base, changed = torch.log(torch.tensor([[0.9, 0.1]])), torch.log(torch.tensor([[0.5, 0.5]]))
    expected = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert kl_divergences(base, changed).item() == pytest.approx(expected, abs=1e-6)
    assert kl_divergences(changed, base).item() != pytest.approx(expected, abs=1e-3)


def test_kl_of_many_candidates_is_that_of_each():
    generator = torch.Generator().manual_seed(1)
    base, changed = torch.randn(3, 11, generator=generator), torch.randn(5, 3, 11, generator=generator)
    found = kl_divergences(base, changed)
    assert (found.shape, found.dtype) == ((5, 3), torch.float64)
    torch.testing.assert_close(found[4], kl_divergences(base, changed[4]))


def test_kl_of_a_large_vocabulary_is_not_biased():
    """The published code adds 1e-6 to every probability, which at 256,000 tokens swallows a quarter of the mass."""
    generator = torch.Generator().manual_seed(2)
    base = torch.randn(1, 256_000, generator=generator, dtype=torch.float64)
    changed = base + 0.1 * torch.randn(1, 256_000, generator=generator, dtype=torch.float64)
    exact = (np.exp(log_softmax(base, -1)) * (log_softmax(base, -1) - log_softmax(changed, -1))).sum()
    assert kl_divergences(base, changed).item() == pytest.approx(float(exact), rel=1e-9)


def test_the_inputs_are_left_as_they_were():
    base, changed = torch.randn(2, 5), torch.randn(2, 5)
    before = base.clone(), changed.clone()
    kl_divergences(base, changed)
    refusal_scores(changed, [1])
    assert torch.equal(base, before[0])
    assert torch.equal(changed, before[1])


# Refusal tokens -----------------------------------------------------------------------------------------------------

CHAT = SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda ids: f"<{ids[0]}>"))


def planted(*rows):
    """Logits of rows of {token: probability}, the rest spread over 100 tokens."""
    logits = torch.empty(len(rows), 100, dtype=torch.float64)
    for index, row in enumerate(rows):
        logits[index] = math.log((1 - sum(row.values())) / (100 - len(row)))
        for token, probability in row.items():
            logits[index, token] = math.log(probability)
    return logits


def test_the_tokens_that_begin_refusals_are_found_likeliest_first():
    refused = planted({40: 0.9, 7: 0.05}, {40: 0.3, 7: 0.6})
    answered = planted({12: 0.7}, {12: 0.9})
    tokens = discover_refusal_tokens(CHAT, refused, answered)
    assert [(token.id, token.text) for token in tokens] == [(40, "<40>"), (7, "<7>")]
    assert tokens[0].probability_refused == pytest.approx(0.6)
    assert tokens[1].probability_refused == pytest.approx(0.325)
    assert tokens[0].probability_answered == pytest.approx((0.3 + 0.1) / 99 / 2)


def test_a_token_that_begins_answers_as_well_says_nothing():
    refused = planted({40: 0.6, 5: 0.35})
    answered = planted({5: 0.3, 12: 0.5})
    assert [token.id for token in discover_refusal_tokens(CHAT, refused, answered)] == [40]


def test_it_stops_when_the_refusals_are_covered():
    refused = planted({1: 0.5, 2: 0.3, 3: 0.15})
    answered = planted({9: 0.9})
    found = {
        coverage: [token.id for token in discover_refusal_tokens(CHAT, refused, answered, coverage=coverage)]
        for coverage in (0.4, 0.6, 0.9)
    }
    assert found == {0.4: [1], 0.6: [1, 2], 0.9: [1, 2, 3]}


def test_it_never_takes_more_than_it_may():
    refused = planted(dict.fromkeys(range(12), 0.08))
    answered = planted({90: 0.9})
    assert len(discover_refusal_tokens(CHAT, refused, answered)) == 8
    assert len(discover_refusal_tokens(CHAT, refused, answered, at_most=3)) == 3


def test_there_is_always_one():
    same = planted({1: 0.5})
    assert len(discover_refusal_tokens(CHAT, same, same)) == 1


def test_a_model_with_several_openings_gets_all_of_them():
    """Beyond the share to cover: each is the likeliest first token of some refusals."""
    refused = planted(*[{1: 0.99}] * 15, *[{2: 0.99}] * 3, *[{3: 0.99}] * 2)
    tokens = discover_refusal_tokens(CHAT, refused, planted({9: 0.9}), coverage=0.7)
    assert [token.id for token in tokens] == [1, 2, 3]
    few = planted(*[{1: 0.99}] * 38, *[{2: 0.99}])  # the likeliest of one in 39 is no opening of its own
    assert [token.id for token in discover_refusal_tokens(CHAT, few, planted({9: 0.9}), coverage=0.7)] == [1]


def test_a_token_that_answers_share_is_skipped_and_does_not_end_the_list():
    refused = planted(*[{1: 0.65, 5: 0.3}] * 3, {2: 0.65, 5: 0.3})
    answered = planted({5: 0.12, 9: 0.8})  # refusals begin with 5 less than three times as often
    assert [token.id for token in discover_refusal_tokens(CHAT, refused, answered)] == [1, 2]
