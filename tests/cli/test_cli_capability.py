"""`demur capability`: options in, one library call, the record out."""

import json

import pytest
import torch
from cli_runs import call, error_of

from demur.interventions import DirectionalAblation
from demur.records import CapabilityRecord, read_record
from demur.testing import TOY_MODEL

TASK = """
task: toy_colours
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: 0
metric_list:
  - metric: acc
metadata:
  version: 3
"""
ROWS = [
    {"question": f"What is the colour of {thing}?", "choices": [right, wrong]}
    for thing, right, wrong in (("coal", "Black", "White"), ("snow", "White", "Black"), ("grass", "Green", "Red"))
]


@pytest.fixture
def task(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _results: None)  # it runs pip
    data, path = tmp_path / "rows.json", tmp_path / "task.yaml"
    data.write_text(json.dumps(ROWS))
    path.write_text(TASK.format(data=data))
    return path


def test_the_record_is_printed_and_written(task, tmp_path):
    out = tmp_path / "record.json"
    called = call("capability", TOY_MODEL, "--tasks", task, "--out", out, "--device", "cpu", "--json")
    assert called.code == 0, called.err
    record = CapabilityRecord.model_validate_json(called.out)
    assert record == read_record(out, CapabilityRecord)
    (found,) = record.tasks
    assert (found.name, found.version, found.n) == ("toy_colours", "3", 3)
    assert (record.fingerprint, found.metrics[0].after) == (None, None)
    assert f"toy_colours acc, n=3: {found.metrics[0].before:.4g}" in called.err


def test_options_reach_the_measurement(task, tmp_path):
    called = call(
        "capability", TOY_MODEL, "--tasks", f"{task},", "--limit", "2", "--batch-size", "3", "--seed", "5",
        "--no-chat-template", "--system", "Be brief.", "--cache", tmp_path / "cache", "--json",
    )  # fmt: skip
    record = CapabilityRecord.model_validate_json(called.out)
    assert (record.limit, record.batch_size, record.seed, record.chat_template) == (2, 3, 5, False)
    assert (record.tasks[0].n, record.rendering.system) == (2, "Be brief.")
    assert len(list((tmp_path / "cache").glob("*.jsonl"))) == 1


def test_a_run_is_measured_before_and_after(task, tmp_path, monkeypatch):
    asked = []
    change = DirectionalAblation(torch.randn(100, 128, generator=torch.Generator().manual_seed(0)))

    def load(chat, run):
        asked.append((chat.name, run.path))
        return change, None

    monkeypatch.setattr("demur.calibration.load_operating_point", load)
    called = call("capability", TOY_MODEL, "--tasks", task, "--run", tmp_path / "run")
    assert called.code == 0, called.err
    assert asked == [(TOY_MODEL, tmp_path / "run")]
    assert "toy_colours acc, n=3:" in called.out
    assert " before, " in called.out
    assert " gained, p=" in called.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", ","], "at least one task"),
        (["--tasks", "gone.yaml"], "cannot read the task file gone.yaml"),
        (["--tasks", "gone.yaml", "--limit", "0"], "got 0 and 16"),
        (["--tasks", "x", "--run", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_measured_is_a_usage_error(words, message):
    called = call("capability", TOY_MODEL, *words, "--json")
    assert called.code == 2
    assert message in error_of(called)["message"]
