"""Commands that were given a model and nothing else: prompts, run folder, and what to type next."""

import json
import re
from contextlib import ExitStack
from datetime import date
from types import SimpleNamespace

import pytest
from cli_runs import call, error_of

import demur.calibration
from demur.calibration._first_look import first_look_warnings
from demur.cli import _defaults
from demur.cli._console import Out
from demur.cli._defaults import in_run_folder, new_folder, next_lines, prompt_sources
from demur.errors import InputError, RunFolderError
from demur.prompts import load_prompt_sets
from demur.records import RunFolder, RunRecord
from demur.testing import TOY_MODEL, toy_prompt_sets

TODAY = "2030-01-31"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Nothing is written beside the tests, and it is the same day all day."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_defaults, "date", SimpleNamespace(today=lambda: date.fromisoformat(TODAY)))


# Prompts ------------------------------------------------------------------------------------------------------------


def test_without_prompts_those_that_ship_are_taken():
    assert prompt_sources(None, None, None) == ("demur:harmful", "demur:harmless", "demur:borderline")
    assert prompt_sources("a", "b", "c") == ("a", "b", "c")


@pytest.mark.parametrize(
    ("given", "begin", "typed"),
    [
        (("h", "s", None), "--harmful and --harmless were given without --borderline", "--borderline demur:borderline"),
        (
            (None, None, "b"),
            "--borderline was given without --harmful and --harmless",
            "--harmful demur:harmful --harmless demur:harmless",
        ),
    ],
)
def test_some_prompts_are_not_filled_up(given, begin, typed):
    with pytest.raises(InputError) as caught:
        prompt_sources(*given)
    assert str(caught.value).startswith(begin)
    assert f"such as {typed}, or none of the three" in str(caught.value)


@pytest.mark.parametrize("command", ["calibrate", "evaluate", "compare-methods"])
def test_the_command_says_what_is_missing(command):
    called = call(command, "m", "--harmful", "h.jsonl", "--json")
    assert called.code == 2
    assert error_of(called)["message"].startswith("--harmful was given without --harmless and --borderline: ")


def test_shipped_prompts_are_a_first_look_and_others_are_not():
    sets = load_prompt_sets(harmful="demur:harmful", harmless="demur:harmless", borderline="demur:borderline")
    (warning,) = first_look_warnings(sets)
    assert warning.startswith("This is a first look: demur:harmful, demur:harmless, demur:borderline ship with demur.")
    assert "prompts of your own" in warning
    assert first_look_warnings(toy_prompt_sets()) == []


def test_a_model_alone_is_enough(monkeypatch, tmp_path):
    seen = {}

    def calibrate(chat, prompts, *, out, **_):
        seen.update(out=out, sources={label: one.source for label, one in prompts.items()})
        gate = SimpleNamespace(decision="inconclusive", reasons=("too few",), margin=0.02)
        identity = {"harmful": SimpleNamespace(splits={"test": 212})}
        return SimpleNamespace(
            kind="calibration", gate=gate, warnings=("a first look",), prompts=identity, model_dump=lambda **_: {}
        )

    import demur.cli._commands as commands

    monkeypatch.setattr(demur.calibration, "calibrate", calibrate)
    monkeypatch.setattr(commands, "load_model", lambda *_: None)
    monkeypatch.setattr(commands, "write_reports", lambda run: (run / "report.html", run / "report.md"))
    monkeypatch.setattr("demur.cli._console.summary_table", lambda _: [])
    called = call("calibrate", "org/My Model")
    assert called.code == 101, called.err
    assert seen["sources"] == {label: f"demur:{label}" for label in ("harmful", "harmless", "borderline")}
    assert str(seen["out"]) == f"demur-runs/My-Model-{TODAY}"
    assert called.out.splitlines()[-1] == "next: demur power --margin 0.02 --n 212"
    log = (tmp_path / seen["out"] / "log.txt").read_text()
    assert "demur calibrate 'org/My Model'" in log
    assert "warning: a first look" in log


def test_an_evaluation_of_a_model_alone(tmp_path):
    words = ("evaluate", TOY_MODEL, "--no-pressure", "--max-new-tokens", "2", "--json")
    called = call(*words)
    assert called.code == 0, called.err
    assert json.loads(called.out)["warnings"][0].startswith("This is a first look: ")
    (run,) = (tmp_path / "demur-runs").iterdir()
    assert re.fullmatch(rf"toy_chat-evaluate-{TODAY}", run.name)
    assert "first look" in (run / "report.md").read_text()
    assert f"  log: demur-runs/{run.name}/log.txt" in called.err.splitlines()
    assert call(*words).out == called.out
    assert len(list((tmp_path / "demur-runs").iterdir())) == 1


# Folders ------------------------------------------------------------------------------------------------------------


def record(fingerprint):
    return RunRecord(
        kind="calibration",
        fingerprint=fingerprint,
        model_id="m",
        model_hash="0",
        prompt_hashes={},
        judge="j",
        settings={"seed": fingerprint},
    )


def run_of(inputs, *, finish=True, command="calibrate", model="org/m", given=None):
    """The name of the folder in which a run of these inputs is made."""

    def attempt(folder):
        own = RunFolder(folder)
        with own.writing(record(inputs)):
            if finish:
                own.summary.touch()

    return in_run_folder(given, model, command, Out(as_json=True), attempt)[0].name


def test_runs_of_other_inputs_get_other_folders_and_those_of_the_same_are_continued():
    assert run_of("a", finish=False) == f"m-{TODAY}"
    assert run_of("b") == f"m-{TODAY}-2"
    assert run_of("c") == f"m-{TODAY}-3"
    assert run_of("a") == f"m-{TODAY}"
    assert run_of("a") == f"m-{TODAY}"
    assert run_of("b") == f"m-{TODAY}-2"
    assert run_of("a", command="audit") == f"m-audit-{TODAY}"


def test_a_run_that_was_killed_before_midnight_goes_on(monkeypatch):
    run_of("a", finish=False)
    run_of("b", finish=True)
    monkeypatch.setattr(_defaults, "date", SimpleNamespace(today=lambda: date(2030, 2, 1)))
    assert run_of("c") == "m-2030-02-01"
    assert run_of("a") == f"m-{TODAY}"
    assert run_of("b") == "m-2030-02-01-2"  # the finished one of yesterday is left as it is


def test_a_folder_of_something_else_is_not_written_into(tmp_path):
    other = tmp_path / "demur-runs" / f"m-{TODAY}"
    other.mkdir(parents=True)
    (other / "notes.md").touch()
    assert run_of("a") == f"m-{TODAY}-2"
    assert [path.name for path in other.iterdir() if path.name != ".lock"] == ["notes.md"]


def test_a_run_of_other_inputs_that_is_being_written_is_passed_by(tmp_path):
    with ExitStack() as busy:
        busy.enter_context(RunFolder(tmp_path / "demur-runs" / f"m-{TODAY}").writing(record("a")))
        assert run_of("b") == f"m-{TODAY}-2"
        with pytest.raises(RunFolderError, match="another process is writing"):
            run_of("a")


def test_a_given_folder_is_taken_or_refused(tmp_path):
    assert run_of("a", given=tmp_path / "mine") == "mine"
    with pytest.raises(RunFolderError, match="belongs to another run: its setting seed is 'a', not 'b'"):
        run_of("b", given=tmp_path / "mine")


def test_a_run_that_holds_nothing_but_a_log_is_new(tmp_path):
    folder = tmp_path / "demur-runs" / f"m-{TODAY}"
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("2030-01-31T00:00:00Z  demur\n")
    assert run_of("a") == f"m-{TODAY}"


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("org/Model-7B", "Model-7B"),
        ("./a b/ü:*?", "model"),
        ("m/../..", "model"),
        ("org/name/", "name"),
        ("x" * 300, "x" * 80),
    ],
)
def test_names_suit_every_file_system(model, name):
    assert new_folder(None, model, "monitor").name == f"{name}-monitor-{TODAY}"


def test_a_local_model_is_named_after_its_folder(tmp_path, monkeypatch):
    (tmp_path / "checkpoint-10").mkdir()
    monkeypatch.chdir(tmp_path / "checkpoint-10")
    assert new_folder(None, ".", "calibrate").name == f"checkpoint-10-{TODAY}"


def test_a_monitor_gets_a_new_folder(tmp_path):
    first = new_folder(None, "m", "monitor")
    first.mkdir(parents=True)
    assert new_folder(None, "m", "monitor") == first
    (first / "monitor.json").touch()
    assert new_folder(None, "m", "monitor").name == f"m-monitor-{TODAY}-2"
    assert new_folder(tmp_path, "m", "monitor") == tmp_path


# What next ----------------------------------------------------------------------------------------------------------


def summary_with(decision):
    gate = None if decision is None else SimpleNamespace(decision=decision, margin=0.03)
    return SimpleNamespace(gate=gate, prompts={"harmful": SimpleNamespace(splits={"test": 40})})


def test_what_to_type_next(tmp_path):
    run = tmp_path / "my run"
    assert next_lines(summary_with("pass"), run) == [
        f"next: demur export '{run}' --format adapter --to '{run}-adapter'"
    ]
    (tmp_path / "my run-adapter").mkdir()
    assert next_lines(summary_with("pass"), run) == []
    assert next_lines(summary_with("fail"), run)[-1].endswith(f"demur report '{run}'")
    told, typed = next_lines(summary_with("inconclusive"), run)
    assert told.startswith("not decided on 40 harmful test prompts")
    assert typed == "next: demur power --margin 0.03 --n 40"
    assert next_lines(summary_with(None), run) == []
