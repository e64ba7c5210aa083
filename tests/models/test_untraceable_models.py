"""A model whose writes cannot be traced is refused, with the place and the reason; nothing is half-edited."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from demur.errors import LayoutError, ModelError
from demur.models import ChatModel, discover_layout, hook_count, probe_layout
from demur.testing import tiny_chat_model, tiny_model, tiny_tokenizer

TOKENS = {"input_ids": torch.arange(1, 7)[None]}
WIDTH = 8


class Block(nn.Module):
    """A decoder block without attention: what it adds to the stream is `write`."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 16)
        self.down = nn.Linear(16, WIDTH)

    def write(self, stream):
        return self.down(torch.relu(self.up(self.norm(stream))))

    def forward(self, stream):
        return stream + self.write(stream)


class Fake(nn.Module):
    """Three blocks, the middle one of another kind."""

    def __init__(self, middle=Block, between=None):
        super().__init__()
        self.embed = nn.Embedding(11, WIDTH)
        self.layers = nn.ModuleList([Block(), middle(), Block()])
        self.head = nn.Linear(WIDTH, 11)
        self.between = between

    def forward(self, input_ids):
        stream = self.embed(input_ids)
        for layer in self.layers:
            stream = layer(stream)
            if self.between is not None:
                stream = self.between(stream)
        return SimpleNamespace(logits=self.head(stream))


def made(*args, **kwargs):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Fake(*args, **kwargs).double().eval()


def refusal(model):
    with pytest.raises(LayoutError) as caught:
        discover_layout(model, TOKENS)
    assert hook_count(model) == 0
    return str(caught.value)


def test_the_plain_fake_is_understood():
    """Positive control: what follows is refused for its peculiarity, not for being a fake."""
    model = made()
    layout, _ = discover_layout(model, TOKENS)
    expected = {("embed.weight", 1)}
    for block in range(3):
        expected |= {(f"layers.{block}.down.weight", 0), (f"layers.{block}.down.bias", 0)}
    assert {(writer.parameter, writer.axis) for writer in layout.writers} == expected
    assert probe_layout(model, layout, TOKENS).residual < 1e-12


class TanhOnStream(Block):
    def forward(self, stream):
        return torch.tanh(super().forward(stream))


class NoResidual(Block):
    def forward(self, stream):
        return self.write(stream)


class NormOnStream(Block):
    def forward(self, stream):
        return self.norm(stream + self.write(stream))


class TanhOnWrite(Block):
    def write(self, stream):
        return torch.tanh(super().write(stream))


class SoftmaxOnWrite(Block):
    def write(self, stream):
        return super().write(stream).softmax(-1)


class AddsOne(Block):
    def forward(self, stream):
        return super().forward(stream) + 1.0


class AddsOneParameter(Block):
    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.ones(1))

    def forward(self, stream):
        return super().forward(stream) + self.offset


class AddsBuffer(Block):
    def __init__(self):
        super().__init__()
        self.register_buffer("memory", torch.linspace(0, 1, WIDTH))

    def forward(self, stream):
        return super().forward(stream) + self.memory


class GatesChannels(Block):
    def write(self, stream):
        return super().write(stream) * torch.sigmoid(stream)


class JoinsHalves(Block):
    def write(self, stream):
        first, second = super().write(stream).chunk(2, -1)
        return torch.cat([second, first], -1)


class WritesWithoutModule(Block):
    def forward(self, stream):
        hidden = torch.relu(self.up(self.norm(stream)))
        return stream + torch.nn.functional.linear(hidden, self.down.weight, self.down.bias)


class RoutesToOneExpert(Block):
    """What it adds depends on the tokens: a few tokens never show all writers."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(16, WIDTH) for _ in range(3)])

    def write(self, stream):
        chosen = int(stream.abs().sum()) // 10**6  # always the first
        return self.experts[chosen](torch.relu(self.up(self.norm(stream)))) + self.down(self.up(self.norm(stream)))


PASSES = "something that is added to the residual stream passes through"
CASES = {
    TanhOnStream: "layers.1: its output does not contain its input as a summand, so it has no residual stream",
    NoResidual: "layers.1: its output does not contain its input as a summand, so it has no residual stream",
    NormOnStream: "layers.1: a norm acts on the residual stream itself (post-norm on the stream)",
    TanhOnWrite: f"layers.1: {PASSES} `tanh`, which mixes or bends the hidden dimension",
    SoftmaxOnWrite: f"layers.1: {PASSES} `_softmax`, which mixes or bends the hidden dimension",
    AddsOne: "layers.1: something that is added to the residual stream has the same number added in every hidden",
    AddsOneParameter: "layers.1: something that is added to the residual stream has the same number added in every",
    AddsBuffer: "layers.1: something that is added to the residual stream comes from outside the parameters",
    GatesChannels: "layers.1: something that is added to the residual stream is multiplied by another activation in",
    JoinsHalves: "layers.1: something that is added to the residual stream is concatenated along the hidden dimension",
    WritesWithoutModule: "layers.1: no module returns one of the tensors that are added to the stream",
    RoutesToOneExpert: "layers.1.experts.2.weight: it took no part in the forward pass over a few tokens, so whether",
}


@pytest.mark.parametrize("middle", CASES, ids=lambda middle: middle.__name__)
def test_what_was_not_understood_is_named(middle):
    message = refusal(made(middle))
    assert CASES[middle] in message
    assert message.startswith("Fake: not every write to the residual stream could be traced to a parameter")
    assert "demur will not edit this model" in message
    assert "blocks: 3 (layers.0 ...)" in message
    assert "writers found: embed.weight, layers.0.down" in message
    # The blocks around it were understood, so they are not among the complaints.
    assert "- layers.0" not in message
    assert "- layers.2" not in message


def test_the_tanh_on_the_stream_itself_is_named_too():
    assert f"layers.1: {PASSES} `tanh`" in refusal(made(TanhOnStream))


def test_what_happens_between_the_blocks_breaks_the_chain():
    assert "no list of decoder blocks was found" in refusal(made(between=torch.tanh))


def test_a_model_without_blocks_is_refused():
    model = nn.Sequential(nn.Embedding(11, WIDTH), nn.Linear(WIDTH, 11)).double()

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, input_ids):
            return SimpleNamespace(logits=self.inner[1](self.inner[0](input_ids)))

    message = refusal(Wrapped())
    assert message.startswith("Wrapped: no list of decoder blocks was found")
    assert "decoder-only causal language model" in message


@pytest.mark.parametrize(
    ("family", "options"), [("opt", {"do_layer_norm_before": False}), ("openai-gpt", {})], ids=["opt-350m", "gpt-1"]
)
def test_real_post_norm_families_are_refused_at_the_door(family, options):
    with pytest.raises(LayoutError, match="a norm acts on the residual stream itself"):
        tiny_chat_model(family, **options)


def test_a_patched_block_of_a_real_family_is_refused_at_the_door():
    model = tiny_model("llama")
    mlp = model.model.layers[2].mlp
    original = mlp.forward
    mlp.forward = lambda stream: torch.tanh(original(stream))
    with pytest.raises(ModelError, match=r"model\.layers\.2: .* passes through `tanh`"):
        ChatModel(model, tiny_tokenizer())
    assert hook_count(model) == 0
