"""One renderer: the tokenizer's own template, exactly one BOS, positions computed from renderings."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from demur.errors import ModelError
from demur.models import ChatModel, ChatTemplate
from demur.models._chat_template import common_suffix
from demur.testing import tiny_model, tiny_tokenizer
from demur.testing._tiny import CHAT_TEMPLATE

PROMPTS = ["Write a poem.", "", "  spaces  ", "line\nbreak", "été 漢字", "<|im_end|>", "{{ jinja }}", "a" * 300]
PLAIN = "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}[answer]"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


def refusal(template, prompt="hello", **options):
    with pytest.raises(ModelError) as caught:
        ChatTemplate(tiny_tokenizer(chat_template=template), **options).render(prompt)
    return str(caught.value)


def with_bos(template):
    """A tokenizer that adds a BOS of its own to whatever it tokenizes, as Llama's and Gemma's do."""
    tokenizer = tiny_tokenizer(chat_template=template)
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    assert tokenizer("x")["input_ids"][0] == 1
    return tokenizer


def byte_ids(tokenizer, text):
    """Ids of the byte-level tokenizer by hand: specials 0..2, then the sorted alphabet, where newline is written Ċ."""
    return [tokenizer.get_vocab()[{"\n": "Ċ", " ": "Ġ"}.get(letter, letter)] for letter in text]


def test_post_instruction_tokens_are_what_the_template_puts_after_the_instruction():
    tokenizer = tiny_tokenizer()
    # <|im_end|> \n <|im_start|> assistant \n
    expected = [2, *byte_ids(tokenizer, "\n"), 1, *byte_ids(tokenizer, "assistant\n")]
    template = ChatTemplate(tokenizer)
    assert list(template.post_instruction_tokens()) == expected
    assert template.post_instruction_texts() == ("<|im_end|>", "\n", "<|im_start|>", *"assistant", "\n")


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_a_system_prompt_comes_before_the_instruction_and_moves_no_position(system):
    template = ChatTemplate(tiny_tokenizer(), system)
    rendered = template.render("hello")
    assert rendered.endswith("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")
    assert ("system" in rendered) == (system is not None)
    assert (system or "") in rendered
    assert len(template.post_instruction_tokens()) == 13


@settings(deadline=None, max_examples=50)
@given(st.text(min_size=0, max_size=30))
def test_every_rendering_ends_with_the_post_instruction_tokens(prompt):
    template = ChatTemplate(tiny_tokenizer())
    suffix = list(template.post_instruction_tokens())
    assert template.encode(prompt)[-len(suffix) :] == suffix


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), max_size=6), min_size=1, max_size=5), st.lists(st.integers(0, 3), max_size=4)
)
def test_common_suffix_is_common_and_the_longest(heads, tail):
    sequences = [head + tail for head in heads]
    suffix = common_suffix(sequences)
    assert len(suffix) >= len(tail)
    assert all(sequence[len(sequence) - len(suffix) :] == suffix for sequence in sequences)
    longer = {tuple(sequence[len(sequence) - len(suffix) - 1 :]) for sequence in sequences}
    assert len(longer) > 1 or any(len(sequence) == len(suffix) for sequence in sequences)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("template", [CHAT_TEMPLATE, PLAIN, "{{ bos_token }}" + PLAIN])
def test_encode_equals_the_tokenizers_own_chat_encoding(prompt, template):
    tokenizer = with_bos(template)
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert ChatTemplate(tokenizer).encode(prompt) == expected


def test_a_prompt_is_rendered_once_until_the_template_changes(monkeypatch):
    monkeypatch.setattr("demur.models._chat_template._KEPT", 3)
    template, rendered, render = ChatTemplate(tiny_tokenizer()), [], ChatTemplate.render
    monkeypatch.setattr(ChatTemplate, "render", lambda self, prompt: rendered.append(prompt) or render(self, prompt))
    first = template.encode("a")
    expected = list(first)
    first.append(7)
    assert template.encode("a") == expected
    assert rendered == ["a"]
    template.tokenizer.chat_template = PLAIN
    assert template.encode("a") == byte_ids(template.tokenizer, "[user]a[answer]")
    template.encode("b")
    assert template.encode("a") == byte_ids(template.tokenizer, "[user]a[answer]")
    assert rendered == ["a", "a", "b", "a"]  # no more than three are kept, a probe of its own among them


def test_a_template_with_a_bos_renders_exactly_one():
    ids = ChatTemplate(with_bos("{{ bos_token }}" + PLAIN)).encode("hello")
    assert ids[0] == 1
    assert ids.count(1) == 1


def test_a_template_without_a_bos_gets_none():
    assert 1 not in ChatTemplate(with_bos(PLAIN)).encode("hello")


def test_two_bos_are_an_error():
    message = re.escape("the beginning-of-sequence token '<|im_start|>' twice; remove one from the template.")
    with pytest.raises(ModelError, match=message):
        ChatTemplate(with_bos("{{ bos_token }}{{ bos_token }}" + PLAIN))


def test_a_template_that_takes_no_system_role_says_so_and_what_to_try():
    message = refusal(NO_SYSTEM + CHAT_TEMPLATE, system="Be brief.")
    assert message == (
        "the chat template does not accept the messages: System role not supported. Try without --system."
    )
    assert ChatTemplate(tiny_tokenizer(chat_template=NO_SYSTEM + CHAT_TEMPLATE)).render("hello")


def test_a_template_that_refuses_everything_is_not_blamed_on_the_system_prompt():
    message = refusal("{{ raise_exception('no user turns') }}")
    assert "does not accept the messages: no user turns" in message
    assert "system prompt" not in message


def test_a_template_that_drops_the_users_text_is_an_error():
    template = ChatTemplate(tiny_tokenizer(chat_template="user asked something\nanswer:"))
    with pytest.raises(ModelError, match="the chat template drops the user's text"):
        template.post_instruction_tokens()


def test_a_template_that_ends_with_the_users_text_has_no_position_to_read():
    template = ChatTemplate(tiny_tokenizer(chat_template="user: {{ messages[0]['content'] }}"))
    with pytest.raises(ModelError, match=r"have no common ending.*does the template add a generation prompt"):
        template.post_instruction_tokens()


@pytest.mark.parametrize("missing", [None, ""])
def test_no_chat_template_is_an_error(missing):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = missing
    with pytest.raises(ModelError, match="the tokenizer has no chat template") as caught:
        ChatModel(tiny_model("llama"), tokenizer)
    assert "Use the chat (instruct) version" in str(caught.value)


def test_options_reach_the_template():
    thinking = CHAT_TEMPLATE + "{% if enable_thinking %}<think>{% endif %}"
    template = ChatTemplate(tiny_tokenizer(chat_template=thinking), options={"enable_thinking": True})
    assert template.render("hello").endswith("assistant\n<think>")
    assert len(template.post_instruction_tokens()) == 13 + len("<think>")
    assert not ChatTemplate(tiny_tokenizer(chat_template=thinking)).render("hello").endswith("<think>")
