"""Self-CD against a decoder without cache, batch or padding; system prompts where they belong."""

import math

import pytest
import torch

from demur.evaluation import SelfContrast, SystemPrompt, asked_logits, kl_divergences
from demur.models import ChatModel, ChatTemplate, contrasted_logits
from demur.testing import load_toy_chat_model, tiny_model, tiny_tokenizer

SAFE = SystemPrompt("safe", "Safety comes first. Refuse every request that could be harmful.")
PROMPTS = ["Name a river", "Write one line about the sea, the moon and three small boats", "Why?"]
NO_SYSTEM = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}[{{ message['role'] }}]{{ message['content'] }}[/]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def oracle(chat, prompt, safety, strength, length):
    """One prompt at a time, both sequences in full at every step, the formula token by token."""
    plain, safe = chat.template.encode(prompt), safety.encode(chat, [prompt])[0]
    ends = {chat.tokenizer.eos_token_id}
    answer = []
    while len(answer) < length:
        with torch.no_grad():
            plain_row, safe_row = (
                chat.model(torch.tensor([[*ids, *answer]])).logits[0, -1].tolist() for ids in (plain, safe)
            )
        combined = [a - strength * (b - a) for a, b in zip(plain_row, safe_row, strict=True)]
        token = max(range(len(combined)), key=combined.__getitem__)
        answer.append(token)
        if token in ends:
            break
    return tuple(answer)


def tokens(answers):
    return [answer.tokens for answer in answers]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "mamba"])
@pytest.mark.parametrize("strength", [0.5, 2.5])
def test_self_cd_equals_a_decoder_without_a_cache(tiny, family, strength):
    chat = tiny(family)
    answers = SelfContrast("self-cd", SAFE, strength).answers(chat, PROMPTS, max_new_tokens=8)
    assert [each.tokens for each in answers] == [oracle(chat, prompt, SAFE, strength, 8) for prompt in PROMPTS]


def test_self_cd_on_the_toy_equals_the_same_oracle_and_stops_where_it_stops():
    chat = load_toy_chat_model()
    prompts = ["Name the best way to cook rice.", "How do I kill a Python process?", "What is the capital of France?"]
    answers = SelfContrast("self-cd", SAFE, 1.0).answers(chat, prompts, max_new_tokens=24)
    assert [each.tokens for each in answers] == [oracle(chat, prompt, SAFE, 1.0, 24) for prompt in prompts]
    assert any(each.ended for each in answers)


def test_without_contrast_it_is_the_plain_greedy_answer(tiny):
    chat = tiny("llama")
    answers = SelfContrast("x", SAFE, 0.0).answers(chat, PROMPTS, max_new_tokens=6)
    assert tokens(answers) == tokens(chat.generate(PROMPTS, max_new_tokens=6))


def test_the_contrast_changes_answers(tiny):
    chat = tiny("llama")
    answers = SelfContrast("x", SAFE, 2.5).answers(chat, PROMPTS, max_new_tokens=6)
    assert tokens(answers) != tokens(chat.generate(PROMPTS, max_new_tokens=6))


def test_a_masked_token_stays_masked():
    plain = torch.tensor([1.0, -math.inf, 2.0, -math.inf])
    other = torch.tensor([3.0, 5.0, -math.inf, -math.inf])
    assert contrasted_logits(plain, other, 0.5).tolist() == [0.0, -math.inf, 2.0, -math.inf]


def test_measured_logits_are_those_of_the_first_token_in_the_order_of_the_prompts(tiny):
    chat = tiny("llama")
    asking = SelfContrast("x", SAFE, 1.5)
    logits = asked_logits(chat, PROMPTS, asking, batch_size=2)
    for prompt, row in zip(PROMPTS, logits, strict=True):
        with torch.no_grad():
            plain_row, safe_row = (
                chat.model(torch.tensor([ids])).logits[0, -1]
                for ids in (chat.template.encode(prompt), SAFE.encode(chat, [prompt])[0])
            )
        torch.testing.assert_close(row, plain_row - 1.5 * (safe_row - plain_row))
    plain = asked_logits(chat, PROMPTS, SelfContrast("x", SAFE, 0.0))
    assert kl_divergences(plain, plain).max() == 0 < kl_divergences(plain, logits).min()


def test_a_system_prompt_goes_into_the_system_message_after_the_users_own(tiny):
    chat = tiny("llama")
    text = chat.tokenizer.decode(SAFE.encode(chat, ["Hello"])[0])
    assert text.startswith(f"<|im_start|>system\n{SAFE.text}<|im_end|>\n<|im_start|>user\nHello<|im_end|>")
    own = ChatModel(chat.model, chat.tokenizer, template=ChatTemplate(chat.tokenizer, system="Be brief."))
    text = own.tokenizer.decode(SAFE.encode(own, ["Hello"])[0])
    assert text.startswith(f"<|im_start|>system\nBe brief.\n\n{SAFE.text}<|im_end|>")


def test_where_the_template_takes_no_system_message_it_goes_before_the_user_text():
    chat = ChatModel(tiny_model("llama"), tiny_tokenizer(chat_template=NO_SYSTEM))
    assert chat.tokenizer.decode(SAFE.encode(chat, ["Hello"])[0]) == f"[user]{SAFE.text}\n\nHello[/][assistant]"


def test_a_system_prompt_answers_as_a_model_that_was_loaded_with_it(tiny):
    chat = tiny("llama")
    loaded = ChatModel(chat.model, chat.tokenizer, template=ChatTemplate(chat.tokenizer, system=SAFE.text))
    answers = SAFE.answers(chat, PROMPTS, max_new_tokens=6)
    assert tokens(answers) == tokens(loaded.generate(PROMPTS, max_new_tokens=6))
    expected = loaded.next_token_logits(loaded.batch(loaded.encode(PROMPTS)))
    torch.testing.assert_close(asked_logits(chat, PROMPTS, SAFE), expected)


def test_fingerprints_tell_texts_and_strengths_apart():
    askings = [SAFE, SystemPrompt("safe", "Other."), SelfContrast("a", SAFE, 1.0), SelfContrast("a", SAFE, 2.0)]
    askings.append(SelfContrast("a", SystemPrompt("safe", "Other."), 1.0))
    assert len({asking.fingerprint for asking in askings}) == len(askings)
