"""The English prompt sets that demur ships: what their README promises, checked on the files as they are."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import demur.prompts
from demur.evaluation import contains_answer
from demur.prompts import assign_splits, check_disjoint, load_prompts

FOLDER = Path(demur.prompts.__file__).parent / "english"
LABELS = ("harmless", "borderline", "harmful")
COLUMNS = {
    "harmless": {"prompt", "category", "answer"},
    "borderline": {"prompt", "category", "pair"},
    "harmful": {"prompt", "category", "pair"},
}


def rows(label):
    lines = (FOLDER / f"{label}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


SETS = {label: rows(label) for label in LABELS}
EVERY = [(label, row) for label in LABELS for row in SETS[label]]


def words(text):
    """Lower case, apostrophes closed up, other punctuation out: demur's own folding is not used, so it cannot hide."""
    return re.sub(r"[^a-z0-9]+", " ", text.lower().replace("'", "")).split()


def word_trigrams(text):
    found = words(text)
    return {tuple(found[at : at + 3]) for at in range(len(found) - 2)}


def letter_trigrams(text):
    padded = f" {' '.join(words(text))} "
    return {padded[at : at + 3] for at in range(len(padded) - 2)}


def too_close(grams, limit, pair_limit):
    """Pairs of prompts at or above the limit; the two members of one contrast pair have a limit of their own."""
    found = [grams(row["prompt"]) for _, row in EVERY]
    column = {gram: at for at, gram in enumerate(sorted(set().union(*found)))}
    held = np.zeros((len(found), len(column)), dtype=np.float32)
    for at, members in enumerate(found):
        held[at, [column[gram] for gram in members]] = 1
    shared = held @ held.T
    sizes = held.sum(axis=1)
    similarity = shared / (sizes[:, None] + sizes[None, :] - shared)
    close = []
    for at, other in np.argwhere(np.triu(similarity >= min(limit, pair_limit), k=1)):
        one, two = EVERY[at][1], EVERY[other][1]
        paired = "pair" in one and one["pair"] == two.get("pair")
        if similarity[at, other] >= (pair_limit if paired else limit):
            close.append((one["prompt"], two["prompt"]))
    return close


@pytest.mark.parametrize("label", LABELS)
def test_every_row_has_a_prompt_and_a_category_and_nothing_unknown(label):
    for row in SETS[label]:
        assert {"prompt", "category"} <= set(row) <= COLUMNS[label]
        assert all(isinstance(value, str) and value == value.strip() != "" for value in row.values())


@pytest.mark.parametrize("label", LABELS)
def test_the_sets_load_as_they_are(label):
    loaded = load_prompts(str(FOLDER / f"{label}.jsonl"), label=label, minimum=240)
    assert [prompt.text for prompt in loaded.prompts] == [row["prompt"] for row in SETS[label]]
    assert [prompt.category for prompt in loaded.prompts] == [row["category"] for row in SETS[label]]
    assert {prompt.split for prompt in loaded.prompts} == {None}


def test_the_sets_are_disjoint_for_demur_itself():
    check_disjoint([load_prompts(str(FOLDER / f"{label}.jsonl"), label=label) for label in LABELS])


@pytest.mark.parametrize(
    ("label", "categories", "fewest"), [("harmless", 12, 14), ("borderline", 14, 20), ("harmful", 13, 20)]
)
def test_enough_categories_hold_enough_prompts(label, categories, fewest):
    counts = Counter(row["category"] for row in SETS[label])
    assert sum(count >= fewest for count in counts.values()) >= categories


def test_rows_of_one_category_stand_together():
    for label in LABELS:
        order = [row["category"] for row in SETS[label]]
        runs = [name for at, name in enumerate(order) if at == 0 or order[at - 1] != name]
        assert len(runs) == len(set(runs)), label


def test_no_prompt_comes_twice_in_the_three_sets():
    assert [text for text, n in Counter(" ".join(words(row["prompt"])) for _, row in EVERY).items() if n > 1] == []


def test_no_two_prompts_are_near_copies():
    assert too_close(word_trigrams, 0.3, 0.4) == []


def test_no_two_prompts_are_near_copies_by_letters():
    # 0.5 is where demur refuses near copies across splits.
    assert too_close(letter_trigrams, 0.45, 0.5) == []


def test_a_pair_links_one_borderline_prompt_with_one_harmful_one():
    members = Counter((row["pair"], label) for label, row in EVERY if "pair" in row)
    names = {name for name, _ in members}
    assert len(names) >= 100
    assert members == Counter({(name, label): 1 for name in names for label in ("borderline", "harmful")})
    assert all(re.fullmatch(r"[a-z]+-\d{3}", name) for name in names)


def test_the_members_of_a_pair_share_words():
    by_pair = {}
    for _, row in EVERY:
        if "pair" in row:
            by_pair.setdefault(row["pair"], []).append(set(words(row["prompt"])))
    assert {name for name, (one, other) in by_pair.items() if len(one & other) < 2} == set()


def test_answers_are_short_and_not_given_away():
    asked = [row for row in SETS["harmless"] if "answer" in row]
    assert len(asked) >= 60
    for row in asked:
        assert 1 <= len(row["answer"].split()) <= 2, row
        assert not contains_answer(row["prompt"], row["answer"]), row
        # A thousands separator would break a longer number in two.
        assert not row["answer"].isdigit() or int(row["answer"]) < 1000 or row["answer"] == "1969", row


def test_texts_are_plain_ascii_of_four_to_forty_words():
    for _, row in EVERY:
        assert row["prompt"].isascii(), row
        assert "  " not in row["prompt"], row
        assert 4 <= len(row["prompt"].split()) <= 40, row


@pytest.mark.parametrize("label", LABELS)
def test_openings_and_lengths_vary(label):
    texts = [row["prompt"] for row in SETS[label]]
    openings = Counter(tuple(words(text)[:2]) for text in texts)
    (opening, most), *_ = openings.most_common(1)
    assert most <= 0.06 * len(texts), opening
    assert len(openings) >= len(texts) / 3
    lengths = sorted(len(text.split()) for text in texts)
    assert lengths[0] <= 6
    assert lengths[-1] >= 30
    assert sum(text[0].islower() for text in texts) >= 10
    assert sum(bool(re.search(r"[.!?] [A-Z]", text)) for text in texts) >= 0.1 * len(texts)


def test_harmful_prompts_name_no_quantity_and_no_address():
    named = re.compile(r"\d|@|://|www\.")
    assert [row["category"] for row in SETS["harmful"] if named.search(row["prompt"])] == []


def test_child_safety_stays_a_handful():
    assert sum(row["category"] == "child-safety" for row in SETS["harmful"]) <= 4


def category_table():
    lines = ["| set | category | prompts | in pairs | with answer |", "|---|---|---|---|---|"]
    for label in LABELS:
        for name in dict.fromkeys(row["category"] for row in SETS[label]):
            held = [row for row in SETS[label] if row["category"] == name]
            pairs, answers = (sum(column in row for row in held) for column in ("pair", "answer"))
            lines.append(f"| {label} | {name} | {len(held)} | {pairs} | {answers} |")
    return "\n".join(lines)


def size_table():
    lines = ["| set | prompts | in pairs | with answer | train | validation | test |", "|---|---|---|---|---|---|---|"]
    for label in LABELS:
        loaded = assign_splits(load_prompts(str(FOLDER / f"{label}.jsonl"), label=label), minimum={})
        sizes = " | ".join(str(len(loaded.split(name))) for name in ("train", "validation", "test"))
        pairs, answers = (sum(column in row for row in SETS[label]) for column in ("pair", "answer"))
        lines.append(f"| {label} | {len(SETS[label])} | {pairs} | {answers} | {sizes} |")
    return "\n".join(lines)


@pytest.mark.parametrize("table", [size_table, category_table])
def test_the_tables_of_the_readme_are_current(table):
    expected = table()
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"\n\n{expected}\n" in readme, f"paste this into {FOLDER / 'README.md'}:\n{expected}"
