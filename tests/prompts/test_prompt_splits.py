"""Splits follow the content: what moves a prompt, what does not, and what a split that is too small is told."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demur.errors import PromptError
from demur.prompts import Prompt, PromptSet, assign_splits

NONE = {}
texts = st.sets(st.integers(0, 10**6), min_size=1, max_size=60)
shares = st.tuples(st.integers(0, 10), st.integers(0, 10), st.integers(0, 10)).filter(any)


def a_set(texts, split=None, label="harmless"):
    return PromptSet(label, "a.txt", tuple(Prompt(str(text), label, split) for text in texts))


def by_text(prompts):
    return {prompt.text: prompt.split for prompt in prompts.prompts}


def fractions_of(parts):
    return tuple(part / sum(parts) for part in parts)


@given(texts, texts, shares)
def test_adding_prompts_moves_none(before, added, parts):
    small = assign_splits(a_set(before), fractions=fractions_of(parts), minimum=NONE)
    large = assign_splits(a_set(sorted(before | added)), fractions=fractions_of(parts), minimum=NONE)
    assert by_text(small).items() <= by_text(large).items()


@given(texts, shares)
def test_every_prompt_gets_one_split_and_empty_shares_none(numbers, parts):
    result = assign_splits(a_set(numbers), fractions=fractions_of(parts), minimum=NONE)
    assert [prompt.text for prompt in result.prompts] == [str(number) for number in numbers]
    used = {prompt.split for prompt in result.prompts}
    assert used <= {name for name, part in zip(("train", "validation", "test"), parts, strict=True) if part}


@given(texts, st.integers(0, 20))
def test_counts_keep_the_smallest_hashes(numbers, limit):
    whole = assign_splits(a_set(numbers), minimum=NONE)
    capped = assign_splits(a_set(numbers), counts={"test": limit}, minimum=NONE)
    expected = sorted(whole.split("test"), key=lambda prompt: prompt.sha256)[:limit]
    assert sorted(capped.split("test"), key=lambda prompt: prompt.sha256) == expected
    assert capped.split("train") == whole.split("train")
    assert capped.split("validation") == whole.split("validation")


@given(texts)
def test_assigning_twice_changes_nothing(numbers):
    once = assign_splits(a_set(numbers), minimum=NONE)
    assert assign_splits(once, fractions=(0, 0, 1), minimum=NONE) == once


def test_shares_are_met_and_the_set_is_not_changed():
    prompts = a_set(range(20_000))
    result = assign_splits(prompts, minimum={"train": 4000, "validation": 4000, "test": 9000})
    # Five standard deviations of a binomial of 20,000 are below 2 % of it.
    for name, share in {"train": 0.25, "validation": 0.25, "test": 0.5}.items():
        assert len(result.split(name)) / 20_000 == pytest.approx(share, abs=0.02)
    assert {prompt.split for prompt in prompts.prompts} == {None}


def test_known_splits():
    # Computed apart from demur; a change here would move the prompts of every finished run.
    names = ["bake bread", "boil rice", "fry an egg", "steam fish", "grill corn", "mash peas"]
    result = by_text(assign_splits(a_set(names), minimum=NONE))
    assert [result[name] for name in names] == ["validation", "test", "validation", "validation", "validation", "test"]


def test_given_splits_win():
    prompts = PromptSet(
        "harmless", "a.csv", tuple(Prompt(str(n), "harmless", "validation" if n % 2 else "train") for n in range(10))
    )
    result = assign_splits(prompts, fractions=(0, 0, 1), counts={"train": 3}, minimum={"validation": 5})
    assert (len(result.split("train")), len(result.split("validation")), len(result.split("test"))) == (3, 5, 0)


def refused(prompts, **options):
    with pytest.raises(PromptError) as caught:
        assign_splits(prompts, **{"minimum": NONE, **options})
    return str(caught.value)


def test_mixed_splits():
    mixed = PromptSet("harmful", "a.csv", (Prompt("a", "harmful", "train"), Prompt("b", "harmful")))
    message = refused(mixed)
    assert "a.csv: 1 of 2 harmful prompts have a split and the others have none" in message
    assert "Give every prompt a split, or none" in message


def test_too_few_says_how_many_to_supply():
    message = refused(a_set(range(20), label="harmful"), minimum={"train": 32, "validation": 16, "test": 1})
    assert "a.txt: too few harmful prompts: " in message
    assert re.search(r"\d+ in train, where at least 32 are needed and \d+ in validation, where at least 16", message)
    supply = int(re.search(r"There are 20 in all; supply about (\d+)", message).group(1))
    assert 128 <= supply <= 256
    assert "column `split`" in message


@given(st.integers(1, 40), st.integers(0, 10**6))
def test_the_suggested_number_exceeds_the_present_one(needed, start):
    prompts = a_set(range(start, start + 5))
    try:
        assign_splits(prompts, minimum={"validation": needed})
    except PromptError as error:
        assert int(re.search(r"supply about (\d+)", str(error)).group(1)) > 5


def test_the_suggested_number_mostly_suffices():
    minimum = {"train": 32, "validation": 16, "test": 64}
    message = refused(a_set(range(3)), minimum=minimum)
    supply = int(re.search(r"supply about (\d+)", message).group(1))
    failures = 0
    for trial in range(100):
        try:
            assign_splits(a_set(range(trial * 1000, trial * 1000 + supply)), minimum=minimum)
        except PromptError:
            failures += 1
    assert failures <= 15


def test_too_few_of_given_splits():
    message = refused(a_set(range(4), split="train"), minimum={"train": 2, "test": 3})
    assert "0 in test, where at least 3 are needed" in message
    assert "The file names the splits: add rows with these splits" in message


def test_too_few_where_the_fraction_is_zero():
    message = refused(a_set(range(4)), fractions=(0.5, 0, 0.5), minimum={"validation": 1})
    assert "The fraction of validation is 0: give it a share." in message


@pytest.mark.parametrize(
    "fractions",
    [(0.5, 0.5), (0.5, 0.5, 0.5), (-0.5, 0.5, 1.0), (float("nan"), 0.5, 0.5), (float("inf"), 0, 0)],
)
def test_bad_fractions(fractions):
    message = refused(a_set(range(4)), fractions=fractions)
    assert "are not shares of train, validation and test" in message
    assert "whose sum is 1, for example (0.25, 0.25, 0.5)" in message


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        ({"counts": {"val": 1}}, "counts names the split 'val'; the splits are train, validation, test."),
        ({"minimum": {"dev": 1}}, "minimum names the split 'dev'"),
        ({"counts": {"test": -1}}, "counts of test is -1; give 0 or more prompts."),
        (
            {"counts": {"test": 2}, "minimum": {"test": 3}},
            "counts keeps at most 2 test prompts, and at least 3 are needed. Give 3 or more.",
        ),
    ],
)
def test_bad_numbers(options, phrase):
    assert phrase in refused(a_set(range(4)), **options)
