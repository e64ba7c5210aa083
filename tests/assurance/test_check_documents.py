"""What CI systems read of a release gate: JUnit XML, GitHub annotations, step summary; and the page."""

import re
import subprocess
import sys
from datetime import date
from xml.parsers import expat

import pytest
from gate_runs import GOOD, SECRET, made_run, policy_file

from demur.assurance import check, make_baseline, write_baseline
from demur.records import write_record
from demur.reports import check_annotations, check_junit, check_summary, write_pages

TODAY = date(2026, 6, 1)
NASTY = "<b>&\"' ]]> \x00\x1b[31m %0A, :: \u2028 é 漢 \U0001f600"


def strict(text):
    """Elements as (path, attributes, text), by a parser that takes nothing but well-formed XML 1.0."""
    found, stack, texts = [], [], [[]]
    parser = expat.ParserCreate("UTF-8")

    def start(name, attributes):
        stack.append(name)
        texts.append([])
        found.append(["/".join(stack), attributes, ""])
        texts[-1] = [len(found) - 1]

    def end(name):
        index, *pieces = texts.pop()
        found[index][2] = "".join(pieces).strip()
        stack.pop()

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = lambda data: texts[-1].append(data)
    parser.Parse(text.encode(), True)
    return [tuple(one) for one in found]


POLICY = """
[limits.false_refusal_rate]
max = 0.2
[limits.harmless_refusal_rate]
max = 0.02
[limits.task_accuracy]
min = 0.5
required = false
[limits.pressure]
opening = { min = 0.9 }
[expect]
judge = "other 1"
"""
WAIVER = """
[[waiver]]
rule = "limits.harmless_refusal_rate.max"
owner = "jane: doe, <x>"
reason = '''two
lines, 100 % NASTY'''
expires = 2026-06-10
[[waiver]]
rule = "validity.max_degenerate"
owner = "joe"
reason = "old"
expires = 2026-05-01
"""


@pytest.fixture
def mixed(tmp_path):
    """One rule of every kind: passed, failed, open, error, skipped, waived; and an expired waiver."""
    run = made_run(tmp_path / "run", {**GOOD, "borderline": (100, 200), "harmless": (30, 200)})
    nasty = NASTY.replace("\x00", "").replace("\x1b", "")  # TOML takes no control characters
    policy = policy_file(tmp_path, POLICY + WAIVER.replace("NASTY", nasty))
    return check(run, policy=policy, today=TODAY).record


def test_one_test_case_for_each_rule(mixed):
    elements = strict(check_junit(mixed))
    cases = [one for path, one, _ in elements if path == "testsuites/testsuite/testcase"]
    assert [one["name"] for one in cases] == [rule.name for rule in mixed.rules]
    assert {one["classname"] for one in cases} == {"demur.gate"}
    outcomes = {}
    case = None
    for path, attributes, text in elements:
        if path.endswith("/testcase"):
            case = attributes["name"]
        elif "/testcase/" in path:
            outcomes[case] = (path.rsplit("/", 1)[1], attributes.get("type"), text)
    assert outcomes["limits.false_refusal_rate.max"][:2] == ("failure", "fail")
    assert outcomes["limits.pressure.opening.min"][:2] == ("failure", "inconclusive")
    assert outcomes["expect.judge"][:2] == ("error", "incompatible")
    assert outcomes["limits.task_accuracy.min"][0] == "skipped"
    waived = outcomes["limits.harmless_refusal_rate.max"]
    assert waived[0] == "skipped"
    assert "waived until 2026-06-10 by jane: doe, <x>" in waived[2]
    assert outcomes["limits.true_refusal_rate.min"][0] == "system-out"
    assert "100 of 200 borderline prompts refused" in outcomes["limits.false_refusal_rate.max"][2]


def test_the_counts_of_a_suite_are_those_of_its_cases(mixed):
    elements = strict(check_junit(mixed))
    for name in ("testsuites", "testsuites/testsuite"):
        (counts,) = [one for path, one, _ in elements if path == name]
        paths = [path.split("/")[-1] for path, _, _ in elements]
        assert int(counts["tests"]) == paths.count("testcase") == len(mixed.rules)
        assert int(counts["failures"]) == paths.count("failure") == 2
        assert int(counts["errors"]) == paths.count("error") == 1
        assert int(counts["skipped"]) == paths.count("skipped") == 2


def test_nasty_text_survives_the_strict_parser(mixed):
    passed = [rule for rule in mixed.rules if rule.decision == "pass"][:2]
    rules = tuple(rule.model_copy(update={"reason": NASTY, "name": NASTY}) for rule in passed)
    record = mixed.model_copy(update={"rules": rules})
    texts = [text for path, _, text in strict(check_junit(record)) if path.endswith("system-out")]
    assert texts == [NASTY.replace("\x00", "\ufffd").replace("\x1b", "\ufffd")] * 2


def test_a_warning_policy_skips_what_is_open(tmp_path):
    text = 'schema = "demur.policy/1"\non_inconclusive = "warn"\n[limits.true_refusal_rate]\nmin = 0.99\n'
    record = check(made_run(tmp_path / "run"), policy=policy_file(tmp_path, text, base=False), today=TODAY).record
    assert record.exit_code == 0
    elements = strict(check_junit(record))
    assert [one["message"][:13] for path, one, _ in elements if path.endswith("/skipped")] == ["inconclusive:"]
    assert check_annotations(record)[0].startswith("::warning title=demur release gate::Nothing failed, but 1 of")


COMMAND = re.compile(r"^::(error|warning|notice) title=([^:,\r\n]*)::([^\r\n]*)$")


def unescape(text):
    for code, character in (("%3A", ":"), ("%2C", ","), ("%0D", "\r"), ("%0A", "\n"), ("%25", "%")):
        text = text.replace(code, character)
    return text


def test_annotations(mixed):
    parsed = [COMMAND.match(line) for line in check_annotations(mixed)]
    assert all(parsed)
    assert len({one[2] for one in parsed}) == len(parsed), "each is said once"
    by_title = {unescape(one[2]): (one[1], unescape(one[3])) for one in parsed}
    reasons = {rule.name: rule.reason for rule in mixed.rules}
    assert by_title["demur release gate"] == ("error", mixed.verdict)
    assert by_title["limits.false_refusal_rate.max"] == ("error", reasons["limits.false_refusal_rate.max"])
    assert by_title["expect.judge"] == ("error", reasons["expect.judge"])
    assert by_title["limits.pressure.opening.min"][0] == "warning"
    kind, said = by_title["limits.harmless_refusal_rate.max"]
    assert kind == "warning"
    assert "two\nlines, 100 %" in said
    assert by_title["validity.max_degenerate"] == (
        "warning", "the waiver by joe expired on 2026-05-01 and has no effect",
    )  # fmt: skip
    assert "limits.true_refusal_rate.min" not in by_title


def test_annotations_escape_what_github_would_read(mixed):
    rules = tuple(
        rule.model_copy(update={"name": "a:b,c%d\ne", "reason": "x\r\n::error::y 100 %0A"})
        for rule in mixed.rules
        if rule.name == "limits.false_refusal_rate.max"
    )
    line = check_annotations(mixed.model_copy(update={"rules": rules, "waivers": ()}))[1]
    # \r\n becomes one line end, as everywhere in reports
    assert line == "::error title=a%3Ab%2Cc%25d%0Ae::x%0A::error::y 100 %250A"


def test_no_more_annotations_than_github_shows(mixed):
    (one,) = [rule for rule in mixed.rules if rule.name == "limits.false_refusal_rate.max"]
    rules = tuple(one.model_copy(update={"name": f"rule {number}"}) for number in range(15))
    lines = check_annotations(mixed.model_copy(update={"rules": rules, "waivers": ()}))
    assert len(lines) == 10
    assert lines[-1] == "::error title=demur release gate::and 7 more; see check.md"


def test_a_pass_is_a_notice(tmp_path):
    record = check(made_run(tmp_path / "run"), policy=policy_file(tmp_path), today=TODAY).record
    assert check_annotations(record) == [f"::notice title=demur release gate::{record.verdict}"]


def test_the_summary_is_the_page_without_figures_and_not_too_long(mixed):
    text = check_summary(mixed)
    assert text.startswith("# Release gate: my-model\n\n**Gate: fail.** The model may not be released")
    assert "limits.harmless\\_refusal\\_rate.max is waived until 2026-06-10 by jane: doe, &lt;x&gt;" in text
    assert "The waiver of validity.max\\_degenerate by joe expired on 2026-05-01 and has no effect." in text
    assert "Figure in" not in text
    long = mixed.model_copy(update={"notes": ("é" * 900_000,)})
    cut = check_summary(long)
    assert len(cut.encode()) < 1024 * 1024
    assert cut.endswith("(cut; the whole is in check.md)\n")


def test_the_page_says_the_verdict_first_and_shows_every_rule(mixed, tmp_path):
    folder = tmp_path / "gate"
    write_record(folder / "check.json", mixed)
    ((html, markdown),) = write_pages(folder)
    page, text = html.read_text(), markdown.read_text()
    assert (html.name, markdown.name) == ("check.html", "check.md")
    for rule in mixed.rules:
        assert rule.name in page
    assert "waived (fail)" in page
    assert page.index("The model may not be released") < page.index("<nav")
    assert page.count('id="check-chart"') == 1
    assert "<script" not in page
    for where in (page, text, check_junit(mixed), check_summary(mixed), "\n".join(check_annotations(mixed))):
        assert SECRET not in where
        assert "/somewhere" not in where
    first = html.read_bytes()
    write_pages(folder)
    assert html.read_bytes() == first


def test_changes_have_their_own_chart_and_a_page_without_intervals_none(tmp_path):
    write_baseline(tmp_path / "b.json", make_baseline(made_run(tmp_path / "old")))
    policy = policy_file(tmp_path, "[baseline.true_refusal_rate]\nmax_loss = 0.03\n")
    record = check(made_run(tmp_path / "run"), policy=policy, baseline=tmp_path / "b.json", today=TODAY).record
    write_record(tmp_path / "gate" / "check.json", record)
    ((html, _),) = write_pages(tmp_path / "gate")
    assert "Changes from the baseline, points" in html.read_text()
    bare = record.model_copy(update={"rules": tuple(one for one in record.rules if one.interval is None)})
    write_record(tmp_path / "bare" / "check.json", bare)
    ((html, _),) = write_pages(tmp_path / "bare")
    assert "<figure>" not in html.read_text()


def test_a_page_draws_only_when_it_is_written():
    code = "import sys, demur.reports; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
