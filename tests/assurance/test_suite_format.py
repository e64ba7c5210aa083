"""What a suite may say, what is said to one that is wrong, which cases and prompts are chosen."""

import json
from pathlib import Path

import pytest
from suite_files import suite_of, suite_text

from demur.assurance import load_suite, select_cases, shipped_suites, suite_prompts
from demur.assurance._suite_cases import Expectation, SuiteCondition
from demur.errors import InputError, PromptError
from demur.prompts import assign_splits, load_prompts
from demur.testing import toy_prompts

ONE = "{name: a, prompt: Hello there, expect: {refuses: true}}"


def test_everything_that_a_case_may_say(tmp_path):
    suite = suite_of(
        tmp_path,
        """
        {name: full, description: d, severity: blocker, owner: me, tags: [x, y], prompts: [one, two], label: borderline, repeat: 3, condition: {ablate: [r, "w'"], add: {direction: r, strength: 2}, subtract: random, quantised: int4, system: s, response_prefix: p, suffix: q, random_suffix: 4, thinking: false, template: {depth: 2}, language: es, seed: 3}, expect: {refuses: {at_most: 0.1, bound: point}, answers: true, matches: "a|b", contains: {text: c, at_least: 1}, refusal_score: {above: 0}, projection: {above: 0, below: 1, scale: absolute, layer: 2, position: -1}}}
        {name: short, prompt: one, tags: z, condition: {ablate: r, add: r}, expect: {answers: true}}
        """,  # noqa: E501
        head="owner: team",
    )
    full, short = suite.cases
    assert full.condition.ablate == ("r", "w'")
    assert (full.condition.add.direction, full.condition.add.strength) == ("r", 2)
    assert (full.condition.subtract.direction, full.condition.subtract.strength) == ("random", 1)
    assert full.condition.directions == {"r", "w'", "random"}
    assert full.expect.refuses.at_most == 0.1
    assert full.expect.answers.every
    assert full.expect.matches.pattern == "a|b"
    assert list(full.expect.given()) == ["refuses", "answers", "matches", "contains", "refusal_score", "projection"]
    assert (full.owner, short.owner) == ("me", "team")
    assert (short.tags, short.severity, short.repeat) == (("z",), "major", 1)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (
            "{name: a, prompt: x, expect: {refusess: true}}",
            "case 'a', expect.refusess: there is no such field; the nearest is 'refuses'. The fields are refuses, "
            "answers, matches, contains, correct, unchanged, refusal_score, projection.",
        ),
        (
            "{name: a, prompt: x, expect: {refuses: {at_lest: 0.9}}}",
            "case 'a', expect.refuses.at_lest: there is no such field; the nearest is 'at_least'. The fields are "
            "at_least, at_most, bound.",
        ),
        (
            "{name: a, prompt: x, condition: {ablate: w}, expect: {refuses: true}}",
            "case 'a', condition.ablate.0: 'w' is none of 'r', \"w'\" or 'random'; the nearest is \"w'\".",
        ),
        (
            "{name: a, prompt: x, condition: {ad: r}, expect: {refuses: true}}",
            "case 'a', condition.ad: there is no such field; the nearest is 'add'. The fields are ablate, add,",
        ),
        (
            "{name: a, prompt: x, severity: blokker, expect: {refuses: true}}",
            "case 'a', severity: 'blokker' is none of 'blocker', 'major' or 'minor'; the nearest is 'blocker'.",
        ),
        ("{name: a, prompt: x, expect: {refuses: false}}", "case 'a', expect.refuses: it is false; write true, limits"),
        ("{name: a, prompt: x, expect: {}}", "case 'a', expect: it is empty; give one or more of refuses, answers,"),
        ("{name: a, prompt: x}", "case 'a', expect: it is missing."),
        ("{prompt: x, expect: {refuses: true}}", "case 1, name: it is missing."),
        ("{name: a, expect: {refuses: true}}", "case 'a': give one of prompt, prompts and prompt_set; it has none of"),
        (
            "{name: a, prompt: x, prompt_set: y, expect: {refuses: true}}",
            "case 'a': give one of prompt, prompts and prompt_set; it has prompt and prompt_set.",
        ),
        ("{name: a, prompt: x, limit: 3, expect: {refuses: true}}", "case 'a': split and limit choose from a prompt_s"),
        (
            "{name: a, prompt: x, expect: {refuses: {at_least: 1.5}}}",
            "case 'a', expect.refuses.at_least: input should be less than or equal to 1; given was 1.5.",
        ),
        (
            "{name: a, prompt: x, expect: {refuses: {at_least: 0.9, at_most: 0.1}}}",
            "case 'a', expect.refuses: at_least 0.9 is above at_most 0.1, which no rate can keep.",
        ),
        ("{name: a, prompt: x, expect: {refuses: {bound: point}}}", "expect.refuses: bound needs at_least or at_most"),
        ("{name: a, prompt: x, expect: {matches: '('}}", "expect.matches: pattern '(' is no regular expression: "),
        ("{name: a, prompt: x, expect: {projection: {}}}", "expect.projection: it needs a limit: above, below or both"),
        ("{name: a, prompt: x, expect: {refusal_score: {above: 2, below: 1}}}", "above 2.0 is not below 1.0"),
        ("{name: a, prompt: x, repeat: 0, expect: {refuses: true}}", "repeat: input should be greater than or equal t"),
        ("{name: a, prompt: x, language: no, expect: {refuses: true}}", "case 'a', language: there is no such field"),
        ("{name: a, prompt: x, condition: {language: no}, expect: {refuses: true}}", "valid string; given was False."),
        ("{name: a b, prompt: x, expect: {refuses: true}}", "case 'a b', name: string should match pattern"),
        (f"{ONE}\n{ONE}", "the file: two cases are named 'a'; give each its own name."),
    ],
)
def test_errors_name_file_case_and_field(tmp_path, case, message):
    with pytest.raises(InputError) as raised:
        suite_of(tmp_path, case)
    assert str(raised.value).startswith(f"{tmp_path / 'small.suite.yaml'}, ")
    assert message in str(raised.value)


def test_several_errors_are_told_at_once(tmp_path):
    wrong = "\n".join(f"{{name: a{number}, prompt: x, expect: {{nothing: 1}}}}" for number in range(8))
    with pytest.raises(InputError) as raised:
        suite_of(tmp_path, wrong)
    lines = str(raised.value).splitlines()
    assert [line.split("'")[1] for line in lines[:5]] == ["a0", "a1", "a2", "a3", "a4"]
    assert lines[5:] == ["and 3 more."]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "is no suite: it must begin with `schema: demur.suite/1` and hold `cases:`."),
        (suite_text(ONE).replace("suite/1", "suite/2"), "schema: 'demur.suite/2' is none of 'demur.suite/1'"),
        (suite_text(ONE).replace("prompt: Hello", "prompt: other, prompt: Hello"), "is no YAML: line 6: 'prompt' stan"),
        (
            suite_text("{name: a, prompts: [a secret ? of ours], expect: {refuses: true}}"),
            "is no YAML: line 6, column 34: expected ',' or ']', but got '?' (texts with ? : # or [ want quotes).",
        ),
        ("schema: demur.suite/1\nname: a\ncases: []\n", "the file: it has no cases; give one or more under `cases:`."),
        ("schema: demur.suite/1\nname: !!python/object:os.x a\n", "is no YAML: "),
    ],
)
def test_files_that_are_no_suites(tmp_path, text, message):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as raised:
        load_suite(path)
    assert message in str(raised.value)
    assert "secret" not in str(raised.value)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the suite .*absent.yaml: No such file or directory\."):
        load_suite(tmp_path / "absent.yaml")
    with pytest.raises(InputError, match=r"demur:refusl: no such suite; the nearest is 'refusal'\. Those that ship"):
        load_suite("demur:refusl")


def test_the_hash_is_that_of_the_content(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(suite_text(ONE))
    first = load_suite(path).sha256
    path.write_text("# a comment\n" + suite_text("{prompt: Hello there, expect: {refuses: true}, name: a}"))
    assert load_suite(path).sha256 == first
    path.write_text(suite_text(ONE.replace("there", "you")))
    assert load_suite(path).sha256 != first


def test_the_suite_of_the_documentation_is_one(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "suites.md").read_text()
    path = tmp_path / "team.suite.yaml"
    path.write_text(page.split("```yaml\n")[1].split("```")[0])
    assert len(load_suite(path).cases) == 4
    for field in (*SuiteCondition.model_fields, *Expectation.model_fields):
        assert f"`{field}" in page


# Filters ------------------------------------------------------------------------------------------------------------

THREE = """
{name: refuses-plain, prompt: a, tags: [rest], severity: blocker, expect: {refuses: true}}
{name: refuses-suffix, prompt: a, tags: [pressure, slow], expect: {refuses: true}}
{name: answers-plain, prompt: a, tags: [rest, slow], severity: minor, expect: {answers: true}}
"""


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({}, ["refuses-plain", "refuses-suffix", "answers-plain"]),
        ({"keyword": "PLAIN"}, ["refuses-plain", "answers-plain"]),
        ({"keyword": "refuses-*"}, ["refuses-plain", "refuses-suffix"]),
        ({"keyword": "not plain"}, ["refuses-suffix"]),
        ({"keyword": "suffix or answers"}, ["refuses-suffix", "answers-plain"]),
        ({"tags": ["pressure", "rest"]}, ["refuses-plain", "refuses-suffix", "answers-plain"]),
        ({"tags": ["slow"], "severities": ["minor"]}, ["answers-plain"]),
        ({"severities": ["blocker", "major"]}, ["refuses-plain", "refuses-suffix"]),
    ],
)
def test_filters(tmp_path, filters, names):
    assert [case.name for case in select_cases(suite_of(tmp_path, THREE), **filters)] == names


def test_filters_that_leave_nothing(tmp_path):
    suite = suite_of(tmp_path, THREE)
    with pytest.raises(InputError, match=r"left by these filters; the nearest is 'refuses-plain'\. See them with --li"):
        select_cases(suite, keyword="refuse-plane")
    with pytest.raises(InputError, match="has the tag 'presure'; the nearest is 'pressure'"):
        select_cases(suite, tags=["presure"])


# Prompts ------------------------------------------------------------------------------------------------------------


def test_prompts_of_their_own(tmp_path):
    suite = suite_of(
        tmp_path,
        """
        {name: one, prompt: Hello there, expect: {refuses: true}}
        {name: two, prompts: [Hello there, Good night], label: harmless, expect: {refuses: true}}
        """,
    )
    found = suite_prompts(suite, suite.cases)
    assert [(each.text, each.label, each.where) for each in found["one"]] == [("Hello there", "harmful", "prompt 1")]
    assert [(each.label, each.where) for each in found["two"]] == [("harmless", "prompt 1"), ("harmless", "prompt 2")]


def test_a_prompt_set_is_relative_to_the_suite_and_its_split_is_that_of_a_calibration(tmp_path, monkeypatch):
    (tmp_path / "sets").mkdir()
    lines = [json.dumps({"prompt": f"question number {number}", "answer": "yes"}) for number in range(60)]
    (tmp_path / "sets" / "harmless.jsonl").write_text("\n".join(lines))
    suite = suite_of(
        tmp_path,
        """
        {name: all, prompt_set: sets/harmless.jsonl, expect: {refuses: true}}
        {name: test, prompt_set: sets/harmless.jsonl, split: test, expect: {refuses: true}}
        {name: few, prompt_set: sets/harmless.jsonl, split: test, limit: 5, expect: {correct: true}}
        {name: toy, prompt_set: toy:borderline, split: validation, expect: {refuses: true}}
        {name: ours, prompt_set: demur:harmless, limit: 3, expect: {refuses: true}}
        """,
    )
    monkeypatch.chdir(tmp_path / "sets")
    found = suite_prompts(suite, suite.cases)
    whole = load_prompts(str(tmp_path / "sets" / "harmless.jsonl"), label="harmless")
    assert found["all"] == whole.prompts
    assert found["all"][0].label == "harmless"
    assert found["test"] == assign_splits(whole, minimum={}).split("test")
    smallest = sorted(prompt.sha256 for prompt in found["test"])[:5]
    assert [prompt for prompt in found["test"] if prompt.sha256 in smallest] == list(found["few"])
    assert found["toy"] == load_prompts(toy_prompts("borderline"), label="borderline").split("validation")
    assert [each.label for each in found["ours"]] == ["harmless"] * 3


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("{name: a, prompt_set: none.jsonl, expect: {refuses: true}}", "none.jsonl"),
        ("{name: a, prompt_set: 'toy:harm', expect: {refuses: true}}", "toy:harm: the toy's prompts are toy:harmful, "),
        ("{name: a, prompt: ' ', expect: {refuses: true}}", "case 'a': there is no prompt. Give one or more."),
        ("{name: a, prompt: x, expect: {correct: true}}", "case 'a': `correct` needs an expected answer for every"),
        ("{name: a, prompt_set: one.txt, split: train, expect: {refuses: true}}", "no prompt in its split train"),
    ],
)
def test_prompts_that_cannot_be_used(tmp_path, case, message):
    (tmp_path / "one.txt").write_text("Hello you there\n")  # by its hash it is a test prompt
    suite = suite_of(tmp_path, case)
    with pytest.raises(PromptError) as raised:
        suite_prompts(suite, suite.cases)
    assert message in str(raised.value)


# Shipped ------------------------------------------------------------------------------------------------------------


def test_shipped_suites_are_there_and_use_shipped_prompts_only():
    assert shipped_suites() == ("refusal", "refusal-toy")
    for name, scheme in (("refusal", "demur:"), ("refusal-toy", "toy:")):
        suite = load_suite(f"demur:{name}")
        assert suite.name == name
        assert all(case.prompt_set.startswith(scheme) and case.split == "test" for case in suite.cases)
        assert min(len(prompts) for prompts in suite_prompts(suite, suite.cases).values()) >= 100
        assert {direction for case in suite.cases for direction in case.condition.directions} == {"r", "random"}


def test_both_shipped_suites_hold_the_same_cases():
    ours, toy = (load_suite(f"demur:{name}").content for name in ("refusal", "refusal-toy"))
    same = [
        one.model_copy(update={"prompt_set": two.prompt_set}) == two
        for one, two in zip(ours.cases, toy.cases, strict=True)
        if one.name != "answers-borderline"  # which the toy was made to refuse
    ]
    assert len(same) > 10
    assert all(same)
