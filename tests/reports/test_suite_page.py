"""The page, the lines and the JUnit XML of a suite, from a record of our own."""

from xml.etree import ElementTree

import pytest
import report_records

from demur.records import (
    Flakiness,
    JudgeIdentity,
    Mean,
    Rate,
    SuiteCaseResult,
    SuiteCheck,
    SuiteCost,
    SuitePrompt,
    SuiteRecord,
    write_record,
)
from demur.reports import suite_junit, suite_lines, suite_summary, write_pages


def check(decision, **values):
    rate = Rate(k=9, n=12, rate=0.75, low=0.468, high=0.911, unjudged=1)
    against = (SuitePrompt(sha256="ab" * 32, where="line 7"),)
    given = {
        "kind": "refuses", "expected": "refused: at least 90 % (whole interval)", "decision": decision,
        "at_least": 0.9, "rate": rate, "against": against, "n_against": 3,
    }  # fmt: skip
    return SuiteCheck(**{**given, **values})


def case(name, outcome, *checks, **values):
    given = {
        "name": name, "severity": "major", "condition": "r ablated", "label": "harmful", "n_prompts": 13, "repeat": 1,
        "outcome": outcome, "checks": checks,
    }  # fmt: skip
    return SuiteCaseResult(**{**given, **values})


PASSED = case("holds", "passed", check("pass", n_against=0, against=()))
FAILED = case("falls", "failed", check("fail"), severity="blocker", owner="team <x>", description="It <b>must</b>.")
DOUBT = case("wavers", "inconclusive", check("inconclusive"), repeat=3, flakiness=Flakiness(
    samples=3, passing=1, wavering=Rate(k=4, n=12, rate=1 / 3, low=0.1, high=0.6)))  # fmt: skip
SCORED = case("scored", "passed", SuiteCheck(
    kind="projection", expected="mean projection on r above 0.5", decision="pass", at_least=0.5, unit="along r",
    mean=Mean(mean=0.98, low=0.95, high=1.01, n=40, largest=1.2)))  # fmt: skip
SKIPPED = case("thinks", "skipped", message="the chat template has no enable_thinking")
ERROR = case("breaks", "error", message="the weights are int8 already")


def record(*cases, decision="fail", **values):
    summary = report_records.evaluation_summary()
    given = {
        "suite": "team", "source": "team.suite.yaml", "suite_sha256": "cd" * 32, "model": summary.model,
        "judge": JudgeIdentity(id="phrase", version="2"), "directions": "found from prompts", "n_cases": len(cases),
        "cases": cases, "decision": decision, "provenance": summary.provenance,
        "cost": SuiteCost(
            states=2, generate_calls=3, answers=39, reused=13, wanted=65, score_passes=1
        ),
    }  # fmt: skip
    return SuiteRecord(**{**given, **values})


@pytest.fixture
def pages(tmp_path):
    def write(one):
        write_record(tmp_path / "suite.json", one)
        ((html, markdown),) = write_pages(tmp_path)
        return html.read_text(), markdown.read_text()

    return write


def test_the_verdict_comes_first_and_the_most_severe_first_of_all(pages):
    html, markdown = pages(record(PASSED, ERROR, DOUBT, FAILED, SKIPPED))
    assert "Failed: 2 of 5 cases do not hold, the most severe a blocker; 1 more are not decided." in html
    said = [line for line in markdown.splitlines() if line.startswith("- ")]
    assert [line.split()[1] for line in said[:3]] == ["falls", "breaks", "wavers"]
    assert (
        "Expected refused: at least 90 % (whole interval), found 75.0 % (9/12, 46.8 to 91.1 %, 1 unjudged)." in said[0]
    )
    assert "Could not be run: the weights are int8 already" in said[1]
    assert "thinks was skipped: the chat template has no enable_thinking." in html
    assert html.index("most severe") < html.index("<table")


@pytest.mark.parametrize(
    ("one", "verdict"),
    [
        (record(PASSED, SCORED, decision="pass"), "Passed: all 2 cases hold."),
        (record(PASSED, SKIPPED, decision="pass"), "Passed: all 1 cases hold (1 could not be asked of this model)."),
        (
            record(PASSED, DOUBT, decision="inconclusive"),
            "Inconclusive: no case failed, but 1 of 2 are not decided by these prompts.",
        ),
        (record(SKIPPED, decision="inconclusive"), "Inconclusive: no case could be asked of this model."),
    ],
)
def test_verdicts(pages, one, verdict):
    assert f'<p class="sentence">{verdict}</p>' in pages(one)[0]


def test_the_page_has_every_number_and_a_figure(pages):
    html, markdown = pages(record(PASSED, FAILED, DOUBT, SCORED))
    for text in ("9/12", "46.8 to 91.1", "0.980", "0.950 to 1.010", "n 40", "abababababab (line 7)", "39 answers in 3"):
        assert text in html
        assert text in markdown
    assert html.count("<svg") == 1
    assert "flaky: 1 of 3 samples would pass alone; 4 of 12 prompts were refused in some" in html
    assert "It &lt;b&gt;must&lt;/b&gt;." in html
    assert "<b>must" not in html


def test_what_was_left_out_is_said(pages):
    assert "3 of the suite&#39;s 4 cases were left out by filters." in pages(record(PASSED, n_cases=4))[0]
    html, _ = pages(record(FAILED, n_cases=4, stopped=True))
    assert "The run stopped at the first failure; later cases were not run." in html
    assert "left out by filters" not in html


def test_lines():
    assert suite_lines(PASSED) == ["holds [major; r ablated]: refuses 9/12 (75.0 %, 46.8 to 91.1 %, 1 unjudged)"]
    assert suite_lines(FAILED)[0].startswith("falls [blocker, team <x>; r ablated]: ")
    assert suite_lines(FAILED)[1:] == [
        "fail: expected refused: at least 90 % (whole interval); against it: abababababab (line 7) and 2 more"
    ]
    assert suite_lines(SKIPPED) == ["thinks [major; r ablated]: the chat template has no enable_thinking"]
    assert suite_lines(SCORED) == ["scored [major; r ablated]: projection 0.980 (0.950 to 1.010, n 40) along r"]
    assert suite_summary(record(PASSED, FAILED, ERROR, n_cases=4)) == (
        "team: 3 of 4 cases, 1 passed, 1 failed, 1 error. 39 answers in 3 batches for 65 wanted by cases, 13 from the "
        "folder; 2 model states"
    )


def test_junit():
    root = ElementTree.fromstring(suite_junit(record(PASSED, FAILED, DOUBT, SKIPPED, ERROR)).partition("\n")[2])
    assert root.attrib == {"tests": "5", "failures": "2", "errors": "1", "skipped": "1"}
    found = {one.get("name"): one for one in root.iter("testcase")}
    assert found["falls"].find("failure").get("type") == "failed"
    assert found["wavers"].find("failure").get("type") == "inconclusive"
    assert found["breaks"].find("error").get("message") == "breaks [major; r ablated]: the weights are int8 already"
    assert found["falls"].find("properties")[1].attrib == {"name": "owner", "value": "team <x>"}
    assert found["holds"].find("failure") is None
