"""SCANS: the formulas against loops, and that only prompts that do not look harmful are changed."""

import math

import pytest
import torch

from demur.evaluation import SimilaritySteering, harm_similarity, release_threshold, steered_layers, transitions
from demur.interventions import ActivationAddition, Combined
from demur.models import hook_count

PROMPTS = ["Name a river", "Write one line about the sea, the moon and three small boats", "Why?", "Sing a song"]
LAYERS = range(1, 3)


def direction(chat, *, seed=0, size=3.0):
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(len(LAYERS), chat.layout.d_model, generator=generator, dtype=torch.float64)


def steering(chat, threshold, harmful=None, vectors=None):
    harmful = direction(chat, seed=1) if harmful is None else harmful
    return SimilaritySteering("scans", direction(chat) if vectors is None else vectors, harmful, LAYERS, threshold)


def tokens(answers):
    return [answer.tokens for answer in answers]


@pytest.mark.parametrize(("n_layers", "first", "last"), [(32, 10, 20), (8, 2, 5), (80, 25, 50), (2, 0, 1), (1, 0, 0)])
def test_layers_scale_with_depth(n_layers, first, last):
    layers = steered_layers(n_layers)
    assert (layers[0], layers[-1]) == (first, last)
    assert last < n_layers


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_transitions_are_differences_of_block_inputs(tiny, family):
    chat = tiny(family, num_hidden_layers=3) if family == "llama" else tiny(family, n_layer=3)
    found = transitions(chat, PROMPTS, layers=LAYERS, batch_size=3)
    yes = chat.tokenizer("Sure", add_special_tokens=False)["input_ids"][0]
    for prompt, rows in zip(PROMPTS, found, strict=True):
        ids = [*chat.template.encode(prompt), yes]
        instruction = len(ids) - 1 - len(chat.template.post_instruction_tokens()) - 1
        last = prompt[-1]
        assert chat.tokenizer.decode([ids[instruction]]) == last
        with torch.no_grad():
            states = chat.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        expected = torch.stack([states[layer][0, instruction] - states[layer][0, -1] for layer in LAYERS])
        torch.testing.assert_close(rows, expected)


def test_similarity_is_the_mean_of_the_cosines_of_the_layers():
    transition = torch.tensor([[[3.0, 4.0], [0.0, 2.0]], [[-1.0, 0.0], [1.0, 1.0]]])
    harmful = torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    expected = [(3 / 5 + 1) / 2, (-1 + 1 / math.sqrt(2)) / 2]
    assert harm_similarity(transition, harmful).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("released", [0.0, 0.02, 0.1, 0.5])
def test_the_threshold_releases_no_more_harmful_prompts_than_allowed(released):
    values = torch.rand(97, generator=torch.Generator().manual_seed(3))
    threshold = release_threshold(values, released=released)
    below = (values < threshold).float().mean().item()
    assert below <= released
    assert below > released - 1 / len(values) - 1e-9  # and hardly fewer


def test_prompts_that_look_harmful_are_left_alone(tiny):
    chat = tiny("llama", num_hidden_layers=3)
    answers = steering(chat, -1.1).answers(chat, PROMPTS, max_new_tokens=6)
    assert tokens(answers) == tokens(chat.generate(PROMPTS, max_new_tokens=6))


def test_the_others_are_steered_at_every_layer_and_token(tiny):
    chat = tiny("llama", num_hidden_layers=3)
    vectors = direction(chat)
    everywhere = Combined([ActivationAddition(-vector, layer) for layer, vector in zip(LAYERS, vectors, strict=True)])
    with everywhere.applied_to(chat):
        expected = chat.generate(PROMPTS, max_new_tokens=6)
        logits = chat.next_token_logits(chat.batch(chat.encode(PROMPTS)))
    asking = steering(chat, 1.1, vectors=vectors)
    hooks = hook_count(chat.module)
    assert tokens(asking.answers(chat, PROMPTS, max_new_tokens=6)) == tokens(expected)
    assert tokens(expected) != tokens(chat.generate(PROMPTS, max_new_tokens=6))
    torch.testing.assert_close(asking.next_token_logits(chat, PROMPTS), logits)
    assert hook_count(chat.module) == hooks


def test_each_prompt_of_a_batch_is_decided_for_itself(tiny):
    chat = tiny("llama", num_hidden_layers=3)
    harmful = transitions(chat, PROMPTS[1:2], layers=LAYERS)[0]
    similar = harm_similarity(transitions(chat, PROMPTS, layers=LAYERS), harmful)
    threshold = float(similar.sort().values[2])
    asking = steering(chat, threshold, harmful)
    left_alone = asking.looks_harmful(chat, PROMPTS).tolist()
    assert left_alone == [value >= threshold for value in similar.tolist()]
    assert sorted(left_alone) == [False, False, True, True]
    assert left_alone[1]
    plain = chat.next_token_logits(chat.batch(chat.encode(PROMPTS)))
    steered = steering(chat, 1.1, harmful).next_token_logits(chat, PROMPTS)
    mixed = asking.next_token_logits(chat, PROMPTS)
    for row, alone in enumerate(left_alone):
        torch.testing.assert_close(mixed[row], (plain if alone else steered)[row])
        assert not torch.allclose(mixed[row], (steered if alone else plain)[row])


def test_the_hooks_go_after_an_error(tiny, monkeypatch):
    chat = tiny("llama", num_hidden_layers=3)
    asking = steering(chat, 1.1)
    hooks = hook_count(chat.module)
    monkeypatch.setattr(type(chat), "generate", lambda *_args, **_kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        asking.answers(chat, PROMPTS, max_new_tokens=2)
    assert hook_count(chat.module) == hooks


def test_fingerprints_tell_every_number_apart(tiny):
    chat = tiny("llama", num_hidden_layers=3)
    askings = [
        steering(chat, 0.5),
        steering(chat, 0.6),
        steering(chat, 0.5, harmful=direction(chat, seed=5)),
        steering(chat, 0.5, vectors=direction(chat, seed=5)),
    ]
    assert len({asking.fingerprint for asking in askings}) == len(askings)
