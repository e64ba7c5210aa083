"""Prompt and PromptSet: what is equal, what is hashed, what is shown."""

import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

import demur.prompts
from demur.errors import PromptError
from demur.prompts import Prompt, PromptSet

words = st.text(st.characters(exclude_categories=["Cs", "Zs", "Zl", "Zp", "Cc"]), min_size=1, max_size=8)
gaps = st.text(" \t\n\r\u00a0\u2003\u2028", min_size=1, max_size=4)


@given(st.lists(words, min_size=1, max_size=5), st.lists(gaps, min_size=6, max_size=6))
def test_hash_does_not_see_whitespace(parts, spaces):
    spaced = spaces[0] + "".join(part + space for part, space in zip(parts, spaces[1:], strict=False))
    assert Prompt(spaced, "harmless").sha256 == Prompt(" ".join(parts), "harmless").sha256


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_hash_does_not_see_the_unicode_form(text):
    forms = {Prompt(unicodedata.normalize(form, text), "harmless").sha256 for form in ("NFC", "NFD")}
    assert len(forms) == 1


def test_hash_sees_words_and_case():
    hashes = {Prompt(text, "harmless").sha256 for text in ("bake bread", "Bake bread", "bakebread", "bake bread.")}
    assert len(hashes) == 4


def test_hash_is_known():
    # sha256 of "a b": a changed normalisation would silently move every prompt to another split.
    expected = "c8687a08aa5d6ed2044328fa6a697ab8e96dc34291e8c2034ae8c38e6fcc6d65"
    assert Prompt("  a \n b ", "harmless").sha256 == expected


def test_text_stays_as_given():
    assert Prompt("  a \n b ", "harmless").text == "  a \n b "


def a_set(*prompts):
    return PromptSet("harmless", "a.jsonl", tuple(prompts))


def test_set_hash_does_not_see_order_category_or_source():
    one, two = Prompt("one", "harmless"), Prompt("two", "harmless", category="numbers")
    other = PromptSet("harmless", "b.csv", (Prompt("two", "harmless"), one))
    assert a_set(one, two).sha256 == other.sha256


@pytest.mark.parametrize(
    "changed",
    [Prompt("two", "harmless"), Prompt("one", "harmless", split="test"), Prompt("one", "harmless", answer="1")],
)
def test_set_hash_sees_text_split_and_answer(changed):
    assert a_set(changed).sha256 != a_set(Prompt("one", "harmless")).sha256


def test_splits_and_identity():
    prompts = a_set(
        Prompt("one", "harmless", "train"), Prompt("two", "harmless", "test"), Prompt("three", "harmless", "train")
    )
    assert [prompt.text for prompt in prompts.split("train")] == ["one", "three"]
    assert prompts.split("validation") == ()
    identity = prompts.identity()
    assert (identity.source, identity.n, identity.sha256) == ("a.jsonl", 3, prompts.sha256)
    assert identity.splits == {"train": 2, "validation": 0, "test": 1}


def test_identity_without_splits():
    assert a_set(Prompt("one", "harmless")).identity().splits == {"train": 0, "validation": 0, "test": 0}


def test_split_before_splits_are_assigned():
    with pytest.raises(PromptError) as caught:
        a_set(Prompt("one", "harmless")).split("train")
    for phrase in ("1 of 1 harmless prompts from a.jsonl have no split yet", "assign_splits(prompts, minimum=...)"):
        assert phrase in str(caught.value)


def test_split_of_another_name():
    with pytest.raises(PromptError, match="'val' is not a split; give one of train, validation, test"):
        a_set(Prompt("one", "harmless", "train")).split("val")


def test_repr_shows_harmless_texts_and_hides_harmful_ones():
    assert "bake bread" in repr(Prompt("bake bread", "harmless"))
    hidden = Prompt("something unspeakable", "harmful", answer="unspeakable")
    assert "unspeakable" not in repr(hidden)
    assert hidden.sha256[:12] in repr(hidden)
    assert repr(PromptSet("harmful", "x.csv", (hidden,))) == "PromptSet(harmful, 'x.csv', 1 prompts)"


def test_row_is_no_part_of_equality():
    assert Prompt("one", "harmless", where="line 1") == Prompt("one", "harmless", where="line 2")


def test_the_door_lists_what_it_shows():
    assert len(set(demur.prompts.__all__)) == len(demur.prompts.__all__) > 10
    for name in demur.prompts.__all__:
        assert getattr(demur.prompts, name).__doc__


@pytest.mark.parametrize(("imported", "found"), [("demur.prompts", []), ("pyarrow", ["pyarrow"])])
def test_import_loads_nothing_heavy(imported, found):
    # The second case shows that the test can fail.
    heavy = ("torch", "transformers", "datasets", "pyarrow")
    code = f"import sys, {imported}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(found)
