"""A run folder belongs to one run and has one writer."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from record_samples import sample

from demur.errors import RunFolderError
from demur.records import RunFolder, RunRecord, Summary, read_record, write_record

RUN = RunRecord(
    kind="calibration",
    fingerprint="f0",
    model_id="org/model",
    model_hash="a" * 64,
    prompt_hashes={"harmful": "h1", "harmless": "h2", "borderline": "h3"},
    judge="phrase 1",
    settings={"margin": 0.02, "seed": 0, "system": None},
)


def other(**changes):
    return RUN.model_copy(update={"fingerprint": "f1", **changes})


def claim(path, record=RUN):
    with RunFolder(path).writing(record):
        pass


def test_a_new_folder_gets_its_run_record_first(tmp_path):
    folder = RunFolder(tmp_path / "deep" / "run")
    with folder.writing(RUN):
        assert read_record(folder.run, RunRecord) == RUN
    assert not folder.summary.exists()
    claim(folder.path)  # the same inputs continue


def test_an_empty_folder_is_taken(tmp_path):
    claim(tmp_path)
    assert (tmp_path / "run.json").exists()


def test_a_folder_with_other_things_in_it_is_refused_and_left_alone(tmp_path):
    for name in ("thesis.tex", "b", "c", "d"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(RunFolderError) as caught:
        claim(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} is not empty and is no run folder (it holds b, c, d). Give an empty or new folder with --out."
    )
    assert not (tmp_path / "run.json").exists()
    assert (tmp_path / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"kind": "evaluation"}, "it holds a run of the kind calibration, not evaluation"),
        (
            {"model_id": "org/other", "model_hash": "b" * 64},
            "its model is org/model (aaaaaaaaaaaa), not org/other (bbbbbbbbbbbb)",
        ),
        ({"prompt_hashes": RUN.prompt_hashes | {"harmless": "x"}}, "its harmless prompts are others"),
        ({"prompt_hashes": RUN.prompt_hashes | {"borderline": "x"}}, "its borderline prompts are others"),
        ({"judge": "phrase 2"}, "its judge is phrase 1, not phrase 2"),
        ({"settings": RUN.settings | {"margin": 0.1}}, "its setting margin is 0.02, not 0.1"),
        ({"settings": RUN.settings | {"system": "Be kind."}}, "its setting system is None, not 'Be kind.'"),
        ({"settings": RUN.settings | {"new": 1}}, "its setting new is None, not 1"),
        ({}, "its inputs are others"),
    ],
)
def test_another_run_is_refused_and_the_message_says_what_differs(tmp_path, changes, difference):
    claim(tmp_path)
    with pytest.raises(RunFolderError) as caught:
        claim(tmp_path, other(**changes))
    assert str(caught.value) == (
        f"{tmp_path} belongs to another run: {difference}. Give another folder with --out, or delete this one."
    )
    assert read_record(tmp_path / "run.json", RunRecord) == RUN


HOLD = """
import sys
from demur.records import RunFolder, RunRecord
with RunFolder(sys.argv[1]).writing(RunRecord.model_validate_json(sys.argv[2])):
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_in_another_process_is_refused_until_the_first_has_ended(tmp_path):
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), RUN.model_dump_json()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with first:
        assert first.stdout.readline() == "ready\n"
        for record in (RUN, other()):
            with pytest.raises(RunFolderError) as caught:
                claim(tmp_path, record)
            assert str(caught.value) == (
                f"another process is writing {tmp_path}. Wait for it, or give another folder with --out."
            )
        first.kill()  # a killed writer holds nothing back
    claim(tmp_path)


def test_the_claim_ends_with_an_exception(tmp_path):
    with pytest.raises(KeyboardInterrupt), RunFolder(tmp_path).writing(RUN):
        raise KeyboardInterrupt
    claim(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot write into .*file/run: Not a directory\. Give a folder that you"):
        claim(tmp_path / "file" / "run")
    with pytest.raises(RunFolderError, match=r"cannot write into .*file: File exists"):
        claim(tmp_path / "file")

    def denied(*_args, **_kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", denied)
    with pytest.raises(RunFolderError, match=r"Permission denied\. .* for example --out \./run\."):
        claim(tmp_path)


def test_reading_an_unfinished_run(tmp_path):
    claim(tmp_path)
    with pytest.raises(RunFolderError) as caught:
        RunFolder(tmp_path).read_summary()
    assert str(caught.value) == (
        f"{tmp_path} holds an unfinished run. Give its command again; it continues from what is there."
    )


@pytest.mark.parametrize("name", [".", "absent"])
def test_reading_what_is_no_run_folder(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(RunFolderError) as caught:
        RunFolder(path).read_summary()
    assert str(caught.value) == (
        f"{path} is no run folder (no summary.json). Make one with: demur calibrate MODEL ... --out {path}"
    )
    assert list(tmp_path.iterdir()) == []


def test_reading_a_finished_run(tmp_path):
    summary = sample(Summary)
    write_record(tmp_path / "summary.json", summary)
    assert RunFolder(str(tmp_path)).read_summary() == summary
