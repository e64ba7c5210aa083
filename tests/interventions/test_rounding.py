"""Weights rounded to few bits."""

import pytest
import torch

from demur.interventions import Combined, DirectionalAblation, RoundedWeights, round_to_nearest
from demur.testing import load_toy_chat_model


def naive(row, bits, group=128):
    result = []
    for start in range(0, len(row), group):
        part = row[start : start + group]
        scale = max(abs(value) for value in part) / (2 ** (bits - 1) - 1)
        result += [0.0 if scale == 0 else round(value / scale) * scale for value in part]
    return result


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_equals_a_loop_over_groups(bits):
    matrix = torch.randn(5, 300, generator=torch.Generator().manual_seed(bits))
    expected = torch.tensor([naive(row.tolist(), bits) for row in matrix])
    assert torch.allclose(round_to_nearest(matrix, bits), expected, atol=1e-6)


def test_idempotent_and_zero_stays_zero():
    matrix = torch.randn(4, 200, generator=torch.Generator().manual_seed(0))
    once = round_to_nearest(matrix, 4)
    assert torch.allclose(round_to_nearest(once, 4), once, atol=1e-6)
    assert round_to_nearest(torch.zeros(2, 130), 4).eq(0).all()


def test_half_precision_keeps_its_type_and_never_leaves_the_range():
    matrix = torch.randn(3, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    rounded = round_to_nearest(matrix, 4)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.abs().amax(-1) <= matrix.abs().amax(-1) * 1.01).all()


def test_changes_matrices_of_blocks_only_and_puts_them_back():
    chat = load_toy_chat_model()
    before = {name: parameter.clone() for name, parameter in chat.module.named_parameters()}
    with RoundedWeights(4).folded_into(chat):
        changed = {name for name, now in chat.module.named_parameters() if not torch.equal(now, before[name])}
    assert changed
    assert all(name.startswith(tuple(f"{block}." for block in chat.layout.blocks)) for name in changed)
    assert all(before[name].dim() >= 2 for name in changed)
    assert all(torch.equal(now, before[name]) for name, now in chat.module.named_parameters())


def test_rounds_what_an_ablation_left_behind():
    chat = load_toy_chat_model()
    ablation = DirectionalAblation(torch.randn(chat.layout.d_model, generator=torch.Generator().manual_seed(0)))
    writer = next(each for each in chat.layout.writers if each.parameter.startswith(chat.layout.blocks[0]))
    parameter = dict(chat.module.named_parameters())[writer.parameter]
    expected = round_to_nearest(writer.without(parameter, ablation.basis), 4)
    with Combined([ablation, RoundedWeights(4)]).folded_into(chat):
        now = dict(chat.module.named_parameters())[writer.parameter]
        assert torch.equal(now, expected)
