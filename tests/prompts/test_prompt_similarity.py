"""Copies and near copies of texts: what counts as equal, and the search against brute force."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demur.errors import PromptError
from demur.prompts._similarity import check_threshold, comparison_text, nearest, trigrams


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How do I bake bread?", "how do i bake bread"),
        ("Bake, bread!", "bake -- bread"),
        ("don\u2019t bake", "DON'T bake"),
        ("\uff22ake \ufb01ne bread", "bake fine bread"),
        ("ba\u200bke bread", "bake bread"),
        ("Stra\u00dfe", "STRASSE"),
        ("caf\u00e9", "cafe\u0301"),
        (" bake\n\tbread ", "bake bread"),
    ],
)
def test_equal_texts(one, other):
    assert comparison_text(one) == comparison_text(other)


@pytest.mark.parametrize(
    ("one", "other"), [("Learn C#", "Learn C"), ("3*4", "3/4"), ("3+4", "3 4"), ("???", "!"), ("a b", "ab"), ("e", "é")]
)
def test_different_texts(one, other):
    assert comparison_text(one) != comparison_text(other)


@given(st.text())
def test_comparison_text_is_idempotent_and_never_empty_for_a_prompt(text):
    once = comparison_text(text)
    assert comparison_text(once) == once
    assert bool(once) == bool(text.strip()) or not once.strip()


def test_trigrams_have_one_space_at_each_end():
    assert trigrams("ab") == {" ab", "ab "}
    assert trigrams("a") == {" a "}


def brute_force(left, right, threshold):
    """Written from the definition: the most similar left text of each right one, the first of equals."""
    found = []
    for text in right:
        mine = {f" {text} "[at : at + 3] for at in range(len(text))} or {"  "}
        best = None
        for index, other in enumerate(left):
            theirs = {f" {other} "[at : at + 3] for at in range(len(other))} or {"  "}
            similarity = len(mine & theirs) / len(mine | theirs)
            if similarity >= threshold and (best is None or similarity > best[1]):
                best = (index, similarity)
        found.append(best)
    return found


few_letters = st.lists(st.text("ab ", min_size=0, max_size=12), max_size=12)


@given(few_letters, few_letters, st.sampled_from([0.01, 1 / 3, 0.5, 0.7, 1.0]))
def test_nearest_is_brute_force(left, right, threshold):
    found = nearest(left, right, threshold)
    assert [None if one is None else (one.index, one.similarity) for one in found] == brute_force(
        left, right, threshold
    )


def test_blocks_do_not_change_the_result(monkeypatch):
    left = [f"the {word} of the day" for word in ("song", "word", "soup", "wood")]
    right = [f"the {word} of a day" for word in ("soup", "hood", "sword", "x", "song")]
    whole = nearest(left, right, 0.4)
    monkeypatch.setattr("demur.prompts._similarity._CELLS", 5)
    assert nearest(left, right, 0.4) == whole
    assert sum(one is not None for one in whole) >= 3


def test_the_threshold_is_inclusive():
    # {" ab","ab "} and {" ab","abc","bc "}: one of four shared.
    assert nearest(["ab"], ["abc"], 0.25)[0].similarity == 0.25
    assert nearest(["ab"], ["abc"], 0.2500001) == [None]


@pytest.mark.parametrize("threshold", [0, -0.1, 1.01, float("nan")])
def test_thresholds_that_make_no_sense(threshold):
    with pytest.raises(PromptError, match="give a Jaccard similarity above 0 and up to 1"):
        check_threshold(threshold)
