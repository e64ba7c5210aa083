"""Orthogonalizing a checkpoint on disk equals doing it in memory, whatever the shards."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from demur.errors import InputError, UnsupportedInterventionError
from demur.interventions import DirectionalAblation, edits_of, write_merged, write_merged_sharded
from demur.testing import tiny_chat_model


def saved(family, folder, *, shard="20KB", **config):
    chat = tiny_chat_model(family, dtype=torch.float32, **config)
    chat.model.save_pretrained(folder, max_shard_size=shard)
    chat.tokenizer.save_pretrained(folder)
    return chat


def directions(chat, count=2):
    generator = torch.Generator().manual_seed(3)
    return DirectionalAblation(torch.randn(count, chat.layout.d_model, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("family", ["llama", "gemma", "gemma2", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("shard", ["20KB", "1GB"])
def test_shard_by_shard_equals_in_memory(family, shard, tmp_path):
    chat = saved(family, tmp_path / "base", shard=shard)
    ablation = directions(chat)
    write_merged(chat, ablation, tmp_path / "memory")
    writers, basis = edits_of(chat, ablation)
    write_merged_sharded(tmp_path / "base", writers, basis, tmp_path / "shards", tied=chat.layout.tied_embedding)
    one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("memory", "shards"))
    states = one.state_dict(), two.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    if shard == "20KB":
        index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
        assert len(set(index["weight_map"].values())) > 2
    assert (tmp_path / "shards" / "tokenizer.json").exists()


def test_a_checkpoint_with_other_names_is_refused(tmp_path):
    chat = saved("llama", tmp_path / "base")
    writers, basis = edits_of(chat, directions(chat))
    other = [type(writers[0])("other." + writers[0].parameter, 1, None, "embedding"), *writers[1:]]
    with pytest.raises(UnsupportedInterventionError, match=r"does not hold 1 of 7 writers .* without --low-memory"):
        write_merged_sharded(tmp_path / "base", other, basis, tmp_path / "out", tied=None)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds neither model\.safetensors\.index\.json nor model\.safetensors"):
        write_merged_sharded(tmp_path, [], {}, tmp_path / "out", tied=None)


def test_the_peak_is_below_two_shards(tmp_path):
    """In a fresh process: the growth of the resident memory while a checkpoint of several shards is written."""
    chat = saved("llama", tmp_path / "base", shard="40MB", hidden_size=512, intermediate_size=9000, vocab_size=30000)
    writers, basis = edits_of(chat, directions(chat, 1))
    shards = sorted((tmp_path / "base").glob("*.safetensors"))
    assert len(shards) >= 4
    save_file(dict(basis), tmp_path / "basis.safetensors")
    rows = [[writer.parameter, writer.axis] for writer in writers]
    code = f"""
import resource, pathlib
from safetensors.torch import load_file, save_file
from demur.interventions import write_merged_sharded
from demur.models import Writer
basis = load_file({str(tmp_path / "basis.safetensors")!r})
writers = [Writer(name, axis, None, "other") for name, axis in {rows!r}]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source, target = (pathlib.Path({str(tmp_path)!r}, name) for name in ("base", "out"))
write_merged_sharded(source, writers, basis, target, tied=None)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown = int(done.stdout) * 1024
    largest = max(path.stat().st_size for path in shards)
    total = sum(path.stat().st_size for path in shards)
    assert grown < 2 * largest, (grown / largest, total / largest)
    assert load_file(tmp_path / "out" / shards[0].name).keys() == load_file(shards[0]).keys()
