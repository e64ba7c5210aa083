"""Batched equals single, left-padded equals right-padded, and an answer depends on the model alone."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from demur.errors import ModelError
from demur.models import Completion, length_sorted_batches
from demur.models._generation import end_tokens, pad_batch
from demur.testing import tiny_chat_model

PROMPTS = ["Hi", "What is the capital of France?", "Write a short poem about rivers, please.", "ok go"]
# Rotary positions, absolute positions, positions from the mask inside the model; ALiBi, sliding windows. The last two
# compute their softmax in float32, in which float64's smallest number is minus infinity and a row of padding NaN.
FAMILIES = {"llama": 1e-9, "gpt2": 1e-9, "opt": 1e-9, "bloom": 1e-4, "gemma2": 1e-4}


@pytest.mark.parametrize(("family", "tolerance"), FAMILIES.items())
def test_batched_equals_single_and_left_padded_equals_right_padded(family, tolerance, tiny):
    chat = tiny(family, dtype=torch.float64 if tolerance < 1e-6 else torch.float32)
    encoded = chat.encode(PROMPTS)
    batched = chat.next_token_logits(chat.batch(encoded))
    right = chat.batch(encoded, side="right")
    with torch.no_grad():
        everywhere = chat.model(**right).logits
        for row, tokens in enumerate(encoded):
            alone = chat.model(input_ids=torch.tensor([tokens])).logits[0, -1]
            assert torch.allclose(batched[row].to(alone), alone, atol=tolerance, rtol=0)
            assert torch.allclose(everywhere[row, len(tokens) - 1], alone, atol=tolerance, rtol=0)
    assert (batched[0] - batched[1]).abs().max() > 0.01  # rows differ, so the comparison can fail


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_padding_token_does_not_matter(family, tiny):
    chat = tiny(family)
    encoded = chat.encode(PROMPTS)
    one, two = (pad_batch(encoded, pad=pad, side="left", device=chat.device) for pad in (0, 77))
    assert torch.allclose(chat.next_token_logits(one), chat.next_token_logits(two), atol=1e-12)


def test_pad_batch_by_hand():
    device = torch.device("cpu")
    left = pad_batch([[5, 6, 7], [8]], pad=9, side="left", device=device)
    assert left["input_ids"].tolist() == [[5, 6, 7], [9, 9, 8]]
    assert left["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    right = pad_batch([[5, 6, 7], [8]], pad=9, side="right", device=device)
    assert right["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert right["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 9))
def test_batches_hold_every_index_once_longest_first(lengths, size):
    batches = list(length_sorted_batches(lengths, size))
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[index] for index in order] == sorted(lengths, reverse=True)
    assert all(len(batch) == size for batch in batches[:-1])


def naive_greedy(chat, prompt, steps):
    """One token at a time, without a cache and without `generate`."""
    tokens = chat.encode([prompt])[0]
    answer = []
    ends = end_tokens(chat.model, chat.tokenizer)
    ended = False
    with torch.no_grad():
        while len(answer) < steps and not ended:
            token = int(chat.model(input_ids=torch.tensor([tokens + answer]), use_cache=False).logits[0, -1].argmax())
            ended = token in ends
            answer += [] if ended else [token]
    return Completion(chat.tokenizer.decode(answer, skip_special_tokens=True).strip(), len(answer), ended)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_generation_in_batches_equals_one_at_a_time_and_the_naive_loop(family, tiny):
    chat = tiny(family)
    batched = chat.generate(PROMPTS, max_new_tokens=20)
    assert batched == [chat.generate([prompt], max_new_tokens=20)[0] for prompt in PROMPTS]
    assert batched == [naive_greedy(chat, prompt, 20) for prompt in PROMPTS]
    assert len({completion.text for completion in batched}) > 1


def test_an_answer_ends_at_the_models_own_end_token_and_does_not_count_it():
    chat = tiny_chat_model("llama")
    plain = chat.generate(PROMPTS, max_new_tokens=12)
    assert all(completion.n_tokens == 12 and not completion.ended for completion in plain)
    batch = chat.batch(chat.encode(PROMPTS[:1]))
    tokens = chat.model.generate(**batch, max_new_tokens=4, do_sample=False)[0, -4:].tolist()
    chat.model.generation_config.eos_token_id = [2, tokens[3]]
    ended, *others = chat.generate(PROMPTS, max_new_tokens=12)
    assert ended.ended
    assert ended.n_tokens == tokens.index(tokens[3])
    assert ended.text == chat.tokenizer.decode(tokens[: ended.n_tokens]).strip()
    # Rows that go on are not disturbed by those that have ended.
    assert [chat.generate([prompt], max_new_tokens=12)[0] for prompt in PROMPTS] == [ended, *others]


def test_end_tokens_are_the_generation_configs_and_the_tokenizers():
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[4, 5]))
    assert end_tokens(model, SimpleNamespace(eos_token_id=2)) == {2, 4, 5}
    model.generation_config.eos_token_id = 7
    assert end_tokens(model, SimpleNamespace(eos_token_id=None)) == {7}
    model.generation_config.eos_token_id = None
    assert end_tokens(model, SimpleNamespace(eos_token_id=None)) == set()


@pytest.mark.parametrize(
    "defaults",
    [
        {"do_sample": True, "temperature": 5.0, "top_k": 3},
        {"repetition_penalty": 3.0},
        {"no_repeat_ngram_size": 1},
        {"num_beams": 3},
        {"suppress_tokens": list(range(3, 200))},
        {"forced_bos_token_id": 50},
        {"sequence_bias": [[[60], 1000.0]]},
        {"max_length": 1},
    ],
    ids=lambda defaults: next(iter(defaults)),
)
def test_the_checkpoints_generation_defaults_are_not_used(defaults):
    """Qwen's repetition penalty, Llama's temperature: `generate` fills from them whatever is not given."""
    chat = tiny_chat_model("llama")
    expected = chat.generate(PROMPTS, max_new_tokens=15)
    own = chat.model.generation_config
    for name, value in defaults.items():
        setattr(own, name, value)
    assert chat.generate(PROMPTS, max_new_tokens=15) == expected
    assert chat.model.generation_config is own
    assert all(getattr(own, name) == value for name, value in defaults.items())


def test_the_generation_config_comes_back_after_an_error():
    chat = tiny_chat_model("llama")
    own = chat.model.generation_config
    handle = chat.model.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        chat.generate(PROMPTS, max_new_tokens=3)
    handle.remove()
    assert chat.model.generation_config is own


def test_logits_that_are_nan_are_an_error_unless_not_checked():
    chat = tiny_chat_model("llama")
    with torch.no_grad():
        chat.model.lm_head.weight[5, 0] = float("nan")
    batch = chat.batch(chat.encode(PROMPTS))
    with pytest.raises(ModelError, match=r"tiny-llama: the model's logits are NaN.*--dtype bfloat16"):
        chat.next_token_logits(batch)
    assert torch.isnan(chat.next_token_logits(batch, check=False)[:, 5]).all()
