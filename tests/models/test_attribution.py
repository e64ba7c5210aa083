"""Direct feature attribution: parts add up, heads are heads, attention is the model's own, nothing is left behind."""

from dataclasses import replace

import pytest
import torch

from demur.errors import LayoutError, ModelError
from demur.models import ChatModel, attribute, eager_attention, hook_count, last_stream
from demur.testing import tiny_model, tiny_tokenizer

PROMPTS = ("Hello there", "What is the name of it?", "A")
HEADS = {
    "llama": "self_attn.o_proj",
    "qwen2": "self_attn.o_proj",
    "gpt2": "attn.c_proj",
    "gpt_neo": "attn.attention.out_proj",
    "gpt_neox": "attention.dense",
}
# olmo2, gemma2: a norm after the write, computed in float32. granite: a multiplier on every write.
FAMILIES = {
    **dict.fromkeys((*HEADS, "mixtral", "falcon", "bloom", "phi", "granite", "falcon_h1"), 1e-12),
    "gemma2": 1e-6,
    "olmo2": 1e-6,
}


def direction(width, seed=1):
    return torch.randn(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def oracle(chat, tokens, vector):
    """The projection of the last stream at the last token, read by another way than attribute's."""
    inputs = {"input_ids": torch.tensor([tokens]), "attention_mask": torch.ones(1, len(tokens), dtype=torch.long)}
    with eager_attention(chat.module):  # transformers computes its softmax in float32
        stream = last_stream(chat.module, chat.layout, inputs)[0, -1].double()
    return float(stream @ (vector / vector.norm()))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_add_up_to_the_stream(tiny, family):
    chat = tiny(family)
    vector = direction(chat.layout.d_model)
    sequences = chat.encode(PROMPTS)
    found = attribute(chat, sequences, vector)
    expected = torch.tensor([oracle(chat, tokens, vector) for tokens in sequences], dtype=torch.float64)
    torch.testing.assert_close(found.values.sum(-1), expected, rtol=FAMILIES[family], atol=FAMILIES[family])
    assert sum(part.kind == "head" for part in found.parts) == 4 * chat.n_layers
    assert found.whole == {}
    assert found.unexplained <= 10 * FAMILIES[family]


@pytest.mark.parametrize("family", HEADS)
def test_a_head_is_what_the_write_loses_without_its_slice(tiny, family):
    chat = tiny(family)
    vector = direction(chat.layout.d_model)
    unit = vector / vector.norm()
    (tokens,) = chat.encode(PROMPTS[1:2])
    found = attribute(chat, [tokens], vector)
    head, size = 2, chat.layout.d_model // 4
    layer = chat.n_layers - 1  # nothing after it reads what it wrote, but its own MLP, which is a part of its own
    module = chat.module.get_submodule(f"{chat.layout.blocks[layer]}.{HEADS[family]}")
    written = []

    def without(_module, args):
        changed = args[0].clone()
        changed[..., head * size : (head + 1) * size] = 0
        return (changed,)

    for cut in (False, True):
        handles = [module.register_forward_hook(lambda _m, _a, out: written.append(out[0, -1].double() @ unit))]
        handles += [module.register_forward_pre_hook(without)] if cut else []
        with eager_attention(chat.module):
            chat.run(chat.batch([tokens]))
        for handle in handles:
            handle.remove()
    row = next(
        index for index, part in enumerate(found.parts) if (part.kind, part.block, part.head) == ("head", layer, head)
    )
    assert found.values[0, row] == pytest.approx(float(written[0] - written[1]), abs=1e-10)


def test_heads_behind_a_norm_are_scaled_as_the_norm_does(tiny):
    chat = tiny("gemma2")
    vector = direction(chat.layout.d_model)
    unit = vector / vector.norm()
    (tokens,) = chat.encode(PROMPTS[:1])
    found = attribute(chat, [tokens], vector)
    block = chat.module.get_submodule(chat.layout.blocks[1])
    seen = {}
    handle = block.self_attn.o_proj.register_forward_hook(lambda _m, args, out: seen.update(z=args[0], y=out))
    chat.run(chat.batch([tokens]))
    handle.remove()
    norm, weight = block.post_attention_layernorm, block.self_attn.o_proj.weight.detach()
    y, z = seen["y"][0, -1].detach(), seen["z"][0, -1].detach()
    rms = (y.pow(2).mean() + norm.eps).sqrt()
    size = z.shape[-1] // 4
    for head in range(4):
        part = slice(head * size, (head + 1) * size)
        expected = float(((1 + norm.weight.detach()) * (weight[:, part] @ z[part]) / rms) @ unit)
        row = next(i for i, each in enumerate(found.parts) if (each.block, each.head) == (1, head))
        assert found.values[0, row] == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_attention_is_the_models_own_summed_over_groups(tiny):
    chat = tiny("llama")
    (tokens,) = chat.encode(PROMPTS[1:2])
    groups = [index % 3 for index in range(len(tokens))]
    found = attribute(chat, [tokens], direction(chat.layout.d_model), groups=[groups])
    eager = tiny_model("llama")
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        weights = eager(input_ids=torch.tensor([tokens]), output_attentions=True).attentions
    for row, (block, head) in enumerate(found.heads):
        for group in range(3):
            member = [index for index, each in enumerate(groups) if each == group]
            expected = float(weights[block][0, head, -1, member].sum())
            assert found.attention[0, row, group] == pytest.approx(expected, abs=1e-10)
    assert len(found.heads) == 12
    torch.testing.assert_close(found.attention.sum(-1), torch.ones(1, 12, dtype=torch.float64))


def test_projections_over_layers_are_those_of_the_block_inputs():
    chat = ChatModel(tiny_model("llama"), tiny_tokenizer())  # output_hidden_states leaves hooks behind
    vector = direction(chat.layout.d_model)
    (tokens,) = chat.encode(PROMPTS[:1])
    found = attribute(chat, [tokens], vector)
    with torch.no_grad(), eager_attention(chat.module):
        states = chat.model(input_ids=torch.tensor([tokens]), output_hidden_states=True).hidden_states
    for boundary in range(chat.n_layers):
        stream = states[boundary][0, -1]
        assert found.projections[0, boundary] == pytest.approx(float(stream @ vector / vector.norm()), abs=1e-10)
        cosine = float(torch.cosine_similarity(stream, vector, dim=0))
        assert found.cosines[0, boundary] == pytest.approx(cosine, abs=1e-10)
    assert found.projections.shape == (1, chat.n_layers + 1)


def test_prompts_of_other_lengths_change_nothing(tiny):
    chat = tiny("llama")
    vector, sequences = direction(chat.layout.d_model), chat.encode(PROMPTS)
    together = attribute(chat, sequences, vector, batch_size=2)
    for index, tokens in enumerate(sequences):
        torch.testing.assert_close(together.values[index], attribute(chat, [tokens], vector).values[0])


def test_the_model_is_as_it_was(tiny):
    chat = tiny("llama")
    config, batch = chat.model.config, chat.batch(chat.encode(PROMPTS))
    before, logits = config._attn_implementation, chat.next_token_logits(batch)
    hooks = hook_count(chat.module)  # transformers leaves its own where attention weights were asked for before
    assert before != "eager"
    attribute(chat, chat.encode(PROMPTS), direction(chat.layout.d_model))
    assert (config._attn_implementation, hook_count(chat.module)) == (before, hooks)
    assert torch.equal(chat.next_token_logits(batch), logits)


def test_the_model_is_as_it_was_after_an_error():
    chat = ChatModel(tiny_model("llama"), tiny_tokenizer())
    before = chat.model.config._attn_implementation
    handle = chat.model.model.layers[1].mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attribute(chat, chat.encode(PROMPTS), direction(chat.layout.d_model))
    handle.remove()
    assert (chat.model.config._attn_implementation, hook_count(chat.module)) == (before, 0)


@pytest.mark.parametrize("family", ["mamba", "falcon_mamba"])
def test_where_no_attention_is_seen_writes_stay_whole(tiny, family):
    chat = tiny(family)
    vector, sequences = direction(chat.layout.d_model), chat.encode(PROMPTS)
    found = attribute(chat, sequences, vector, groups=[[0] * len(tokens) for tokens in sequences])
    assert {part.kind for part in found.parts} == {"embedding", "write"}
    assert (found.attention, found.heads) == (None, ())
    assert list(found.whole) == list(chat.layout.blocks)
    assert "heads cannot be told apart" in found.whole[chat.layout.blocks[0]]
    assert found.values.sum(-1)[0] == pytest.approx(oracle(chat, sequences[0], vector), abs=1e-10)


def test_heads_of_packed_weights_stay_whole():
    chat = ChatModel(tiny_model("llama"), tiny_tokenizer())
    chat.layout = replace(chat.layout, packed="quantised (test)", writers=())
    found = attribute(chat, chat.encode(PROMPTS), direction(chat.layout.d_model))
    assert not any(part.kind == "head" for part in found.parts)
    assert "the weights are quantised (test)" in found.whole[chat.layout.blocks[2]]
    assert found.unexplained < 1e-12


def test_a_layer_that_is_not_linear_in_its_heads_is_not_taken_apart():
    chat = ChatModel(tiny_model("llama"), tiny_tokenizer())
    projection = chat.model.model.layers[1].self_attn.o_proj
    bend = projection.register_forward_hook(lambda _module, _args, out: out + out.tanh())
    found = attribute(chat, chat.encode(PROMPTS), direction(chat.layout.d_model))
    bend.remove()
    assert list(found.whole) == [chat.layout.blocks[1]]
    assert "0 linear layers of model.layers.1.self_attn" in found.whole[chat.layout.blocks[1]]
    assert sum(part.kind == "head" for part in found.parts) == 8
    assert found.unexplained < 1e-12


def test_a_block_that_is_no_sum_is_refused():
    chat = ChatModel(tiny_model("llama"), tiny_tokenizer())
    chat.model.model.layers[1].register_forward_hook(lambda _module, _args, out: out.tanh())
    with pytest.raises(LayoutError, match=r"model\.layers\.1 is no sum of its input and its writes"):
        attribute(chat, chat.encode(PROMPTS), direction(chat.layout.d_model))


def test_a_direction_without_length_and_a_place_that_is_not_there_are_refused(tiny):
    chat = tiny("llama")
    with pytest.raises(ModelError, match="zero or not finite"):
        attribute(chat, chat.encode(PROMPTS), torch.zeros(chat.layout.d_model))
    with pytest.raises(ModelError, match="fewer than 500 tokens"):
        attribute(chat, chat.encode(PROMPTS), direction(chat.layout.d_model), position=-500)


def test_a_block_that_scales_the_stream_scales_every_part_before_it():
    chat = ChatModel(tiny_model("llama"), tiny_tokenizer())
    vector, sequences = direction(chat.layout.d_model), chat.encode(PROMPTS)
    plain = attribute(chat, sequences, vector)
    chat.model.model.layers[2].register_forward_hook(lambda _module, _args, out: 1.5 * out)
    scaled = attribute(chat, sequences, vector)
    torch.testing.assert_close(scaled.values, 1.5 * plain.values)
    assert scaled.values.sum(-1)[1] == pytest.approx(oracle(chat, sequences[1], vector), abs=1e-10)
