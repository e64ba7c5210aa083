"""Streamed means and single places equal the plain computation, one prompt at a time, whatever the batches."""

import math

import pytest
import torch

from demur.activations import mean_activations, stream_at
from demur.errors import ModelError
from demur.models import hook_count
from demur.testing import tiny_chat_model
from demur.types import SilentProgress

PROMPTS = [
    "Hi",
    "What is the capital of France?",
    "Write a short poem about rivers, please.",
    "ok",
    "List three colours",
    "Why is the sky blue during the day and red in the evening?",
    "Hi",
]
FAMILIES = ["llama", "gpt2", "gpt_neox"]


def block_inputs(chat, prompt):
    """[layer, token, d_model] of one prompt without padding: transformers' own hidden states."""
    tokens = torch.tensor(chat.encode([prompt]))
    with torch.no_grad():
        states = chat.model(input_ids=tokens, output_hidden_states=True).hidden_states
    return torch.stack([state[0] for state in states[: chat.n_layers]])


@pytest.fixture(params=FAMILIES)
def chat(request, tiny):
    return tiny(request.param)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 50])
def test_means_equal_the_oracle_for_any_batch_size(chat, batch_size):
    means = mean_activations(chat, PROMPTS, n_positions=5, batch_size=batch_size)
    oracle = torch.stack([block_inputs(chat, prompt)[:, -5:] for prompt in PROMPTS]).mean(0).transpose(0, 1)
    assert means.mean.shape == (5, 3, 32)
    assert means.mean.dtype == torch.float64
    assert torch.allclose(means.mean, oracle, atol=1e-12)
    assert means.n == len(PROMPTS)


def test_means_are_accumulated_in_float64_whatever_the_model(tiny):
    """Equal, up to float64, to the float64 mean of the bfloat16 activations; a bfloat16 sum would be off by 1e-2."""
    chat = tiny("llama", dtype=torch.bfloat16)
    prompts = [f"same length {number}" for number in range(10)] * 8
    for batch_size in (1, 40):
        means = mean_activations(chat, prompts, n_positions=2, batch_size=batch_size)
        rows = stream_at(chat, prompts, layer=1, position=-2, batch_size=batch_size)
        assert torch.allclose(means.mean[0, 1], rows.mean(0), atol=1e-12)


def test_the_mean_of_a_union_is_the_weighted_mean(chat):
    one, two = PROMPTS[:3], PROMPTS[3:]
    parts = [mean_activations(chat, part, n_positions=3) for part in (one, two)]
    whole = mean_activations(chat, PROMPTS, n_positions=3)
    pooled = (parts[0].mean * parts[0].n + parts[1].mean * parts[1].n) / whole.n
    assert torch.allclose(whole.mean, pooled, atol=1e-12)


def test_layer_zero_at_the_template_is_the_same_for_every_prompt_without_absolute_positions(tiny):
    """The embeddings of the template's tokens: a difference in means there is zero (Arditi et al.)."""
    chat = tiny("llama")
    means = [mean_activations(chat, [prompt], n_positions=13).mean[:, 0] for prompt in PROMPTS[:2]]
    assert torch.equal(means[0], means[1])


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("position", [-1, -4])
def test_stream_at_keeps_the_order_of_the_prompts(chat, layer, position):
    for batch_size in (2, 50):
        rows = stream_at(chat, PROMPTS, layer=layer, position=position, batch_size=batch_size)
        oracle = torch.stack([block_inputs(chat, prompt)[layer, position] for prompt in PROMPTS])
        assert rows.dtype == torch.float64
        assert torch.allclose(rows, oracle, atol=1e-12)


def test_the_mean_of_the_rows_is_the_mean(chat):
    rows = stream_at(chat, PROMPTS, layer=1, position=-2)
    assert torch.allclose(rows.mean(0), mean_activations(chat, PROMPTS, n_positions=4).mean[-2, 1], atol=1e-12)


def test_progress_counts_every_prompt_once(chat):
    steps = []

    class Counting(SilentProgress):
        def advance(self, n=1):
            steps.append(n)

    mean_activations(chat, PROMPTS, n_positions=1, batch_size=3, progress=Counting())
    assert steps == [3, 3, 1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("block", [0, 1])
def test_activations_that_are_not_finite_name_the_first_layer_that_reads_them(block, value):
    chat = tiny_chat_model("llama")
    with torch.no_grad():
        chat.model.model.layers[block].mlp.down_proj.weight[0, 0] = value
    with pytest.raises(ModelError) as caught:
        mean_activations(chat, PROMPTS, n_positions=3)
    message = str(caught.value)
    assert message.startswith(f"tiny-llama: activations at the input of block {block + 1} are NaN or infinite.")
    assert "--dtype bfloat16 or --dtype float32" in message
    assert hook_count(chat.module) == 0


def test_nothing_is_left_in_the_model(chat):
    before = {name: (id(value), value.detach().clone()) for name, value in chat.module.named_parameters()}
    hooks = hook_count(chat.module)  # transformers leaves its own after output_hidden_states
    mean_activations(chat, PROMPTS, n_positions=2)
    stream_at(chat, PROMPTS, layer=1, position=-1)
    assert hook_count(chat.module) == hooks
    for name, value in chat.module.named_parameters():
        assert id(value) == before[name][0]
        assert torch.equal(value, before[name][1])


@pytest.mark.parametrize(("layers", "ran"), [(range(3), 2), ([1], 1), ([0], 0)])
def test_a_pass_ends_where_the_last_block_that_is_read_begins(tiny, layers, ran):
    chat = tiny("llama")
    finished = []
    blocks = [chat.module.get_submodule(path) for path in chat.layout.blocks]
    handles = [block.register_forward_hook(lambda *_: finished.append(1)) for block in blocks]
    try:
        if len(layers) == 3:
            mean_activations(chat, PROMPTS[:1], n_positions=1)
        else:
            stream_at(chat, PROMPTS[:1], layer=layers[0], position=-1)
    finally:
        for handle in handles:
            handle.remove()
    assert len(finished) == ran
