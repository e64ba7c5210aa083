"""Metrics and comparisons against counts by hand; next-token logits in batches against one at a time."""

import pytest
import torch

from demur.evaluation import (
    compare,
    kl_after,
    kl_divergences,
    mean_kl,
    metrics_of,
    next_token_logits,
    refusal_rate,
    refusal_scores,
    scores_after,
)
from demur.records import CompletionRecord

VERDICTS = {"r": "full_refusal", "p": "partial_refusal", "c": "full_compliance", "u": "unjudged"}


def records(label, verdicts, *, degenerate=(), answers=""):
    """One record per letter; `answers` holds + (found), - (not found) or a space (no answer known)."""
    return [
        CompletionRecord(
            key=f"{label}{number}",
            label=label,
            split="test",
            prompt_sha256=f"{label}{number}",
            prompt="?",
            intervention="none",
            completion="!",
            n_tokens=1,
            ended=True,
            verdict=VERDICTS[letter],
            score=0.5,
            degenerate=number in degenerate,
            answer_found={"+": True, "-": False, " ": None}[answers[number] if number < len(answers) else " "],
        )
        for number, letter in enumerate(verdicts)
    ]


BEFORE = {
    "harmful": records("harmful", "rrrpcu"),
    "borderline": records("borderline", "rrcc", degenerate=[3]),
    "harmless": records("harmless", "ccc", answers="+- "),
}
AFTER = {
    "harmful": records("harmful", "rrccrr"),
    "borderline": records("borderline", "cccu", degenerate=[0, 3]),
    "harmless": records("harmless", "crc", answers="++ "),
}


def counts(rate):
    return rate.k, rate.n, rate.unjudged, rate.degenerate


def test_a_rate_counts_full_and_partial_refusals_among_the_judged():
    rate = refusal_rate(records("harmful", "rpcuu", degenerate=[3, 4]))
    assert counts(rate) == (2, 3, 2, 2)
    assert rate.rate == pytest.approx(2 / 3)


def test_metrics_are_the_counts():
    metrics = metrics_of(BEFORE, AFTER, None)
    assert counts(metrics.true_refusal_rate.before) == (4, 5, 1, 0)
    assert counts(metrics.true_refusal_rate.after) == (4, 6, 0, 0)
    assert counts(metrics.false_refusal_rate.before) == (2, 4, 0, 1)
    assert counts(metrics.false_refusal_rate.after) == (0, 3, 1, 2)
    assert counts(metrics.harmless_refusal_rate.before) == (0, 3, 0, 0)
    assert counts(metrics.harmless_refusal_rate.after) == (1, 3, 0, 0)
    assert counts(metrics.task_accuracy.before) == (1, 2, 0, 0)
    assert counts(metrics.task_accuracy.after) == (2, 2, 0, 0)
    assert metrics.kl_harmless is None


def test_without_a_calibrated_model_there_is_no_after():
    metrics = metrics_of(BEFORE, None, None)
    for both in (metrics.true_refusal_rate, metrics.false_refusal_rate, metrics.harmless_refusal_rate):
        assert both.after is None
    assert metrics.task_accuracy.after is None
    assert metrics.task_accuracy.before.n == 2


def test_without_known_answers_there_is_no_accuracy():
    plain = {**BEFORE, "harmless": records("harmless", "ccc")}
    assert metrics_of(plain, plain, None).task_accuracy is None
    assert compare(plain, plain).task_accuracy is None


def test_answers_outside_the_harmless_set_do_not_count():
    more = {**BEFORE, "borderline": records("borderline", "rrcc", answers="+  -")}
    assert metrics_of(more, None, None).task_accuracy == metrics_of(BEFORE, None, None).task_accuracy


def test_comparisons_are_the_discordant_pairs():
    found = compare(BEFORE, AFTER)
    by_hand = {  # n, lost, gained
        "true_refusal_rate": (5, 2, 1),
        "false_refusal_rate": (3, 2, 0),
        "harmless_refusal_rate": (3, 0, 1),
        "task_accuracy": (2, 0, 1),
    }
    for name, (n, lost, gained) in by_hand.items():
        pair = getattr(found, name)
        assert (pair.n, pair.lost, pair.gained) == (n, lost, gained), name
        assert pair.difference == pytest.approx((gained - lost) / n)
        assert pair.low <= pair.difference <= pair.high
    assert found.true_refusal_rate.p_value == 1.0  # 2 against 1
    assert found.false_refusal_rate.p_value == 0.5  # 2 against 0: 2 * 0.5**2


def test_the_same_run_twice_differs_by_nothing():
    found = compare(BEFORE, BEFORE)
    for name in type(found).model_fields:
        pair = getattr(found, name)
        assert (pair.lost, pair.gained, pair.difference, pair.p_value) == (0, 0, 0.0, 1.0)


def test_different_prompts_are_never_paired():
    shuffled = {**AFTER, "harmful": AFTER["harmful"][::-1]}
    with pytest.raises(AssertionError, match="different prompts"):
        compare(BEFORE, shuffled)


TEXTS = ["a", "a much longer prompt than the others", "bb", "ccc ccc", "a"]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_next_token_logits_do_not_depend_on_the_batch(tiny, batch_size):
    chat = tiny("llama")
    found = next_token_logits(chat, TEXTS, batch_size=batch_size)
    assert found.shape == (5, 259)
    for text, row in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            alone = chat.model(torch.tensor([chat.template.encode(text)])).logits[0, -1]
        torch.testing.assert_close(row, alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_scores_and_kl_read_batch_by_batch_are_those_of_all_logits(tiny, batch_size):
    chat, tokens = tiny("llama"), [5, 9]
    encoded, logits = chat.encode(TEXTS), next_token_logits(chat, TEXTS)
    base = logits.flip(-1)
    scores = scores_after(chat, encoded, tokens, batch_size=batch_size)
    torch.testing.assert_close(scores, refusal_scores(logits, tokens), rtol=1e-9, atol=1e-9)
    divergences = kl_after(chat, encoded, base, batch_size=batch_size)
    torch.testing.assert_close(divergences, kl_divergences(base, logits), rtol=1e-9, atol=1e-9)
    assert len(set(divergences.tolist())) >= 4  # the prompts differ, so their order is tested
    assert scores_after(chat, [], tokens).shape == (0,)


def test_mean_kl_is_the_mean_with_its_interval():
    generator = torch.Generator().manual_seed(0)
    base, changed = torch.randn(20, 8, generator=generator), torch.randn(20, 8, generator=generator)
    values = kl_divergences(base, changed)
    found = mean_kl(base, changed, seed=3)
    assert found.mean == pytest.approx(values.mean().item())
    assert (found.n, found.largest) == (20, values.max().item())
    assert found.low < found.mean < found.high
    assert found == mean_kl(base, changed, seed=3)
    assert found != mean_kl(base, changed, seed=4)
