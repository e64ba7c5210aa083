"""A batch size that nobody gave follows from device, memory and model, and is kept."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from toy_runs import SMALL, small_sets

from demur.calibration import CalibrationSettings
from demur.calibration import _batch_size as choosing
from demur.calibration._batch_size import MOST_ELSEWHERE, MOST_ON_CPU, choose_batch_size, with_batch_size
from demur.errors import InputError
from demur.records import BatchSizeRecord, RunFolder, read_record
from demur.testing import load_toy_chat_model

AUTOMATIC = replace(SMALL, batch_size=0)
GIB = 2**30


def fake(*, device="cpu", width=4096, layers=32, heads=32, groups=8, vocabulary=128_256, weights=16 * GIB):
    """The measures of a model, by default of 8 billion parameters in 16 bits."""
    config = SimpleNamespace(
        num_attention_heads=heads, num_key_value_heads=groups, intermediate_size=7 * width // 2, vocab_size=vocabulary
    )
    parameter = SimpleNamespace(
        device=torch.device(device), numel=lambda: weights // 2, element_size=lambda: 2, dtype=torch.bfloat16
    )
    module = SimpleNamespace(config=config, parameters=lambda: iter([parameter]))
    return SimpleNamespace(
        device=torch.device(device), module=module, n_layers=layers, layout=SimpleNamespace(d_model=width)
    )


@pytest.fixture(scope="module")
def toy():
    return load_toy_chat_model()


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


@pytest.fixture(scope="module")
def sets():
    return small_sets(validation=16, test=20)


@pytest.fixture
def memory(monkeypatch):
    return lambda size: monkeypatch.setattr(choosing, "_memory", lambda _: size)


@pytest.mark.parametrize(
    ("device", "gib", "expected"),
    [
        ("cpu", 256, MOST_ON_CPU),
        ("cpu", 24, 16),
        ("cpu", 17, 2),
        ("cpu", 8, 1),
        ("cuda", 140, MOST_ELSEWHERE),
        ("cuda", 24, 16),
    ],
)
def test_the_rule(memory, device, gib, expected):
    memory(gib * GIB)
    record = choose_batch_size(fake(device=device), 384)
    assert record.batch_size == expected
    assert (record.device, record.memory_bytes, record.weight_bytes) == (device, gib * GIB, 16 * GIB)
    most = MOST_ON_CPU if device == "cpu" else MOST_ELSEWHERE
    assert record.reason.startswith("the most that is worth it" if expected == most else "what fits into")
    assert expected == 1 or expected * record.prompt_bytes <= 0.5 * (gib - 16) * GIB


def test_longer_prompts_make_smaller_batches(memory):
    memory(24 * GIB)
    assert choose_batch_size(fake(), 4000).batch_size < choose_batch_size(fake(), 400).batch_size


def test_of_the_toy_the_most_fits(toy, sets, folder):
    assert with_batch_size(AUTOMATIC, folder, toy, sets).batch_size == MOST_ON_CPU
    record = read_record(folder.batch_size, BatchSizeRecord)
    assert record.memory_bytes > GIB / 4
    assert record.tried == ()
    assert 0 < record.prompt_bytes < 2**26


def test_two_runs_decide_alike(toy, sets, tmp_path):
    files = [RunFolder(tmp_path / name) for name in ("a", "b")]
    for each in files:
        with_batch_size(AUTOMATIC, each, toy, sets)
    assert files[0].batch_size.read_bytes() == files[1].batch_size.read_bytes()


def test_the_limit_of_a_container_counts(monkeypatch):
    real = choosing.Path
    monkeypatch.setattr(choosing, "Path", lambda _: SimpleNamespace(read_text=lambda **_: f"{GIB}\n"))
    assert choosing._memory(fake()) == GIB
    monkeypatch.setattr(choosing, "Path", lambda _: SimpleNamespace(read_text=lambda **_: "max\n"))
    assert choosing._memory(fake()) > GIB / 4
    monkeypatch.setattr(choosing, "Path", lambda _: real("/absent"))
    assert choosing._memory(fake()) > GIB / 4


def test_a_folder_keeps_its_size(toy, sets, folder):
    """Also one that an earlier version measured."""
    old = {
        "schema": "demur.batch_size/1",
        "batch_size": 16,
        "tried": [{"batch_size": 16, "seconds_per_prompt": 0.5}, {"batch_size": 32, "seconds_per_prompt": None}],
    }
    folder.batch_size.write_text(json.dumps(old))
    assert with_batch_size(AUTOMATIC, folder, toy, sets).batch_size == 16
    assert json.loads(folder.batch_size.read_text()) == old


def test_a_given_size_is_taken(sets, folder):
    assert with_batch_size(replace(SMALL, batch_size=7), folder, None, sets).batch_size == 7
    assert not folder.batch_size.exists()


def test_a_negative_size_is_refused():
    with pytest.raises(InputError, match="batch_size is a number of prompts, or 0 for one that suits the machine"):
        CalibrationSettings(batch_size=-1)
