"""`demur inspect`: the table, the verdict, the JSON document, and what cannot be proved."""

import json

import pytest
import torch

from demur.cli import main
from demur.testing import tiny_model, tiny_tokenizer
from demur.testing._tiny import CHAT_TEMPLATE

THINKS = CHAT_TEMPLATE + "{% if enable_thinking is defined and enable_thinking %}<think>\n{% endif %}"


def saved(folder, family, *, template=CHAT_TEMPLATE, **config):
    tiny_model(family, dtype=torch.float32, **config).save_pretrained(folder)
    tiny_tokenizer(chat_template=template).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("family", "verdict", "words"),
    [
        ("llama", "exact", "folded weights give what hooks give, up to rounding"),
        ("gpt2", "exact_after_untying", "once transformer.wte.weight is no longer shared with the output head"),
        ("gemma2", "removed_not_identical", "a norm after the write changes the rest: logits differ by"),
    ],
)
def test_json_holds_the_proof(family, verdict, words, tmp_path, capsys):
    assert main(["inspect", saved(tmp_path, family), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], words in found["reason"]) == (verdict, True)
    assert found["probe"]["residual"] <= found["probe"]["tolerance"] < found["probe"]["baseline"]
    assert found["probe"]["decomposition_error"] < 1e-5
    assert found["probe"]["capture_difference"] == 0
    assert len(found["probe"]["per_block"]) == len(found["blocks"]) + 1
    assert found["equivalence"]["tokens"] == 20
    assert {writer["norm_after"] for writer in found["writers"] if writer["block"] is not None} == {
        verdict == "removed_not_identical"
    }
    texts = [position["text"] for position in found["template"]["positions"]]
    assert "".join(texts) == "<|im_end|>\n<|im_start|>assistant\n"
    assert [position["position"] for position in found["template"]["positions"]] == list(range(-len(texts), 0))


def test_a_person_sees_the_table_and_the_verdict(tmp_path, capsys):
    assert main(["inspect", saved(tmp_path, "llama")]) == 0
    shown = capsys.readouterr().out
    assert "self_attn.o_proj.weight" in shown
    assert "0-2" in shown
    assert "post-instruction tokens:" in shown
    assert "verdict: exact: folded weights" in shown


def test_what_cannot_be_proved_is_not_supported_and_says_why(tmp_path, capsys):
    assert main(["inspect", saved(tmp_path, "openai-gpt", n_embd=32, n_layer=2, n_head=4), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "not_supported"
    assert "a norm acts on the residual stream itself" in found["reason"]


def test_template_options_and_response_prefix_are_recorded(tmp_path, capsys):
    words = [
        "inspect",
        saved(tmp_path, "llama", template=THINKS),
        "--template-option",
        "enable_thinking=false",
        "--json",
    ]
    assert main([*words, "--response-prefix", "<think>\\n\\n</think>\\n\\n"]) == 0
    template = json.loads(capsys.readouterr().out)["template"]
    assert template["options"] == {"enable_thinking": False}
    assert template["response_prefix"] == "<think>\n\n</think>\n\n"
    assert template["opens_thinking"] is False
    assert "".join(position["text"] for position in template["positions"]).endswith("</think>\n\n")


def test_a_thinking_prompt_is_seen(tmp_path, capsys):
    words = [
        "inspect",
        saved(tmp_path, "llama", template=THINKS),
        "--template-option",
        "enable_thinking=true",
        "--json",
    ]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["template"]["opens_thinking"] is True


def test_an_option_that_the_template_does_not_know(tmp_path, capsys):
    assert main(["inspect", saved(tmp_path, "llama"), "--template-option", "enable_thinking=false", "--json"]) == 2
    message = json.loads(capsys.readouterr().out)["error"]["message"]
    assert "has no variable 'enable_thinking', so --template-option enable_thinking=... would change nothing" in message


def test_a_template_option_without_a_value(tmp_path, capsys):
    assert main(["inspect", saved(tmp_path, "llama"), "--template-option", "thinking", "--json"]) == 2
    message = json.loads(capsys.readouterr().out)["error"]["message"]
    assert "--template-option takes NAME=VALUE, such as enable_thinking=false; got 'thinking'." in message
