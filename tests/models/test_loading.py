"""Loading gives back what was saved, and says in one sentence what a folder lacks."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from demur.errors import ModelError
from demur.models import load_chat_model
from demur.testing import tiny_model, tiny_tokenizer

PROMPTS = ["Hi", "What is the capital of France?"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tiny_model("llama", dtype=torch.float32).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def refusal(folder, **options):
    with pytest.raises(ModelError) as caught:
        load_chat_model(str(folder), device="cpu", **options)
    return str(caught.value)


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_what_was_saved_comes_back_and_answers_the_same(family, tiny, tmp_path):
    chat = tiny(family, dtype=torch.float32)
    chat.model.save_pretrained(tmp_path)
    chat.tokenizer.save_pretrained(tmp_path)
    again = load_chat_model(str(tmp_path), device="cpu")
    batch = chat.batch(chat.encode(PROMPTS))
    assert torch.equal(again.batch(again.encode(PROMPTS))["input_ids"], batch["input_ids"])
    assert torch.equal(again.next_token_logits(batch), chat.next_token_logits(batch))
    assert again.layout.blocks == chat.layout.blocks
    assert [w.parameter for w in again.layout.writers] == [w.parameter for w in chat.layout.writers]
    assert again.identity.dtype == "float32"
    assert (again.identity.n_layers, again.identity.d_model) == (3, 32)
    assert again.identity.id == str(tmp_path)


def test_the_checkpoints_own_dtype_is_kept_unless_another_is_asked_for(folder, monkeypatch):
    monkeypatch.setattr("demur.models._precision._native_half", lambda: True)
    tiny_model("llama", dtype=torch.bfloat16).save_pretrained(folder)
    assert load_chat_model(str(folder), device="cpu").identity.dtype == "bfloat16"
    assert load_chat_model(str(folder), device="cpu", dtype="float64").identity.dtype == "float64"


def test_a_system_prompt_reaches_the_renderer(folder):
    chat = load_chat_model(str(folder), device="cpu", system="Be brief.")
    assert "Be brief." in chat.template.render("hello")


def test_a_missing_folder_is_not_looked_for_on_the_hub(tmp_path):
    path = tmp_path / "nowhere"
    assert refusal(path) == (
        f"there is no model folder {path}. Give a folder that holds config.json, a .gguf file, or a hub id such as "
        "owner/name."
    )
    assert "there is no model folder ./nowhere" in refusal("./nowhere")


def test_a_file_is_no_folder(folder):
    assert "there is no model folder" in refusal(folder / "config.json")


def test_a_folder_without_config(folder):
    (folder / "config.json").unlink()
    assert refusal(folder) == f"{folder} holds no config.json and no .gguf file, so it is not a model folder."


def test_a_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    assert refusal(folder) == f"{folder} holds no weights (model.safetensors or a sharded index)."


def test_a_folder_with_pickled_weights_only(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"not opened")
    message = refusal(folder)
    assert "holds no weights" in message
    assert "pickled weights (.bin), which can run code: convert them to safetensors" in message


def test_a_folder_without_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    message = refusal(folder)
    assert message.startswith(f"{folder} holds no tokenizer (tokenizer.json).")
    assert "Copy the tokenizer files of the base model into it." in message


def test_a_folder_without_chat_template(folder):
    (folder / "chat_template.jinja").unlink()
    message = refusal(folder)
    assert message.startswith(f"{folder}: the tokenizer has no chat template, so this looks like a base model.")
    assert "save a `chat_template` with its tokenizer" in message


def test_an_encoder_decoder_model(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "is_encoder_decoder": True}))
    assert refusal(folder) == f"{folder} is an encoder-decoder model; demur works on decoder-only chat models."


def test_an_unknown_dtype_names_those_there_are(folder):
    message = refusal(folder, dtype="int4")
    assert message == "unknown dtype 'int4'; type one of: auto, float64, float32, float16, bfloat16."


@pytest.mark.parametrize(
    ("name", "what"), [("config.json", "tokenizer"), ("tokenizer.json", "tokenizer"), ("model.safetensors", "model")]
)
def test_a_damaged_file_names_what_could_not_be_loaded(folder, name, what):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-50])
    message = refusal(folder)
    assert message.startswith(f"cannot load the {what} of {folder}: ")
    assert "hf auth login" in message


def test_weights_of_another_shape_are_an_error(folder):
    edit_json(folder / "config.json", intermediate_size=40)
    assert refusal(folder).startswith(f"cannot load the model of {folder}: ")


def test_missing_weights_are_not_filled_with_random_numbers(folder):
    edit_weights(folder, lambda weights: weights.pop("model.layers.1.mlp.down_proj.weight"))
    message = refusal(folder)
    assert "its weight files lack 1 of the model's tensors (model.layers.1.mlp.down_proj.weight, ...)" in message


def test_weights_that_are_nan_are_not_called_an_unknown_layout(folder):
    edit_weights(folder, lambda weights: weights["model.layers.1.mlp.down_proj.weight"].fill_(float("nan")))
    assert "after block 1 (model.layers.1) is NaN or infinite" in refusal(folder)


def hash_of(folder):
    return load_chat_model(str(folder), device="cpu").identity.content_hash


def change_one_weight(folder):
    def nudge(weights):
        weights["model.layers.2.mlp.up_proj.weight"][0, 0] += 1e-3

    edit_weights(folder, nudge)


def swap_two_weights(folder):
    def swap(weights):
        one, two = (f"model.layers.{block}.mlp.up_proj.weight" for block in (0, 1))
        weights[one], weights[two] = weights[two].clone(), weights[one].clone()

    edit_weights(folder, swap)


def change_the_template(folder):
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("assistant", "Assistant"))


def swap_two_tokens(folder):
    path = folder / "tokenizer.json"
    contents = json.loads(path.read_text())
    vocabulary = contents["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(contents))


def change_the_rope(folder):
    edit_json(folder / "config.json", rope_parameters={"rope_theta": 500.0, "rope_type": "default"})


def change_the_end_token(folder):
    edit_json(folder / "generation_config.json", eos_token_id=[2, 9])


CHANGES = [
    change_one_weight,
    swap_two_weights,
    change_the_template,
    swap_two_tokens,
    change_the_rope,
    change_the_end_token,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_the_content_hash_changes_with(change, folder, saved):
    change(folder)
    assert hash_of(folder) != hash_of(saved)


def test_the_content_hash_is_that_of_the_content(folder, saved):
    """Two loads, another place, another version of transformers that wrote it: the same model."""
    edit_json(folder / "config.json", transformers_version="9.9.9")
    assert hash_of(folder) == hash_of(saved) == hash_of(saved)


def test_the_content_hash_is_that_of_the_loaded_precision(folder):
    chats = [load_chat_model(str(folder), device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16")]
    assert chats[0].identity.content_hash != chats[1].identity.content_hash
