"""Fidelity against loops that read one prompt at a time, without padding, in numpy."""

import math

import numpy as np
import pytest
import torch

from demur.errors import InputError, ModelError
from demur.evaluation import _fidelity as module
from demur.evaluation import bootstrap_mean, mean_kl, measure_fidelity, next_token_logits
from demur.interventions import ActivationAddition, Combined, DirectionalAblation, in_shipped_form
from demur.models import hook_count
from demur.testing import load_toy_chat_model, toy_prompt_sets

PROMPTS = ["a", "a much longer prompt than the others", "bb", "ccc ccc", "the last one"]
TEXTS = ["Short text.", "A second text that goes on for a little longer than the first one did.", "x y z"]
# Rotary and absolute positions; a norm after the write (in float64 its rows of padding are NaN by themselves).
FAMILIES = {"llama": (torch.float64, 1e-7), "gpt2": (torch.float64, 1e-7), "gemma2": (torch.float32, 1e-3)}


def ablation(chat, seed=0, k=1):
    generator = torch.Generator().manual_seed(seed)
    return DirectionalAblation(torch.randn(k, chat.layout.d_model, generator=generator, dtype=torch.float64))


def log_probabilities(chat, ids):
    """[token, vocabulary], one unpadded row, float64."""
    with torch.no_grad():
        logits = chat.model(torch.tensor([ids])).logits[0].double().numpy()
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def greedy(chat, prompt, count):
    """The answer token by token, each from a full forward pass, up to the end token."""
    ids = chat.template.encode(prompt)
    start = len(ids)
    ends = {chat.tokenizer.eos_token_id}
    while len(ids) < start + count and (len(ids) == start or ids[-1] not in ends):
        ids.append(int(log_probabilities(chat, ids)[-1].argmax()))
    return ids[start:]


def by_hand(chat, context, prompts, answers):
    """Per prompt: KL of each token, surprise of each token before and after."""
    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        start = chat.template.encode(prompt)
        ids = start + list(answer)
        base = log_probabilities(chat, ids)
        with context():
            changed = log_probabilities(chat, ids)
        kl, before, after = [], [], []
        for index, token in enumerate(answer):
            p, q = base[len(start) + index - 1], changed[len(start) + index - 1]
            kl.append(float((np.exp(p) * (p - q)).sum()))
            before.append(-float(p[token]))
            after.append(-float(q[token]))
        found.append((kl, before, after))
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_it_equals_a_loop_over_prompts(tiny, family, batch_size):
    dtype, tolerance = FAMILIES[family]
    chat = tiny(family, dtype=dtype)
    change = ablation(chat)
    answers = [greedy(chat, prompt, 6) for prompt in PROMPTS]
    found = measure_fidelity(chat, change, PROMPTS, n_tokens=6, batch_size=batch_size, seed=3)
    hand = by_hand(chat, lambda: change.folded_into(chat), PROMPTS, answers)
    for name, values in {
        "kl_first_token": [kl[0] for kl, _, _ in hand],
        "kl_generated": [np.mean(kl) for kl, _, _ in hand],
    }.items():
        expected = bootstrap_mean([float(value) for value in values], seed=3)
        close = pytest.approx(expected.model_dump(), rel=tolerance, abs=tolerance)
        assert getattr(found, name).model_dump() == close, name
        assert expected.mean > 1e-6
    own = found.cross_entropy_own
    before, after = ([float(np.mean(row[i])) for row in hand] for i in (1, 2))
    assert own.before.mean == pytest.approx(np.mean(before), rel=tolerance)
    assert own.after.mean == pytest.approx(np.mean(after), rel=tolerance)
    paired = bootstrap_mean([two - one for one, two in zip(before, after, strict=True)], seed=3)
    assert own.difference.model_dump() == pytest.approx(paired.model_dump(), rel=tolerance, abs=tolerance)
    assert own.n_tokens == sum(len(answer) for answer in answers)
    flat = [value for row in hand for value in row[1]]
    assert own.perplexity_before == pytest.approx(math.exp(sum(flat) / len(flat)), rel=tolerance)
    assert (found.form, found.n_tokens, found.fingerprint) == ("folded", 6, change.fingerprint)


def test_answers_that_are_given_are_used_and_cut(tiny):
    chat = tiny("llama")
    change = ablation(chat)
    answers = [[7, 9, 11, 13, 15], [20], [33, 34], [50, 60, 70], [99, 98, 97, 96]]
    found = measure_fidelity(chat, change, PROMPTS, completions=answers, n_tokens=3)
    hand = by_hand(chat, lambda: change.folded_into(chat), PROMPTS, [answer[:3] for answer in answers])
    assert found.kl_generated.mean == pytest.approx(np.mean([np.mean(kl) for kl, _, _ in hand]), rel=1e-9)
    assert found.cross_entropy_own.n_tokens == 3 + 1 + 2 + 3 + 3
    flat = [value for _, _, after in hand for value in after]
    assert found.cross_entropy_own.perplexity_after == pytest.approx(math.exp(np.mean(flat)), rel=1e-9)
    # Documents count once in the mean and by their length in the perplexity.
    assert math.log(found.cross_entropy_own.perplexity_after) != pytest.approx(found.cross_entropy_own.after.mean)


def test_the_first_token_is_the_kl_of_a_calibration():
    chat = load_toy_chat_model()
    prompts = [prompt.text for prompt in toy_prompt_sets()["harmless"].split("test")][:24]
    change = ablation(chat)
    base = next_token_logits(chat, prompts)
    with in_shipped_form(chat, change):
        changed = next_token_logits(chat, prompts)
    found = measure_fidelity(chat, change, prompts, n_tokens=4, batch_size=7, seed=5)
    expected = mean_kl(base, changed, seed=5)
    assert found.kl_first_token.model_dump() == pytest.approx(expected.model_dump(), rel=1e-3)
    assert expected.mean > 1e-6


@pytest.mark.parametrize("window", [4, 16, 1024])
def test_plain_text_is_read_in_windows(tiny, monkeypatch, window):
    monkeypatch.setattr(module, "_WINDOW", window)
    chat = tiny("llama")
    change = ablation(chat)
    found = measure_fidelity(chat, change, ["a"], texts=TEXTS, n_tokens=1, batch_size=2).cross_entropy_text
    totals = []
    for text in TEXTS:  # no beginning-of-sequence token: the first token of a window is not predicted
        ids = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
        values = []
        for start in range(0, len(ids), window):
            piece = ids[start : start + window]
            rows = [log_probabilities(chat, piece)]
            with change.folded_into(chat):
                rows.append(log_probabilities(chat, piece))
            values += [[-row[i - 1, piece[i]] for row in rows] for i in range(1, len(piece))]
        totals.append(np.array(values))
    assert found.n_tokens == sum(len(values) for values in totals)
    assert found.before.mean == pytest.approx(np.mean([values[:, 0].mean() for values in totals]), rel=1e-9)
    assert found.after.mean == pytest.approx(np.mean([values[:, 1].mean() for values in totals]), rel=1e-9)
    assert found.difference.mean == pytest.approx(found.after.mean - found.before.mean, abs=1e-12)
    every = np.concatenate(totals)
    assert found.perplexity_before == pytest.approx(math.exp(every[:, 0].mean()), rel=1e-9)
    assert found.perplexity_after == pytest.approx(math.exp(every[:, 1].mean()), rel=1e-9)
    assert found.before.n == len(TEXTS)


def test_a_window_begins_with_the_beginning_of_sequence_token():
    chat = load_toy_chat_model()
    bos = chat.tokenizer.bos_token_id
    text = "the cat"
    ids = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    found = measure_fidelity(chat, ablation(chat), ["hello"], texts=[text], n_tokens=1).cross_entropy_text
    assert found.n_tokens == (len(ids) if bos is not None else len(ids) - 1)
    whole = ids if bos is None else [bos, *ids]
    rows = log_probabilities(chat, whole)
    expected = -np.mean([rows[i - 1, whole[i]] for i in range(1, len(whole))])
    assert found.before.mean == pytest.approx(expected, rel=1e-4)


def test_small_parts_give_the_same_numbers(tiny, monkeypatch):
    chat = tiny("llama")
    whole = measure_fidelity(chat, ablation(chat), PROMPTS, texts=TEXTS, n_tokens=5)
    monkeypatch.setattr(module, "_EXACT_NUMBERS", 2 * 259 + 1)
    monkeypatch.setattr(module, "_LOGITS", 1)
    parts = measure_fidelity(chat, ablation(chat), PROMPTS, texts=TEXTS, n_tokens=5)
    assert parts.kl_generated.model_dump() == pytest.approx(whole.kl_generated.model_dump(), rel=1e-9)
    for name in ("cross_entropy_own", "cross_entropy_text"):
        one, two = getattr(parts, name), getattr(whole, name)
        assert one.difference.model_dump() == pytest.approx(two.difference.model_dump(), rel=1e-9)


def test_hooks_are_measured_where_asked_and_always_removed(tiny):
    chat = tiny("gemma2", dtype=torch.float32)  # a norm after the write: the two forms differ
    change, vector = ablation(chat), torch.ones(chat.layout.d_model, dtype=torch.float64)
    before = dict(chat.module.named_parameters())
    folded = measure_fidelity(chat, change, PROMPTS, n_tokens=3)
    applied = measure_fidelity(chat, change, PROMPTS, n_tokens=3, folded=False)
    hand = by_hand(chat, lambda: change.applied_to(chat), PROMPTS, [greedy(chat, prompt, 3) for prompt in PROMPTS])
    assert applied.form == "applied"
    assert applied.kl_generated.mean == pytest.approx(np.mean([np.mean(kl) for kl, _, _ in hand]), rel=1e-3)
    assert folded.kl_generated.mean != pytest.approx(applied.kl_generated.mean, rel=1e-2)
    added = measure_fidelity(chat, ActivationAddition(vector, 1), PROMPTS, n_tokens=3, folded=False)
    assert added.kl_first_token.mean > 0
    after = dict(chat.module.named_parameters())
    assert all(after[name] is tensor for name, tensor in before.items())
    assert hook_count(chat.module) == 0


def test_parts_that_are_folded_one_after_the_other_are_all_there(tiny):
    chat = tiny("llama")
    rows = ablation(chat, k=2).basis  # orthonormal, so removing one and then the other is removing both
    both = measure_fidelity(chat, DirectionalAblation(rows), PROMPTS, n_tokens=3)
    one_by_one = Combined([DirectionalAblation(rows[0]), DirectionalAblation(rows[1])])
    found = measure_fidelity(chat, one_by_one, PROMPTS, n_tokens=3)
    assert found.kl_generated.mean == pytest.approx(both.kl_generated.mean, rel=1e-6)


def test_no_change_is_zero(tiny):
    chat = tiny("llama")
    nothing = ActivationAddition(torch.zeros(chat.layout.d_model, dtype=torch.float64), 0)
    found = measure_fidelity(chat, nothing, PROMPTS, texts=TEXTS, n_tokens=4, folded=False)
    assert found.kl_first_token.largest == 0
    assert found.kl_generated.largest == 0
    for entropy in (found.cross_entropy_own, found.cross_entropy_text):
        assert (entropy.difference.mean, entropy.difference.low, entropy.difference.high) == (0, 0, 0)
        assert entropy.perplexity_before == entropy.perplexity_after


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "got none"),
        ({"n_tokens": 0}, "got 0 and 16"),
        ({"batch_size": 0}, "got 32 and 0"),
        ({"completions": [[1]]}, "got 1 for 5 prompts"),
        ({"completions": [[1], [1], [], [1], [1]]}, "holds no token"),
        ({"texts": ["fine", "x"]}, "text 2 holds no token"),
        ({"texts": [""]}, "text 1 holds no token"),
    ],
)
def test_what_cannot_be_measured_is_refused(tiny, options, message):
    chat = tiny("llama")
    with pytest.raises(InputError, match=message):
        measure_fidelity(chat, ablation(chat), **{"prompts": PROMPTS, **options})


def test_nan_logits_are_refused(tiny):
    chat = tiny("llama")
    broken = ActivationAddition(torch.full((chat.layout.d_model,), torch.nan, dtype=torch.float64), 0)
    with pytest.raises(ModelError, match="NaN"):
        measure_fidelity(chat, broken, PROMPTS, n_tokens=2, folded=False)
