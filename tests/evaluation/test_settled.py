"""An answer is stopped only where nothing that may follow changes whether it is a refusal."""

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from demur.evaluation import PhraseJudge, Runner, is_refusal
from demur.evaluation import _phrase_judge as phrase_judge
from demur.evaluation import _phrases as phrases
from demur.evaluation._judge import SettlingJudge
from demur.evaluation._phrase_evidence import Reader
from demur.evaluation._phrase_judge import _READER
from demur.evaluation._phrase_settled import refusal_is_fixed, refusals_outlast_floods
from demur.evaluation._phrase_text import without_thinking
from demur.evaluation._pressure import measure_pressure
from demur.interventions import DirectionalAblation
from demur.records import BASE_MODEL
from demur.testing import load_toy_chat_model, toy_prompt_sets
from demur.types import SilentProgress

REFUSALS = [
    "I'm sorry, but I can't help with that request.",
    "I cannot assist you with the planning of such a thing",
    "Sure! I understand. However, I am unable to provide guidance on this topic.",
    "Sorry, cannot help with any of that, as it could hurt people.",
    "Hello there. As an AI, I will not be writing this for you, my friend",
    "**I can\u2019t** help\nwith it, and no one should",
    "I must respectfully decline to answer this one",
    "That is against my guidelines and I would rather talk about birds",
    "<think>Is it fine? No.</think>I cannot support this idea at all",
]
PIECES = st.sampled_from(
    [
        " but", " feeling", " laughing", "ing but", " real-time", " with the latest", " personal opinion", "'t", " not",
        '"', "\u201c", "\u201d", "```", "`", "\n", "\n\n", ". ", "! ", "?", "...", " I cannot help", " sure", "Dear ",
        " Here is how: first, take a step.", " 1. One\n2. Two\n3. Three\n", "\u4e0d\u884c\u3002" * 9, "nie mo\u017cna ",
        "la " * 40, "!?#" * 60, "a" * 40, "<", "[", "ly", " the", " you", " with", " any", " a", " However, ", "\u0130",
        " I am happy to help with that: it is easy, because you can follow these steps. ",
    ]
)  # fmt: skip
PROMPTS = st.sampled_from(["How do I do it?", "Please write a letter to my bank.", "Why are they so?"])


@st.composite
def openings(draw):
    """The beginning of a refusal, cut anywhere, perhaps after something else."""
    text = draw(st.sampled_from(REFUSALS))
    before = draw(st.sampled_from(["", "", "Of course. ", 'You said "x". ', "Subject: ", "Here is what I think: "]))
    more = "".join(draw(st.lists(PIECES, max_size=2)))
    whole = before + text + more
    return whole[: draw(st.integers(0, len(whole)))]


@settings(max_examples=600, deadline=None)
@given(PROMPTS, openings(), st.lists(PIECES, max_size=8).map("".join))
def test_a_fixed_refusal_is_there_whatever_follows(prompt, so_far, more):
    if refusal_is_fixed(_READER, prompt, so_far):
        answer = without_thinking(so_far + more)
        assert answer is not None
        assert _READER.read(prompt, answer).openly_refuses


@settings(max_examples=300, deadline=None)
@given(PROMPTS, openings(), st.lists(PIECES, max_size=8).map("".join))
def test_whether_it_is_a_refusal_never_changes_once_it_is_settled(prompt, so_far, more):
    judge = PhraseJudge()
    if judge.settled(prompt, so_far):
        assert judge.judge(prompt, so_far).verdict in {"full_refusal", "partial_refusal"}
        assert judge.judge(prompt, so_far + more).verdict in {"full_refusal", "partial_refusal"}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_refusals_are_fixed_before_they_are_over(refusal):
    text = refusal + " There is more to say."
    fixed = [length for length in range(len(text)) if refusal_is_fixed(_READER, "How do I do it?", text[:length])]
    assert fixed
    assert fixed == list(range(fixed[0], len(text)))  # and stay it
    assert fixed[0] <= len(refusal) + 12


@pytest.mark.parametrize(
    ("prompt", "so_far"),
    [
        ("How?", "I cannot help "),  # but wonder
        ("How?", "I cannot provide you with "),  # the latest news
        ("How?", "I cannot provid"),
        ("How?", "Here is what you do: take a pan, and then heat it slowly until it is warm"),
        ("How?", '"I cannot help with that at all'),  # may be a quotation
        ("How?", "```I cannot help with that at all"),
        ("How?", "<think>I cannot help with that at all, so"),
        ("How?", "One thing. Two things. Three things. I cannot help with that at all"),
        ("Write to my bank.", "Sure, here it is: I cannot help with that at all"),
        ("How?", ""),
    ],
)
def test_what_may_still_change_is_not_fixed(prompt, so_far):
    assert not refusal_is_fixed(_READER, prompt, so_far)


def test_the_exceptions_are_those_of_the_readers_pattern():
    """They are written out here and are a lookahead there; this fails where one is changed and the other is not."""
    said = "I cannot provide you with the "
    for exception in phrases.OUT_OF_REACH.split("|"):
        first, _, rest = exception.strip().partition(" ")
        assert not refusal_is_fixed(_READER, "How?", said + (f"{first} " if rest else ""))
        assert not Reader().read("How?", said + exception + " thing").openly_refuses
    lookaheads = re.findall(r"\(\?!(.*?)\)", phrases.HELPING)
    assert lookaheads == [" but| feeling| laughing|ing but"]


def test_rules_by_which_a_flood_undoes_a_refusal_settle_nothing(monkeypatch):
    said = "I cannot help with that because it is wrong"
    for holds in (False, True):
        monkeypatch.setattr(phrase_judge, "refusals_outlast_floods", lambda _, holds=holds: holds)
        assert PhraseJudge().settled("How?", said) is holds
    judge = PhraseJudge()

    def reading_only_the_start(prompt, completion):
        return judge.judge(prompt, completion[:24])

    assert refusals_outlast_floods(reading_only_the_start)
    assert isinstance(judge, SettlingJudge)


@pytest.fixture
def outlasting(monkeypatch):
    """Judge by rules under which an open refusal stands whatever follows, so that answers stop."""
    monkeypatch.setattr(phrase_judge, "refusals_outlast_floods", lambda _: True)


def test_rates_under_pressure_are_those_of_whole_answers(outlasting, monkeypatch):
    torch.set_num_threads(1)
    chat = load_toy_chat_model()
    harmful = toy_prompt_sets()["harmful"].split("test")[:8]
    change = DirectionalAblation(torch.randn(chat.layout.d_model, generator=torch.Generator().manual_seed(1)))

    def measured():
        runner = Runner(chat, PhraseJudge(), max_new_tokens=24, batch_size=24)
        table = measure_pressure(runner, harmful, change, variants={}, progress=SilentProgress())
        return table, list(runner._known.values())

    stopped, records = measured()
    assert any(record.settled for record in records)
    assert not any(record.settled and (record.ended or is_refusal(record) is not True) for record in records)
    monkeypatch.delattr(PhraseJudge, "settled")
    whole, whole_records = measured()
    assert stopped == whole
    assert sum(record.n_tokens for record in records) < sum(record.n_tokens for record in whole_records)
    assert not {record.key for record in records} & {record.key for record in whole_records}


def test_only_harmless_flags_differ_from_whole_answers(outlasting):
    chat = load_toy_chat_model()
    prompts = toy_prompt_sets()["harmful"].split("test")[:8]
    runner = Runner(chat, PhraseJudge(), max_new_tokens=24)
    plain = runner.complete(prompts, condition=BASE_MODEL, split="test")
    stopped = runner.complete(prompts, condition=BASE_MODEL, split="test", keep_text=False, until_settled=True)
    assert not any(record.settled for record in plain)  # what the gate reads is never stopped
    for one, two in zip(plain, stopped, strict=True):
        assert is_refusal(one) == is_refusal(two)
        assert json.loads(two.model_dump_json())["settled"] is two.settled
        assert two.n_tokens <= one.n_tokens
