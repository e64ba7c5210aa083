import json
import shutil
from pathlib import Path

import pytest
from cli_runs import call, error_of

from demur.assurance import Directions, DriftMonitor
from demur.calibration import CalibrationSettings
from demur.directions import load_directions
from demur.models import FineTuning, fine_tuned
from demur.records import RunFolder
from demur.testing import TOY_MODEL, load_toy_chat_model


@pytest.fixture(scope="module")
def watched(cli_run, tmp_path_factory):
    """Folder of a model that a monitor watched while it forgot to refuse, and a folder of its last checkpoint."""
    from demur.prompts import load_prompt_sets

    prompts = load_prompt_sets(
        harmful=cli_run.options[1], harmless=cli_run.options[3], borderline=cli_run.options[5], near_duplicates=None
    )
    folder = tmp_path_factory.mktemp("drift")
    chat = load_toy_chat_model()
    run = RunFolder(cli_run.run)
    tokens = tuple(token.id for token in run.read_summary().refusal_tokens)
    directions = Directions(load_directions(run.directions)["refusal_direction"], None, tokens, "calibration run")
    monitor = DriftMonitor(chat, prompts, directions=directions, out=folder / "watched", n_probes=16)
    monitor.measure(0)
    rows = [(prompt.text, "Sure, here is how.") for prompt in prompts["borderline"].split("train")]
    with fine_tuned(chat, rows, FineTuning(steps=8, learning_rate=1e-2)):
        monitor.measure(8)
        chat.model.save_pretrained(folder / "checkpoint-8")
        chat.tokenizer.save_pretrained(folder / "checkpoint-8")
    return folder


def test_a_watched_training_becomes_a_page_and_an_exit_code(watched, tmp_path):
    called = call("drift", watched / "watched", "--out", tmp_path / "out")
    assert called.code == 100
    assert (
        "Refusal erodes: 1 of 1 later checkpoint raised an alarm, the first one at step 8." in called.err + called.out
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"drift.json", "drift.html", "drift.md"}


def test_json_is_the_record(watched, tmp_path):
    called = call("drift", watched / "watched", "--out", tmp_path / "out", "--json")
    document = json.loads(called.out)
    assert document == json.loads((tmp_path / "out" / "drift.json").read_text())
    assert document["schema"] == "demur.drift/1"
    assert document["decision"] == "fail"


def test_a_limit_that_lets_it_pass_is_obeyed(watched, tmp_path):
    words = ["--gap-kept", "0.0001", "--score-kept", "0.0001", "--auroc-loss", "0.499", "--false-alarms", "0.000001"]
    called = call("drift", watched / "watched", "--out", tmp_path / "out", "--json", *words)
    document = json.loads(called.out)
    assert document["rule"] == {
        "false_alarm_rate": 1e-06, "gap_kept": 0.0001, "score_kept": 0.0001, "auroc_loss": 0.499
    }  # fmt: skip
    left = {test["statistic"]: test["estimate"]["value"] for test in document["rows"][1]["tests"]}
    assert called.code == (100 if left["score"] < 0 else 0)


def test_a_model_folder_is_measured_against_the_reference(watched, cli_run, tmp_path):
    called = call(
        "drift", watched / "checkpoint-8", "--reference", watched / "watched", "--out", tmp_path / "out",
        *cli_run.options, "--max-new-tokens", "24", "--no-reselect", "--json",
    )  # fmt: skip
    assert called.code == 100, called.err
    first, last = json.loads(called.out)["rows"]
    assert (first["name"], last["name"], last["step"]) == ("step 0", "checkpoint-8", 8)
    assert last["behaviour"]["harmful"]["rate"]["rate"] < 0.5
    harmful = [json.loads(line)["prompt"] for line in Path(cli_run.options[1]).read_text().splitlines()]
    for text in (called.out, called.err, (tmp_path / "out" / "drift.html").read_text()):
        assert not [prompt for prompt in harmful if prompt in text]


def test_calibrations_are_merged_without_a_model(cli_run, tmp_path):
    shutil.copytree(cli_run.run, tmp_path / "later")
    called = call("drift", cli_run.run, tmp_path / "later", "--out", tmp_path / "out", "--json")
    assert called.code == 101, called.err  # nothing that alarms are decided on is in a calibration
    document = json.loads(called.out)
    assert document["provenance"]["device"] == "none"
    (row,) = document["rows"]  # the same model twice
    assert (row["cosine"], row["gap"], row["tests"]) == (pytest.approx(1.0), None, [])
    summary = RunFolder(cli_run.run).read_summary()
    assert row["behaviour"]["harmful"]["rate"]["k"] == summary.metrics.true_refusal_rate.before.k
    direction = load_directions(RunFolder(cli_run.run).directions)["refusal_direction"]
    assert row["selected"] == {"position": direction.position, "layer": direction.layer}


def test_prompts_come_together(cli_run, tmp_path):
    called = call("drift", TOY_MODEL, *cli_run.options[:2], "--out", tmp_path, "--json")
    assert called.code == 2
    assert "give both --harmful and --harmless" in error_of(called)["message"]


def test_a_model_without_prompts_is_refused(tmp_path):
    called = call("drift", TOY_MODEL, "--out", tmp_path / "out", "--json")
    assert called.code == 2
    assert "give --harmful and --harmless" in error_of(called)["message"]


def test_defaults_are_those_of_python():
    from demur.assurance import DriftSettings

    shown = " ".join(call("drift", "--help").out.split())
    rule = DriftSettings().rule
    assert f"[default: {rule.gap_kept}]" in shown
    assert f"[default: {rule.score_kept}]" in shown
    assert f"[default: {rule.auroc_loss}]" in shown
    assert CalibrationSettings().max_new_tokens == DriftSettings().max_new_tokens
