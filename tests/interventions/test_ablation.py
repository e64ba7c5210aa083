"""Directional ablation: equal to the published procedure, to its folded weights, and complete."""

from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch

from demur.errors import UnsupportedInterventionError
from demur.interventions import ActivationAddition, Combined, DirectionalAblation, ablating_rows
from demur.interventions._intervention import remove_components
from demur.models import ChatModel, last_stream, reading_inputs
from demur.testing import tiny_chat_model

EXACT = ["llama", "qwen2", "qwen3", "mistral", "gemma", "phi3", "gpt2", "gpt_neox", "stablelm", "phi", "opt"]
EXACT += ["falcon", "granite", "cohere"]
POST_NORM = ["gemma2", "gemma3_text", "olmo2"]
# Attention and MLP modules of a block, by which the published hooks go.
PUBLISHED = {
    "llama": ("self_attn", "mlp"),
    "qwen2": ("self_attn", "mlp"),
    "gpt2": ("attn", "mlp"),
    "gpt_neox": ("attention", "mlp"),
}


def published_hooks(chat, direction):
    """Arditi et al., as published: the input of every block, the output of every attention and every MLP."""
    unit = direction / direction.norm()

    def remove(tensor):
        return tensor - (tensor @ unit)[..., None] * unit

    def before(_module, args, kwargs):
        if args:
            return (remove(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": remove(kwargs["hidden_states"])}

    def after(_module, _args, output):
        return (remove(output[0]), *output[1:]) if isinstance(output, tuple) else remove(output)

    handles = []
    for path in chat.layout.blocks:
        block = chat.module.get_submodule(path)
        handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
        for name in PUBLISHED[chat.name.removeprefix("tiny-")]:
            handles.append(block.get_submodule(name).register_forward_hook(after))
    return handles


def logits_of(chat, prompts):
    return chat.next_token_logits(chat.batch(chat.encode(prompts)))


@pytest.mark.parametrize("family", PUBLISHED)
def test_equals_the_published_procedure(family, tiny, prompts, random_directions, greedy):
    chat = tiny(family)
    direction = random_directions()
    handles = published_hooks(chat, direction)
    expected, tokens = logits_of(chat, prompts), greedy(chat)
    for handle in handles:
        handle.remove()
    with DirectionalAblation(direction).applied_to(chat):
        assert torch.allclose(logits_of(chat, prompts), expected, atol=1e-10, rtol=0)
        assert torch.equal(greedy(chat), tokens)
    assert (logits_of(chat, prompts) - expected).abs().max() > 0.01


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("family", EXACT)
def test_folded_weights_equal_the_hooks(family, count, tiny, prompts, random_directions, greedy):
    chat = tiny(family)
    plain = logits_of(chat, prompts)
    ablation = DirectionalAblation(random_directions(count))
    with ablation.applied_to(chat):
        hooks, tokens = logits_of(chat, prompts), greedy(chat)
    with ablation.folded_into(chat):
        assert torch.allclose(logits_of(chat, prompts), hooks, atol=1e-10, rtol=0)
        assert torch.equal(greedy(chat), tokens)
    assert (hooks - plain).abs().max() > 0.01


def along_everywhere(chat, prompts, basis, steps=6):
    """Largest |d . x| / |x| over all block boundaries, prompt and generated positions, and how many were looked at."""
    seen = []

    def read(stream):
        stream = stream.double()
        seen.append(((stream @ basis.T).norm(dim=-1) / stream.norm(dim=-1)).reshape(-1))

    last = chat.module.get_submodule(chat.layout.blocks[-1])
    handle = last.register_forward_hook(lambda _m, _a, out: read(out[0] if isinstance(out, tuple) else out))
    try:
        with reading_inputs(chat.module, dict.fromkeys(chat.layout.blocks, read)):
            for prompt in prompts:
                batch = chat.batch(chat.encode([prompt]))
                chat.model.generate(**batch, max_new_tokens=steps, min_new_tokens=steps, do_sample=False)
    finally:
        handle.remove()
    return float(torch.cat(seen).max()), torch.cat(seen).numel()


@pytest.mark.parametrize("way", ["applied_to", "folded_into"])
@pytest.mark.parametrize("family", [*EXACT, *POST_NORM, "bloom"])
def test_no_component_is_left_at_any_boundary_or_generated_position(family, way, tiny, prompts, random_directions):
    chat = tiny(family)
    ablation = DirectionalAblation(random_directions(2))
    lengths = [len(tokens) for tokens in chat.encode(prompts)]
    with getattr(ablation, way)(chat):
        left, looked = along_everywhere(chat, prompts, ablation.basis)
    assert left < (1e-5 if chat.layout.dtype == torch.float32 else 1e-12)
    assert looked == (chat.n_layers + 1) * sum(length + 5 for length in lengths)
    assert along_everywhere(chat, prompts, ablation.basis)[0] > 0.05


@pytest.mark.parametrize("family", POST_NORM)
def test_with_a_norm_after_the_write_hooks_and_weights_differ(family, tiny, prompts, random_directions):
    """Folding changes what the norm divides by; that it is said, and not hidden, is `has_norm_after_write`."""
    chat = tiny(family)
    ablation = DirectionalAblation(random_directions())
    with ablation.applied_to(chat):
        hooks = logits_of(chat, prompts[:1])
    with ablation.folded_into(chat):
        folded = logits_of(chat, prompts[:1])
    assert chat.layout.has_norm_after_write
    assert (hooks - folded).abs().max() > 1e-4


@pytest.mark.parametrize("family", EXACT)
def test_an_exact_family_has_no_norm_after_the_write(family, tiny):
    assert not tiny(family).layout.has_norm_after_write


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_ablating_twice_is_ablating_once(family, tiny, prompts, random_directions):
    chat = tiny(family)
    ablation = DirectionalAblation(random_directions(2))
    tolerance = 1e-5 if chat.layout.dtype == torch.float32 else 1e-10
    texts = prompts[:1]
    with ablation.applied_to(chat):
        once = logits_of(chat, texts)
        with ablation.applied_to(chat):
            assert torch.allclose(logits_of(chat, texts), once, atol=tolerance, rtol=0)
    with ablation.folded_into(chat):
        once, weights = logits_of(chat, texts), ablation.folded_parameters(chat)
        folded = {name: chat.module.get_parameter(name).detach().clone() for name in weights}
        # Folded twice: the weights themselves do not move.
        for name, weight in weights.items():
            assert torch.allclose(weight, folded[name], atol=1e-6 if tolerance > 1e-6 else 1e-13, rtol=0)
        with ablation.folded_into(chat):
            assert torch.allclose(logits_of(chat, texts), once, atol=tolerance, rtol=0)


@pytest.mark.parametrize("way", ["applied_to", "folded_into"])
@pytest.mark.parametrize(
    "rewrite",
    [
        lambda rows: rows[[2, 0, 1]],
        lambda rows: rows * torch.tensor([[5.0], [-0.01], [300.0]]),
        lambda rows: rows.cumsum(0),
        lambda rows: torch.cat([rows, rows[:1], rows[:1] + rows[1:2]]),
        lambda rows: DirectionalAblation(rows).basis,
    ],
    ids=["order", "scale", "sums", "repeated", "basis"],
)
def test_only_the_span_counts(way, rewrite, tiny, prompts, random_directions):
    chat = tiny("llama")
    rows = random_directions(3)
    with getattr(DirectionalAblation(rows), way)(chat):
        expected = logits_of(chat, prompts)
    with getattr(DirectionalAblation(rewrite(rows)), way)(chat):
        assert torch.allclose(logits_of(chat, prompts), expected, atol=1e-10, rtol=0)
    with getattr(DirectionalAblation(rows[:2]), way)(chat):
        assert (logits_of(chat, prompts) - expected).abs().max() > 0.01


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_basis_is_an_orthonormal_basis_of_the_span(count, random_directions):
    rows = random_directions(count)
    basis = DirectionalAblation(rows).basis
    assert torch.allclose(basis @ basis.T, torch.eye(count, dtype=torch.float64), atol=1e-13)
    assert torch.allclose(rows @ basis.T @ basis, rows, atol=1e-12)
    assert torch.equal(DirectionalAblation(rows[0]).basis, DirectionalAblation(rows[:1]).basis)


@pytest.mark.parametrize("scale", [1.0, -2.0, 1e6])
def test_a_repeated_direction_adds_no_dimension(scale, random_directions):
    """A plain QR would add an arbitrary direction made of rounding, and remove it from the model."""
    one = random_directions()
    assert len(DirectionalAblation(torch.stack([one, scale * one])).basis) == 1
    assert len(DirectionalAblation(torch.stack([one, one + 1e-6 * random_directions(seed=9)])).basis) == 2


def test_each_row_of_a_batch_has_its_own_direction(tiny, prompts, random_directions):
    chat = tiny("gpt2")
    directions = random_directions(len(prompts))
    units = directions / directions.norm(dim=-1, keepdim=True)
    with ablating_rows(chat, units):
        together = logits_of(chat, prompts)
    for row, prompt in enumerate(prompts):
        with DirectionalAblation(directions[row]).applied_to(chat):
            assert torch.allclose(together[row], logits_of(chat, [prompt])[0], atol=1e-9, rtol=0)


def test_folding_edits_the_writers_alone_and_nothing_of_the_rest(tiny, random_directions):
    chat = tiny("gpt2")
    edited = DirectionalAblation(random_directions()).folded_parameters(chat)
    assert set(edited) == {writer.parameter for writer in chat.layout.writers}
    for name, tensor in edited.items():
        original = chat.module.get_parameter(name)
        assert tensor.shape == original.shape
        assert tensor.dtype == original.dtype
        assert not torch.equal(tensor, original)


@pytest.mark.parametrize("family", ["gpt2", "gemma"])
def test_folding_leaves_a_tied_output_head_alone(family, tiny, random_directions):
    chat = tiny(family)
    head = chat.model.lm_head.weight
    embedding = chat.layout.tied_embedding
    assert chat.module.get_parameter(embedding) is head
    with DirectionalAblation(random_directions()).folded_into(chat):
        assert chat.model.lm_head.weight is head
        assert not torch.equal(chat.module.get_parameter(embedding), head)
    assert chat.module.get_parameter(embedding) is head


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_bfloat16_weights_are_the_exact_ones_rounded_once(family, tiny, random_directions):
    """W - d d^T W in float64, then one rounding: no product is made in half precision."""
    chat = tiny(family, dtype=torch.bfloat16)
    direction = random_directions()
    for writer in chat.layout.writers:
        unit = writer.reading(direction)
        rows = chat.module.get_parameter(writer.parameter).detach().double().movedim(writer.axis, 0)
        exact = rows - torch.tensordot(unit[:, None], torch.tensordot(unit, rows, ([0], [0]))[None], 1)
        edited = DirectionalAblation(direction).folded_parameters(chat)[writer.parameter].movedim(writer.axis, 0)
        assert edited.dtype == torch.bfloat16
        assert (edited.double() - exact).abs().max() <= (2**-8) * exact.abs().max()
        # What is left is the rounding of d numbers, far from the component that was there.
        assert torch.tensordot(unit, edited.double(), ([0], [0])).norm() < 0.02 * rows.norm()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_in_bfloat16_hooks_and_weights_stay_close(family, tiny, prompts, random_directions):
    chat = tiny(family, dtype=torch.bfloat16)
    exact = ChatModel(deepcopy(chat.model).double(), chat.tokenizer)
    ablation = DirectionalAblation(random_directions())
    with ablation.folded_into(exact):
        truth = logits_of(exact, prompts)
    effect = (truth - logits_of(exact, prompts)).norm()
    for way in (ablation.applied_to, ablation.folded_into):
        with way(chat):
            assert (logits_of(chat, prompts) - truth).norm() < 0.1 * effect
            stream = last_stream(chat.module, chat.layout, chat.probe_inputs()).double()
        along = (stream @ ablation.basis.T).norm(dim=-1) / stream.pow(2).mean(-1).sqrt()
        assert along.max() < 5e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_streams_are_rounded_once(dtype):
    """The direction itself is not rounded to the stream's dtype, which would leave up to 1e-3 of it."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(256, 2, dtype=torch.float64, generator=generator)).Q.T
    stream = torch.randn(3, 5, 256, dtype=torch.float64, generator=generator) + 20 * basis.sum(0)
    stream = stream.to(dtype)
    exact = stream.double() - stream.double() @ basis.T @ basis
    result = remove_components(stream, basis)
    assert result.dtype == dtype
    assert ((result.double() - exact).abs() <= torch.finfo(dtype).eps / 2 * exact.abs() + 1e-5).all()


class Halt(BaseException):
    """Not an Exception, as Ctrl-C is not."""


@pytest.mark.parametrize("way", ["applied_to", "folded_into"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("error", [None, RuntimeError, Halt])
def test_the_model_is_bit_for_bit_what_it_was(family, way, error, tiny, random_directions, unchanged):
    chat = tiny(family, dtype=torch.float32)
    check = unchanged(chat)
    ablation = DirectionalAblation(random_directions(2))
    with nullcontext() if error is None else pytest.raises(error), getattr(ablation, way)(chat):
        chat.generate(["hello"], max_new_tokens=3)
        with pytest.raises(AssertionError):
            check()
        if error is not None:
            raise error
    check()


def test_a_direction_is_not_changed_by_its_use(tiny, prompts, random_directions):
    rows = random_directions(2)
    kept = rows.clone()
    ablation = DirectionalAblation(rows)
    with ablation.applied_to(tiny("llama")), ablation.folded_into(tiny("llama")):
        logits_of(tiny("llama"), prompts)
    assert torch.equal(rows, kept)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_direction_that_is_zero_or_not_finite_is_refused(value, rows, tiny, random_directions):
    directions = random_directions(rows)
    directions[-1] = value
    for use in ("applied_to", "folded_into"):
        with pytest.raises(UnsupportedInterventionError) as caught:
            getattr(DirectionalAblation(directions), use)(tiny("llama")).__enter__()
        assert str(caught.value) == (
            "a direction to ablate is zero or not finite; it would change nothing or destroy the model."
        )


def test_fingerprints_tell_directions_and_kinds_apart_but_not_lengths(random_directions):
    one, two = random_directions(2)
    fingerprint = DirectionalAblation(one).fingerprint
    assert fingerprint == DirectionalAblation(one.clone()).fingerprint
    for scale in (0.25, 2.0, 1024.0):  # exact in floating point; other factors may change the last bit
        assert DirectionalAblation(scale * one).fingerprint == fingerprint
    others = [
        DirectionalAblation(two),
        DirectionalAblation(torch.stack([one, two])),
        DirectionalAblation(one + 1e-9 * two),
        ActivationAddition(one, 1),
        Combined([DirectionalAblation(one)]),
        Combined([DirectionalAblation(one), DirectionalAblation(two)]),
        Combined([DirectionalAblation(two), DirectionalAblation(one)]),
    ]
    assert len({fingerprint, *(other.fingerprint for other in others)}) == len(others) + 1


def test_a_model_with_experts_is_ablated_completely(prompts, random_directions):
    chat = tiny_chat_model("mixtral", dtype=torch.float32, num_local_experts=3)
    ablation = DirectionalAblation(random_directions())
    with ablation.applied_to(chat):
        hooks = logits_of(chat, prompts)
        assert along_everywhere(chat, prompts[:1], ablation.basis)[0] < 1e-5
    with ablation.folded_into(chat):
        assert torch.allclose(logits_of(chat, prompts), hooks, atol=1e-4)
        assert along_everywhere(chat, prompts[:1], ablation.basis)[0] < 1e-5
