"""Several processes that share one run: the records are those of one process, byte for byte."""

import json
import os
import subprocess
import sys
from datetime import timedelta

import pytest
from cli_runs import LENIENT, prompt_files

from demur.cli import _helpers
from demur.cli._helpers import helped
from demur.errors import ModelError
from demur.testing import TOY_MODEL

RECORDS = ("completions.jsonl", "scores.jsonl", "score_pieces.jsonl", "candidates.json", "mechanism.json")
TENSORS = ("directions.safetensors", "edits.safetensors")


def launched(processes, *words):
    """`demur` under torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, "-m", "demur", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    options = prompt_files(folder)
    done = {}
    for processes in (1, 2):
        out = folder / f"run{processes}"
        done[processes] = out, launched(processes, "calibrate", TOY_MODEL, *options, "--out", out, *LENIENT, "--json")
    return done


def test_two_processes_write_what_one_writes(runs):
    (one, _), (two, called) = runs[1], runs[2]
    assert (two / "summary.json").is_file(), called.stderr[-2000:]
    for name in (*RECORDS, *TENSORS):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, two)]
    for summary in summaries:
        del summary["provenance"]
    assert summaries[0] == summaries[1]


def test_one_of_them_speaks(runs):
    _, called = runs[2]
    assert json.loads(called.stdout)["gate"]["decision"] in ("pass", "fail", "inconclusive")
    assert called.stderr.count("reading activations") == runs[1][1].stderr.count("reading activations")


def test_an_error_is_said_once(tmp_path):
    called = launched(2, "calibrate", tmp_path / "no model", "--out", tmp_path / "run", *prompt_files(tmp_path))
    assert called.returncode != 0
    assert called.stderr.count("error: ") == 1


def test_a_command_that_shares_nothing_runs_once():
    called = launched(2, "prompts", "list", "--json")
    assert called.returncode == 0
    json.loads(called.stdout)


def test_helpers_of_its_own_change_nothing(runs, tmp_path):
    """As `demur demo` starts them: the run is that of one process."""
    one, _ = runs[1]
    words = ["calibrate", TOY_MODEL, *map(str, prompt_files(tmp_path)), "--out", str(tmp_path / "run"), *LENIENT]
    program = (
        "import sys; from demur.cli import main; from demur.cli._helpers import helped\n"
        "with helped(1, sys.argv[1:]): main(sys.argv[1:])\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    called = subprocess.run(
        [sys.executable, "-c", program, *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert "another process" not in called.stderr
    for name in (*RECORDS, *TENSORS):
        assert (one / name).read_bytes() == (tmp_path / "run" / name).read_bytes(), name


def test_helpers_that_do_not_come_are_said_and_ended(monkeypatch):
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(_helpers, "_PATIENCE", timedelta(seconds=1))
    monkeypatch.setattr(_helpers.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    before = dict(os.environ)
    with pytest.raises(ModelError, match="the 2 processes did not find one another"), helped(1, ["prompts", "list"]):
        raise AssertionError("it went on alone")
    assert dict(os.environ) == before
    assert [each.poll() is not None for each in started] == [True]


def test_under_a_launcher_no_helpers_are_started(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(_helpers.subprocess, "Popen", None)
    with helped(1, ["demo"]):
        assert os.environ["WORLD_SIZE"] == "2"
