"""Short forward passes give the logits of whole ones, or are not used."""

from functools import partial

import pytest
import torch

from demur.interventions import ablating_rows, adding_rows
from demur.models import PartialForward, hook_count
from demur.testing import tiny_chat_model

TEXTS = ["Hi", "What is a cat?", "How do I get to the main station from here?"]
SHARING = ("llama", "qwen2", "gpt2", "opt", "falcon", "olmo2", "cohere", "stablelm", "qwen3_vl_moe")
WHOLE = ("gemma3_text", "gpt_oss", "mixtral", "phi3", "mamba2", "jamba", "qwen3_next")
"""A window shorter than the padding, or a cache with more than keys and values."""
RUN_TO_THEIR_END = ("opt", "falcon", "mamba2")
"""No part of the last block takes one token of three and gives what can be added to all."""
PADDED_EXACTLY = ("llama", "gpt2", "falcon", "olmo2")


def vectors(chat, n=3):
    drawn = torch.randn(n, chat.layout.d_model, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=-1)


def one_by_one(chat, sequences, units, change):
    """Every prompt alone under every change, without padding or cache."""
    rows = []
    for unit in units:
        for sequence in sequences:
            with change(unit[None]):
                rows.append(chat.next_token_logits(chat.batch([sequence]))[0])
    return torch.stack(rows).view(len(units), len(sequences), -1)


@pytest.mark.parametrize("family", [*SHARING, *WHOLE])
def test_sharing_a_beginning_and_starting_late_change_no_logit(family):
    chat = tiny_chat_model(family)
    sequences, units = chat.encode(TEXTS), vectors(chat)
    ablate = partial(ablating_rows, chat)
    passes = PartialForward.of(chat, sequences, ablate)
    assert bool(passes.prefix) == (family in SHARING)
    assert (passes.tail is None) == (family in RUN_TO_THEIR_END)
    whole = partial(one_by_one, chat) if family in PADDED_EXACTLY else PartialForward(chat).logits
    near = 1e-11 if family in PADDED_EXACTLY else 1e-6  # some route experts, or normalize, in float32
    expected = whole(sequences, units, ablate)
    for beginnings in (None, passes.beginnings(units, ablate)):
        found = passes.logits(sequences, units, ablate, beginnings=beginnings)
        torch.testing.assert_close(found, expected, rtol=0, atol=near)
    assert passes.startable(range(chat.n_layers), sequences) == list(range(chat.n_layers))
    start = None
    for layer in range(chat.n_layers):
        add = partial(adding_rows, chat, layer=layer)
        start = passes.advanced(sequences, layer, since=start, rows=2)
        expected = whole(sequences, units, add)
        for beginnings in (None, passes.beginnings(units, add, start)):
            found = passes.logits(sequences, units, add, beginnings=beginnings, start=start)
            torch.testing.assert_close(found, expected, rtol=0, atol=near)
        alone = passes.logits(sequences[1:], units, add, start=start.of([1, 2]))
        torch.testing.assert_close(alone, expected[:, 1:], rtol=0, atol=near)
    assert hook_count(chat.module) == 0
    assert not any("forward" in module.__dict__ for module in chat.module.modules())


def test_blocks_below_the_start_do_not_run():
    chat = tiny_chat_model("llama")
    sequences, units = chat.encode(TEXTS), vectors(chat)
    passes = PartialForward(chat)
    inputs = passes.advanced(sequences, 2, rows=3)
    ran = []
    for index, path in enumerate(chat.layout.blocks):
        attention = chat.module.get_submodule(path).self_attn
        attention.register_forward_hook(lambda *_, index=index: ran.append(index))
    passes.logits(sequences, units, partial(adding_rows, chat, layer=2), start=inputs)
    assert ran == [2]


def test_block_after_block_each_runs_once():
    chat = tiny_chat_model("llama", num_hidden_layers=5)
    sequences = chat.encode(TEXTS)
    passes = PartialForward(chat)
    start, ran = None, []
    passes.advanced(sequences[:1], 0, rows=1)  # also learns what the blocks return
    for index, path in enumerate(chat.layout.blocks):
        chat.module.get_submodule(path).self_attn.register_forward_hook(lambda *_, index=index: ran.append(index))
    for block in (0, 1, 3, 3):
        before, start = start, passes.advanced(sequences, block, since=start, rows=3)
    assert start is before
    assert ran == [0, 1, 2]


def test_the_largest_part_of_the_last_block_runs_at_the_last_token_only():
    chat = tiny_chat_model("llama")
    sequences, units, ablate = chat.encode(TEXTS), vectors(chat), partial(ablating_rows, chat)
    passes = PartialForward.of(chat, sequences, ablate)
    read = []
    for path in chat.layout.blocks:
        mlp = chat.module.get_submodule(path).mlp
        mlp.down_proj.register_forward_pre_hook(lambda _m, args: read.append(args[0].shape[:2]))
    passes.logits(sequences, units, ablate)
    width = max(map(len, sequences)) - len(passes.prefix)
    rows = len(units) * len(sequences)
    of_prefix, of_rest = read[:3], read[-3:]
    assert of_rest == [(rows, width), (rows, width), (rows, 1)]
    assert of_prefix == [(len(units), len(passes.prefix))] * 2 + [(len(units), 1)]


def test_a_model_that_reads_other_tokens_of_the_last_block_is_run_to_its_end():
    chat = tiny_chat_model("llama")
    last = chat.module.get_submodule(chat.layout.blocks[-1])
    last.register_forward_hook(lambda _m, _a, output: output + 0.1 * output.mean(1, keepdim=True))
    sequences, units, ablate = chat.encode(TEXTS), vectors(chat), partial(ablating_rows, chat)
    passes = PartialForward.of(chat, sequences, ablate)
    assert passes.tail is None
    expected = PartialForward(chat).logits(sequences, units, ablate)
    torch.testing.assert_close(passes.logits(sequences, units, ablate), expected, rtol=0, atol=1e-11)


def test_a_model_whose_later_blocks_read_earlier_ones_is_run_whole():
    chat = tiny_chat_model("llama")
    first, last = (chat.module.get_submodule(chat.layout.blocks[index]) for index in (0, 2))
    seen = []
    first.mlp.register_forward_hook(lambda _m, _a, output: seen.append(output))
    last.register_forward_hook(lambda _m, _a, output: output + 0.1 * seen[-1].mean())
    sequences = chat.encode(TEXTS)
    for layer in range(3):
        seen.append(torch.tensor(7.0))
        assert PartialForward(chat).startable([layer], sequences) == ([0] if layer == 0 else [])
    for order in ([0, 1, 2], [2, 0, 1]):
        assert PartialForward(chat).startable(order, sequences) == [0]


def test_a_model_that_takes_no_cache_shares_nothing():
    chat = tiny_chat_model("llama")
    forward = chat.model.forward

    def refuse(*args, use_cache=None, **kwargs):
        if use_cache:
            raise NotImplementedError("no cache")
        return forward(*args, use_cache=False, **kwargs)

    refuse.__signature__ = __import__("inspect").signature(forward)
    chat.model.forward = refuse
    assert PartialForward.of(chat, chat.encode(TEXTS), partial(ablating_rows, chat)).prefix == ()


def test_logits_that_are_not_numbers_prove_nothing():
    chat = tiny_chat_model("llama")
    sequences = chat.encode(TEXTS)
    chat.model.lm_head.register_forward_hook(lambda _m, _a, output: output * float("nan"))
    passes = PartialForward.of(chat, sequences, partial(ablating_rows, chat))
    assert (passes.prefix, passes.tail) == ((), None)
