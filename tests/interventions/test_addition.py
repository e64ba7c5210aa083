"""Activation addition: one vector, one layer, every position; and several interventions at once."""

from contextlib import nullcontext

import pytest
import torch

from demur.errors import UnsupportedInterventionError
from demur.interventions import ActivationAddition, Combined, DirectionalAblation, adding_rows
from demur.models import hooked, reading_inputs

FAMILIES = ["llama", "gpt2", "gpt_neox", "gemma2"]


def logits_of(chat, prompts):
    return chat.next_token_logits(chat.batch(chat.encode(prompts)))


def block_inputs(chat, prompt):
    seen = {}
    readers = {path: lambda stream, path=path: seen.setdefault(path, stream.clone()) for path in chat.layout.blocks}
    with reading_inputs(chat.module, readers):
        chat.run(chat.batch(chat.encode([prompt])))
    return [seen[path][0] for path in chat.layout.blocks]


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_a_hook_written_by_hand(family, layer, tiny, prompts, random_directions, greedy):
    chat = tiny(family)
    texts = prompts[:1]
    vector = random_directions() / 3

    def add(_module, args, kwargs):
        if args:
            return (args[0] + vector, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": kwargs["hidden_states"] + vector}

    plain = logits_of(chat, texts)
    block = chat.module.get_submodule(chat.layout.blocks[layer])
    handle = block.register_forward_pre_hook(add, with_kwargs=True)
    expected, tokens = logits_of(chat, texts), greedy(chat, texts)
    handle.remove()
    with ActivationAddition(vector, layer).applied_to(chat):
        assert torch.equal(logits_of(chat, texts), expected)
        assert torch.equal(greedy(chat, texts), tokens)
    assert (expected - plain).abs().max() > 0.01


def test_it_acts_at_every_position_of_its_layer_and_not_before(tiny, random_directions):
    chat = tiny("llama")
    vector = random_directions()
    before = block_inputs(chat, "hello there")
    with ActivationAddition(vector, 1).applied_to(chat):
        after = block_inputs(chat, "hello there")
    assert torch.equal(after[0], before[0])
    assert torch.allclose(after[1] - before[1], vector.expand_as(before[1]), atol=1e-13)
    assert not torch.allclose(after[2] - before[2], vector.expand_as(before[2]), atol=1e-3)


def test_the_length_of_the_vector_is_the_coefficient(tiny, prompts, random_directions):
    """Not normalized: twice the vector is twice the step, and both halves add up."""
    chat = tiny("llama")
    vector = random_directions()
    before = block_inputs(chat, "hello")[2]
    for coefficient in (0.5, 1.0, -2.0):
        with ActivationAddition(coefficient * vector, 2).applied_to(chat):
            step = block_inputs(chat, "hello")[2] - before
        assert torch.allclose(step, coefficient * vector.expand_as(step), atol=1e-12)
    with ActivationAddition(vector, 2).applied_to(chat):
        whole = logits_of(chat, prompts)
    half = ActivationAddition(vector / 2, 2)
    with half.applied_to(chat), half.applied_to(chat):
        assert torch.allclose(logits_of(chat, prompts), whole, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_adding_and_subtracting_restores(family, tiny, prompts, random_directions):
    chat = tiny(family)
    vector = random_directions()
    plain = logits_of(chat, prompts[:1])
    both = Combined([ActivationAddition(vector, 1), ActivationAddition(-vector, 1)])
    with both.applied_to(chat):
        assert torch.allclose(logits_of(chat, prompts[:1]), plain, atol=1e-5 if family == "gemma2" else 1e-10)
    with ActivationAddition(torch.zeros(32), 1).applied_to(chat):
        assert torch.equal(logits_of(chat, prompts[:1]), plain)


def test_each_row_of_a_batch_has_its_own_vector(tiny, prompts, random_directions):
    chat = tiny("gpt2")
    vectors = random_directions(len(prompts))
    with adding_rows(chat, vectors, layer=1):
        together = logits_of(chat, prompts)
    for row, prompt in enumerate(prompts):
        with ActivationAddition(vectors[row], 1).applied_to(chat):
            assert torch.allclose(together[row], logits_of(chat, [prompt])[0], atol=1e-9, rtol=0)


def test_it_cannot_be_folded_and_says_so(tiny, random_directions):
    with pytest.raises(UnsupportedInterventionError) as caught:
        ActivationAddition(random_directions(), 1).folded_into(tiny("llama"))
    assert str(caught.value) == (
        "tiny-llama: adding a vector is a bias, for which most checkpoints have no place; use applied_to."
    )


def test_fingerprints_tell_vectors_layers_and_lengths_apart(random_directions):
    vector = random_directions()
    fingerprints = {
        ActivationAddition(vector, 1).fingerprint,
        ActivationAddition(vector, 2).fingerprint,
        ActivationAddition(2 * vector, 1).fingerprint,
        ActivationAddition(-vector, 1).fingerprint,
        DirectionalAblation(vector).fingerprint,
    }
    assert len(fingerprints) == 5
    assert ActivationAddition(vector.clone(), 1).fingerprint in fingerprints


def test_combined_ablations_at_right_angles_are_one_ablation(tiny, prompts, random_directions):
    chat = tiny("llama")
    basis = DirectionalAblation(random_directions(2)).basis
    whole, parts = DirectionalAblation(basis), Combined([DirectionalAblation(row) for row in basis])
    with whole.applied_to(chat):
        expected = logits_of(chat, prompts)
    with parts.applied_to(chat):
        assert torch.allclose(logits_of(chat, prompts), expected, atol=1e-10)
    with parts.folded_into(chat):
        assert torch.allclose(logits_of(chat, prompts), expected, atol=1e-10)


def test_combined_parts_act_in_their_order(tiny, prompts, random_directions):
    """At block 0 ablation then addition leaves the vector in; the other order takes it out again."""
    chat = tiny("llama")
    vector = random_directions()
    ablation, addition = DirectionalAblation(vector), ActivationAddition(vector, 0)
    unit = ablation.basis[0]
    with Combined([ablation, addition]).applied_to(chat):
        kept = block_inputs(chat, "hello")[0] @ unit
    with Combined([addition, ablation]).applied_to(chat):
        taken = block_inputs(chat, "hello")[0] @ unit
    assert torch.allclose(kept, vector.norm().expand_as(kept), atol=1e-12)
    assert taken.abs().max() < 1e-12


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_model_is_bit_for_bit_what_it_was(error, tiny, random_directions, unchanged):
    chat = tiny("gpt2")
    check = unchanged(chat)
    vector = random_directions()
    contexts = [
        ActivationAddition(vector, 1).applied_to(chat),
        adding_rows(chat, vector[None], layer=1),
        Combined([DirectionalAblation(vector), ActivationAddition(vector, 1)]).applied_to(chat),
    ]
    for context in contexts:
        with nullcontext() if error is None else pytest.raises(error), context:
            logits_of(chat, ["hello"])
            if error is not None:
                raise error
        check()


def test_a_combination_that_cannot_be_folded_leaves_nothing_half_folded(tiny, random_directions, unchanged):
    chat = tiny("llama")
    check = unchanged(chat)
    vector = random_directions()
    both = Combined([DirectionalAblation(vector), ActivationAddition(vector, 1)])
    with pytest.raises(UnsupportedInterventionError), both.folded_into(chat):
        pytest.fail("the context must not open")
    check()


def test_the_error_of_a_failing_hook_reaches_the_caller_and_removes_all(tiny, random_directions, unchanged):
    chat = tiny("llama")
    check = unchanged(chat)
    fail = {chat.layout.blocks[2]: lambda _stream: 1 / 0}
    addition = ActivationAddition(random_directions(), 1)
    with pytest.raises(ZeroDivisionError), addition.applied_to(chat), hooked(chat.module, inputs=fail):
        logits_of(chat, ["hello"])
    check()
