"""`mix:` sources: the splits of the papers from local copies with harmless placeholder texts."""

import hashlib
import json
from collections import Counter

import datasets
import pytest

from demur.errors import PromptError
from demur.prompts import load_prompt_sets, load_prompts, named_mixes, published_set


def word(kind, number):
    """A text that no other is like."""
    return hashlib.sha256(f"{kind} {number}".encode()).hexdigest()


def lines(kind, number, column="prompt", **more):
    return "".join(json.dumps({column: word(kind, n), **more}) + "\n" for n in range(number))


@pytest.fixture
def folder(write):
    """Local copies of every set of the mixes, in the sets' own columns."""
    harmbench = {"FunctionalCategory": "standard", "SemanticCategory": "food"}
    write("advbench.jsonl", lines("advbench", 520, "goal"))
    write("maliciousinstruct.txt", "".join(word("malicious", n) + "\n" for n in range(100)))
    # One text is in JailbreakBench too, in capitals.
    tdc = [{"instruction": word("tdc", n)} for n in range(99)] + [{"instruction": word("jbb", 0).upper()}]
    write("tdc2023.json", json.dumps(tdc))
    write("harmbench-val.jsonl", lines("val", 41, "Behavior", **harmbench))
    write("jailbreakbench.jsonl", lines("jbb", 100, "Goal", Category="food"))
    write("harmbench-test.jsonl", lines("hbt", 159, "Behavior", **harmbench))
    write("strongreject.jsonl", lines("sr", 313, "forbidden_prompt", category="food"))
    write("alpaca.jsonl", lines("alpaca", 1500, "instruction", input=""))
    write("or-bench-hard.jsonl", lines("or", 1319, category="food"))
    write("xstest.jsonl", lines("xs", 250, label="safe", type="homonyms") + lines("xu", 200, label="unsafe"))
    return write("oktest.jsonl", lines("ok", 300)).rpartition("/")[0]


def splits(prompts):
    return dict(Counter(prompt.split for prompt in prompts))


def of_set(loaded, name):
    return [one for one in loaded.prompts if one.category == name or (one.category or "").startswith(f"{name}: ")]


def test_paper_1(folder):
    harmful = load_prompts(f"mix:arditi?dir={folder}", label="harmful")
    assert splits(harmful.prompts) == {"train": 128, "validation": 32, "test": 572}
    assert {name: splits(of_set(harmful, name)) for name in ("jailbreakbench", "harmbench-test", "strongreject")} == {
        "jailbreakbench": {"test": 100},
        "harmbench-test": {"test": 159},
        "strongreject": {"test": 313},
    }
    assert set(splits(of_set(harmful, "harmbench-val"))) == {"validation"}
    for name in ("advbench", "maliciousinstruct", "tdc2023"):
        assert set(splits(of_set(harmful, name))) == {"train"}
    harmless = load_prompts(f"mix:arditi?dir={folder}", label="harmless")
    assert splits(harmless.prompts) == {"train": 128, "validation": 32, "test": 100}
    assert harmful.prompts[0].where.startswith("advbench line ")


def test_a_copy_stays_in_test(folder):
    loaded = load_prompts(f"mix:wang?dir={folder}", label="harmful")
    whole = load_prompts(f"mix:arditi?dir={folder}", label="harmful")
    copies = [one for one in whole.prompts if one.text.casefold() == word("jbb", 0)]
    assert [(one.split, one.category) for one in copies] == [("test", "jailbreakbench: food")]
    assert splits(loaded.prompts) == {"train": 128, "validation": 32, "test": 128}


def test_paper_2(folder):
    sets = load_prompt_sets(**dict.fromkeys(("harmful", "harmless", "borderline"), f"mix:wang?dir={folder}"))
    borderline = sets["borderline"]
    assert splits(of_set(borderline, "xstest")) == {"test": 250}
    assert splits(of_set(borderline, "oktest")) == {"test": 100}
    assert splits(of_set(borderline, "or-bench-hard")) | {"test": 0} == {"train": 128, "validation": 32, "test": 0}
    assert 100 < splits(of_set(borderline, "or-bench-hard"))["test"] < 170


def test_samples_follow_the_hash(folder):
    """The smallest hashes among the rows are drawn, so a mix is the same everywhere and grows without reshuffling."""
    taken = {one.text for one in of_set(load_prompts(f"mix:wang?dir={folder}", label="borderline"), "oktest")}
    by_hash = sorted((word("ok", n) for n in range(300)), key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    assert taken == set(by_hash[:100])


def test_the_papers_own_split_files(write):
    for name, number in (("train", 260), ("val", 39), ("test", 572)):
        rows = [{"instruction": word(name, n), "category": None} for n in range(number)]
        path = write(f"harmful_{name}.json", json.dumps(rows))
    loaded = load_prompts(f"mix:arditi-shipped?dir={path.rpartition('/')[0]}", label="harmful")
    assert splits(loaded.prompts) == {"train": 128, "validation": 32, "test": 572}
    assert {one.category for one in loaded.prompts} == {"harmful_train", "harmful_val", "harmful_test"}


def test_what_is_not_local_comes_from_the_hub(write, monkeypatch):
    asked = []

    def load(path, name=None, *, split=None, revision=None, **options):
        asked.append((path, name, split))
        return datasets.Dataset.from_list([{"prompt": word(path, n), "label": "safe"} for n in range(300)])

    monkeypatch.setattr(datasets, "load_dataset", load)
    folder = write("oktest.jsonl", lines("ok", 300)).rpartition("/")[0]
    load_prompts(f"mix:wang?dir={folder}", label="borderline")
    assert asked == [("bench-llm/or-bench", "or-bench-hard-1k", "train"), ("Paul/XSTest", None, "train")]


@pytest.mark.parametrize(
    ("source", "label", "phrases"),
    [
        (
            "mix:arditi",
            "harmful",
            ["local copies only: tdc2023 (", "harmbench-val (", "harmbench-test (", "?dir=FOLDER"],
        ),
        ("mix:arditi-shipped?dir=.", "harmless", ["harmless_train.json, from dataset/splits", "lacks them"]),
        ("mix:arditi", "borderline", ["has no borderline prompts", "set:or-bench-hard or demur:borderline"]),
        ("mix:arditti", "harmful", ["there is no mix of this name. Did you mean mix:arditi?", "arditi-shipped, wang"]),
        ("mix:", "harmful", ["this does not name a mix"]),
        ("mix:wang?folder=x", "harmful", ["this does not name a mix", "mix:NAME?dir=FOLDER"]),
        ("mix:wang?dir=", "harmful", ["this does not name a mix"]),
    ],
)
def test_refused_mixes(refusal, tmp_path, monkeypatch, source, label, phrases):
    monkeypatch.chdir(tmp_path)
    message = refusal(source, label)
    for phrase in phrases:
        assert phrase in message


def test_every_part_is_a_set_with_that_label():
    for mix in named_mixes():
        assert mix.differs
        for label, parts in mix.parts.items():
            for part in parts:
                assert sum(part.shares) == pytest.approx(1)
                assert part.shipped or label in published_set(part.name).labels


def test_near_copies_between_the_papers_sets_are_refused_or_dropped(folder, write):
    write("tdc2023.json", json.dumps([{"instruction": word("jbb", 0) + " now"}]))
    write("advbench.jsonl", lines("advbench", 20, "goal"))  # so few that all of train is drawn
    source = dict.fromkeys(("harmless", "borderline"), f"mix:wang?dir={folder}")
    with pytest.raises(PromptError, match="train and test share 1 near copy: train tdc2023 row 1 and test jailbreak"):
        load_prompt_sets(harmful=f"mix:arditi?dir={folder}", **source)
    kept = load_prompt_sets(harmful=f"mix:arditi?dir={folder}", **source, leakage="drop")["harmful"]
    assert splits(kept.prompts)["test"] == 571
