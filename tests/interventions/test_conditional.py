"""Conditional ablation: decided once per prompt, on the unchanged model, row by row, and kept while it answers."""

import pytest
import torch

from demur.activations import stream_at
from demur.errors import InputError, UnsupportedInterventionError
from demur.evaluation import PhraseJudge, Runner
from demur.interventions import (
    Combined,
    ConditionalAblation,
    DirectionalAblation,
    GradedAblation,
    can_fold,
    in_shipped_form,
)
from demur.models import hook_count
from demur.prompts import Prompt

LAYER, POSITION = 1, -2


def logits_of(chat, prompts):
    return chat.next_token_logits(chat.batch(chat.encode(prompts)))


def projections(chat, prompts, direction):
    """Read without any hook of the intervention, one prompt at a time."""
    rows = [stream_at(chat, [text], layer=LAYER, position=POSITION, batch_size=1) for text in prompts]
    return torch.cat(rows) @ direction


@pytest.fixture
def splitting(tiny, prompts, random_directions):
    """A model and a condition that holds for some of the prompts."""

    def build(family="llama", side="below", ablation=None):
        chat = tiny(family)
        direction = random_directions(seed=5)
        values = projections(chat, prompts, direction)
        threshold = float(values.sort().values[1:3].mean())
        chosen = values < threshold if side == "below" else values > threshold
        assert chosen.sum() == 2
        ablation = ablation or DirectionalAblation(random_directions())
        return chat, ConditionalAblation(ablation, LAYER, POSITION, direction, threshold, side), chosen

    return build


@pytest.mark.parametrize("side", ["below", "above"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo2", "opt"])
def test_rows_on_one_side_are_ablated_and_the_others_are_not(family, side, splitting, prompts, unchanged):
    chat, conditional, chosen = splitting(family, side)
    check = unchanged(chat)
    with conditional.applied_to(chat):
        batched = logits_of(chat, prompts)
    check()
    for text, row, changed in zip(prompts, batched, chosen.tolist(), strict=True):
        expected = logits_of(chat, [text])
        if changed:
            with conditional.ablation.applied_to(chat):
                ablated = logits_of(chat, [text])
            assert (ablated - expected).abs().max() > 1e-3
            expected = ablated
        tolerance = 1e-4 if chat.layout.dtype == torch.float32 else 1e-9
        assert torch.allclose(row, expected[0], atol=tolerance, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_batched_equals_single_whatever_the_padding(family, splitting, prompts):
    chat, conditional, _ = splitting(family)
    encoded = chat.encode(prompts)
    with conditional.applied_to(chat):
        single = torch.cat([chat.next_token_logits(chat.batch([tokens])) for tokens in encoded])
        for longer in ([], ["x" * 40], ["x" * 90]):
            batch = chat.batch([*encoded, *chat.encode(longer)])
            assert torch.allclose(chat.next_token_logits(batch)[: len(encoded)], single, atol=1e-9, rtol=0)


def test_generated_tokens_follow_what_was_decided_for_their_prompt(splitting, prompts, greedy):
    chat, conditional, chosen = splitting()
    plain = greedy(chat)
    with conditional.ablation.applied_to(chat):
        ablated = greedy(chat)
    with conditional.applied_to(chat):
        found = greedy(chat)
        assert torch.equal(greedy(chat), found)
        reverse = greedy(chat, prompts[::-1])  # decided anew: nothing is left of the call before
    assert torch.equal(found, torch.where(chosen[:, None], ablated, plain))
    assert torch.equal(reverse.flip(0), found)
    assert not torch.equal(plain[chosen], ablated[chosen])


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo2"])
def test_never_true_is_the_base_model_bit_by_bit(family, tiny, prompts, random_directions, greedy):
    chat = tiny(family)
    plain, tokens = logits_of(chat, prompts), greedy(chat)
    never = ConditionalAblation(
        DirectionalAblation(random_directions()), LAYER, POSITION, random_directions(), -float("inf")
    )
    with never.applied_to(chat):
        assert torch.equal(logits_of(chat, prompts), plain)
        assert torch.equal(greedy(chat), tokens)


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo2"])
def test_always_true_is_the_unconditional_ablation(family, tiny, prompts, random_directions, greedy):
    chat = tiny(family)
    ablation = GradedAblation(random_directions(), (0.3,) * chat.n_layers, (0.9,) * chat.n_layers, 0.5)
    with ablation.applied_to(chat):
        expected, tokens = logits_of(chat, prompts), greedy(chat)
    with ConditionalAblation(ablation, LAYER, POSITION, random_directions(), float("inf")).applied_to(chat):
        assert torch.equal(logits_of(chat, prompts), expected)
        assert torch.equal(greedy(chat), tokens)


def test_the_condition_reads_the_unchanged_model(tiny, prompts, random_directions):
    """Ablating the very direction of the condition would make every projection 0."""
    chat = tiny("llama")
    direction = random_directions()
    values = projections(chat, prompts, direction)
    threshold = float(values.sort().values[1:3].mean())
    conditional = ConditionalAblation(DirectionalAblation(direction), LAYER, POSITION, direction, threshold)
    plain = logits_of(chat, prompts)
    with conditional.ablation.applied_to(chat):
        ablated = logits_of(chat, prompts)
    with conditional.applied_to(chat):
        for _ in range(2):
            found = logits_of(chat, prompts)
            assert torch.allclose(found, torch.where((values < threshold)[:, None], ablated, plain), atol=1e-9, rtol=0)


def test_text_after_the_prompt_does_not_move_the_place_that_is_read(splitting, prompts):
    chat, conditional, chosen = splitting()
    longer = [tokens + chat.tokenizer("Sure, here")["input_ids"] for tokens in chat.encode(prompts)]
    assert torch.equal(conditional.decide(chat, chat.batch(longer)), chosen)
    bare = [chat.tokenizer(text)["input_ids"] + [5, 6] for text in prompts]
    assert conditional.decide(chat, chat.batch(bare)).shape == (len(prompts),)


def test_one_more_pass_per_prompt_up_to_the_layer_and_none_per_token(splitting, prompts):
    chat, conditional, _ = splitting()
    calls = dict.fromkeys(chat.layout.blocks, 0)

    def count(path):
        def hook(*_):
            calls[path] += 1

        return hook

    handles = [chat.module.get_submodule(path).register_forward_hook(count(path)) for path in calls]
    try:
        with conditional.applied_to(chat):
            chat.model.generate(
                **chat.batch(chat.encode(prompts)), max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0
            )
    finally:
        for handle in handles:
            handle.remove()
    assert list(calls.values()) == [5 + (index < LAYER) for index in range(chat.n_layers)]


def test_the_runner_measures_it_at_run_time(splitting, prompts):
    chat, conditional, chosen = splitting()
    assert not can_fold(conditional)
    assert not can_fold(Combined([conditional]))
    asked = [Prompt(text, "harmless") for text in prompts]
    runner = Runner(chat, PhraseJudge(), max_new_tokens=6)
    found = [
        [each.completion for each in runner.complete(asked, condition="c", split="test", intervention=change)]
        for change in (None, conditional.ablation, conditional)
    ]
    assert found[2] == [two if flag else one for one, two, flag in zip(found[0], found[1], chosen, strict=True)]
    with in_shipped_form(chat, conditional):
        assert hook_count(chat.module) > 0


def test_hooks_are_removed_after_an_error(splitting):
    chat, conditional, _ = splitting()
    before = hook_count(chat.module)
    with pytest.raises(ZeroDivisionError), conditional.applied_to(chat):
        assert hook_count(chat.module) > before
        raise ZeroDivisionError
    assert hook_count(chat.module) == before


def test_it_has_no_folded_form(splitting):
    chat, conditional, _ = splitting()
    with pytest.raises(UnsupportedInterventionError, match="plain weights cannot do"):
        conditional.folded_into(chat)


def test_steps_of_a_batch_that_was_not_read_are_refused(splitting, prompts):
    chat, conditional, _ = splitting()
    batch = chat.batch(chat.encode(prompts))
    with torch.no_grad():
        cache = chat.model(**batch, use_cache=True).past_key_values
        with conditional.applied_to(chat), pytest.raises(UnsupportedInterventionError, match="did not read"):
            chat.model(input_ids=batch["input_ids"][:, :1], past_key_values=cache)


def test_the_place_is_checked(tiny, random_directions, prompts):
    chat = tiny("llama")
    ablation = DirectionalAblation(random_directions())
    with pytest.raises(InputError, match="position 1, layer 0"):
        ConditionalAblation(ablation, 0, 1, random_directions(), 0.0)
    deep = ConditionalAblation(ablation, chat.n_layers, -1, random_directions(), 0.0)
    with pytest.raises(InputError, match=f"has {chat.n_layers} layers"), deep.applied_to(chat):
        logits_of(chat, prompts)


def test_all_of_the_condition_is_in_the_fingerprint(random_directions):
    one, two = random_directions(), random_directions(seed=1)
    ablation = DirectionalAblation(one)
    plain = ConditionalAblation(ablation, 1, -1, one, 0.0)
    others = [
        ConditionalAblation(DirectionalAblation(two), 1, -1, one, 0.0),
        ConditionalAblation(ablation, 2, -1, one, 0.0),
        ConditionalAblation(ablation, 1, -2, one, 0.0),
        ConditionalAblation(ablation, 1, -1, two, 0.0),
        ConditionalAblation(ablation, 1, -1, one, 0.5),
        ConditionalAblation(ablation, 1, -1, one, 0.0, "above"),
    ]
    assert len({each.fingerprint for each in (plain, *others)}) == 7
