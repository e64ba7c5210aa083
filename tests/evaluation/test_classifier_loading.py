"""Judge models are known by form and weights, and loaded from folders, adapters and vision-language checkpoints."""

import peft
import pytest
import torch
from transformers import Llama4Config, Llama4ForConditionalGeneration

from demur.errors import InputError, ModelError
from demur.evaluation import ClassifierJudge, PhraseJudge
from demur.models import ClassifierModel
from demur.testing import tiny_model, tiny_tokenizer

PAIRS = [
    ("Name a river.", "The Rhine is a river in Europe."),
    ("What is the capital of France, and how many people live there?", "Paris."),
    ("Hi", "Hello! How can I help you today? Ask me anything about rivers, mountains, or the weather."),
]
GUARD_TEMPLATE = (
    "{% for message in messages %}{{ 'User' if message['role'] == 'user' else 'Agent' }}: "
    "{{ message['content'].strip() }}\n\n{% endfor %}Assess the last message:"
)
PARTS_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}="
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %};"
    "{% endfor %}"
)


def tokenizer_of(template=GUARD_TEMPLATE):
    return tiny_tokenizer(chat_template=template)


def model_of(family, *, positions=4096, **options):
    return tiny_model(family, **({"max_position_embeddings": positions, "sliding_window": None} | options))


def guard_of(*, template=GUARD_TEMPLATE, **options):
    return ClassifierJudge(model_of("llama", **options), tokenizer_of(template), form="llama-guard-3")


def favour(judge, *labels):
    """Make the tiny model answer with one of the labels, nearly always."""
    tokens = [ids for label in labels for ids in judge.model.label_tokens((label,))[0]]

    def add(_module, _inputs, output):
        return output + torch.zeros(output.shape[-1], dtype=output.dtype).index_fill(0, torch.tensor(tokens), 30.0)

    judge.model.model.lm_head.register_forward_hook(add)
    return judge


def test_id_and_version_name_form_weights_and_rules():
    judge = guard_of()
    assert judge.id == "llama-guard-3"
    assert judge.version == f"1-{judge.model.content_hash[:12]}-phrase-{PhraseJudge.version}"
    assert guard_of().version == judge.version
    other = guard_of()
    other.model.model.lm_head.weight.data[0, 0] += 1
    assert other.version != judge.version
    assert guard_of(template=PARTS_TEMPLATE).version != judge.version


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judges") / "my-llama-guard-3"
    model_of("llama", dtype=torch.float32).save_pretrained(folder)
    tokenizer_of().save_pretrained(folder)
    return folder


def test_a_saved_judge_is_loaded_with_the_form_that_its_name_says(saved):
    judge = ClassifierJudge.load(str(saved), device="cpu", batch_size=2)
    assert (judge.id, judge.batch_size) == ("llama-guard-3", 2)
    memory = guard_of(dtype=torch.float32)
    assert judge.version == memory.version
    found = favour(judge, "safe", "unsafe").judge_batch(PAIRS)
    expected = favour(memory, "safe", "unsafe").judge_batch(PAIRS)
    assert [each.harm for each in found] == pytest.approx([each.harm for each in expected], abs=1e-6)
    wider = ClassifierJudge.load(str(saved), form="harmbench-llama-2", device="cpu", dtype="float64")
    assert wider.id == "harmbench-llama-2"
    assert wider.model.model.dtype == torch.float64


def test_a_judge_without_a_chat_template_loads_and_an_adapter_is_merged(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "strongreject"
    model_of("gemma", dtype=torch.float32).save_pretrained(base)
    tokenizer_of(None).save_pretrained(base)
    torch.manual_seed(3)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    tuned = peft.get_peft_model(model_of("gemma", dtype=torch.float32), lora)
    tuned.peft_config["default"].base_model_name_or_path = str(base)
    tuned.save_pretrained(adapter)
    judge = ClassifierJudge.load(str(adapter), device="cpu")
    rows = [judge.model.encode(text, begin=True) for text in ("a", "a longer text")]
    expected = ClassifierModel(tuned, tokenizer_of(None)).label_probabilities(rows, ["1", "5"])
    plain = ClassifierModel(model_of("gemma", dtype=torch.float32), tokenizer_of(None))
    found = judge.model.label_probabilities(rows, ["1", "5"])
    assert judge.id == "strongreject"
    assert torch.allclose(found, expected, atol=1e-6, rtol=1e-3)
    assert not torch.allclose(found, plain.label_probabilities(rows, ["1", "5"]), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("chunk", [4096, None])
def test_llama_guard_4_loads_with_its_vision_tower_and_without_a_chunk_size(chunk, tmp_path):
    folder = tmp_path / "Llama-Guard-4-tiny"
    text = {
        "vocab_size": 259,
        "hidden_size": 32,
        "intermediate_size": 48,
        "intermediate_size_mlp": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
        "bos_token_id": None,
        "num_local_experts": 2,
        "moe_layers": [],
        "attention_chunk_size": chunk,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 14,
        "vision_output_dim": 32,
        "projector_input_dim": 32,
        "projector_output_dim": 32,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=vision)).float().eval()
    whole.save_pretrained(folder)
    tokenizer_of(PARTS_TEMPLATE).save_pretrained(folder)
    judge = favour(ClassifierJudge.load(str(folder), device="cpu"), "safe", "unsafe")
    assert judge.id == "llama-guard-4"
    whole.config.text_config.attention_chunk_size = 4096
    found = judge.judge_batch(PAIRS)
    for (prompt, answer), each in zip(PAIRS, found, strict=True):
        ids = judge.model.encode(f"user={prompt};assistant={answer};", begin=False)
        with torch.no_grad():
            logits = whole(input_ids=torch.tensor([ids])).logits[0, -1]
        safe, unsafe = (judge.model.encode(label, begin=False)[0] for label in ("safe", "unsafe"))
        assert each.harm == pytest.approx(float(torch.sigmoid(logits[unsafe] - logits[safe])), abs=1e-5)


def test_what_cannot_be_loaded_or_asked_is_refused_before_weights_are_read(tmp_path):
    with pytest.raises(InputError, match="does not say which judge it is; give its form, one of llama-guard-2"):
        ClassifierJudge.load(str(tmp_path / "judge"))
    with pytest.raises(InputError, match="there is no judge form 'guard'"):
        ClassifierJudge.load(str(tmp_path / "judge"), form="guard")
    with pytest.raises(InputError, match="the batch size of the judge is 0; it must be at least 1"):
        ClassifierJudge.load(str(tmp_path / "wildguard"), batch_size=0)
    with pytest.raises(ModelError, match="there is no model folder"):
        ClassifierJudge.load(str(tmp_path / "wildguard"))
