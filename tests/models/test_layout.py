"""The layout is found and proved for real architectures; what writes to the stream was listed by hand."""

import math
from dataclasses import replace

import pytest
import torch

from demur.errors import LayoutError, ModelError
from demur.models import ChatModel, probe_layout
from demur.models._probe import TOLERANCES
from demur.testing import tiny_chat_model, tiny_tokenizer

LAYERS = 3
# Per family, read off the modelling code: embeddings, the path of the blocks, and what writes inside each block. A
# weight of nn.Linear is [out, in], so the hidden dimension is axis 0; GPT-2's Conv1D is [in, out], so it is axis 1.
SPLIT = {"self_attn.o_proj.weight": 0, "mlp.down_proj.weight": 0}
LLAMA_LIKE = ({"model.embed_tokens.weight": 1}, "model.layers", SPLIT)
NEOX_LIKE = {
    "attention.dense.weight": 0,
    "attention.dense.bias": 0,
    "mlp.dense_4h_to_h.weight": 0,
    "mlp.dense_4h_to_h.bias": 0,
}
WRITERS = {
    "llama": LLAMA_LIKE,
    "qwen2": LLAMA_LIKE,
    "qwen3": LLAMA_LIKE,
    "mistral": LLAMA_LIKE,
    "gemma": LLAMA_LIKE,
    "gemma2": LLAMA_LIKE,
    "gemma3_text": LLAMA_LIKE,
    "phi3": LLAMA_LIKE,
    "olmo2": LLAMA_LIKE,
    "stablelm": LLAMA_LIKE,
    "granite": LLAMA_LIKE,
    "cohere": LLAMA_LIKE,
    "gpt2": (
        {"transformer.wte.weight": 1, "transformer.wpe.weight": 1},
        "transformer.h",
        {"attn.c_proj.weight": 1, "attn.c_proj.bias": 0, "mlp.c_proj.weight": 1, "mlp.c_proj.bias": 0},
    ),
    "gpt_neox": ({"gpt_neox.embed_in.weight": 1}, "gpt_neox.layers", NEOX_LIKE),
    "phi": (
        {"model.embed_tokens.weight": 1},
        "model.layers",
        {"self_attn.dense.weight": 0, "self_attn.dense.bias": 0, "mlp.fc2.weight": 0, "mlp.fc2.bias": 0},
    ),
    "opt": (
        {"model.decoder.embed_tokens.weight": 1, "model.decoder.embed_positions.weight": 1},
        "model.decoder.layers",
        {"self_attn.out_proj.weight": 0, "self_attn.out_proj.bias": 0, "fc2.weight": 0, "fc2.bias": 0},
    ),
    "bloom": (
        {"transformer.word_embeddings.weight": 1, "transformer.word_embeddings_layernorm.bias": 0},
        "transformer.h",
        {name.replace("attention", "self_attention"): axis for name, axis in NEOX_LIKE.items()},
    ),
    "falcon": (
        {"transformer.word_embeddings.weight": 1},
        "transformer.h",
        {"self_attention.dense.weight": 0, "mlp.dense_4h_to_h.weight": 0},
    ),
    # Experts are one tensor, [expert, out, in]. Their kernel has no float64.
    "mixtral": (
        {"model.embed_tokens.weight": 1},
        "model.layers",
        {"self_attn.o_proj.weight": 0, "mlp.experts.down_proj": 1},
    ),
    "qwen3_moe": (
        {"model.embed_tokens.weight": 1},
        "model.layers",
        {"self_attn.o_proj.weight": 0, "mlp.experts.down_proj": 1},
    ),
}
FLOAT32_NORMS = {"gemma2", "gemma3_text", "olmo2"}
EXPERTS = {"mixtral": {"num_local_experts": 3}, "qwen3_moe": {"num_experts": 3, "num_experts_per_tok": 2}}


@pytest.fixture
def chat(family, tiny):
    return tiny(family, dtype=torch.float32, **EXPERTS[family]) if family in EXPERTS else tiny(family)


@pytest.mark.parametrize("family", WRITERS)
def test_writers_are_exactly_those_listed_by_hand(family, chat):
    embeddings, path, inside = WRITERS[family]
    expected = {(name, axis, None) for name, axis in embeddings.items()}
    for block in range(LAYERS):
        expected |= {(f"{path}.{block}.{name}", axis, block) for name, axis in inside.items()}
    found = [(writer.parameter, writer.axis, writer.block) for writer in chat.layout.writers]
    assert set(found) == expected
    assert len(found) == len(expected)
    assert chat.layout.blocks == tuple(f"{path}.{block}" for block in range(LAYERS))
    assert chat.layout.d_model == 32


@pytest.mark.parametrize("family", WRITERS)
def test_the_probe_proves_the_layout_to_the_precision_of_its_dtype(family, chat):
    exact = torch.float32 if family in FLOAT32_NORMS | set(EXPERTS) else torch.float64
    assert chat.layout.dtype == exact
    assert chat.probe.tolerance == TOLERANCES[exact]
    assert chat.probe.residual < chat.probe.tolerance
    assert chat.probe.silent_difference < chat.probe.tolerance
    # Positive control: before the edit the direction is there, so its absence means something.
    assert chat.probe.baseline > 0.1


@pytest.mark.parametrize("family", WRITERS)
def test_every_single_writer_is_needed(family, chat):
    """The probe has the power to notice any one of them missing: no writer in the list is idle."""
    for writer in chat.layout.writers:
        fewer = replace(chat.layout, writers=tuple(each for each in chat.layout.writers if each is not writer))
        with pytest.raises(LayoutError, match="a parameter that writes to the residual stream was missed") as caught:
            probe_layout(chat.model, fewer, chat.probe_inputs())
        where = "the embeddings" if writer.block is None else f"block {writer.block} ("
        assert f"first seen after {where}" in str(caught.value)


@pytest.mark.parametrize("family", WRITERS)
def test_every_single_site_is_needed(family, chat):
    for site in chat.layout.sites:
        fewer = replace(chat.layout, sites=tuple(each for each in chat.layout.sites if each is not site))
        with pytest.raises(LayoutError, match="a write to the residual stream was missed") as caught:
            probe_layout(chat.model, fewer, chat.probe_inputs())
        assert f"all {len(chat.layout.sites) - 1} known write sites silenced" in str(caught.value)


def test_kinds_are_those_people_would_name(tiny):
    kinds = {writer.parameter.rpartition("h.0.")[2]: writer.kind for writer in tiny("gpt2").layout.writers[:6]}
    assert kinds == {
        "transformer.wte.weight": "embedding",
        "transformer.wpe.weight": "embedding",
        "attn.c_proj.weight": "attention",
        "attn.c_proj.bias": "bias",
        "mlp.c_proj.weight": "mlp",
        "mlp.c_proj.bias": "bias",
    }


SITES = {
    "llama": ("self_attn.o_proj", "mlp.down_proj"),
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
    "gemma2": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "olmo2": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "mixtral": ("self_attn.o_proj", "mlp"),
}


@pytest.mark.parametrize("family", SITES)
def test_sites_are_the_innermost_modules_whose_output_is_added(family, chat):
    expected = {(f"{path}.{name}", block) for block, path in enumerate(chat.layout.blocks) for name in SITES[family]}
    assert {(site.module, site.block) for site in chat.layout.sites} == expected


@pytest.mark.parametrize("family", sorted(FLOAT32_NORMS))
def test_a_norm_after_the_write_is_one_scale_step_with_the_norms_own_gain(family, tiny):
    chat = tiny(family)
    assert chat.layout.has_norm_after_write
    norms = {
        "self_attn.o_proj.weight": "post_attention_layernorm",
        "mlp.down_proj.weight": "post_feedforward_layernorm",
    }
    offset = 0.0 if family == "olmo2" else 1.0  # Gemma stores the gain minus one
    for writer in chat.layout.writers:
        if writer.block is None:
            assert writer.steps == () or all(step.kind == "scale" for step in writer.steps)
            continue
        path = chat.layout.blocks[writer.block]
        norm = chat.module.get_submodule(f"{path}.{norms[writer.parameter.removeprefix(path + '.')]}")
        (step,) = writer.steps
        assert step.kind == "scale"
        assert torch.allclose(step.vector.double(), norm.weight.double() + offset, rtol=1e-6)


def test_the_step_of_a_layer_norm_is_its_gain_and_the_mean_it_subtracts(tiny):
    """With d orthogonal to what g * (x - mean x) can be, nothing of d is left: checked on the real module."""
    chat = tiny("bloom")
    writer = next(writer for writer in chat.layout.writers if writer.parameter.endswith("word_embeddings.weight"))
    assert [step.kind for step in writer.steps] == ["scale", "center"]
    norm = chat.model.transformer.word_embeddings_layernorm
    direction = torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    direction = direction / direction.norm()
    before = chat.model.transformer.word_embeddings.weight
    after = writer.without(before, direction[None])
    with torch.no_grad():
        assert ((norm(after) - norm.bias) @ direction).abs().max() < 1e-12
        assert ((norm(before) - norm.bias) @ direction).abs().max() > 0.1


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox", "phi3", "olmo2"])
def test_an_untied_embedding_is_not_called_tied(family, tiny):
    assert tiny(family).layout.tied_embedding is None


@pytest.mark.parametrize(
    ("family", "name"), [("gpt2", "transformer.wte.weight"), ("gemma", "model.embed_tokens.weight")]
)
def test_a_tied_embedding_is_named_by_its_input_side(family, name, tiny):
    assert tiny(family).layout.tied_embedding == name


def test_a_wrong_axis_on_a_square_matrix_is_noticed(tiny):
    chat = tiny("llama")
    writers = list(chat.layout.writers)
    index = next(i for i, writer in enumerate(writers) if writer.parameter.endswith("1.self_attn.o_proj.weight"))
    shape = chat.model.get_parameter(writers[index].parameter).shape
    assert shape[0] == shape[1]  # so that only the numbers can tell
    writers[index] = replace(writers[index], axis=1)
    with pytest.raises(LayoutError, match=r"first seen after block 1 \(model.layers.1\)"):
        probe_layout(chat.model, replace(chat.layout, writers=tuple(writers)), chat.probe_inputs())


@pytest.mark.parametrize("family", sorted(FLOAT32_NORMS))
def test_a_forgotten_norm_after_the_write_is_noticed(family, tiny):
    chat = tiny(family)
    bare = tuple(replace(writer, steps=()) for writer in chat.layout.writers)
    with pytest.raises(LayoutError, match="a parameter that writes to the residual stream was missed"):
        probe_layout(chat.model, replace(chat.layout, writers=bare), chat.probe_inputs())


def test_messages_of_the_probe_say_what_is_left_and_where(tiny):
    chat = tiny("llama")
    fewer = replace(chat.layout, writers=chat.layout.writers[1:])
    with pytest.raises(LayoutError) as caught:
        probe_layout(chat.model, fewer, chat.probe_inputs())
    message = str(caught.value)
    assert message.startswith(
        "LlamaForCausalLM: a parameter that writes to the residual stream was missed: with all 6 "
    )
    assert "of a random direction is left, first seen after the embeddings (tolerance 1e-10)" in message
    assert "demur will not edit this model" in message


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_stream_that_is_not_finite_proves_nothing(value):
    """NaN compares false with everything, so a careless maximum would take the layout for proved."""
    model = tiny_chat_model("llama").model
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 4] = value
    with pytest.raises(ModelError, match=r"after block 1 \(model.layers.1\) is NaN or infinite") as caught:
        ChatModel(model, tiny_tokenizer())
    assert "--dtype bfloat16" in str(caught.value)
    assert not isinstance(caught.value, LayoutError)
