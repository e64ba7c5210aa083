"""Quantised weights: hooks work, folding is refused with what to do instead."""

import pytest
import torch
from torch import nn

from demur.errors import UnsupportedInterventionError
from demur.interventions import DirectionalAblation, inspect_model, write_adapter, write_merged
from demur.models import ChatModel
from demur.testing import tiny_model, tiny_tokenizer


class Int8Linear(nn.Module):
    """Round-to-nearest int8 with one scale per row, as quantised checkpoints hold their weights."""

    def __init__(self, linear):
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)

    def forward(self, hidden):
        return nn.functional.linear(hidden, self.weight.to(hidden.dtype) * self.scale)


def quantised(family="llama"):
    model = tiny_model(family, dtype=torch.float32)
    for block in model.model.layers:
        for parent in (block.self_attn, block.mlp):
            for name, module in list(parent.named_children()):
                if isinstance(module, nn.Linear):
                    setattr(parent, name, Int8Linear(module))
    return ChatModel(model, tiny_tokenizer(), "int8")


@pytest.fixture(scope="module")
def chat():
    return quantised()


def random_ablation(chat):
    generator = torch.Generator().manual_seed(1)
    return DirectionalAblation(torch.randn(chat.layout.d_model, generator=generator, dtype=torch.float64))


def test_the_layout_knows_the_sites_and_no_writers(chat):
    assert chat.layout.packed == "packed (model.layers.0.self_attn.q_proj.weight is int8)"
    assert chat.layout.writers == ()
    assert [site.module for site in chat.layout.sites][:2] == [
        "model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"
    ]  # fmt: skip
    assert chat.probe.residual < chat.probe.tolerance < chat.probe.baseline


def test_runtime_ablation_leaves_nothing_along_the_direction(chat):
    from demur.models import last_stream

    ablation = random_ablation(chat)
    unit = ablation.basis[0].float()
    before = last_stream(chat.module, chat.layout, chat.probe_inputs())
    with ablation.applied_to(chat):
        after = last_stream(chat.module, chat.layout, chat.probe_inputs())
    assert (after @ unit).abs().max() < 1e-5
    assert (before @ unit).abs().max() > 0.1


@pytest.mark.parametrize("fold", ["folded_into", "merged", "adapter"])
def test_folding_is_refused_with_what_to_do_instead(chat, fold, tmp_path):
    ablation = random_ablation(chat)
    words = r"its weights are packed .* Use the intervention at run time .* the unquantised checkpoint"
    with pytest.raises(UnsupportedInterventionError, match=words):
        if fold == "folded_into":
            ablation.folded_into(chat)
        else:
            (write_merged if fold == "merged" else write_adapter)(chat, ablation, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_inspect_says_runtime_only(chat):
    found = inspect_model(chat)
    assert (found.verdict, found.equivalence, found.writers) == ("runtime_only", None, ())
    assert "nothing can be folded or exported" in found.reason


def test_a_missed_site_is_caught_by_hooks_alone(chat):
    from dataclasses import replace

    from demur.errors import LayoutError
    from demur.models import probe_layout

    broken = replace(chat.layout, sites=chat.layout.sites[:-1])
    with pytest.raises(LayoutError, match="was missed"):
        probe_layout(chat.module, broken, chat.probe_inputs())
