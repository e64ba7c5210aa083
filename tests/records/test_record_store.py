"""Writing: all or nothing, and a kill costs at most one line."""

import errno
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_samples import sample

from demur.errors import RunFolderError
from demur.records import JsonLines, Rate, RefusalToken, read_record, write_bytes, write_record, write_text

FULL = OSError(errno.ENOSPC, "No space left on device")
TOKENS = [RefusalToken(id=n, text="I\n", probability_refused=0.5, probability_answered=None) for n in range(5)]


def fail(error):
    def raise_it(*_args, **_kwargs):
        raise error

    return raise_it


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# One file -----------------------------------------------------------------------------------------------------------


def test_write_replaces_all_of_it(tmp_path):
    path = tmp_path / "deep" / "er" / "a.txt"
    write_text(path, "long old content")
    write_text(path, "è")
    assert path.read_bytes() == "è".encode()
    assert names(path.parent) == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("place", ["fsync", "replace"])
@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt(), RuntimeError("a bug")], ids=lambda e: type(e).__name__)
def test_an_exception_in_the_middle_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch, place, error):
    path = tmp_path / "a.json"
    write_text(path, "old")
    if place == "fsync":
        monkeypatch.setattr(os, "fsync", fail(error))
    else:
        monkeypatch.setattr(Path, "replace", fail(error))
    expected = RunFolderError if error is FULL else type(error)
    with pytest.raises(expected):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_the_data_is_on_disk_before_the_name_is(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    seen = []
    real = os.fsync

    def fsync(number):
        seen.append((path.exists(), os.fstat(number).st_size))
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    write_bytes(path, b"12345")
    assert seen == [(False, 5)]


def test_a_full_disk_is_said_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", fail(FULL))
    for write in (
        lambda: write_record(tmp_path / "rate.json", sample(Rate)),
        lambda: JsonLines(tmp_path / "rate.json").append([sample(Rate)]),
    ):
        with pytest.raises(RunFolderError) as caught:
            write()
        assert str(caught.value) == (
            f"cannot write {tmp_path / 'rate.json'}: No space left on device. Free some space or give a folder that "
            "you may write, for example --out ./run; what was already written is kept and the same command continues "
            "from it."
        )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_really_full():
    with pytest.raises(RunFolderError, match="cannot write /dev/full: No space left on device"):
        JsonLines(Path("/dev/full")).append([sample(Rate)])


def test_a_folder_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "a.json", tmp_path / "file" / "sub" / "a.json"):
        with pytest.raises(RunFolderError, match=r"cannot write .*Free some space or give a folder that you may write"):
            write_record(path, sample(Rate))
        with pytest.raises(RunFolderError, match="cannot write"):
            JsonLines(path).append([sample(Rate)])
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", fail(PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(RunFolderError, match="Permission denied"):
        write_text(tmp_path / "a.json", "")


def test_reading_a_folder_as_a_record(tmp_path):
    with pytest.raises(RunFolderError, match=r"cannot read .*: Is a directory"):
        read_record(tmp_path, Rate)
    with pytest.raises(RunFolderError, match=r"cannot read .*: Is a directory"):
        JsonLines(tmp_path).read(Rate)


# JSON Lines ---------------------------------------------------------------------------------------------------------


def test_an_absent_file_has_no_records(tmp_path):
    assert JsonLines(tmp_path / "absent.jsonl").read(Rate) == []
    assert names(tmp_path) == []


def test_append_keeps_the_order_and_what_was_there(tmp_path):
    lines = JsonLines(tmp_path / "deep" / "a.jsonl")
    lines.append(TOKENS[:2])
    first = lines.path.read_bytes()
    lines.append([])
    lines.append(TOKENS[2:])
    assert lines.read(RefusalToken) == TOKENS
    assert lines.path.read_bytes().startswith(first)


@settings(deadline=None)  # disks are slow at times
@given(cut=st.integers(0, 400))
def test_a_kill_anywhere_costs_the_broken_line_only(cut, tmp_path_factory):
    """Reading skips it and changes nothing; the next append cuts it off."""
    lines = JsonLines(tmp_path_factory.mktemp("kill") / "a.jsonl")
    lines.append(TOKENS)
    whole = lines.path.read_bytes()
    left = whole[:cut]
    lines.path.write_bytes(left)
    kept = left.count(b"\n")
    assert lines.read(RefusalToken) == TOKENS[:kept]
    assert lines.path.read_bytes() == left
    lines.append(TOKENS[kept:])
    assert lines.path.read_bytes() == whole


def test_one_batch_is_one_write_and_one_fsync(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    JsonLines(tmp_path / "a.jsonl").append(TOKENS)
    assert len(synced) == 1


@pytest.mark.parametrize("damage", [b"{", b"", b'{"id": 1}', b'{"id": "x", "text": "y"}', b"\xff\xfe"])
@pytest.mark.parametrize("number", [1, 3])
def test_a_broken_line_before_the_last_is_an_error_with_its_number(tmp_path, number, damage):
    lines = JsonLines(tmp_path / "a.jsonl")
    lines.append(TOKENS)
    rows = lines.path.read_bytes().split(b"\n")
    rows[number - 1] = damage
    lines.path.write_bytes(b"\n".join(rows))
    with pytest.raises(RunFolderError) as caught:
        lines.read(RefusalToken)
    assert f"a.jsonl, line {number} is not a RefusalToken: " in str(caught.value)
    assert str(caught.value).endswith("Delete that line; the next run computes it again.")


def test_a_failed_append_can_be_made_good(tmp_path, monkeypatch):
    """A full disk leaves half a line; after space was freed the same append gives the whole file."""
    lines = JsonLines(tmp_path / "a.jsonl")
    lines.append(TOKENS[:2])
    with lines.path.open("ab") as file:
        file.write(b'{"id": 2, "te')
    lines.append(TOKENS[2:])
    assert lines.read(RefusalToken) == TOKENS
