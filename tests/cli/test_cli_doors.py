"""Exit codes, JSON, messages and help of the command line; nothing here loads a real model."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_runs import call, error_of, process

import demur.calibration
from demur.errors import GateError, InputError, SelectionError
from demur.testing import TOY_MODEL

COMMANDS = (
    *("calibrate", "evaluate", "export", "report", "select", "demo", "compare-methods", "judge", "power", "capability"),
    *("inspect", "test", "audit", "suffixes", "drift", "monitor", "check"),
)
TABLE = {
    "n_layers": 10,
    "candidates": [
        {"position": -1, "layer": 3, "bypass_score": -5.0, "induce_score": 2.0, "kl_score": 0.05},
        {"position": -1, "layer": 4, "bypass_score": -9.0, "induce_score": 2.0, "kl_score": 0.5},
    ],
}


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(TABLE))
    return path


def sources(folder, *, absent=()):
    words = []
    for label in ("harmful", "harmless", "borderline"):
        path = folder / f"{label}.txt"
        if label not in absent:
            path.write_text("\n".join(f"{label} prompt number {number}" for number in range(200)) + "\n")
        words += [f"--{label}", str(path)]
    return [*words, "--near-duplicates", "off"]


# select -------------------------------------------------------------------------------------------------------------


def test_select_prints_a_sentence(table):
    called = call("select", table)
    assert called == (
        0,
        "position -1, layer 3: bypass -5.000, induce 2.000, KL 0.0500; 1 of 2 candidates pass the filters\n",
        "",
    )


def test_select_json(table):
    called = call("select", table, "--json")
    assert called.code == 0
    assert json.loads(called.out) == {
        "position": -1,
        "layer": 3,
        "survivors": 1,
        "candidates": 2,
        "bypass_score": -5.0,
        "induce_score": 2.0,
        "kl_score": 0.05,
    }
    assert json.loads(call("select", table, "--kl-limit", "0.6", "--json").out)["layer"] == 4


def test_select_when_nothing_survives(table):
    called = call("select", table, "--induce-minimum", "7", "--json")
    assert called.code == 2
    error = error_of(called)
    assert error["type"] == "SelectionError"
    assert "none of the 2 candidate directions passed the filters" in error["message"]


@pytest.mark.parametrize(
    ("command", "torch_is_needed"),
    [(["select", "{table}"], False), (["report", "{folder}"], False), (["--help"], False), (["export", "x"], True)],
)
def test_what_needs_no_model_loads_no_torch(table, tmp_path, command, torch_is_needed):
    """The last case shows that the check can fail."""
    code = (
        "import sys; from demur.cli import main; main(sys.argv[1:]); "
        "print(sorted({'torch', 'transformers', 'peft', 'datasets'} & set(sys.modules)), file=sys.stderr)"
    )
    words = [word.format(table=table, folder=tmp_path) for word in command]
    if torch_is_needed:
        words += ["--format", "merged", "--to", str(tmp_path / "new")]
    called = process(*words, code=code)
    assert ("'torch'" in called.err.splitlines()[-1]) is torch_is_needed, called.err


def test_report_of_a_real_run_loads_no_torch(cli_run):
    code = (
        "import sys; from demur.cli import main; code = main(sys.argv[1:]); "
        "print(code, sorted({'torch', 'transformers', 'peft', 'datasets'} & set(sys.modules)), file=sys.stderr)"
    )
    called = process("report", cli_run.run, code=code)
    assert called.err.splitlines()[-1] == "0 []"
    assert called.out == f"report: {cli_run.run / 'report.html'}\n"


# Exit codes ---------------------------------------------------------------------------------------------------------


def raising(error):
    def run(*_args, **_kwargs):
        raise error

    return run


EXPORT = ("export", "run", "--format", "merged", "--to", "new")


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (InputError("bad value"), 2, "InputError"),
        (SelectionError("none"), 2, "SelectionError"),
        (GateError("no"), 100, "GateError"),
        (KeyboardInterrupt(), 130, "Interrupted"),
        (RuntimeError("boom"), 1, "RuntimeError"),
    ],
)
def test_errors_become_exit_codes(monkeypatch, error, code, kind, as_json):
    monkeypatch.setattr(demur.calibration, "export", raising(error))
    called = call(*EXPORT, *(["--json"] if as_json else []))
    assert called.code == code
    message = {130: "interrupted; what was computed is kept", 1: "this is a bug in demur: boom"}.get(code, str(error))
    assert f"error: {message}" in called.err
    assert ("Traceback" in called.err) == (code == 1)
    if as_json:
        found = error_of(called)
        assert found["type"] == kind
        assert found["message"].startswith(message)
    else:
        assert called.out == ""


@pytest.mark.parametrize(("decision", "code"), [("pass", 0), ("fail", 100), ("inconclusive", 101), (None, 0)])
def test_the_gate_is_the_exit_code(monkeypatch, tmp_path, decision, code):
    import demur.cli._commands as commands

    gate = None if decision is None else SimpleNamespace(decision=decision, reasons=("because",))
    summary = SimpleNamespace(kind="evaluation", gate=gate, warnings=(), model_dump=lambda **_: {"gate": decision})
    monkeypatch.setattr(demur.calibration, "calibrate", lambda *_args, **_kwargs: summary)
    monkeypatch.setattr(commands, "load_model", lambda *_: None)
    monkeypatch.setattr(commands, "write_reports", lambda run: (run / "report.html", run / "report.md"))
    monkeypatch.setattr("demur.cli._console.summary_table", lambda _: [])
    called = call("calibrate", "m", *sources(tmp_path), "--out", tmp_path / "run", "--json")
    assert called.code == code
    assert json.loads(called.out) == {"gate": decision}
    if decision not in (None, "pass"):
        assert "- because" in called.err


def test_exit_codes_reach_the_shell(table, tmp_path):
    good = process("select", table, "--json")
    assert (good.code, json.loads(good.out)["layer"]) == (0, 3)
    assert good.err.startswith("position -1, layer 3: ")
    bad = process("report", tmp_path / "absent", "--json")
    assert bad.code == 2
    assert "is no run folder (no summary.json). Make one with: demur calibrate MODEL" in error_of(bad)["message"]


# Usage --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["select"], "Missing argument 'SCORES.json'"),
        (["select", "a.json", "--kl-limit", "much"], "Invalid value for '--kl-limit'"),
        (["select", "a.json", "--colour"], "No such option: --colour"),
        (["export", "run", "--format", "gguf", "--to", "x"], "Invalid value for '--format'"),
        (["export", "run", "--to", "x"], "Missing option '--format'"),
        (["export", "run", "--format", "merged", "--to", "x", "--force"], "No such option: --force"),
        (["audit", "m"], "Missing option '--harmful'"),
        (["report", "a", "b"], "unexpected extra argument"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_usage_errors(words, message, as_json):
    called = call(*words, *(["--json"] if as_json else []))
    assert called.code == 2
    assert message in called.err
    assert "Traceback" not in called.err
    assert " --help" in called.err
    if as_json:
        error = error_of(called)
        assert error["type"] == "UsageError"
        assert message in error["message"]
    else:
        assert called.out == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command):
    called = call(command, "--help")
    assert called.code == 0
    assert called.out.startswith(f"Usage: demur {command} ")
    assert "--json" in called.out
    assert called.err == ""


def test_help_lists_the_commands():
    called = call("--help")
    assert called.code == 0
    assert all(f"  {command} " in called.out for command in COMMANDS)
    assert "Calibrate how a chat model says no" in called.out


def test_no_command_shows_the_help():
    called = call()
    assert called.code == 2
    assert "Usage: demur " in called.out + called.err


def test_no_command_offers_a_way_around_the_gate():
    for command in COMMANDS:
        text = call(command, "--help").out.lower()
        assert not [
            word for word in ("--force", "--skip", "--no-gate", "--ignore", "--override", "--yes") if word in text
        ]


# Files --------------------------------------------------------------------------------------------------------------


def calibrate_words(tmp_path, *more, **options):
    return ["calibrate", TOY_MODEL, *sources(tmp_path, **options), "--out", tmp_path / "run", *more, "--json"]


def test_a_missing_prompt_file_is_named(tmp_path):
    called = call(*calibrate_words(tmp_path, absent=("borderline",)))
    assert called.code == 2
    error = error_of(called)
    assert error["type"] == "PromptError"
    assert str(tmp_path / "borderline.txt") in error["message"]
    assert not (tmp_path / "run").exists()


def test_a_missing_score_table_is_named(tmp_path):
    called = call("select", tmp_path / "absent.json", "--json")
    assert called.code == 2
    assert error_of(called)["message"] == (
        f"cannot read the score table {tmp_path / 'absent.json'}: No such file or directory."
    )


@pytest.mark.parametrize("name", ["./absent", "empty"])
def test_a_missing_model_is_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    words = calibrate_words(tmp_path)
    words[1] = name
    called = call(*words)
    assert called.code == 2
    error = error_of(called)
    assert error["type"] == "ModelError"
    expected = "there is no model folder ./absent." if name == "./absent" else "empty holds no config.json"
    assert expected in error["message"]


def test_an_export_of_nothing(tmp_path):
    called = call("export", tmp_path / "absent", "--format", "adapter", "--to", tmp_path / "new", "--json")
    assert called.code == 2
    assert error_of(called)["type"] == "RunFolderError"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--lambdas", "1,x"], "--lambdas takes numbers separated by commas; got '1,x'."),
        (["--lambdas", ""], "lambdas are numbers from 0 to 1; got ()."),
        (["--lambdas", "1.5"], "lambdas are numbers from 0 to 1; got (1.5,)."),
        (["--refusal-tokens", "I"], "--refusal-tokens takes numbers separated by commas; got 'I'."),
        (["--refusal-tokens", ","], "refusal_tokens are one or more token ids, each given once; got ()."),
        (["--margin", "2"], "margin is a share of at most 0.05, such as 0.02 for 2 points; got 2.0."),
        (["--layer-fraction", "80"], "layer_fraction is a share above 0 and up to 1, such as 0.8; got 80.0."),
        (["--gate-kl-limit", "0"], "gate_kl_limit is a number of nats above 0, such as 0.1; got 0.0."),
        (["--batch-size", "-1"], "batch_size is a number of prompts, or 0 for one that suits the machine; got -1."),
        (["--dtype", "int8"], "unknown dtype 'int8'; type one of: auto, "),
    ],
)
def test_options_out_of_range_are_refused_before_anything_is_written(tmp_path, more, message):
    called = call(*calibrate_words(tmp_path, *more))
    assert called.code == 2
    assert error_of(called)["message"].startswith(message)
    assert not (tmp_path / "run").exists()
