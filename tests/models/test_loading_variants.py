"""Adapters, shards, devices, revisions, remote code, vision-language checkpoints: loaded as meant, or refused."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from demur.errors import ModelError
from demur.interventions import DirectionalAblation, write_adapter
from demur.models import ChatModel, _loading, load_chat_model
from demur.testing import tiny_model, tiny_tokenizer

PROMPTS = ["Hi", "What is the capital of France?"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_model("llama", dtype=torch.float32).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(base, tmp_path):
    return Path(shutil.copytree(base, tmp_path / "model"))


def with_lora(**options):
    """A tiny model with an adapter attached that changes something, and is not merged."""
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=["o_proj", "down_proj"], init_lora_weights=False, **options)
    return peft.get_peft_model(tiny_model("llama", dtype=torch.float32), config)


def save_adapter(model, base, folder):
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(base, tmp_path):
    return save_adapter(with_lora(), base, tmp_path / "adapter")


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def logits(chat):
    return chat.next_token_logits(chat.batch(chat.encode(PROMPTS)))


def refusal(folder, **options):
    with pytest.raises(ModelError) as caught:
        load_chat_model(str(folder), **({"device": "cpu"} | options))
    return str(caught.value)


def test_an_adapter_is_merged_into_the_base_that_it_names(adapter, base):
    chat = load_chat_model(str(adapter), device="cpu")
    attached = with_lora().eval()
    batch = chat.batch(chat.encode(PROMPTS))
    with torch.no_grad():
        expected = attached(**batch).logits[:, -1]
    assert torch.allclose(logits(chat), expected, atol=1e-5)
    assert not torch.allclose(logits(chat), logits(load_chat_model(str(base), device="cpu")), atol=1e-2)
    assert chat.name == chat.identity.id == str(adapter)
    assert chat.identity.architecture == "LlamaForCausalLM"
    assert not any("lora" in name for name, _ in chat.model.named_parameters())


def test_an_adapters_own_tokenizer_comes_before_that_of_its_base(adapter):
    tokenizer = tiny_tokenizer(chat_template="{{ messages[0]['content'] }}\nOwn:")
    tokenizer.save_pretrained(adapter)
    assert load_chat_model(str(adapter), device="cpu").template.render("x") == "x\nOwn:"


def test_an_adapter_without_a_base(adapter):
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=None)
    assert "does not name its base model. Write `base_model_name_or_path` into" in refusal(adapter)


def test_an_adapter_whose_base_is_gone(adapter, tmp_path):
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(tmp_path / "gone"))
    assert refusal(adapter).startswith(f"there is no model folder {tmp_path / 'gone'}.")


def test_an_adapter_with_damaged_settings(adapter):
    (adapter / "adapter_config.json").write_text("{")
    assert refusal(adapter).startswith(f"cannot read {adapter / 'adapter_config.json'}: ")


def test_an_adapter_with_pickled_weights_only(adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert "Pickled weights (.bin) can run code: convert them to safetensors." in refusal(adapter)


def test_an_adapter_that_lacks_tensors_is_not_half_merged(adapter):
    weights = load_file(adapter / "adapter_model.safetensors")
    weights.pop(sorted(weights)[0])
    save_file(weights, adapter / "adapter_model.safetensors")
    assert f"cannot load the adapter of {adapter}: Found missing adapter keys" in refusal(adapter)


def test_an_adapter_that_changes_no_weights_cannot_be_merged(base, tmp_path):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = peft.get_peft_model(tiny_model("llama", dtype=torch.float32), config)
    message = refusal(save_adapter(model, base, tmp_path / "prompt"))
    assert "an adapter of kind PROMPT_TUNING, which does not change the weights and so cannot be merged" in message


def test_an_adapter_on_quantised_weights(adapter, monkeypatch):
    load = _loading._load_weights

    def quantised(*arguments):
        model = load(*arguments)
        model.config.quantization_config = {"quant_method": "gptq"}
        return model

    monkeypatch.setattr(_loading, "_load_weights", quantised)
    assert "is an adapter on quantised weights, into which it cannot be merged exactly" in refusal(adapter)


def test_a_model_object_with_an_adapter_is_refused_until_it_is_merged():
    model = with_lora()
    for held in (model, model.base_model.model):
        with pytest.raises(ModelError, match=r"call merge_and_unload\(\) first, and give the model that it returns"):
            ChatModel(held, tiny_tokenizer())
    assert ChatModel(model.merge_and_unload(), tiny_tokenizer()).n_layers == 3


def test_an_adapter_that_transformers_attached_is_refused_too(adapter, base):
    model = tiny_model("llama", dtype=torch.float32)
    model.load_adapter(str(adapter))
    with pytest.raises(ModelError, match="holds a PEFT adapter that is not merged"):
        ChatModel(model, tiny_tokenizer())


def test_shards_give_the_same_logits_and_the_same_hash(base, folder):
    whole = load_chat_model(str(base), device="cpu")
    (folder / "model.safetensors").unlink()
    whole.model.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    sharded = load_chat_model(str(folder), device="cpu")
    assert torch.equal(logits(sharded), logits(whole))
    assert sharded.identity.content_hash == whole.identity.content_hash
    next(folder.glob("model-00002-*.safetensors")).unlink()
    assert refusal(folder).startswith(f"cannot load the model of {folder}: ")


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_devices_that_there_are(base, device):
    assert load_chat_model(str(base), device=device).device.type in {"cpu", "cuda"}


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "", "meta"])
def test_an_unknown_device(base, device):
    assert refusal(base, device=device) == (f"unknown device {device!r}; type one of: auto, cpu, cuda, cuda:1, mps.")


def test_a_device_that_is_not_here(base):
    assert refusal(base, device="cuda:99").startswith("there is no device cuda:99: torch finds ")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "auto"])
def test_a_gpu_gives_the_same_answers(base, device):
    chat = load_chat_model(str(base), device=device)
    assert {parameter.device.type for parameter in chat.model.parameters()} == {"cuda"}
    assert torch.allclose(logits(chat).cpu(), logits(load_chat_model(str(base), device="cpu")), atol=1e-4)


def test_a_map_over_the_only_device_loads_the_same(base):
    model, _ = _loading.AutoModelForCausalLM.from_pretrained(
        base, device_map="auto", output_loading_info=True, max_memory={"cpu": "1GB"}
    )
    chat = ChatModel(model, tiny_tokenizer())
    assert torch.equal(logits(chat), logits(load_chat_model(str(base), device="cpu")))


def test_weights_left_on_disk_are_refused(base, monkeypatch):
    class Offloading:
        @staticmethod
        def from_pretrained(*_, **__):
            return tiny_model("llama").to("meta"), {"missing_keys": []}

    monkeypatch.setattr(_loading, "_auto_class", lambda _config: Offloading)
    assert "does not fit into the memory of the GPUs" in refusal(base)


def test_a_revision_of_a_folder(base):
    assert refusal(base, revision="main") == (
        f"{base} is a folder, which has no revisions: leave out --revision, or give the hub id (owner/name) whose "
        "revision you mean."
    )


def test_a_revision_reaches_every_file_of_a_hub_id(base, monkeypatch):
    asked = {}
    load = _loading._load

    def from_hub(model_id, what, loader, options):
        asked[what] = (model_id, options["revision"])
        return load(str(base), what, loader, options | {"revision": None})

    monkeypatch.setattr(_loading, "_load", from_hub)
    assert load_chat_model("owner/name", revision="v2", device="cpu").name == "owner/name"
    assert asked == dict.fromkeys(("adapter config", "tokenizer", "config", "model"), ("owner/name", "v2"))


def test_code_that_comes_with_a_checkpoint_is_run_only_when_asked(folder):
    (folder / "own.py").write_text("raise SystemExit('this code ran')\n")
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    edit_json(folder / "config.json", model_type="own", auto_map=auto_map)
    assert refusal(folder) == (
        f"{folder} comes with Python code of its own (auto_map in its config), which demur does not run unasked. Read "
        "that code; if you trust it, add --trust-remote-code."
    )


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "mistral3"])
def test_a_vision_language_checkpoint_is_loaded_whole(family, tmp_path):
    model = tiny_model(family, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    chat = load_chat_model(str(tmp_path), device="cpu")
    assert type(chat.model) is type(model)
    assert torch.equal(logits(chat), logits(ChatModel(model, tiny_tokenizer())))


def test_a_template_kept_with_the_processor_is_found(folder):
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert load_chat_model(str(folder), device="cpu").tokenizer.chat_template == template


def test_a_hub_adapter_is_pinned_by_its_own_revision_and_its_base_by_the_one_that_it_names(adapter, base, monkeypatch):
    """The hub is played by a cache folder: the adapter's commit is what is recorded."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    edit_json(adapter / "adapter_config.json", revision="base-tag")
    snapshot = shutil.copytree(adapter, adapter.parent / "snapshots" / commit)
    asked = {}
    load = _loading._load

    def from_hub(model_id, what, loader, options):
        asked[what] = (model_id, options.get("revision"))
        if what == "adapter config":
            return str(snapshot / "adapter_config.json")
        here = str(adapter) if model_id == "owner/adapter" else model_id
        return load(here, what, loader, options | {"revision": None})

    monkeypatch.setattr(_loading, "_load", from_hub)
    monkeypatch.setattr(
        _loading, "_find_file", lambda _id, name, _revision: {"adapter_model.safetensors": name}.get(name)
    )
    chat = load_chat_model("owner/adapter", revision="v2", device="cpu")
    assert asked["adapter config"] == asked["adapter"] == ("owner/adapter", "v2")
    assert asked["tokenizer"] == asked["config"] == asked["model"] == (str(base), "base-tag")
    assert (chat.name, chat.revision) == ("owner/adapter", commit)


def test_an_adapter_of_tied_embeddings_leaves_the_head_as_it_was(tmp_path):
    """PEFT adds to what the embeddings give; merged into the shared matrix, it would change the head too."""
    tied = tiny_model("qwen2", dtype=torch.float32, tie_word_embeddings=True)
    tied.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    base = load_chat_model(str(tmp_path / "base"), device="cpu")
    ablation = DirectionalAblation(torch.ones(base.layout.d_model, dtype=torch.float64))
    write_adapter(base, ablation, tmp_path / "adapter")
    chat = load_chat_model(str(tmp_path / "adapter"), device="cpu")
    with ablation.folded_into(base):
        torch.testing.assert_close(logits(chat), logits(base), rtol=0, atol=1e-5)
    assert chat.layout.tied_embedding is None
    chat.model.save_pretrained(tmp_path / "merged")
    chat.tokenizer.save_pretrained(tmp_path / "merged")
    again = load_chat_model(str(tmp_path / "merged"), device="cpu")
    torch.testing.assert_close(logits(again), logits(chat), rtol=0, atol=1e-5)
