"""Monitors as values: what they refuse, what flags mean, what is on disk."""

import json
import math
from dataclasses import replace

import pytest
import torch
from monitors import PROMPTS, monitor_of, probes, threshold
from safetensors.torch import load_file, save_file

from demur.errors import InputError, RunFolderError
from demur.monitoring import Probe, RefusalMonitor
from demur.testing import tiny_chat_model

THRESHOLDS = (
    threshold("harmful", "harm", "above", 0.6),
    threshold("refusal_high", "refusal", "above", 0.3),
    threshold("refusal_low", "refusal", "below", 0.8),
    threshold("suppressed", "suppression", "above", 0.25),
    threshold("false_refusal", "suppression", "below", -0.5),
)


@pytest.fixture(scope="module")
def monitor(tiny):
    chat = tiny("llama")
    return RefusalMonitor(probes(chat), THRESHOLDS, chat.identity)


@pytest.mark.parametrize(
    ("harm", "refusal", "names"),
    [
        (0.0, 0.0, []),
        (1.0, 1.0, ["harmful", "refusal_high"]),
        (1.0, 0.2, ["harmful", "refusal_low", "suppressed"]),
        (0.6, 0.3, ["suppressed"]),  # strictly beyond: neither score is
        (0.4, 0.1, []),  # the gap is there, and it does not look harmful
        (0.1, 0.9, ["refusal_high", "false_refusal"]),
        (-0.6, 0.2, []),  # the gap is there, and it is not about to be refused
        (math.nan, 1.0, ["unreadable"]),
        (0.0, math.nan, ["unreadable"]),
    ],
)
def test_flags(monitor, harm, refusal, names):
    scores = {"harm": harm, "refusal": refusal, "suppression": harm - refusal, "false_refusal": 0.0}
    flags = monitor.flags(scores)
    assert [flag.name for flag in flags] == names
    for flag in flags:
        if flag.name == "suppressed":
            assert (flag.score, flag.threshold) == (pytest.approx(harm - refusal), 0.25)


@pytest.mark.parametrize("probe", ["harm", "r1", "r2", "w"])
def test_a_reading_that_is_not_a_number_is_an_alarm(monitor, probe):
    readings = dict.fromkeys(("harm", "r1", "r2", "w"), 0.5) | {probe: math.nan}
    assert [flag.name for flag in monitor.flags(monitor.scores(readings))] == ["unreadable"]


def test_a_model_that_computes_nan_is_unreadable():
    chat = tiny_chat_model("llama", seed=3)
    with torch.no_grad():
        chat.module.get_submodule(chat.layout.blocks[0]).mlp.down_proj.weight[:] = math.nan
    (reading,) = RefusalMonitor(probes(chat), THRESHOLDS).read(chat, PROMPTS[:1])
    assert [flag.name for flag in reading.flags()] == ["unreadable"]


def test_a_bare_text_is_no_prompt(monitor, tiny):
    chat = tiny("llama")
    ids = torch.tensor([chat.tokenizer("Name a river, a mountain and a lake.", add_special_tokens=False)["input_ids"]])
    with monitor.watching(chat) as watch, torch.no_grad():
        chat.model(input_ids=ids)
        (reading,) = watch.readings()
        chat.model(inputs_embeds=chat.model.get_input_embeddings()(ids))
        (embedded,) = watch.readings()
    assert [flag.name for flag in reading.flags()] == ["unreadable"]
    assert all(map(math.isfinite, reading.prompt.values()))  # the projections are there
    assert embedded.prompt == pytest.approx(reading.prompt)
    assert not embedded.rendered


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vector": torch.zeros(16)}, "zero, NaN or infinite"),
        ({"vector": torch.full((16,), math.nan)}, "zero, NaN or infinite"),
        ({"vector": torch.ones(2, 8)}, r"shape \(2, 8\)"),
        ({"position": 0}, "position 0"),
        ({"layer": -1}, "layer -1"),
        ({"high": 0.0}, "must differ"),
        ({"low": math.nan}, "must differ"),
    ],
)
def test_probes_that_read_nothing_are_refused(change, message):
    probe = Probe("r", "refusal", 1, -1, torch.ones(16))
    with pytest.raises(InputError, match=message):
        RefusalMonitor((probe, replace(probe, name="other", **change)))


def test_monitors_without_what_they_need_are_refused():
    probe = Probe("r", "refusal", 1, -1, torch.ones(16))
    with pytest.raises(InputError, match="different names; got none"):
        RefusalMonitor(())
    with pytest.raises(InputError, match="different names; got r, r"):
        RefusalMonitor((probe, probe))
    with pytest.raises(
        InputError, match="no probe gives the score that suppressed needs; there are the scores refusal"
    ):
        RefusalMonitor((probe,), (threshold("suppressed", "suppression", "above", 0.2),))


def test_models_of_another_shape_are_refused(monitor, tiny):
    llama = tiny("llama")
    wide = tiny("llama", hidden_size=2 * monitor.width, intermediate_size=64)
    with pytest.raises(InputError, match=f"width {monitor.width}; tiny-llama has width {2 * monitor.width}"):
        monitor.check(wide)
    monitor_of(llama).check(llama)
    with pytest.raises(InputError, match=f"input of block {llama.n_layers}; tiny-llama has the blocks 0 to"):
        RefusalMonitor((replace(monitor.probes[0], layer=llama.n_layers),)).check(llama)
    other = replace(monitor, model=monitor.model.model_copy(update={"architecture": "GPT2LMHeadModel"}))
    with pytest.raises(InputError, match="architecture is GPT2LMHeadModel, that of tiny-llama is LlamaForCausalLM"):
        other.check(llama)
    deeper = replace(monitor, model=monitor.model.model_copy(update={"n_layers": 99}))
    with pytest.raises(InputError, match="number of layers is 99"), deeper.watching(llama):
        pass
    retold = replace(monitor, model=monitor.model.model_copy(update={"chat_template_sha256": "0" * 64}))
    with pytest.raises(InputError, match="chat template"):
        retold.read(llama, PROMPTS)


def test_what_is_saved_is_what_is_loaded(monitor, tiny, tmp_path):
    monitor.save(tmp_path)
    loaded = RefusalMonitor.load(tmp_path)
    assert loaded.thresholds == monitor.thresholds
    assert loaded.model == monitor.model
    chat = tiny("llama")
    for one, two in zip(monitor.read(chat, PROMPTS), loaded.read(chat, PROMPTS), strict=True):
        assert one.scores == two.scores
        assert one.flags() == two.flags()
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monitor.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


def test_files_that_do_not_belong_together_are_refused(monitor, tmp_path):
    with pytest.raises(RunFolderError, match="cannot read"):
        RefusalMonitor.load(tmp_path)
    monitor.save(tmp_path)
    tensors = load_file(tmp_path / "monitor.safetensors")
    save_file({name: vector + 1 for name, vector in tensors.items()}, tmp_path / "monitor.safetensors")
    with pytest.raises(RunFolderError, match=r"is not the file that monitor\.json beside it names"):
        RefusalMonitor.load(tmp_path)
    (tmp_path / "monitor.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RunFolderError, match="Run demur monitor again"):
        RefusalMonitor.load(tmp_path)
    record = json.loads((tmp_path / "monitor.json").read_text())
    (tmp_path / "monitor.json").write_text(json.dumps(record | {"schema": "demur.monitor/9"}))
    with pytest.raises(RunFolderError, match="is not a MonitorRecord"):
        RefusalMonitor.load(tmp_path)
