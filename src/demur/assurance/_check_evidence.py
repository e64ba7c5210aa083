"""What a policy asks of the records of other commands: targeted suites, audits, drift."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, get_args

from demur.assurance._check_policy import AuditEvidence, Evidence, SuiteEvidence
from demur.assurance._check_rules import Named, absent, plain_rule
from demur.errors import InputError
from demur.records import (
    Audit,
    AuditSeverity,
    Baseline,
    CapabilityRecord,
    CheckRule,
    DriftRecord,
    Record,
    RuleDecision,
    Severity,
    SuiteRecord,
    read_record,
)

R = TypeVar("R", bound=Record)
_SHOWN = 3


@dataclass(frozen=True)
class Others:
    """The other records that were found; null where there is none."""

    capability: CapabilityRecord | None = None
    suite: SuiteRecord | None = None
    audit: Audit | None = None
    drift: DriftRecord | None = None


def read_others(folders: Sequence[Path]) -> Others:
    """Read what the folders hold; of several files of one name the first counts.

    Raises:
        InputError: a folder is none.
        RunFolderError: a record is broken.
    """
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder; give with --evidence one that holds records, such as suite.json.")

    def first(name: str, kind: type[R]) -> R | None:
        found = (folder / name for folder in folders if (folder / name).is_file())
        return next((read_record(path, kind) for path in found), None)

    return Others(
        capability=first("capability.json", CapabilityRecord),
        suite=first("suite.json", SuiteRecord),
        audit=first("audit.json", Audit),
        drift=first("drift.json", DriftRecord),
    )


def evidence_rules(evidence: Evidence, others: Others, now: Baseline) -> Iterator[CheckRule]:
    """One rule for each kind of record that the policy asks for."""
    if evidence.suite is not None:
        named = Named("evidence.suite", "evidence", "Targeted suite")
        suite, asked = others.suite, evidence.suite
        if suite is None:
            yield absent(named, "There is no suite.json (demur test MODEL SUITE --out DIR).", required=asked.required)
        else:
            other = _other_weights(suite.model.content_hash, now, "suite.json")
            yield plain_rule(named, "error", other) if other else _suite_rule(named, suite, asked)
    if evidence.audit is not None:
        named = Named("evidence.audit", "evidence", "Audit")
        if others.audit is None:
            reason = "There is no audit.json (demur audit MODEL ... --out DIR)."
            yield absent(named, reason, required=evidence.audit.required)
        else:
            other = _other_weights(others.audit.model.content_hash, now, "audit.json")
            yield plain_rule(named, "error", other) if other else _audit_rule(named, others.audit, evidence.audit)
    if evidence.drift is not None:
        named = Named("evidence.drift", "evidence", "Drift")
        if others.drift is None:
            yield absent(named, "There is no drift.json (demur drift ... --out DIR).", required=evidence.drift.required)
        else:
            last = others.drift.rows[-1].model_hash  # null of a model in training
            other = "" if last is None else _other_weights(last, now, "the last checkpoint of drift.json")
            yield plain_rule(named, "error", other) if other else _drift_rule(named, others.drift)


def _other_weights(content_hash: str, now: Baseline, file: str) -> str:
    """Why a record is not about the judged model; a calibrated one has the weights of its export there."""
    same = content_hash == now.model.content_hash
    if now.side == "before" and not same:
        return f"{file} is of another model (sha256 {content_hash[:12]})."
    if now.side == "after" and same:
        return f"{file} is of the base model, not of the calibrated one: measure the exported model."
    return ""


def _suite_rule(named: Named, suite: SuiteRecord, asked: SuiteEvidence) -> CheckRule:
    """Cases that failed or could not be run count, but for those of a tolerated severity."""
    counts = _counting(get_args(Severity), asked.tolerate)
    cases = [case for case in suite.cases if counts(case.severity)]
    by_outcome = {
        outcome: [case.name for case in cases if case.outcome == outcome]
        for outcome in ("failed", "error", "inconclusive")
    }
    total = f"{len(suite.cases)} of {suite.n_cases} cases of the suite {suite.suite} were run"
    if by_outcome["failed"]:
        return plain_rule(named, "fail", f"{total}; failed: {_listed(by_outcome['failed'])}.")
    open_ = by_outcome["error"] + by_outcome["inconclusive"]
    if open_:
        return plain_rule(named, "inconclusive", f"{total}; not decided: {_listed(open_)}.")
    if len(suite.cases) < suite.n_cases or not suite.cases:
        return plain_rule(named, "inconclusive", f"Only {total}.")
    tolerated = sum(case.outcome in {"failed", "error", "inconclusive"} for case in suite.cases)
    more = f", {tolerated} of tolerated severity did not pass" if tolerated else ""
    return plain_rule(named, "pass", f"{total}{more}, and none that counts failed.")


def _audit_rule(named: Named, audit: Audit, asked: AuditEvidence) -> CheckRule:
    counts = _counting(get_args(AuditSeverity), asked.tolerate)
    found: Mapping[str, str] = {one.title: one.severity for one in audit.findings if counts(one.severity)}
    if found:
        listed = _listed([f"{title.rstrip('.')} ({severity})" for title, severity in found.items()])
        return plain_rule(named, "fail", f"Findings above {asked.tolerate}: {listed}.")
    if not audit.findings:
        return plain_rule(named, "inconclusive", "The audit has no findings, not even that an attack was held.")
    return plain_rule(named, "pass", f"None of {len(audit.findings)} findings is above {asked.tolerate}.")


def _drift_rule(named: Named, drift: DriftRecord) -> CheckRule:
    decision: RuleDecision = drift.decision
    alarm = f"the first alarm is at {drift.first_alarm}" if drift.first_alarm else "there is no alarm"
    rate = f"at a false-alarm rate of {100 * drift.rule.false_alarm_rate:.3g} %"
    return plain_rule(named, decision, f"Over {len(drift.rows)} checkpoints {alarm}, {rate}.")


def _counting(severities: Sequence[str], tolerate: str | None) -> Callable[[str], bool]:
    """Whether a severity counts; they are given from the worst on."""
    first = len(severities) if tolerate is None else severities.index(tolerate)
    return lambda severity: severities.index(severity) < first


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
