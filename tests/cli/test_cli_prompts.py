"""`demur prompts`: the list, the facts of one set or mix, and the check of some sources."""

import json

import pytest
from cli_runs import call, error_of

from demur.prompts import named_mixes, published_sets

SECRET = "an unspeakable wish about seven purple lanterns"


def test_list_names_every_set_and_mix():
    people, programs = call("prompts", "list"), call("prompts", "list", "--json")
    document = json.loads(programs.out)
    assert (people.code, programs.code) == (0, 0)
    assert [one["source"] for one in document["sets"]] == [one.source for one in published_sets()]
    assert [one["source"] for one in document["mixes"]] == [f"mix:{one.name}" for one in named_mixes()]
    for one in (*document["sets"], *document["mixes"]):
        assert one["source"] in people.out
    advbench = next(one for one in document["sets"] if one["name"] == "advbench")
    assert (advbench["gated"], advbench["rows"][0]["n"], advbench["revision"]) == (True, 520, None)


@pytest.mark.parametrize(
    ("name", "phrases"),
    [
        ("xstest", ["--harmful set:xstest, or --harmful set:xstest=PATH", "label is safe or", "Paul/XSTest at float"]),
        ("set:advbench", ["gated: accept the terms at https://huggingface.co/datasets/walledai/AdvBench", "HF_TOKEN"]),
        ("coconot", ["allenai/coconot at 2cbe16aabf9069f17e48c8daad8aeabc29469eb7", "config contrast, split test"]),
        ("oktest", ["type: --borderline set:oktest=PATH", "licence: none found; passing on: never", "hub: none"]),
        ("demur:borderline", ["type: --borderline demur:borderline", "Not a published benchmark"]),
        ("mix:wang", ["advbench, at most 128: 100% train", "or-bench-hard: 80% train, 10% validation, 10% test",
                      "not as in the paper:", "--borderline mix:wang?dir=FOLDER"]),
    ],
)  # fmt: skip
def test_show(name, phrases):
    called = call("prompts", "show", name)
    assert called.code == 0
    for phrase in phrases:
        assert phrase in called.out
    assert json.loads(call("prompts", "show", name, "--json").out)["source"].endswith(name.removeprefix("set:"))


@pytest.mark.parametrize("name", ["xstets", "mix:nobody"])
def test_show_of_an_unknown_name(name):
    error = error_of(call("prompts", "show", name, "--json"))
    assert error["type"] == "PromptError"
    assert "of this name" in error["message"]


def test_own_prompts_are_fit_for_a_calibration():
    called = call("prompts", "check", *(f"--{one}=demur:{one}" for one in ("harmful", "harmless", "borderline")))
    assert called.code == 0
    assert "a calibration would take these sets" in called.out


def planted(tmp_path, label="harmful"):
    """Forty unlike prompts in train, of which one comes back in test with a changed word."""
    rows = [{"prompt": SECRET, "split": "train"}, {"prompt": SECRET.replace("seven", "eight"), "split": "test"}]
    rows += [{"prompt": f"{n * 7919} {'abcdefghijklmnop'[n % 16] * 9}{n}", "split": s} for n, s in enumerate(
        ["train"] * 40 + ["validation"] * 20 + ["test"] * 30
    )]  # fmt: skip
    path = tmp_path / f"{label}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_leakage_is_told_and_ends_with_2(tmp_path):
    path = planted(tmp_path)
    called = call("prompts", "check", "--harmful", path, "--near-duplicates", "0.6")
    assert called.code == 2
    assert "problem: harmful test holds 0 copies and 1 near copies of prompts in train" in called.out
    assert "line 1 and line 2" in " ".join(called.out.split())
    assert "note: 31 harmful test prompts are too few for the gate" in called.out
    assert "unspeakable" not in called.out + called.err
    document = json.loads(call("prompts", "check", "--harmful", path, "--near-duplicates", "0.6", "--json").out)
    assert document["schema"] == "demur.prompt_check/1"
    assert document["leakage"]["threshold"] == 0.6
    assert "unspeakable" not in json.dumps(document)


def test_the_remedies(tmp_path):
    path = planted(tmp_path)
    assert call("prompts", "check", "--harmful", path, "--near-duplicates", "off").code == 0
    dropped = call("prompts", "check", "--harmful", path, "--near-duplicates", "0.6", "--leakage", "drop", "--json")
    assert dropped.code == 0
    assert json.loads(dropped.out)["dropped"] == {"harmful": 1}


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        ([], "there is no source to check; give --harmful, --harmless or --borderline"),
        (["--harmful", "demur:harmful", "--near-duplicates", "half"], "such as 0.5, or off; got 'half'"),
        (["--harmful", "demur:harmful", "--near-duplicates", "2"], "near_duplicates is 2.0; give a Jaccard similarity"),
        (["--harmful", "demur:harmless"], "its rows are harmless, not harmful"),
        (["--harmful", "demur:harmful", "--leakage", "keep"], "keep"),
    ],
)
def test_check_refuses(words, phrase):
    called = call("prompts", "check", *words, "--json")
    assert called.code == 2
    assert phrase in error_of(called)["message"]


def test_a_prompt_of_two_labels_ends_with_2(tmp_path):
    one, other = tmp_path / "a.txt", tmp_path / "b.txt"
    one.write_text(f"{SECRET}\n")
    other.write_text(f"{SECRET.upper()}!\n")
    called = call("prompts", "check", "--harmful", one, "--harmless", other)
    assert called.code == 2
    problem = next(
        line for line in called.out.splitlines() if line.startswith("problem: harmless") and "copies" in line
    )
    assert problem == f"problem: harmless {other} holds 1 copies of prompts in harmful {one}"
