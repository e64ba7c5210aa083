"""A GGUF file is loaded as the model that it was made from, or not at all."""

import json
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

import demur.models._gguf as gguf_loading
from demur.errors import ModelError
from demur.models import ChatModel, load_base_model, load_chat_model
from demur.testing import tiny_model, tiny_tokenizer
from gguf_files import write_gguf

PROMPTS = ["Hi", "What is the capital of France?"]
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
FAMILIES = {
    "llama": ("llama", {}),
    "tied llama": ("llama", {"tie_word_embeddings": True}),
    "qwen2": ("qwen2", {"tie_word_embeddings": False}),
    "tied qwen2": ("qwen2", {"tie_word_embeddings": True}),
}


def model_of(name="llama", **more):
    family, config = FAMILIES[name]
    return tiny_model(family, dtype=torch.float32, **SHAPE, **config, **more)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A model and its file, per family, made once."""
    made = {}

    def get(name="llama"):
        if name not in made:
            model = model_of(name)
            made[name] = model, write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", model)
        return made[name]

    return get


def refusal(model_id, **options):
    with pytest.raises(ModelError) as caught:
        load_chat_model(str(model_id), device="cpu", **options)
    return str(caught.value)


def logits(chat):
    return chat.next_token_logits(chat.batch(chat.encode(PROMPTS)))


# The same model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_the_file_gives_the_model_that_it_was_made_from(written, name, tmp_path):
    model, path = written(name)
    chat, original = load_chat_model(str(path), device="cpu"), ChatModel(model, tiny_tokenizer())
    assert chat.encode(PROMPTS) == original.encode(PROMPTS)
    torch.testing.assert_close(logits(chat), logits(original), rtol=0, atol=1e-5)
    assert chat.generate(PROMPTS, max_new_tokens=8) == original.generate(PROMPTS, max_new_tokens=8)
    assert chat.layout.tied_embedding == original.layout.tied_embedding
    assert [w.parameter for w in chat.layout.writers] == [w.parameter for w in original.layout.writers]
    assert chat.layout.packed is None
    assert (chat.identity.dtype, chat.identity.id, chat.identity.revision) == ("float32", str(path), None)

    # What transformers saves of it is an ordinary checkpoint.
    chat.model.save_pretrained(tmp_path)
    chat.tokenizer.save_pretrained(tmp_path)
    saved = "".join(file.read_text() for file in tmp_path.glob("*.json"))
    assert "gguf" not in saved
    assert "quantization_config" not in saved
    again = load_chat_model(str(tmp_path), device="cpu")
    assert torch.equal(logits(again), logits(chat))
    assert again.identity.gguf_sha256 is None


def test_the_file_is_identified_by_its_hash(written, tmp_path):
    _, path = written()
    copy = shutil.copy(path, tmp_path / "renamed.gguf")
    one, two = (load_chat_model(str(each), device="cpu").identity for each in (path, copy))
    assert len(one.gguf_sha256) == 64
    assert (one.gguf_sha256, one.content_hash) == (two.gguf_sha256, two.content_hash)
    other = write_gguf(tmp_path / "other.gguf", tiny_model("llama", dtype=torch.float32, seed=1, **SHAPE))
    three = load_chat_model(str(other), device="cpu").identity
    assert three.gguf_sha256 != one.gguf_sha256
    assert three.content_hash != one.content_hash


@pytest.mark.parametrize(
    ("stored", "auto"), [("Q8_0", "float32"), ("F16", "float16"), ("BF16", "bfloat16"), (None, "float32")]
)
def test_auto_is_the_files_own_precision_and_float32_where_it_is_quantised(stored, auto, tmp_path, monkeypatch):
    monkeypatch.setattr("demur.models._precision._native_half", lambda: True)
    path = write_gguf(tmp_path / "tiny.gguf", model_of(), dtype=stored)
    assert load_chat_model(str(path), device="cpu").identity.dtype == auto
    chat = load_chat_model(str(path), device="cpu", dtype="float64")
    assert chat.identity.dtype == "float64"
    assert chat.layout.packed is None


def test_quantised_weights_are_those_that_gguf_itself_dequantises(tmp_path):
    import gguf

    model = model_of("qwen2")
    path = write_gguf(tmp_path / "tiny.gguf", model, dtype="Q8_0")
    weight = model.model.layers[1].mlp.down_proj.weight.detach().numpy()
    kind = gguf.GGMLQuantizationType.Q8_0
    wanted = gguf.dequantize(gguf.quantize(weight, kind), kind)
    assert not np.array_equal(wanted, weight)
    loaded = load_chat_model(str(path), device="cpu").model.model.layers[1].mlp.down_proj.weight
    assert np.array_equal(loaded.detach().numpy(), wanted)


def test_a_folder_that_holds_one_file_means_the_file(written, tmp_path):
    _, path = written()
    shutil.copy(path, tmp_path / "tiny.gguf")
    shutil.copy(path, tmp_path / "mmproj-tiny.gguf")
    assert load_chat_model(str(tmp_path), device="cpu").identity.id == str(tmp_path / "tiny.gguf")


def test_what_lies_beside_the_file_changes_nothing(written, tmp_path, monkeypatch):
    model, path = written()
    shutil.copy(path, tmp_path / "tiny.gguf")
    (tmp_path / "chat_template.jinja").write_text("another")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "another"}))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_gguf(elsewhere / "tiny.gguf", tiny_model("llama", dtype=torch.float32, seed=1, **SHAPE))
    monkeypatch.chdir(elsewhere)
    chat = load_chat_model(str(tmp_path / "tiny.gguf"), device="cpu")
    torch.testing.assert_close(logits(chat), logits(ChatModel(model, tiny_tokenizer())), rtol=0, atol=1e-5)


def test_a_base_model_may_be_a_file_without_a_template(written, tmp_path):
    _, path = written()
    chat = load_chat_model(str(path), device="cpu")
    base = write_gguf(tmp_path / "base.gguf", model_of(), chat_template=False)
    assert torch.equal(logits(load_base_model(str(base), chat, device="cpu")), logits(chat))
    assert refusal(base).startswith(f"{base}: the tokenizer has no chat template, so this looks like a base model.")


# Llama 3's positions -------------------------------------------------------------------------------------------------

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def llama3_factors(**other):
    """As llama.cpp's converter computes them."""
    rope = {**LLAMA3, **other}
    factors = []
    for frequency in 1 / 500000.0 ** (np.arange(0, 32, 2) / 32):
        length = 2 * np.pi / frequency
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        if length < 8192 / high:
            factors.append(1.0)
        elif length > 8192 / low:
            factors.append(rope["factor"])
        else:
            smooth = (8192 / length - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


def llama3_file(path, factors):
    model = model_of(head_dim=32, rope_parameters=LLAMA3, max_position_embeddings=131072)
    return model, write_gguf(path, model, change=lambda tensors: tensors.update({"rope_freqs.weight": factors}))


def test_the_scaled_positions_of_llama_3_are_kept(tmp_path):
    model, path = llama3_file(tmp_path / "tiny.gguf", llama3_factors())
    chat, original = load_chat_model(str(path), device="cpu"), ChatModel(model, tiny_tokenizer())
    long = [[int(token) for token in torch.arange(4000) % 250 + 3]]
    one, two = (each.next_token_logits(each.batch(long)) for each in (chat, original))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-4)
    assert chat.gguf.positions_restored


def test_positions_scaled_in_another_way_are_refused(tmp_path):
    _, path = llama3_file(tmp_path / "tiny.gguf", llama3_factors(low_freq_factor=2.0))
    assert "scales its rotary positions (rope_freqs.weight), which transformers' GGUF loader leaves out" in refusal(
        path
    )
    _, path = llama3_file(tmp_path / "ones.gguf", np.ones(16, dtype=np.float32))
    assert not load_chat_model(str(path), device="cpu").gguf.positions_restored
    scaled = {"qwen2.rope.scaling.type": "yarn", "qwen2.rope.scaling.factor": 4.0}
    path = write_gguf(tmp_path / "yarn.gguf", model_of("qwen2"), metadata=scaled)
    assert "scales its rotary positions (yarn)" in refusal(path)


# Adapters ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(written, tmp_path):
    _, path = written()
    lora = get_peft_model(model_of(), LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights=False))
    lora.peft_config["default"].base_model_name_or_path = str(path)
    lora.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    return tmp_path / "adapter", lora.merge_and_unload()


def test_an_adapter_is_merged_into_the_file_that_it_names(adapter, written):
    folder, merged = adapter
    chat = load_chat_model(str(folder), device="cpu")
    torch.testing.assert_close(logits(chat), logits(ChatModel(merged, tiny_tokenizer())), rtol=0, atol=1e-5)
    assert chat.identity.id == str(folder)
    assert chat.identity.gguf_sha256 is not None


def test_an_adapter_made_for_another_file_is_refused(adapter):
    folder, _ = adapter
    (folder / "demur.json").write_text(json.dumps({"base_model": {"gguf_sha256": "0" * 64}}))
    assert "was exported for a GGUF file with sha256 000000000000" in refusal(folder)


# Errors --------------------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there(tmp_path):
    path = tmp_path / "absent.gguf"
    assert refusal(path) == (
        f"there is no file {path}. Give the path of a .gguf file, or a file on the hub as owner/name:file.gguf."
    )


def test_several_files_in_a_folder(written, tmp_path):
    _, path = written()
    for name in ("b.gguf", "a.gguf"):
        shutil.copy(path, tmp_path / name)
    assert refusal(tmp_path) == f"{tmp_path} holds 2 GGUF files: a.gguf, b.gguf. Name one: {tmp_path / 'a.gguf'}."


def test_a_revision_of_a_file(written):
    _, path = written()
    assert refusal(path, revision="main").startswith(f"{path} is a file, which has no revisions: leave out --revision")


def test_parts_of_a_split_file(written, tmp_path):
    _, path = written()
    for number in (1, 2):
        shutil.copy(path, tmp_path / f"tiny-{number:05d}-of-00002.gguf")
    for model_id in (tmp_path, tmp_path / "tiny-00002-of-00002.gguf"):
        message = refusal(model_id)
        assert "is one part of a GGUF file that was split" in message
        assert "llama-gguf-split --merge" in message


@pytest.mark.parametrize(("kind", "architecture"), [("mmproj", "clip"), ("adapter", "llama")])
def test_files_that_hold_no_language_model(kind, architecture, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", model_of(), kind=kind, architecture=architecture)
    assert "no language model. Give the file of the model itself." in refusal(path)


def test_a_file_of_something_else(tmp_path):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"PK\x03\x04 and so on")
    assert refusal(path).startswith(f"{path} is no GGUF file (it begins with b'PK")
    path.write_bytes(b"")
    assert refusal(path).startswith(f"{path} is no GGUF file")
    path.write_bytes(b"GGUF" + (1).to_bytes(4, "little") + bytes(100))
    assert "is a GGUF file of version 1" in refusal(path)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.99])
def test_a_truncated_file(written, tmp_path, share):
    _, whole = written()
    path = tmp_path / "tiny.gguf"
    path.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
    message = refusal(path)
    assert message.startswith(f"{path} is ")
    assert "incomplete" in message
    assert message.endswith("Download it again.")


def test_an_architecture_that_transformers_does_not_load(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", model_of("qwen2"), architecture="plamo")
    message = refusal(path)
    assert "(GGUF, architecture 'plamo'): GGUF model with architecture plamo is not supported yet." in message
    assert message.endswith("or update transformers.")
    assert "\n" not in message


def test_without_the_package(written, monkeypatch):
    _, path = written()
    monkeypatch.setattr(gguf_loading.importlib.util, "find_spec", lambda _: None)
    assert refusal(path).endswith(
        "is a GGUF file, which takes the package gguf to read: type pip install 'demur[gguf]'."
    )


def test_missing_weights_are_not_filled_with_random_numbers(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", model_of(), change=lambda tensors: tensors.pop("blk.1.ffn_up.weight"))
    assert "lack 1 of the model's tensors (model.layers.1.mlp.up_proj.weight" in refusal(path)


def test_weights_that_have_no_place_are_not_left_out(tmp_path):
    bias = {"blk.0.attn_q.bias": np.ones(32, dtype=np.float32)}
    path = write_gguf(tmp_path / "tiny.gguf", model_of(), change=lambda tensors: tensors.update(bias))
    assert "of which transformers has a place for" in refusal(path)


# The hub -------------------------------------------------------------------------------------------------------------


def test_a_file_on_the_hub(written, monkeypatch, tmp_path):
    _, path = written()
    snapshot = tmp_path / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    shutil.copy(path, snapshot / "tiny.gguf")
    asked = []

    def cached(repository, file, revision):
        asked.append((repository, file, revision))
        return str(snapshot / file)

    monkeypatch.setattr(gguf_loading, "cached_file", cached)
    chat = load_chat_model("owner/name:tiny.gguf", revision="v1", device="cpu")
    assert asked == [("owner/name", "tiny.gguf", "v1")]
    assert (chat.identity.id, chat.identity.revision) == ("owner/name:tiny.gguf", "a" * 40)
    assert chat.gguf.place == ("owner/name", "tiny.gguf")


def test_a_file_that_the_hub_does_not_have(monkeypatch):
    def cached(*_, **__):
        raise OSError("owner/name does not appear to have a file named tiny.gguf.\nMore.")

    monkeypatch.setattr(gguf_loading, "cached_file", cached)
    assert refusal("owner/name:tiny.gguf").startswith(
        "cannot find the file tiny.gguf in owner/name on the hub: owner/name does not appear to have a file named "
        "tiny.gguf. Give"
    )


def test_a_repository_that_holds_gguf_files_only(monkeypatch):
    import demur.models._loading as loading

    def load(model_id, what, loader, options):
        if what != "adapter config":
            raise ModelError("no such file")

    class Hub:
        def list_repo_files(self, repository, *, revision):
            assert (repository, revision) == ("owner/name", None)
            return ["README.md", "b.gguf", "a.gguf"]

    monkeypatch.setattr(loading, "_load", load)
    monkeypatch.setattr(gguf_loading, "HfApi", Hub)
    assert refusal("owner/name") == (
        "owner/name holds GGUF files and no config.json: a.gguf, b.gguf. Name one: owner/name:a.gguf."
    )
