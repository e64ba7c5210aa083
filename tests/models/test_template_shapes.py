"""Every shape of chat template, on every kind of tokenizer: one BOS at most, positions as written by hand."""

from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from demur.errors import ModelError
from demur.models import ChatModel, ChatTemplate
from demur.testing import tiny_model

TEMPLATES = {path.stem: path.read_text() for path in (Path(__file__).parent / "templates").glob("*.jinja")}
BOS = "<s>"
MARKS = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "[USER]", "[/USER]", "[INST]", "[/INST]")
MERGES = [("a", "n"), ("t", "h"), ("Ċ", "#"), ("r", ":"), ("s", "s"), ("Ċ", "Ċ")]


def wrap(backend, *, pad=True):
    """A transformers tokenizer that puts a BOS before whatever it is given, unless told not to."""
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, backend.token_to_id(BOS))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token="</s>", pad_token="<pad>" if pad else None
    )
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    return tokenizer


def byte_level(specials, *, pad=True, merges=MERGES):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*specials, *letters, *(first + second for first, second in merges)]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(vocabulary)}, merges=merges))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return wrap(backend, pad=pad)


def byte_level_bpe():
    return byte_level([BOS, "</s>", "<pad>", *MARKS])


def tekken():
    """Byte-level ids behind a long run of reserved special tokens, and no padding token."""
    reserved = [f"<SPECIAL_{index}>" for index in range(60)]
    return byte_level(["<unk>", BOS, "</s>", *MARKS, *reserved], pad=False)


def sentencepiece():
    """Unigram pieces with a leading space, newline as a piece, and bytes for the letters that it lacks."""
    specials = [BOS, "</s>", "<pad>", *MARKS]
    letters = [chr(code) for code in range(33, 127)] + ["▁", "\n"]
    words = ["▁Answer", "Answer", ":", "▁List", "▁three", "▁Paris", "model", "▁model", "assistant", "▁[", "▁<"]
    pieces = dict.fromkeys(["<unk>", *specials, *letters, *words, *(f"<0x{byte:02X}>" for byte in range(256))])
    scores = [(piece, -1.0 if len(piece) > 1 else -9.0) for piece in pieces]
    backend = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrap(backend)


def sentencepiece_legacy():
    """As Llama 2 has it: spaces become pieces in the normalizer, and one is put before the text and each special."""
    tokenizer = sentencepiece()
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    return tokenizer


TOKENIZERS = [byte_level_bpe, tekken, sentencepiece, sentencepiece_legacy]
# shape -> its options, whether it needs a system prompt, and what follows the instruction, by hand.
SUFFIXES = {
    "no_system": ({}, None, "<|end|>\n<|start|>model\n"),
    "system_required": ({}, "Be brief.", "<|end|>\n<|start|>assistant\n"),
    "alternate": ({}, None, "[/USER]"),
    "opens_thinking": ({}, None, "<|end|>\n<|start|>assistant\n<think>\n"),
    "enable_thinking": ({}, None, "<|end|>\n<|start|>assistant\n"),
    "channels": ({}, None, "<|end|><|start|>assistant"),
    "trims": ({}, None, "<|end|>\n<|start|>assistant\n"),
    "inst_block": ({}, None, " [/INST]"),
    "drops_system": ({}, None, "<|end|>\n<|start|>assistant\n"),
    "parts": ({}, None, "\nASSISTANT:"),
    "text_first": ({}, None, "\n###\nAnswer:"),
    "enable_thinking on": ({"enable_thinking": True}, None, "<|end|>\n<|start|>assistant\n"),
    "enable_thinking off": ({"enable_thinking": False}, None, "<|end|>\n<|start|>assistant\n<think>\n\n</think>\n\n"),
    "channels analysis": ({"channel": "analysis"}, None, "<|end|><|start|>assistant<|channel|>analysis<|message|>"),
    "channels final": ({"channel": "final"}, None, "<|end|><|start|>assistant<|channel|>final<|message|>"),
    "text_first system": ({}, "Be brief.", "\n###\nRules: Be brief.\nAnswer:"),
}
THINKING = {"opens_thinking", "channels analysis"}
WITH_BOS = {"no_system", "alternate", "inst_block"}
NO_SYSTEM_ROLE = {"no_system", "drops_system"}


def chat_template(shape, make=byte_level_bpe, **changes):
    options, system, _ = SUFFIXES.get(shape, ({}, None, ""))
    tokenizer = make()
    tokenizer.chat_template = TEMPLATES[shape.split()[0]]
    return ChatTemplate(tokenizer, **({"system": system, "options": options} | changes))


def shown(template, make):
    return shown_as("".join(template.post_instruction_texts()), make)


def shown_as(text, make):
    """The legacy tokenizer puts a space after each special token, and the model reads it."""
    return text.replace(" ", "") if make is sentencepiece_legacy else text


def refusal(shape, **changes):
    with pytest.raises(ModelError) as caught:
        chat_template(shape, **changes)
    return str(caught.value)


def test_every_template_is_of_some_use_here():
    assert {shape.split()[0] for shape in SUFFIXES} | {"text_last"} == set(TEMPLATES)


@pytest.mark.parametrize("make", TOKENIZERS)
@pytest.mark.parametrize("shape", SUFFIXES)
def test_post_instruction_positions_are_the_suffix_written_by_hand(shape, make):
    template = chat_template(shape, make)
    expected = SUFFIXES[shape][2]
    ids = template.encode("What now")
    # Every tokenizer reads the suffix where it stands: after a letter, in the middle of the text.
    begin = template.render("What now").removesuffix(expected)
    tokens = ids[len(template.tokenizer(begin, add_special_tokens=False)["input_ids"]) :]
    assert begin.endswith("What now")
    assert tokens
    assert list(template.post_instruction_tokens()) == tokens
    assert shown(template, make) == shown_as(expected, make)
    assert len(template.post_instruction_texts()) == len(tokens)


@pytest.mark.parametrize("make", TOKENIZERS)
@pytest.mark.parametrize("shape", SUFFIXES)
@pytest.mark.parametrize("prompt", ["Hello there", "", "  spaces  ", "line\nbreak", "été 漢字", "Paris?"])
def test_encode_is_the_tokenizers_own_and_the_bos_comes_once_or_never(shape, make, prompt):
    template = chat_template(shape, make)
    messages = [{"role": "system", "content": template.system}] if template.system else []
    messages.append({"role": "user", "content": prompt})
    if shape == "parts":
        messages = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]
    own = template.tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=False, **template.options
    )
    ids = template.encode(prompt)
    assert ids == own
    assert ids.count(template.tokenizer.bos_token_id) == template.bos_tokens() == int(shape in WITH_BOS)


@pytest.mark.parametrize("shape", SUFFIXES)
def test_what_is_said_of_a_shape(shape):
    template = chat_template(shape)
    assert template.opens_thinking() == (shape in THINKING)
    assert template.takes_system_role() == (shape not in NO_SYSTEM_ROLE)
    assert template.unused_options() == ()


@pytest.mark.parametrize("make", TOKENIZERS)
def test_each_token_is_shown_as_it_reads_where_it_stands(make):
    texts = chat_template("inst_block", make).post_instruction_texts()
    assert texts == (" ", "[/INST]")


def test_a_merged_token_at_the_end_of_the_instruction_is_not_counted():
    """After a "?" the line end is part of another token; only what all instructions share is counted."""
    template = chat_template("text_first")
    first = "".join(template.tokenizer.convert_ids_to_tokens(list(template.post_instruction_tokens())[:1]))
    assert first == "Ċ#"
    merging = chat_template("text_first", lambda: byte_level([BOS, "</s>", "<pad>"], merges=[("?", "Ċ"), *MERGES]))
    assert "".join(merging.post_instruction_texts()) == "##\nAnswer:"


@pytest.mark.parametrize("make", TOKENIZERS)
@pytest.mark.parametrize(
    ("shape", "prefix", "thinks"),
    [
        ("opens_thinking", "\n</think>\n\n", False),
        ("enable_thinking", "<think>\n", True),
        ("channels", "<|channel|>final<|message|>", False),
        ("channels", "<|channel|>analysis<|message|>", True),
        ("inst_block", "Sure", False),
    ],
)
def test_a_response_prefix_goes_on_after_the_prompt_and_is_measured(shape, prefix, thinks, make):
    plain, template = (chat_template(shape, make, response_prefix=text) for text in ("", prefix))
    assert template.render("What now") == plain.render("What now") + prefix
    whole = template.tokenizer(plain.render("What now") + prefix, add_special_tokens=False)["input_ids"]
    assert template.encode("What now") == whole
    assert shown(template, make) == shown_as(SUFFIXES[shape][2] + prefix, make)
    assert len(template.post_instruction_tokens()) > len(plain.post_instruction_tokens())
    assert template.opens_thinking() == thinks


@pytest.mark.parametrize("prefix", ["<|channel|>final<|message|>", "Sure"])
def test_the_prefixs_ids_follow_the_templates_where_nothing_merges(prefix):
    plain, template = (chat_template("channels", response_prefix=text) for text in ("", prefix))
    ids = template.tokenizer(prefix, add_special_tokens=False)["input_ids"]
    assert template.encode("What now") == plain.encode("What now") + ids
    assert template.post_instruction_tokens() == (*plain.post_instruction_tokens(), *ids)


def test_a_system_prompt_where_there_is_no_such_role():
    message = "the chat template does not accept the messages: System role not supported. Try without --system."
    assert refusal("no_system", system="Be brief.") == message


def test_a_system_prompt_that_is_passed_over_in_silence():
    assert refusal("drops_system", system="Be brief.") == (
        "the chat template drops the system prompt, so the model would never read it. Try without --system."
    )


@pytest.mark.parametrize("shape", ["alternate", "inst_block", "text_first", "trims", "parts"])
def test_a_system_prompt_that_is_moved_or_trimmed_is_taken(shape):
    assert "Be brief." in chat_template(shape, system=" Be brief. ").render("hello")


def test_a_template_that_needs_a_system_prompt():
    assert refusal("system_required", system=None) == (
        "the chat template does not accept the messages: The first message must be from the system. It needs a "
        "system prompt: give one with --system."
    )


def test_a_trimming_template_gives_the_same_tokens_for_the_trimmed_prompt():
    template = chat_template("trims")
    assert template.encode("  hello \n") == template.encode("hello")


def test_nothing_after_the_instruction_is_no_position_until_a_prefix_is_given():
    with pytest.raises(ModelError, match="If it adds none, give its text with --response-prefix"):
        chat_template("text_last").post_instruction_tokens()
    template = chat_template("text_last", response_prefix="\nAnswer:")
    assert "".join(template.post_instruction_texts()) == "\nAnswer:"


def test_an_option_that_the_template_does_not_know_is_named():
    options = {"enable_thinking": False, "enable_thinkin": True}
    assert chat_template("enable_thinking", options=options).unused_options() == ("enable_thinkin",)


def test_the_other_ways_to_write_a_thought():
    for opened, closed in [("<|channel>thought\n", "<channel|>"), ("[THINK]", "[/THINK]"), ("◁think▷", "◁/think▷")]:
        assert chat_template("channels", response_prefix=opened).opens_thinking()
        assert not chat_template("channels", response_prefix=opened + closed).opens_thinking()


@pytest.mark.parametrize("make", [byte_level_bpe, tekken])
def test_the_tokenizers_padding_changes_nothing(make):
    model = tiny_model("llama", vocab_size=400)
    answers = []
    for side in ("left", "right"):
        tokenizer = make()
        tokenizer.chat_template = TEMPLATES["alternate"]
        tokenizer.padding_side = side
        chat = ChatModel(model, tokenizer)
        rows = chat.encode(["Hi", "What is the capital of France?"])
        answers.append(chat.next_token_logits(chat.batch(rows)))
        alone = [chat.next_token_logits(chat.batch([row])) for row in rows]
        assert torch.allclose(answers[-1], torch.cat(alone), rtol=0, atol=1e-10)
        assert len(chat.generate(["Hi", "What?"], max_new_tokens=3)) == 2
    assert torch.equal(*answers)
