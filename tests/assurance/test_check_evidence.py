"""What the release gate makes of the records of suites, audits and drift."""

import json
from datetime import date
from types import SimpleNamespace

import pytest
from gate_runs import GOOD, JUDGE, made_run, policy_file

from demur.assurance import check, make_baseline
from demur.assurance._check_evidence import Others, evidence_rules
from demur.assurance._check_policy import Evidence
from demur.errors import RunFolderError
from demur.records import Audit, DriftRecord, Finding, SuiteCaseResult, SuiteCost, SuiteRecord, Summary, write_record

TODAY = date(2026, 6, 1)


def suite_file(folder, run, outcomes, *, n_cases=None, model_hash=None):
    """`suite.json` with one case for each (severity, outcome)."""
    summary = Summary.model_validate_json((run / "summary.json").read_text())
    model = summary.model if model_hash is None else summary.model.model_copy(update={"content_hash": model_hash})
    cases = tuple(
        SuiteCaseResult(
            name=f"{severity} {outcome}", severity=severity, condition="none", label="harmful", n_prompts=1, repeat=1,
            outcome=outcome,
        )
        for severity, outcome in outcomes
    )  # fmt: skip
    record = SuiteRecord(
        suite="mine", source="mine.yaml", suite_sha256="1" * 64, model=model, judge=JUDGE, directions=None,
        n_cases=len(cases) if n_cases is None else n_cases, cases=cases, decision="pass",
        cost=SuiteCost(states=1, generate_calls=1, answers=1, reused=0, wanted=1, score_passes=0),
        provenance=summary.provenance,
    )  # fmt: skip
    write_record(folder / "suite.json", record)
    return folder


def rule_of(run, policy, name="evidence.suite", **options):
    record = check(run, policy=policy, today=TODAY, **options).record
    (found,) = [one for one in record.rules if one.name == name]
    return found


PASSED, ALL = ("blocker", "passed"), "[evidence.suite]\n"


@pytest.mark.parametrize(
    ("outcomes", "text", "decision"),
    [
        ([PASSED, ("minor", "skipped")], ALL, "pass"),
        ([PASSED, ("minor", "failed")], ALL, "fail"),
        ([PASSED, ("minor", "failed")], '[evidence.suite]\ntolerate = "minor"\n', "pass"),
        ([PASSED, ("major", "failed")], '[evidence.suite]\ntolerate = "minor"\n', "fail"),
        ([PASSED, ("major", "failed")], '[evidence.suite]\ntolerate = "major"\n', "pass"),
        ([PASSED, ("major", "error")], ALL, "inconclusive"),
        ([PASSED, ("major", "inconclusive")], ALL, "inconclusive"),
        ([], ALL, "inconclusive"),
    ],
)
def test_a_suite_counts_by_severity(tmp_path, outcomes, text, decision):
    run = made_run(tmp_path / "run")
    suite_file(run, run, outcomes)
    found = rule_of(run, policy_file(tmp_path, text))
    assert found.decision == decision
    assert "of the suite mine were run" in found.reason


def test_a_suite_of_which_only_some_cases_were_run_is_open(tmp_path):
    run = made_run(tmp_path / "run")
    suite_file(run, run, [PASSED], n_cases=2)
    found = rule_of(run, policy_file(tmp_path, ALL))
    assert (found.decision, found.reason) == ("inconclusive", "Only 1 of 2 cases of the suite mine were run.")


def test_a_record_that_is_not_there(tmp_path):
    run = made_run(tmp_path / "run")
    assert rule_of(run, policy_file(tmp_path, ALL)).decision == "inconclusive"
    assert rule_of(run, policy_file(tmp_path, ALL + "required = false\n")).decision == "skipped"
    (tmp_path / "more").mkdir()
    suite_file(tmp_path / "more", run, [PASSED])
    assert rule_of(run, policy_file(tmp_path, ALL), evidence=[tmp_path / "more"]).decision == "pass"
    (run / "suite.json").write_text(json.dumps({"schema": "other"}))
    with pytest.raises(RunFolderError, match="is not a SuiteRecord"):
        rule_of(run, policy_file(tmp_path, ALL))


def test_a_record_of_other_weights_is_an_error(tmp_path):
    run = made_run(tmp_path / "run")
    suite_file(run, run, [PASSED], model_hash="0" * 64)
    found = rule_of(run, policy_file(tmp_path, ALL))
    assert (found.decision, found.reason) == ("error", "suite.json is of another model (sha256 000000000000).")
    calibrated = made_run(tmp_path / "calibrated", GOOD, GOOD)
    suite_file(calibrated, calibrated, [PASSED])
    found = rule_of(calibrated, policy_file(tmp_path, ALL))
    assert (found.decision, "measure the exported model" in found.reason) == ("error", True)
    suite_file(calibrated, calibrated, [PASSED], model_hash="0" * 64)
    assert rule_of(calibrated, policy_file(tmp_path, ALL)).decision == "pass"


@pytest.fixture
def now(tmp_path):
    return make_baseline(made_run(tmp_path / "run"))


def evidence(now, others, **asked):
    (found,) = evidence_rules(Evidence.model_validate(asked), others, now)
    return found


@pytest.mark.parametrize(
    ("severity", "tolerate", "decision"),
    [
        ("severe", "low", "fail"),
        ("moderate", "low", "fail"),
        ("low", "low", "pass"),
        ("held", "held", "pass"),
        ("low", "held", "fail"),
        ("high", "high", "pass"),
        ("severe", "high", "fail"),
    ],
)
def test_an_audit_counts_by_its_worst_finding(now, severity, tolerate, decision):
    findings = [
        Finding(severity=each, section="x", title=f"A {each} thing.", evidence="1/2", advice="")
        for each in (severity, "held")
    ]
    audit = Audit.model_construct(model=SimpleNamespace(content_hash=now.model.content_hash), findings=tuple(findings))
    found = evidence(now, Others(audit=audit), audit={"tolerate": tolerate})
    assert found.decision == decision
    assert (f"A {severity} thing ({severity})" in found.reason) == (decision == "fail")
    assert evidence(now, Others(), audit={}).decision == "inconclusive"
    empty = audit.model_copy(update={"findings": ()})
    assert evidence(now, Others(audit=empty), audit={}).decision == "inconclusive"
    other = audit.model_copy(update={"model": SimpleNamespace(content_hash="0" * 64)})
    assert evidence(now, Others(audit=other), audit={}).decision == "error"


@pytest.mark.parametrize("decision", ["pass", "fail", "inconclusive"])
def test_drift_decides_as_it_did(now, decision):
    drift = DriftRecord.model_construct(
        decision=decision, first_alarm="step-40" if decision == "fail" else None,
        rule=SimpleNamespace(false_alarm_rate=0.05),
        rows=(SimpleNamespace(model_hash="1" * 64), SimpleNamespace(model_hash=now.model.content_hash)),
    )  # fmt: skip
    found = evidence(now, Others(drift=drift), drift={})
    assert found.decision == decision
    assert ("the first alarm is at step-40" in found.reason) == (decision == "fail")
    assert "at a false-alarm rate of 5 %" in found.reason
    training = drift.model_copy(update={"rows": (*drift.rows, SimpleNamespace(model_hash=None))})
    assert evidence(now, Others(drift=training), drift={}).decision == decision
    other = drift.model_copy(update={"rows": drift.rows[::-1]})
    assert evidence(now, Others(drift=other), drift={}).decision == "error"
    assert evidence(now, Others(), drift={"required": False}).decision == "skipped"
