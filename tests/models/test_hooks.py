"""Hooks and swapped parameters are gone after the context, whatever happened inside it."""

from contextlib import nullcontext

import pytest
import torch

from demur.models import ChatModel, hook_count, hooked, last_stream, probe_layout, reading_inputs, swapped_parameters
from demur.models._layout import record_forward
from demur.models._probe import orthogonalized_blockwise
from demur.testing import tiny_chat_model, tiny_model, tiny_tokenizer


class Halt(BaseException):
    """Not an Exception, as Ctrl-C is not: torch's own clean-up does not run for it."""


ERRORS = [RuntimeError, Halt]


@pytest.fixture
def chat():
    return tiny_chat_model("llama")


def parameters_of(model):
    return {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}


def failing(error):
    def fail(*_):
        raise error

    return fail


@pytest.mark.parametrize("error", ERRORS)
def test_hooked_leaves_nothing_after_an_error_inside_the_context(chat, error):
    before, after = {"model.layers.0": torch.neg}, {"model.layers.1.mlp": torch.neg}
    with pytest.raises(error), hooked(chat.module, inputs=before, outputs=after):
        assert hook_count(chat.module) == 2
        raise error
    assert hook_count(chat.module) == 0


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("where", ["inputs", "outputs"])
def test_hooked_leaves_nothing_after_an_error_in_a_hook(chat, error, where):
    batch = chat.batch(chat.encode(["hello"]))
    with pytest.raises(error), hooked(chat.module, **{where: {"model.layers.1": failing(error)}}):
        chat.next_token_logits(batch)
    assert hook_count(chat.module) == 0


def test_hooked_leaves_nothing_when_a_module_does_not_exist(chat):
    there, missing = {"model.layers.0": torch.neg}, {"model.layers.9": torch.neg}
    with pytest.raises(AttributeError), hooked(chat.module, inputs=there, outputs=missing):
        pytest.fail("the context must not open")
    with pytest.raises(AttributeError), reading_inputs(chat.module, {"model.layers.0": list, "model.layers.9": list}):
        pytest.fail("the context must not open")
    assert hook_count(chat.module) == 0


@pytest.mark.parametrize("error", ERRORS)
def test_reading_leaves_nothing_after_an_error_in_a_reader(chat, error):
    with pytest.raises(error), reading_inputs(chat.module, {"model.layers.1": failing(error)}):
        chat.run(chat.batch(chat.encode(["hello"])))
    assert hook_count(chat.module) == 0


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("module", ["model.embed_tokens", "model.layers.1.mlp", "lm_head"])
def test_discovery_and_proof_leave_nothing_after_an_error_in_the_model(chat, error, module):
    """`broken` stays: what is counted is what demur added."""
    before = parameters_of(chat.module)
    inputs = chat.probe_inputs()
    with hooked(chat.module, outputs={module: failing(error)}):
        broken = hook_count(chat.module)
        with pytest.raises(error):
            record_forward(chat.module, inputs)
        assert hook_count(chat.module) == broken
        # The proof needs nothing that comes after the last block, so it stops there.
        with nullcontext() if module == "lm_head" else pytest.raises(error):
            probe_layout(chat.module, chat.layout, inputs)
        assert hook_count(chat.module) == broken
        with pytest.raises(error):
            last_stream(chat.module, chat.layout, inputs)
        assert hook_count(chat.module) == broken
        with pytest.raises(error), orthogonalized_blockwise(chat.module, chat.layout, torch.eye(32)[:1]):
            chat.module(**inputs)
        assert hook_count(chat.module) == broken
    assert hook_count(chat.module) == 0
    assert parameters_of(chat.module) == before


@pytest.mark.parametrize("error", ERRORS)
def test_loading_leaves_nothing_in_a_model_that_fails(error):
    model = tiny_model("llama")
    before = parameters_of(model)
    handle = model.model.layers[1].register_forward_hook(failing(error))
    with pytest.raises(error):
        ChatModel(model, tiny_tokenizer())
    handle.remove()
    assert hook_count(model) == 0
    assert parameters_of(model) == before


def test_the_blockwise_edit_equals_the_edit_of_everything_at_once(chat):
    directions = torch.linalg.qr(torch.randn(32, 2, dtype=torch.float64)).Q.T
    parameters = dict(chat.module.named_parameters())
    edited = {w.parameter: w.without(parameters[w.parameter], directions) for w in chat.layout.writers}
    inputs = chat.probe_inputs()
    with torch.no_grad():
        with swapped_parameters(chat.module, edited):
            expected = chat.module(**inputs).logits
        with orthogonalized_blockwise(chat.module, chat.layout, directions):
            blockwise = chat.module(**inputs).logits
        assert torch.equal(blockwise, expected)
        assert not torch.allclose(chat.module(**inputs).logits, expected)


def test_hooks_see_and_change_what_they_say(chat):
    """Doubling the output of the last norm doubles the logits; halving the input of block 0 scales the embeddings."""
    batch = chat.batch(chat.encode(["hello"]))
    plain = chat.next_token_logits(batch)
    with hooked(chat.module, outputs={"model.norm": lambda stream: 2 * stream}):
        assert torch.allclose(chat.next_token_logits(batch), 2 * plain, atol=1e-12)
    seen = []
    halve, read = {"model.layers.0": lambda stream: stream / 2}, {"model.layers.0": seen.append}
    with hooked(chat.module, inputs=halve), reading_inputs(chat.module, read):
        chat.run(batch)
    assert torch.equal(seen[0], chat.model.model.embed_tokens(batch["input_ids"]).detach() / 2)


@pytest.mark.parametrize("error", [None, *ERRORS])
def test_swapped_parameters_puts_back_the_very_same_objects(chat, error):
    before = parameters_of(chat.module)
    values = {name: value.detach().clone() for name, value in chat.module.named_parameters()}
    names = ["model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"]
    zeros = {name: torch.zeros_like(chat.module.get_parameter(name)) for name in names}
    with nullcontext() if error is None else pytest.raises(error), swapped_parameters(chat.module, zeros):
        assert all(not chat.module.get_parameter(name).any() for name in names)
        if error is not None:
            raise error
    assert parameters_of(chat.module) == before
    assert all(torch.equal(value, values[name]) for name, value in chat.module.named_parameters())


@pytest.mark.parametrize("wrong", ["model.layers.9.mlp.down_proj.weight", "model.layers.1.mlp.down_proj.nothing"])
def test_swapped_parameters_puts_back_what_it_had_swapped_before_a_wrong_name(chat, wrong):
    before = parameters_of(chat.module)
    with (
        pytest.raises((AttributeError, KeyError)),
        swapped_parameters(chat.module, {"model.embed_tokens.weight": torch.zeros(259, 32), wrong: torch.zeros(1)}),
    ):
        pytest.fail("the context must not open")
    assert parameters_of(chat.module) == before


def test_nested_swaps_unwind_in_order(chat):
    name = "model.embed_tokens.weight"
    before = parameters_of(chat.module)
    with swapped_parameters(chat.module, {name: torch.zeros(259, 32)}):
        with swapped_parameters(chat.module, {name: torch.ones(259, 32)}):
            assert chat.module.get_parameter(name).sum() == 259 * 32
        assert not chat.module.get_parameter(name).any()
    assert parameters_of(chat.module) == before


@pytest.mark.parametrize(("family", "embedding"), [("gpt2", "transformer.wte"), ("gemma", "model.embed_tokens")])
def test_swapping_a_tied_embedding_leaves_the_output_head_alone(family, embedding):
    chat = tiny_chat_model(family)
    head, shared = chat.module.get_submodule("lm_head"), chat.module.get_submodule(embedding)
    original = head.weight
    assert shared.weight is original
    with swapped_parameters(chat.module, {f"{embedding}.weight": torch.zeros_like(original)}):
        assert head.weight is original
        assert not shared.weight.any()
    assert shared.weight is original
