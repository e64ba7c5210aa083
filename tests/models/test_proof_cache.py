"""A stored proof saves its forward passes and can do nothing else."""

import json
from pathlib import Path

import pytest
import torch

from demur.errors import LayoutError
from demur.models import ChatModel, load_chat_model
from demur.models import _chat_model as module
from demur.models._proof_cache import cache_folder
from demur.testing import tiny_model, tiny_tokenizer


class Heard:
    """A progress that remembers."""

    def __init__(self):
        self.said = []

    def start(self, task, total):
        self.said.append((task, total))

    def advance(self, steps=1):
        self.said.append(steps)

    def note(self, text):
        self.said.append(text)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DEMUR_CACHE", str(tmp_path / "cache"))
    saved = tmp_path / "model"
    tiny_model("llama", dtype=torch.bfloat16).save_pretrained(saved)
    tiny_tokenizer().save_pretrained(saved)
    return saved


def stored(tmp_path):
    return sorted((tmp_path / "cache" / "proofs").glob("*"))


def proofs(monkeypatch):
    """Counts the numeric proofs that run."""
    ran = []
    real = module.probe_layout
    monkeypatch.setattr(module, "probe_layout", lambda *args, **named: (ran.append(1), real(*args, **named))[1])
    return ran


def test_the_second_load_runs_no_proof_and_says_the_same(folder, tmp_path, monkeypatch):
    ran = proofs(monkeypatch)
    first = load_chat_model(str(folder))
    (path,) = stored(tmp_path)
    assert path.suffix == ".json"
    second = load_chat_model(str(folder))
    assert len(ran) == 1
    assert second.probe == first.probe
    assert second.layout.writers == first.layout.writers


def test_other_weights_are_proved_anew(folder, tmp_path, monkeypatch):
    ran = proofs(monkeypatch)
    load_chat_model(str(folder))
    tiny_model("llama", dtype=torch.bfloat16, seed=1).save_pretrained(folder)
    load_chat_model(str(folder))
    load_chat_model(str(folder), dtype="float64")
    assert len(ran) == len(stored(tmp_path)) == 3


def test_a_model_given_in_memory_leaves_nothing_on_disk(folder, tmp_path):
    ChatModel(tiny_model("llama"), tiny_tokenizer())
    assert stored(tmp_path) == []


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text[:20],
        lambda _: "[]",
        lambda _: '{"format": "demur.proof/1"}',
        lambda text: json.dumps({**json.loads(text), "key": "0" * 64}),
        lambda text: json.dumps({**json.loads(text), "per_block": [0.0]}),
        lambda text: json.dumps({**json.loads(text), "per_block": [0.5] * 4}),
        lambda text: json.dumps({**json.loads(text), "silent_difference": float("nan")}),
        lambda text: json.dumps({**json.loads(text), "dtype": "no_dtype"}),
        lambda text: json.dumps({**json.loads(text), "dtype": "int8"}),
        lambda text: json.dumps({**json.loads(text), "dtype": "load"}),
    ],
)
def test_a_damaged_or_foreign_file_is_ignored(edit, folder, tmp_path, monkeypatch):
    ran = proofs(monkeypatch)
    first = load_chat_model(str(folder))
    (path,) = stored(tmp_path)
    path.write_text(edit(path.read_text()))
    assert load_chat_model(str(folder)).probe == first.probe
    assert len(ran) == 2


def test_a_cache_cannot_take_a_writer_off_the_list(folder, monkeypatch):
    """What is written is found anew at every load: a layout that lacks a writer has no stored proof, and is refused."""
    from dataclasses import replace

    load_chat_model(str(folder))
    real = module.discover_layout

    def fewer(model, inputs):
        layout, trace = real(model, inputs)
        return replace(layout, writers=layout.writers[:-1]), trace

    monkeypatch.setattr(module, "discover_layout", fewer)
    with pytest.raises(LayoutError, match="a parameter that writes to the residual stream was missed"):
        load_chat_model(str(folder))


def test_a_folder_that_cannot_be_written_is_no_error(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEMUR_CACHE", str(tmp_path / "file"))
    chat = load_chat_model(str(folder))
    assert chat.probe.residual < chat.probe.tolerance


def test_where_the_folder_is(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DEMUR_CACHE", raising=False)
    assert cache_folder() == tmp_path / "demur" / "proofs"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "demur" / "proofs"
    monkeypatch.setenv("DEMUR_CACHE", "")
    assert cache_folder() is None


def test_progress_hears_every_pass_of_the_proof(folder):
    heard = Heard()
    load_chat_model(str(folder), progress=heard)
    assert heard.said == [("proving the layout", 3), 1, 1, 1]


def test_the_hash_is_computed_once_and_again_when_a_weight_changes(folder, monkeypatch):
    hashed = []
    real = module.content_hash
    monkeypatch.setattr(module, "content_hash", lambda *args: (hashed.append(1), real(*args))[1])
    chat = load_chat_model(str(folder))
    first = chat.identity.content_hash
    assert len(hashed) == 1
    with torch.no_grad():
        chat.model.get_parameter("model.norm.weight").add_(1)
    del chat.identity
    assert chat.identity.content_hash != first
    assert len(hashed) == 2
