"""A batch size that nobody gave is measured once and kept."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from toy_runs import SMALL, small_sets

from demur.calibration import CalibrationSettings
from demur.calibration import _batch_size as measuring
from demur.calibration._batch_size import SIZES, with_batch_size
from demur.errors import InputError
from demur.records import BatchSizeRecord, RunFolder, read_record

AUTOMATIC = replace(SMALL, batch_size=0)


class Timed:
    """Answers batches; a clock of its own says that a batch took so long."""

    def __init__(self, monkeypatch, seconds, *, most=10**6):
        self.now, self.seconds, self.most, self.sizes = 0.0, seconds, most, []
        monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def generate(self, texts, *, max_new_tokens):
        if len(texts) > self.most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        self.sizes.append(len(texts))
        self.now += self.seconds(len(texts)) * (max_new_tokens > 2)
        return []


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


@pytest.fixture(scope="module")
def sets():
    return small_sets(validation=16, test=20)


def test_the_size_grows_while_a_prompt_gets_cheaper(monkeypatch, folder, sets):
    chat = Timed(monkeypatch, lambda size: 1.0 if size <= 32 else size / 32)
    assert with_batch_size(AUTOMATIC, folder, chat, sets).batch_size == 32
    record = read_record(folder.batch_size, BatchSizeRecord)
    assert [each.batch_size for each in record.tried] == [8, 16, 32, 64]
    assert [each.seconds_per_prompt for each in record.tried] == [1 / 8, 1 / 16, 1 / 32, 1 / 32]
    assert chat.sizes == [2, 8, 8, 16, 16, 32, 32, 64, 64]


def test_what_was_measured_once_is_used_again(monkeypatch, folder, sets):
    slow = Timed(monkeypatch, lambda size: float(size))
    assert with_batch_size(AUTOMATIC, folder, slow, sets).batch_size == SIZES[0]
    fast = Timed(monkeypatch, lambda _: 1.0)
    assert with_batch_size(AUTOMATIC, folder, fast, sets).batch_size == SIZES[0]
    assert fast.sizes == []


def test_a_size_for_which_memory_does_not_suffice_is_not_taken(monkeypatch, folder, sets):
    chat = Timed(monkeypatch, lambda _: 1.0, most=20)
    assert with_batch_size(AUTOMATIC, folder, chat, sets).batch_size == 16
    assert read_record(folder.batch_size, BatchSizeRecord).tried[-1].seconds_per_prompt is None


def test_another_error_is_not_swallowed(monkeypatch, folder, sets):
    def broken(_size):
        raise RuntimeError("the device is on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        with_batch_size(AUTOMATIC, folder, Timed(monkeypatch, broken), sets)
    assert not folder.batch_size.exists()


def test_a_given_size_is_not_measured(monkeypatch, folder, sets):
    chat = Timed(monkeypatch, lambda _: 1.0)
    assert with_batch_size(replace(SMALL, batch_size=7), folder, chat, sets).batch_size == 7
    assert chat.sizes == []


def test_a_negative_size_is_refused():
    with pytest.raises(InputError, match="batch_size is a number of prompts, or 0 to measure it; got -1"):
        CalibrationSettings(batch_size=-1)
