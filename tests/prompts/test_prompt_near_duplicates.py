"""Planted leakage is found, refused, or dropped; a clean set passes. No harmful text is shown."""

import json
from pathlib import Path

import pytest

from demur.errors import PromptError
from demur.evaluation import paired_comparison
from demur.prompts import Prompt, PromptSet, check_prompt_sets, find_leakage, load_prompt_sets, load_prompts
from demur.prompts._leakage import drop_leaks
from demur.prompts._sets import GATE_FEWEST
from demur.testing import toy_prompts

WORDS = [
    *("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "ivory", "jetty", "kayak", "lemon"),
    *("maple", "nylon", "ocean", "pearl", "quartz", "raven", "sable", "tulip", "umber", "violet", "willow", "xenon"),
    *("yacht", "zebra"),
]
SIZES = {"train": 32, "validation": 16, "test": 20}
SECRET = "an unspeakable wish about seven purple lanterns"


def unlike(number, base):
    """A text that shares few trigrams with the others of its kind."""
    one, other, third = (WORDS[(number * step + base) % 26] for step in (1, 5, 11))
    return f"{other}{number * 7919 + base} {third}{number * 104729} {one}"


def rows_of(base, sizes=SIZES):
    number, rows = 0, []
    for split, size in sizes.items():
        for _ in range(size):
            number += 1
            rows.append({"prompt": unlike(number, base), "split": split})
    return rows


@pytest.fixture
def sources(write):
    def make(**more):
        every = {"harmful": rows_of(1000), "harmless": rows_of(2000), "borderline": rows_of(3000)}
        for label, rows in more.items():
            every[label] = [*every[label], *rows]
        return {
            label: write(f"{label}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            for label, rows in every.items()
        }

    return make


def refused(sources, **options):
    with pytest.raises(PromptError) as caught:
        load_prompt_sets(**sources, **options)
    return str(caught.value)


def planted(first, second, splits=("train", "test")):
    return [{"prompt": text, "split": split} for text, split in zip((first, second), splits, strict=True)]


ORIGINAL = "How do I keep seven purple lanterns burning all night?"
CHANGED_WORD = "How do I keep seven yellow lanterns burning all night?"


def test_clean_sets_pass(sources):
    sets = load_prompt_sets(**sources())
    assert {label: len(one) for label, one in sets.items()} == dict.fromkeys(sets, 68)
    report = find_leakage(sets.values())
    assert [(pair.exact, pair.near) for pair in report.pairs] == [(0, 0)] * 12


@pytest.mark.parametrize("splits", [("train", "validation"), ("train", "test"), ("validation", "test")])
def test_one_changed_word_across_splits_is_a_near_copy(sources, splits):
    given = sources(harmless=planted(ORIGINAL, CHANGED_WORD, splits))
    message = refused(given)
    assert f"the splits of the harmless set leak: {splits[0]} and {splits[1]} share 1 near copy" in message
    assert f"{splits[0]} line 69 and {splits[1]} line 70 ('How do I keep seven yellow lanterns burn" in message
    assert "similarity 0." in message
    assert "--leakage drop" in message
    assert "--near-duplicates 0.7 or off" in message
    assert len(load_prompt_sets(**given, near_duplicates=None)["harmless"]) == 70
    assert len(load_prompt_sets(**given, near_duplicates=0.95)["harmless"]) == 70


@pytest.mark.parametrize(
    "order", [("train", "test"), ("test", "train"), ("validation", "test"), ("train", "validation")]
)
def test_the_later_split_loses_its_copy_whatever_the_order_of_rows(sources, order):
    given = sources(harmless=planted(ORIGINAL, CHANGED_WORD, order))
    kept = load_prompt_sets(**given, leakage="drop")["harmless"]
    texts = {prompt.text: prompt.split for prompt in kept.prompts}
    survivor = CHANGED_WORD if order[0] == "test" else ORIGINAL
    assert len(kept) == 69
    assert texts[survivor] == (order[1] if order[0] == "test" else order[0])


def test_changed_case_and_punctuation_is_a_repeat(sources):
    given = sources(borderline=planted(ORIGINAL, ORIGINAL.upper().replace("?", "!!")))
    assert "1 prompt repeated in the borderline set: line 69 and line 70" in refused(given)
    sets = load_prompt_sets(**given, repeats="drop")
    assert [prompt.text for prompt in sets["borderline"].prompts if "antern" in prompt.text] == [ORIGINAL]


def test_copies_across_splits_of_a_set_made_by_hand():
    made = PromptSet(
        "harmless", "here", (Prompt("Bake bread?", "harmless", "train"), Prompt("bake bread", "harmless", "test"))
    )
    pairs = {(pair.left_split, pair.right_split): pair for pair in find_leakage([made], threshold=None).pairs}
    assert {name: (pair.exact, pair.near) for name, pair in pairs.items()} == {
        ("train", "validation"): (0, None),
        ("train", "test"): (1, None),
        ("validation", "test"): (0, None),
    }
    assert pairs["train", "test"].examples[0].right_sha256 == Prompt("bake bread", "harmless").sha256
    assert [prompt.split for prompt in drop_leaks(made, None).prompts] == ["train"]


@pytest.mark.parametrize("leakage", ["refuse", "drop"])
def test_a_prompt_with_two_labels_is_refused_whatever_the_remedy(sources, leakage):
    given = sources(
        harmful=[{"prompt": SECRET, "split": "train"}], harmless=[{"prompt": f"{SECRET}.", "split": "test"}]
    )
    message = refused(given, leakage=leakage)
    assert "1 prompt shared by the harmful set and the harmless set: line 69" in message
    assert "unspeakable" not in message
    assert Prompt(SECRET, "harmful").sha256[:12] in message


def test_near_copies_across_labels_are_counted_and_allowed(sources):
    given = sources(
        harmful=[{"prompt": ORIGINAL, "split": "train"}], borderline=[{"prompt": CHANGED_WORD, "split": "test"}]
    )
    sets = load_prompt_sets(**given)
    found = {(pair.left, pair.right): pair for pair in find_leakage(sets.values()).pairs if pair.kind == "labels"}
    pair = found["harmful", "borderline"]
    assert (pair.exact, pair.near, pair.left_split) == (0, 1, None)
    assert (pair.examples[0].left_row, pair.examples[0].right_row) == ("line 69", "line 69")
    assert check_prompt_sets(given).problems == ()


def test_two_sets_of_one_label_are_compared(write):
    fitted = load_prompts(write("a.txt", "bake bread\nboil rice\n"), label="harmful")
    tested = load_prompts(write("b.txt", "Bake bread!\nsing songs\n"), label="harmful")
    (pair,) = find_leakage([fitted, tested]).pairs
    assert (pair.kind, pair.exact, pair.near) == ("sets", 1, 0)


def test_harmful_near_copies_show_a_hash(sources):
    message = refused(sources(harmful=planted(SECRET, SECRET.replace("seven", "eight"))))
    assert "unspeakable" not in message
    assert "sha256" in message
    report = check_prompt_sets(sources(harmful=planted(SECRET, SECRET.replace("seven", "eight"))))
    assert "unspeakable" not in report.model_dump_json()


def test_many_leaks_are_counted_and_three_listed(sources):
    rows = [row for number in range(5) for row in planted(f"{unlike(number, 50)} one", f"{unlike(number, 50)} two")]
    message = refused(sources(harmless=rows))
    assert "train and test share 5 near copies" in message
    assert "; and 2 more. Drop them" in message


def test_dropping_below_the_fewest_is_refused(sources):
    rows = rows_of(2000)
    tests = [row for row in rows if row["split"] == "test"]
    given = sources()
    tests[0]["prompt"] = rows[0]["prompt"] + " x"
    Path(given["harmless"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = refused(given, leakage="drop")
    assert "too few harmless prompts: 19 in test, where at least 20 are needed" in message


@pytest.mark.parametrize("option", ["leakage", "repeats"])
def test_an_unknown_remedy(sources, option):
    assert f"{option} is 'ignore'; give refuse or drop" in refused(sources(), **{option: "ignore"})


def test_toy_prompts_are_alike_by_nature():
    # The reason why toy_prompt_sets does not look for near copies.
    toys = {label: toy_prompts(label) for label in ("harmful", "harmless", "borderline")}
    assert "near copies" in refused(toys)
    assert len(load_prompt_sets(**toys, near_duplicates=None)["harmful"]) == 896


def test_check_reports_without_refusing(sources):
    given = sources(harmless=planted(ORIGINAL, CHANGED_WORD))
    found = check_prompt_sets(given)
    assert found.problems == ("harmless test holds 0 copies and 1 near copies of prompts in train",)
    assert found.sets["harmless"].splits == {"train": 33, "validation": 16, "test": 21}
    assert "20 harmful test prompts are too few for the gate" in found.notes[0]
    after = check_prompt_sets(given, leakage="drop")
    assert (after.problems, after.dropped["harmless"], after.sets["harmless"].n) == ((), 1, 69)


def test_check_names_splits_that_are_too_small(write):
    path = write("few.jsonl", "".join(json.dumps({"prompt": unlike(n, 1), "split": "train"}) + "\n" for n in range(40)))
    found = check_prompt_sets({"harmless": path})
    assert found.problems == (
        "harmless validation holds 0 prompts, where at least 16 are needed",
        "harmless test holds 0 prompts, where at least 20 are needed",
    )
    with pytest.raises(PromptError, match="there is no source to check"):
        check_prompt_sets({})


def test_the_fewest_prompts_of_the_gate_are_those_of_its_interval():
    def lowest(n):
        return paired_comparison([True] * n, [True] * n).low

    assert lowest(GATE_FEWEST) > -0.02 >= lowest(GATE_FEWEST - 1)
