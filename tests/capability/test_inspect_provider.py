"""inspect_ai tasks against a live model: the change is active while it generates, named in the log, never mixed up."""

import importlib.metadata
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from demur.errors import InputError
from demur.interventions import DirectionalAblation
from demur.models import hook_count

QUESTIONS = [
    "What is the month after August?",
    "I forgot the capital of Ireland. What is it?",
    "Do you know the month after June?",
]


@pytest.fixture(scope="module")
def inspect(tmp_path_factory):
    """`run(model, ...)` evaluates a small task and returns its log."""
    from inspect_ai import Task
    from inspect_ai import eval as run_task
    from inspect_ai.dataset import Sample
    from inspect_ai.scorer import includes
    from inspect_ai.solver import generate, system_message

    logs = tmp_path_factory.mktemp("logs")

    def run(model, *, system=None, cache=False, **config):
        solver = [generate(cache=cache)] if system is None else [system_message(system), generate(cache=cache)]
        samples = [Sample(input=question, target="September", id=index) for index, question in enumerate(QUESTIONS)]
        task = Task(dataset=samples, solver=solver, scorer=includes(), name="toy_task")
        (log,) = run_task(task, model=model, log_dir=str(logs), display="none", log_format="json", **config)
        return log

    return run


def provider(*arguments, **options):
    from demur.capability import inspect_provider

    return inspect_provider(*arguments, **options)


def texts(log):
    assert log.status == "success", log.error
    return [sample.output.completion for sample in sorted(log.samples, key=lambda sample: sample.id)]


def answers(chat, count=24):
    return [answer.text for answer in chat.generate(QUESTIONS, max_new_tokens=count)]


@pytest.fixture
def watched(toy, monkeypatch):
    """Batches that the model generated: how many prompts, and whether hooks or other weights were in place."""
    weights = dict(toy.module.named_parameters(remove_duplicate=False))
    seen = []
    real = type(toy).answers

    def answers(self, sequences, **options):
        swapped = any(tensor is not weights[name] for name, tensor in toy.module.named_parameters())
        seen.append((len(sequences), swapped, hook_count(toy.module) > 0))
        return real(self, sequences, **options)

    monkeypatch.setattr(type(toy), "answers", answers)
    yield seen
    assert all(weights[name] is tensor for name, tensor in toy.module.named_parameters(remove_duplicate=False))
    assert hook_count(toy.module) == 0


@pytest.mark.parametrize("folded", [True, False])
def test_the_change_is_active_while_it_generates_and_only_then(toy, damage, inspect, watched, folded):
    with damage.folded_into(toy):
        expected = answers(toy)
    watched.clear()
    log = inspect(provider(toy, damage, folded=folded), max_tokens=24)
    assert texts(log) == expected
    assert expected != answers(toy)
    assert all((swapped, hooks) == (folded, not folded) for _, swapped, hooks in watched[:-1])


def test_the_log_names_the_model_and_the_intervention(toy, damage, inspect):
    log = inspect(provider(toy, damage), max_tokens=4)
    stated = log.eval.model_dump(mode="json")
    assert stated["model_args"]["fingerprint"] == damage.fingerprint
    assert damage.fingerprint in Path(log.location).read_text()
    assert stated["model"].startswith("demur/")
    assert stated["model"].rpartition("@")[2] == log.samples[0].output.metadata["state"][:16]
    assert log.samples[0].output.metadata["intervention"] == damage.fingerprint
    assert log.samples[0].output.metadata["form"] == "folded"
    assert len(json.dumps(stated["model_args"])) < 500  # the model's fields are not written out


def test_requests_are_answered_together(toy, inspect, watched):
    log = inspect(provider(toy, batch_size=8), max_tokens=24)
    assert texts(log) == answers(toy)
    assert sum(count for count, _, _ in watched[:-1]) == len(QUESTIONS)
    assert len(watched[:-1]) < len(QUESTIONS)


def test_usage_counts_tokens_and_the_limit_is_told_from_an_end(toy, inspect):
    encoded = toy.encode(QUESTIONS)
    log = inspect(provider(toy), max_tokens=3)
    for sample, tokens in zip(log.samples, encoded, strict=True):
        usage = sample.output.usage
        assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (len(tokens), 3, len(tokens) + 3)
        assert sample.output.stop_reason == "max_tokens"
    whole = inspect(provider(toy), max_tokens=24)
    assert {sample.output.stop_reason for sample in whole.samples} == {"stop"}


def test_stop_sequences_cut(toy, inspect):
    log = inspect(provider(toy), max_tokens=24, stop_seqs=[" is", " the"])
    assert texts(log) == [text.split(" is")[0] for text in answers(toy)]
    assert {sample.output.stop_reason for sample in log.samples} == {"stop"}


def test_the_cache_of_inspect_keeps_models_apart(toy, damage, inspect, watched):
    base = texts(inspect(provider(toy), cache=True, max_tokens=23))
    assert len(watched) > 0
    watched.clear()
    assert texts(inspect(provider(toy), cache=True, max_tokens=23)) == base
    assert watched == []  # the cache is on and hits
    changed = texts(inspect(provider(toy, damage), cache=True, max_tokens=23))
    assert len(watched) > 0
    assert changed != base
    watched.clear()
    texts(inspect(provider(toy, damage, folded=False), cache=True, max_tokens=23))
    assert len(watched) > 0


def test_the_name_changes_with_all_that_answers_depend_on(toy, damage):
    from demur.testing import load_toy_chat_model

    other = load_toy_chat_model()
    other.template = replace(other.template, system="Be brief.")
    heavier = load_toy_chat_model()
    with torch.no_grad():
        next(heavier.model.parameters()).mul_(1.01)
    models = [
        provider(toy), provider(toy, damage), provider(toy, damage, folded=False), provider(other), provider(heavier),
        provider(toy, DirectionalAblation(damage.directions[:1])),
    ]  # fmt: skip
    assert len({str(model) for model in models}) == len(models)
    assert str(provider(toy, damage)) == str(models[1])


def test_conversations_go_through_the_chat_template(toy):
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, GenerateConfig

    messages = [
        ChatMessageSystem(content="Be brief."),
        ChatMessageUser(content=QUESTIONS[0]),
        ChatMessageAssistant(content="September."),
        ChatMessageUser(content=QUESTIONS[1]),
    ]
    request = provider(toy).api._request(messages, [], GenerateConfig(max_tokens=5))
    rendered = toy.tokenizer.apply_chat_template(
        [{"role": message.role, "content": message.text} for message in messages],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert request.tokens == toy.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert (request.max_tokens, request.seed) == (5, None)


def test_samples_are_drawn_at_temperature_one_with_seeds(toy, inspect, monkeypatch):
    real, drawn = type(toy).answers, []

    def answers(self, sequences, *, seeds, **options):
        drawn.extend(zip(map(tuple, sequences), seeds, strict=True))
        return real(self, sequences, seeds=seeds, **options)

    monkeypatch.setattr(type(toy), "answers", answers)

    def seeds(**config):
        drawn.clear()
        texts(inspect(provider(toy), temperature=1, max_tokens=4, **config))
        return dict(drawn)

    one, two, other = seeds(seed=4), seeds(seed=4), seeds(seed=5)
    assert one == two
    assert len({*one.values(), *other.values()}) == 2 * len(QUESTIONS)  # every prompt has its own
    assert seeds() != seeds()  # without a seed, every run is another draw


@pytest.mark.parametrize(
    ("config", "message"),
    [({"temperature": 0.7}, "temperature 0.7"), ({"top_p": 0.9}, "got top_p"), ({"num_choices": 2}, "got num_choices")],
)
def test_settings_that_would_be_ignored_are_refused(toy, inspect, config, message):
    log = inspect(provider(toy), max_tokens=4, **config)
    assert log.status == "error"
    assert message in log.error.message


def test_other_messages_are_refused(toy):
    from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, ContentImage, GenerateConfig

    api = provider(toy).api
    for messages, message in [
        ([ChatMessageUser(content="a"), ChatMessageAssistant(content="b")], "end with the user's turn"),
        ([ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AA==")])], "reads text only"),
    ]:
        with pytest.raises(InputError, match=message):
            api._request(messages, [], GenerateConfig())
    with pytest.raises(InputError, match="does not call tools"):
        api._request([ChatMessageUser(content="a")], ["tool"], GenerateConfig())


def test_an_error_of_the_model_reaches_every_sample(toy, inspect, monkeypatch):
    def broken(self, sequences, **_options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(type(toy), "answers", broken)
    log = inspect(provider(toy), max_tokens=4, fail_on_error=False)
    assert [sample.error.message for sample in log.samples] == ["RuntimeError('out of memory')"] * len(QUESTIONS)


def test_a_model_is_loaded_by_its_name(toy, damage):
    from inspect_ai.model import get_model

    from demur.testing import TOY_MODEL

    loaded = get_model(f"demur/{TOY_MODEL}", device="cpu", memoize=False)
    assert loaded.api.chat.identity.content_hash == toy.identity.content_hash
    named = get_model("demur/toy", path=TOY_MODEL, device="cpu", memoize=False)
    assert str(named).startswith("demur/toy@")
    assert named.api.state == loaded.api.state


def test_contradictions_are_refused(toy, damage):
    from inspect_ai.model import get_model

    for options, message in [
        ({"chat": toy, "path": "x"}, "path would be ignored"),
        ({"chat": toy, "dtype": "float32"}, "dtype would be ignored"),
        ({"chat": toy, "intervention": damage, "run": "x"}, "not both"),
        ({"chat": toy, "intervention": damage, "fingerprint": "0" * 64}, "expected was 0000"),
    ]:
        with pytest.raises(InputError, match=message):
            get_model("demur/toy", memoize=False, **options)


def test_the_provider_is_found_through_the_metadata_of_the_package():
    (entry,) = [entry for entry in importlib.metadata.entry_points(group="inspect_ai") if entry.name == "demur"]
    assert entry.value == "demur.capability.inspect_registry"


def test_inspect_starts_without_torch():
    import subprocess
    import sys

    code = "import sys, demur.capability.inspect_registry; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
