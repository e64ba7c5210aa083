"""Real weights have activations thousands of times the rest, and depth: neither may hide or fake a missed writer."""

from dataclasses import replace

import pytest
import torch

from demur.errors import LayoutError, ModelError
from demur.models import ChatModel, boundary_streams, probe_layout
from demur.testing import NOT_SUPPORTED, families, tiny_model, tiny_tokenizer

FAMILIES = (
    "llama", "qwen2", "gemma2", "gemma3_text", "gpt_neox", "mixtral", "qwen3_moe", "mamba", "phi", "olmo2"
)  # fmt: skip
DIMENSION = 5


def planted(family, dtype):
    """A tiny model of which the first block writes 1000 to 10000 times the rest into one dimension of the stream."""
    model = tiny_model(family, dtype=torch.float32)
    chat = ChatModel(model, tiny_tokenizer())
    writer = next(w for w in reversed(chat.layout.writers) if w.block == 0 and "bias" not in w.kind)
    weight = model.get_parameter(writer.parameter).data.movedim(writer.axis, 0)
    scale = next((step.vector for step in writer.steps if step.kind == "scale"), None)
    if scale is not None:  # a norm follows, so that only its gain can make the write large
        gains = [p.data for p in model.get_submodule(chat.layout.blocks[0]).parameters() if p.shape == scale.shape]
        weight = next(g for g in gains if torch.allclose(g, scale) or torch.allclose(g + 1, scale))
    for _ in range(8):
        share = outlier(chat)
        if 1e3 < share < 1e4:
            break
        weight[DIMENSION] *= 3e3 / share
    assert 1e3 < outlier(chat) < 1e4
    return model.to(dtype), chat.layout.blocks


def outlier(chat):
    """The largest value of the dimension after the first block, relative to the rest of its token."""
    stream = boundary_streams(chat.module, chat.layout, chat.probe_inputs())[1]
    rest = stream[:, [each for each in range(stream.shape[1]) if each != DIMENSION]].pow(2).mean(1).sqrt()
    return float((stream[:, DIMENSION].abs() / rest).max())


def check(family, dtype, *, every):
    model, blocks = planted(family, dtype)
    try:
        chat = ChatModel(model, tiny_tokenizer())
    except ModelError as error:
        assert not isinstance(error, LayoutError)
        assert dtype == torch.float16, "only float16 may overflow"
        pytest.skip(f"overflows in float16: {error}")
    assert chat.layout.blocks == blocks
    assert chat.probe.dtype == torch.float32
    assert chat.probe.residual < chat.probe.tolerance == 1e-4
    assert chat.probe.silent_difference < chat.probe.tolerance
    writers = [w for w in chat.layout.writers if every or (w.block == 1 and w.kind != "bias")]
    assert writers
    for writer in writers:
        fewer = replace(chat.layout, writers=tuple(each for each in chat.layout.writers if each is not writer))
        with pytest.raises(LayoutError, match="a parameter that writes to the residual stream was missed"):
            probe_layout(chat.module, fewer, chat.probe_inputs())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_massive_activation_neither_fakes_nor_hides_a_missed_writer(family, dtype):
    check(family, dtype, every=dtype == torch.bfloat16 and family in ("llama", "gemma2"))


@pytest.mark.conformance
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("family", sorted(set(families()) - set(NOT_SUPPORTED)))
def test_nor_in_any_family(family, dtype):
    check(family, dtype, every=True)


def test_depth_in_bfloat16_is_no_missed_writer():
    chat = ChatModel(tiny_model("qwen2", dtype=torch.bfloat16, num_hidden_layers=30), tiny_tokenizer())
    assert chat.n_layers == 30
    assert chat.probe.residual < 1e-5
    last = chat.layout.writers[-1]
    fewer = replace(chat.layout, writers=chat.layout.writers[:-1])
    with pytest.raises(LayoutError, match=r"first seen after block 29"):
        probe_layout(chat.module, fewer, chat.probe_inputs())
    assert last.block == 29


def test_a_write_of_one_percent_is_noticed_beside_a_massive_activation():
    """The direction gives each dimension the weight of its own size, so that the massive one covers nothing."""
    model, _ = planted("llama", torch.bfloat16)
    chat = ChatModel(model, tiny_tokenizer())
    writer = next(w for w in chat.layout.writers if w.block == 2 and w.kind == "mlp")
    with torch.no_grad():
        model.get_parameter(writer.parameter).mul_(0.01)
    fewer = replace(chat.layout, writers=tuple(each for each in chat.layout.writers if each is not writer))
    with pytest.raises(LayoutError, match=r"first seen after block 2"):
        probe_layout(chat.module, fewer, chat.probe_inputs())
