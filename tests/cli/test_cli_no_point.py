"""A calibration that finds no operating point, from the command line: a whole run with a failed gate, not an error."""

import json

import pytest
from cli_runs import LENIENT, call, error_of, prompt_files

from demur.testing import TOY_MODEL


@pytest.fixture(scope="module")
def nothing(tmp_path_factory):
    """The toy with a limit on the KL that no change of its weights keeps."""
    folder = tmp_path_factory.mktemp("nothing")
    limits = [*LENIENT, "--lambdas", "1", "--gate-kl-limit", "1e-12"]
    words = ["calibrate", TOY_MODEL, *prompt_files(folder), "--out", folder / "run", *limits, "--json"]
    return folder / "run", words, call(*words)


def test_it_exits_as_a_failed_gate_with_the_summary(nothing):
    run, _, called = nothing
    assert called.code == 100, called.err
    summary = json.loads(called.out)
    assert summary == json.loads((run / "summary.json").read_text())
    assert summary["operating_point"] is None
    assert summary["gate"]["decision"] == "fail"
    assert summary["lambda_curve"][0]["misses"]
    assert "gate: fail" in called.err
    assert "No operating point removes false refusals" in called.err
    assert "Traceback" not in called.err


def test_the_reports_are_written(nothing):
    run, _, _ = nothing
    assert "None was chosen: the table is the frontier." in (run / "report.md").read_text()
    assert "KL" in (run / "report.html").read_text()


def test_the_same_command_again_gives_the_same_at_once(nothing):
    _, words, first = nothing
    again = call(*words)
    assert (again.code, again.out) == (100, first.out)
    assert "scoring" not in again.err


def test_there_is_nothing_to_export(nothing, tmp_path):
    run, _, _ = nothing
    called = call("export", run, "--format", "adapter", "--to", tmp_path / "out", "--json")
    assert called.code == 100
    error = error_of(called)
    assert error["type"] == "GateError"
    assert "No operating point removes false refusals" in error["message"]
    assert not (tmp_path / "out").exists()
