"""The harness in process: numbers against a loop over the model, paired comparisons, and the cache trap."""

import json
import math
import random
import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from capability_tasks import N, rows, write_tasks

from demur.capability import PRESETS, measure_capability
from demur.errors import InputError, ModelError
from demur.evaluation import bootstrap_mean, paired_comparison, rate
from demur.interventions import ActivationAddition
from demur.models import hook_count
from demur.records import CapabilityRecord


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def record(toy, damage, tasks):
    paths = [tasks["toy_choice"], tasks["toy_generate"], tasks["toy_rolling"]]
    return measure_capability(toy, paths, intervention=damage, batch_size=7, seed=2)


def metric_of(record, task, name):
    (found,) = [metric for each in record.tasks if each.name == task for metric in each.metrics if metric.name == name]
    return found


def log_likelihood(chat, start, text):
    """Of `text` after `start`, token by token, no batch, no cache."""
    ids = chat.tokenizer(start, add_special_tokens=False)["input_ids"]
    whole = chat.tokenizer(start + text, add_special_tokens=False)["input_ids"]
    assert whole[: len(ids)] == ids
    with torch.no_grad():
        rows = torch.log_softmax(chat.model(torch.tensor([whole])).logits[0].double(), -1)
    return sum(float(rows[index - 1, whole[index]]) for index in range(len(ids), len(whole)))


def chosen(chat):
    """Whether the right answer is the likelier one, question by question, after the chat template."""
    found = []
    for row in rows():
        start = chat.template.render(row["question"])
        found.append(log_likelihood(chat, start, row["good"]) > log_likelihood(chat, start, row["bad"]))
    return found


def answered(chat):
    answers = chat.generate([row["question"] for row in rows()], max_new_tokens=12)
    return [answer.text.split(" ")[0] == row["good"] for answer, row in zip(answers, rows(), strict=True)]


@pytest.mark.parametrize(
    ("task", "name", "loop"), [("toy_choice", "acc", chosen), ("toy_generate", "exact_match", answered)]
)
def test_zero_one_metrics_are_paired_counts(toy, damage, record, task, name, loop):
    before = loop(toy)
    with damage.folded_into(toy):
        after = loop(toy)
    found = metric_of(record, task, name)
    assert (found.share.before, found.share.after) == (rate(before), rate(after))
    assert found.comparison == paired_comparison(before, after)
    assert found.before == pytest.approx(sum(before) / N)
    assert found.after == pytest.approx(sum(after) / N)
    assert sum(before) > sum(after), "the damage must show, or the test shows nothing"
    assert found.samples is None
    assert found.higher_is_better is True


def test_perplexity_is_compared_document_by_document(toy, damage, record):
    found = metric_of(record, "toy_rolling", "word_perplexity")
    sums = []
    for context in (None, damage):
        values = []
        for row in rows():
            ids = toy.tokenizer(row["text"], add_special_tokens=False)["input_ids"]
            whole = [toy.tokenizer.eos_token_id, *ids]  # the harness starts a document without BOS with the end token
            if context is None:
                values.append(surprise(toy, whole))
            else:
                with context.folded_into(toy):
                    values.append(surprise(toy, whole))
        sums.append(values)
    words = [len(row["text"].split()) for row in rows()]
    for reported, values in zip((found.before, found.after), sums, strict=True):
        assert reported == pytest.approx(math.exp(sum(values) / sum(words)), rel=1e-3)
    per_word = [[value / count for value, count in zip(values, words, strict=True)] for values in sums]
    assert found.samples.unit == "nats_per_unit"
    assert found.samples.before.mean == pytest.approx(np.mean(per_word[0]), rel=1e-3)
    difference = bootstrap_mean([two - one for one, two in zip(*per_word, strict=True)], seed=2)
    assert found.samples.difference.model_dump() == pytest.approx(difference.model_dump(), rel=1e-2)
    assert abs(found.samples.difference.mean) > 0.1
    assert (found.share, found.comparison) == (None, None)


def surprise(chat, ids):
    with torch.no_grad():
        rows = torch.log_softmax(chat.model(torch.tensor([ids])).logits[0].double(), -1)
    return -sum(float(rows[index - 1, ids[index]]) for index in range(1, len(ids)))


def test_the_record_says_what_was_measured(toy, damage, record):
    assert (record.fingerprint, record.form, record.model) == (damage.fingerprint, "folded", toy.identity)
    assert record.harness.startswith("lm_eval 0.")
    assert [task.name for task in record.tasks] == ["toy_choice", "toy_generate", "toy_rolling"]
    assert {task.version for task in record.tasks} == {"1.5"}
    assert {task.n for task in record.tasks} == {N}
    assert len({task.config_sha256 for task in record.tasks}) == 3
    assert metric_of(record, "toy_generate", "exact_match").filter == "first-word"
    assert CapabilityRecord.model_validate_json(record.model_dump_json(by_alias=True)) == record
    assert rows()[0]["question"] not in record.model_dump_json()


def test_the_model_and_the_random_numbers_are_put_back(toy, damage, tasks):
    before = dict(toy.module.named_parameters(remove_duplicate=False))
    config, padding = toy.model.generation_config, toy.tokenizer.padding_side
    states = random.getstate(), np.random.get_state()[1].copy(), torch.random.get_rng_state()
    measure_capability(toy, [tasks["toy_choice"]], intervention=damage, limit=2)
    after = dict(toy.module.named_parameters(remove_duplicate=False))
    assert all(after[name] is tensor for name, tensor in before.items())
    assert toy.model.generation_config is config
    assert toy.tokenizer.padding_side == padding
    assert hook_count(toy.module) == 0
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.random.get_rng_state(), states[2])


def test_hooks_and_folded_weights_agree_and_are_told_apart(toy, damage, tasks, record):
    applied = measure_capability(toy, [tasks["toy_choice"]], intervention=damage, folded=False, batch_size=7, seed=2)
    assert applied.form == "applied"
    assert metric_of(applied, "toy_choice", "acc") == metric_of(record, "toy_choice", "acc")


def test_without_an_intervention_there_is_no_after(toy, tasks, record):
    found = measure_capability(toy, [tasks["toy_choice"], tasks["toy_rolling"]], batch_size=7, seed=2)
    choice, perplexity = metric_of(found, "toy_choice", "acc"), metric_of(found, "toy_rolling", "word_perplexity")
    assert choice.share.before == metric_of(record, "toy_choice", "acc").share.before
    assert perplexity.samples.before == metric_of(record, "toy_rolling", "word_perplexity").samples.before
    assert (choice.after, choice.share.after, choice.comparison, found.fingerprint, found.form) == (None,) * 5
    assert (perplexity.after, perplexity.samples.after, perplexity.samples.difference) == (None,) * 3


def test_a_group_pools_its_tasks(toy, damage, tasks, tmp_path, record):
    folder = tmp_path
    paths = write_tasks(folder)
    found = measure_capability(
        toy, [paths["toy_group"]], include_path=folder, intervention=damage, batch_size=7, seed=2
    )
    (group,) = found.groups
    (accuracy,) = group.metrics
    assert (group.name, group.n, group.config_sha256) == ("toy_group", N, None)
    assert accuracy.comparison == metric_of(record, "toy_choice", "acc").comparison


def test_limit_takes_the_first_samples_and_the_hash_shows_it(toy, tasks, record):
    found = measure_capability(toy, [tasks["toy_choice"]], limit=5)
    (task,) = found.tasks
    assert (task.n, found.limit) == (5, 5)
    assert metric_of(found, "toy_choice", "acc").share.before == rate(chosen(toy)[:5])
    assert task.samples_sha256 != record.tasks[0].samples_sha256
    assert task.config_sha256 == record.tasks[0].config_sha256


def test_the_chat_template_is_used_unless_told_otherwise(toy, tasks, record):
    plain = measure_capability(toy, [tasks["toy_choice"]], apply_chat_template=False)
    assert plain.chat_template is False
    assert plain.tasks[0].samples_sha256 != record.tasks[0].samples_sha256
    expected = [
        log_likelihood(toy, row["question"], row["good"]) > log_likelihood(toy, row["question"], row["bad"])
        for row in rows()
    ]
    assert metric_of(plain, "toy_choice", "acc").share.before == rate(expected)


def test_the_system_prompt_and_the_response_prefix_are_part_of_the_question(tasks, tmp_path):
    from demur.testing import load_toy_chat_model

    chat = load_toy_chat_model()
    chat.template = replace(chat.template, system="Be brief.", response_prefix="Well:")
    found = measure_capability(chat, [tasks["toy_choice"]], limit=6)
    assert metric_of(found, "toy_choice", "acc").share.before == rate(chosen(chat)[:6])
    assert (found.rendering.system, found.rendering.response_prefix) == ("Be brief.", "Well:")
    plain = measure_capability(load_toy_chat_model(), [tasks["toy_choice"]], limit=6)
    assert plain.tasks[0].samples_sha256 != found.tasks[0].samples_sha256


def test_an_answer_is_as_long_as_the_task_says_not_as_the_checkpoint_says(tasks):
    from demur.testing import load_toy_chat_model

    chat = load_toy_chat_model()
    chat.model.generation_config.max_new_tokens = 1
    chat.model.generation_config.repetition_penalty = 9.0
    found = metric_of(measure_capability(chat, [tasks["toy_generate"]]), "toy_generate", "exact_match")
    assert found.share.before == rate(answered(load_toy_chat_model()))


@contextmanager
def counted(chat):
    """Counts the forward passes of the model."""
    calls = []
    handle = chat.model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        handle.remove()


def test_a_changed_model_never_gets_the_answers_of_another(toy, damage, tasks, tmp_path, record):
    paths = [tasks["toy_choice"], tasks["toy_generate"], tasks["toy_rolling"]]

    with counted(toy) as calls:

        def run(**options):
            calls.clear()
            found = measure_capability(toy, paths, cache=tmp_path / "cache", batch_size=7, seed=2, **options)
            return found, len(calls)

        base, passes = run()
        assert passes > 0
        again, none = run()
        assert (again, none) == (base, 0)
        changed, fresh = run(intervention=damage)
        assert fresh > 0
        assert changed == record
        again, none = run(intervention=damage)
        assert (again, none) == (record, 0)
        _, applied = run(intervention=damage, folded=False)
        assert applied > 0
    files = sorted((tmp_path / "cache").glob("*"))
    assert [path.suffix for path in files] == [".jsonl"] * 3  # base, folded, applied


def test_a_killed_run_goes_on_with_what_it_has(toy, tasks, tmp_path, monkeypatch):
    from demur.capability import _cache

    monkeypatch.setattr(_cache, "_TOGETHER", 1)
    options = {"cache": tmp_path, "batch_size": 4}
    with counted(toy) as calls:
        real = toy.model.forward
        toy.model.forward = lambda *args, **named: real(*args, **named) if len(calls) <= 3 else 1 / 0
        try:
            with pytest.raises(ZeroDivisionError):
                measure_capability(toy, [tasks["toy_choice"]], **options)
        finally:
            del toy.model.forward
        kept = len(next(tmp_path.glob("*.jsonl")).read_text().splitlines())
        assert 0 < kept < 2 * N
        calls.clear()
        found = measure_capability(toy, [tasks["toy_choice"]], **options)
        assert 0 < len(calls) <= math.ceil((2 * N - kept) / 4)
    assert metric_of(found, "toy_choice", "acc").share.before == rate(chosen(toy))


def test_another_rendering_or_model_has_its_own_cache_file(toy, tasks, tmp_path):
    from demur.testing import load_toy_chat_model

    def files():
        measure_capability(chat, [tasks["toy_choice"]], limit=1, cache=tmp_path)
        return {path.name for path in tmp_path.glob("*.jsonl")}

    chat = load_toy_chat_model()
    one = files()
    chat.template = replace(chat.template, system="Be brief.")
    two = files()
    chat = load_toy_chat_model()
    with torch.no_grad():
        next(chat.model.parameters()).mul_(1.01)
    three = files()
    assert len(one) == 1
    assert len(two) == 2
    assert len(three) == 3


def test_responses_survive_the_file(tmp_path):
    from demur.capability._cache import ResponseCache

    values = {"a": "text", "b": "", "c": -1.5, "d": (-2.25, True), "e": (-0.1, False), "f": -math.inf}
    cache = ResponseCache(tmp_path, {"state": 1})
    for key, value in values.items():
        cache.put(key, value)
    cache.flush()
    read = ResponseCache(tmp_path, {"state": 1})
    assert {key: read.get(key) for key in values} == {**values, "f": None}  # JSON has no infinity
    assert cache.get("f") == -math.inf
    assert ResponseCache(tmp_path, {"state": 2}).get("a") is None
    lines = next(tmp_path.glob("*.jsonl")).read_text().splitlines()
    assert len(lines) == 5
    assert json.loads(lines[0])["text"] == "text"


def test_nan_is_an_error_and_not_a_wrong_answer(toy, tasks):
    broken = ActivationAddition(torch.full((toy.layout.d_model,), torch.nan), 0)
    with pytest.raises(ModelError, match="NaN"):
        measure_capability(toy, [tasks["toy_choice"]], intervention=broken, folded=False, limit=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": []}, "at least one task"),
        ({"limit": 0}, "got 0 and 16"),
        ({"batch_size": 0}, "got None and 0"),
        ({"tasks": ["missing.yaml"]}, "cannot read the task file missing.yaml"),
    ],
)
def test_what_cannot_be_measured_is_refused(toy, tasks, options, message):
    with pytest.raises(InputError, match=message):
        measure_capability(toy, **{"tasks": [tasks["toy_choice"]], **options})


def test_a_file_without_a_task_is_refused(toy, tmp_path):
    path = tmp_path / "other.yaml"
    path.write_text("output_type: generate_until\n")
    with pytest.raises(InputError, match="defines no task"):
        measure_capability(toy, [str(path)])


def test_every_preset_is_a_task_of_the_harness():
    """Read from its files: to index all of them takes the harness half a minute."""
    import lm_eval.tasks

    folder = Path(lm_eval.tasks.__file__).parent
    text = "\n".join(
        path.read_text()
        for name in ("mmlu/default", "arc", "gsm8k", "truthfulqa", "wikitext", "tinyBenchmarks")
        for path in (folder / name).glob("*.yaml")
    )
    for name in (name for names in PRESETS.values() for name in names):
        assert re.search(rf"^(task|group): {name}$", text, re.MULTILINE), name


def test_unknown_tasks_and_missing_packages_are_refused(monkeypatch):
    from demur.capability import _tasks

    class Manager:
        def __init__(self, include_path, include_defaults):
            assert include_path == []
            self.all_tasks = ["mmlu", *PRESETS["tinybenchmarks"]] if include_defaults else []

    monkeypatch.setattr("lm_eval.tasks.TaskManager", Manager)
    monkeypatch.setattr(_tasks.importlib.util, "find_spec", lambda _: None)
    assert _tasks.find_tasks(["mmlu"]).names == ("mmlu",)
    with pytest.raises(InputError, match=r"no task 'mmlv'.*Did you mean mmlu"):
        _tasks.find_tasks(["mmlv"])
    with pytest.raises(InputError, match="needs the package tinyBenchmarks"):
        _tasks.find_tasks(["tinybenchmarks"])


def test_a_missing_harness_is_explained(toy, tasks, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(InputError, match=r"pip install 'demur\[capability\]'"):
        measure_capability(toy, [tasks["toy_choice"]])
