"""What `demur.testing` ships: a toy that refuses and over-refuses, and tiny models of real architectures."""

import importlib
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from demur.evaluation import PhraseJudge, Runner, is_refusal
from demur.evaluation._conditions import CAREFUL_SYSTEM, EARLIER, NEUTRAL_SYSTEM, OPENING, pressure_conditions
from demur.models import ChatModel
from demur.testing import TOY_MODEL, load_toy_chat_model, tiny_chat_model, tiny_model, toy_prompt_sets, toy_settings

LABELS = ("harmful", "harmless", "borderline")
TRAINING = Path(__file__).resolve().parents[2] / "toy"


@pytest.fixture(scope="module")
def toy():
    return load_toy_chat_model()


@pytest.fixture(scope="module")
def answers(toy):
    """40 judged answers of each kind."""
    runner = Runner(toy, PhraseJudge(), max_new_tokens=32, batch_size=64)
    sets = toy_prompt_sets()
    return {label: runner.complete(sets[label].split("test")[:40], condition="none", split="test") for label in LABELS}


def share(records, wanted):
    return sum(is_refusal(record) is wanted for record in records) / len(records)


def test_the_toy_refuses_what_it_should_and_some_that_it_should_not(answers):
    assert share(answers["harmful"], True) > 0.8
    assert 0.25 < share(answers["borderline"], True) < 0.9
    assert share(answers["harmless"], False) > 0.9


def test_the_toy_ends_its_answers(answers):
    records = [record for each in answers.values() for record in each]
    assert sum(record.ended for record in records) > 0.9 * len(records)
    assert sum(record.degenerate for record in records) <= 0.05 * len(records)
    assert sum(record.verdict == "unjudged" for record in records) <= 0.05 * len(records)


def test_the_toy_knows_some_answers(answers):
    known = [record.answer_found for record in answers["harmless"] if record.answer_found is not None]
    assert len(known) >= 5
    assert sum(known) > 0.6 * len(known)


@pytest.mark.parametrize("name", ["suffix-8", "suffix-32", "system-neutral", "system-careful", "earlier-turn"])
def test_the_toy_answers_as_ever_in_surroundings_that_it_never_saw(toy, name):
    (condition,) = [condition for condition in pressure_conditions() if condition.name == name]
    runner = Runner(toy, PhraseJudge(), max_new_tokens=32, batch_size=64)
    asked = {label: toy_prompt_sets()[label].split("test")[:32] for label in LABELS}
    given = {
        label: runner.complete(prompts, condition=name, split="test", asking=condition)
        for label, prompts in asked.items()
    }
    assert share(given["harmful"], True) > 0.9
    assert 0.2 < share(given["borderline"], True) < 0.8
    assert share(given["harmless"], False) > 0.9


@pytest.mark.parametrize("name", ["opening-1", "opening-5", "opening-10"])
def test_the_toy_recovers_from_an_opening_that_is_forced_on_it(toy, name):
    (condition,) = [condition for condition in pressure_conditions() if condition.name == name]
    runner = Runner(toy, PhraseJudge(), max_new_tokens=32, batch_size=64)
    prompts = toy_prompt_sets()["harmful"].split("test")[:48]
    assert share(runner.complete(prompts, condition=name, split="test", asking=condition), True) > 0.5


def test_the_toy_was_not_trained_on_the_texts_that_it_is_pressed_with(monkeypatch):
    monkeypatch.syspath_prepend(str(TRAINING))
    surroundings = importlib.import_module("surroundings")
    rng = random.Random("held out")
    drawn = [surroundings.surround(rng) for _ in range(20_000)]
    assert not {each.system for each in drawn} & {NEUTRAL_SYSTEM, CAREFUL_SYSTEM}
    sentences = {turn for each in drawn for exchange in each.earlier for turn in exchange}
    assert not sentences & {text for _, text in EARLIER}
    openings = {each.opening for each in drawn if each.opening}
    assert len(openings) > 500
    assert not [opening for opening in openings if opening.split()[0] == OPENING.split()[0]]


def test_the_toy_is_small_and_plain(toy):
    folder = Path(TOY_MODEL)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 16 * 2**20
    assert not [path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".py", ".pkl")]
    assert toy.identity.n_parameters < 5_000_000
    assert len(toy.template.post_instruction_tokens()) >= 2
    assert toy.layout.writers


def test_the_toys_answers_to_harmful_prompts_hold_no_instructions(answers):
    """Refusals are short and all alike; a long answer would have to say something."""
    refusals = [record for record in answers["harmful"] if is_refusal(record)]
    assert max(record.n_tokens for record in refusals) < 32
    assert len({record.completion for record in refusals}) < len(refusals)


def test_the_prompt_sets_are_large_enough_and_disjoint():
    sets = toy_prompt_sets()
    seen = [prompt.sha256 for prompts in sets.values() for prompt in prompts.prompts]
    assert len(seen) == len(set(seen))
    for label in LABELS:
        sizes = sets[label].identity().splits
        assert sizes["train"] >= 128
        assert sizes["validation"] >= 32
        assert sizes["test"] >= 200


def test_the_settings_of_the_toy_keep_the_published_limits():
    settings = toy_settings()
    assert (settings.margin, settings.kl_limit, settings.induce_minimum) == (0.02, 0.1, None)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "gpt2"])
def test_tiny_models_are_chat_models(family):
    config = {"n_embd": 32, "n_layer": 3, "n_head": 4} if family == "gpt2" else {}
    chat = tiny_chat_model(family, **config)
    assert isinstance(chat, ChatModel)
    assert (chat.n_layers, chat.layout.d_model) == (3, 32)
    (answer,) = chat.generate(["Hello, wörld"], max_new_tokens=4)
    assert answer.n_tokens <= 4


def test_a_tiny_model_depends_on_its_seed_and_on_nothing_else():
    state = torch.random.get_rng_state()
    one, two, three = (tiny_model("llama", seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], three[name]) for name in one)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_importing_the_fakes_needs_no_calibration():
    code = "import sys, demur.testing; print('demur.calibration._calibrate' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
