"""What was calibrated from a GGUF file is exported like any other model, and its card says how to load it."""

import re
import warnings

import pytest
import torch
from fabricated import passed_run
from test_calibration_export import nothing_left

from demur.calibration import export
from demur.directions import load_directions
from demur.errors import InputError, UnsupportedInterventionError
from demur.interventions import DirectionalAblation
from demur.models import load_chat_model
from demur.records import ExportRecord, read_record
from demur.testing import tiny_model
from gguf_files import write_gguf

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
PROMPTS = ["Hi", "What is the capital of France?"]


@pytest.fixture(autouse=True)
def fabricated_verdicts_stand(monkeypatch):
    """Random models refuse nothing, so the verdicts of fabricated runs would not be found again."""
    monkeypatch.setattr("demur.calibration._export.require_claimed_refusals", lambda *_, **__: None)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """A passed run of a quantised file, with tied embeddings."""
    folder = tmp_path_factory.mktemp("gguf")
    model = tiny_model("qwen2", dtype=torch.float32, tie_word_embeddings=True, **SHAPE)
    chat = load_chat_model(str(write_gguf(folder / "tiny.gguf", model, dtype="Q8_0")), device="cpu")
    passed_run(folder / "run", chat)
    return chat, folder / "run"


def logits(chat, model=None):
    batch = chat.batch(chat.encode(PROMPTS))
    with torch.no_grad():
        return (model or chat.model)(**batch).logits[:, -1]


def folded_logits(chat, run):
    direction = load_directions(run / "directions.safetensors")["false_refusal_direction"].unit
    with DirectionalAblation(direction).folded_into(chat):
        return logits(chat)


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_a_fresh_process_and_demur_itself_read_it(calibrated, tmp_path, form):
    """The model is loaded from the run's own record, and nothing is monkeypatched."""
    chat, run = calibrated
    record = export(run, form=form, to=tmp_path / "out", check_prompts=2)
    assert record.logit_difference < 1e-4
    assert record.identical_answers == record.checked_prompts == 6
    assert read_record(tmp_path / "out" / "demur.json", ExportRecord).base_model.gguf_sha256 == chat.gguf.sha256
    again = load_chat_model(str(tmp_path / "out"), device="cpu")
    torch.testing.assert_close(logits(again), folded_logits(chat, run), rtol=0, atol=1e-4)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"dequantised from the GGUF file `tiny.gguf`, sha256\n`{chat.gguf.sha256}`" in card
    assert ("```python" in card) == (form == "adapter")


def test_the_lines_on_the_card_load_the_adapter(calibrated, tmp_path):
    chat, run = calibrated
    export(run, form="adapter", to=tmp_path / "out", chat=chat, check_prompts=1)
    lines = re.search(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)[1]
    names = {}
    with warnings.catch_warnings(action="ignore"):  # PEFT's, on merging an adapter of tied embeddings
        exec(lines.replace("THIS_FOLDER", str(tmp_path / "out")), names)
    torch.testing.assert_close(logits(chat, names["model"].eval()), folded_logits(chat, run), rtol=0, atol=1e-4)


def test_shards_of_a_gguf_file_are_not_edited(calibrated, tmp_path):
    chat, run = calibrated
    with pytest.raises(InputError) as caught:
        export(run, form="merged", to=tmp_path / "out", low_memory=True)
    assert str(caught.value) == (
        f"--low-memory edits a safetensors checkpoint shard by shard, and {chat.name} was calibrated from a GGUF file. "
        "Export it without --low-memory: --format merged writes the dequantised model as safetensors."
    )
    assert nothing_left(tmp_path / "out")


def test_no_adapter_where_transformers_alone_loads_another_base_model(calibrated, tmp_path, monkeypatch):
    chat, run = calibrated
    monkeypatch.setattr(chat.gguf, "positions_restored", True)
    with pytest.raises(UnsupportedInterventionError, match=r"how positions are scaled.* Use --format merged\."):
        export(run, form="adapter", to=tmp_path / "out", chat=chat)
    assert nothing_left(tmp_path / "out")
    assert export(run, form="merged", to=tmp_path / "out", chat=chat, check_prompts=1).logit_difference < 1e-4


def test_a_file_that_was_replaced_is_not_exported(tmp_path):
    model = tiny_model("qwen2", dtype=torch.float32, **SHAPE)
    path = write_gguf(tmp_path / "tiny.gguf", model)
    passed_run(tmp_path / "run", load_chat_model(str(path), device="cpu"))
    write_gguf(path, model, dtype="Q8_0")
    with pytest.raises(InputError, match="is not the model that"):
        export(tmp_path / "run", form="merged", to=tmp_path / "out")
