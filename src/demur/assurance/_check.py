"""The release gate: a policy and the records of a run in, one decision out. Loads no model and no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib.metadata import version
from pathlib import Path

from demur.assurance._check_baseline import differences, read_baseline, verdicts_of
from demur.assurance._check_changes import baseline_rules
from demur.assurance._check_evidence import evidence_rules, read_others
from demur.assurance._check_fit import expectations, records_agree, validity_rules
from demur.assurance._check_inputs import COMPARABLE, FLOOR_RULE, RECORDS, Inputs
from demur.assurance._check_limits import capability_limits, limit_rules, pressure_limits
from demur.assurance._check_policy import (
    LONGEST_WAIVER,
    LONGEST_WAIVER_OF_TRUE_REFUSALS,
    TRUE_REFUSAL_RULES,
    Policy,
    PolicyFile,
    PolicyWaiver,
    nearest,
    read_policy,
)
from demur.errors import InputError
from demur.records import (
    Baseline,
    BaselineIdentity,
    CheckRecord,
    CheckRule,
    RunFolder,
    Side,
    WaiverUse,
)
from demur.types import Decision

EXIT_CODES: dict[Decision, int] = {"pass": 0, "fail": 100, "inconclusive": 101}


@dataclass(frozen=True)
class Checked:
    """A decision, and the verdicts that it was made on."""

    record: CheckRecord
    baseline: Baseline
    """Of the run itself: to be written and committed, if it is to be compared with."""


def check(
    run: Path | str,
    *,
    policy: Path | str | PolicyFile,
    baseline: Path | str | None = None,
    side: Side | None = None,
    evidence: Sequence[Path | str] = (),
    bootstrap: bool = False,
    today: date | None = None,
) -> Checked:
    """Decide whether the model of a finished run may be released, by a policy.

    Args:
        run: folder of `demur calibrate` or `demur evaluate`.
        policy: TOML file, or one that was read already.
        baseline: the committed verdicts to compare with, `baseline.json`.
        side: the base model (before) or the calibrated one (after); by default the calibrated one where there is one.
        evidence: more folders, in which records of other commands are looked for: `capability.json`, `suite.json`,
            `audit.json`, `drift.json`.
        bootstrap: this run is to become the baseline, so that none is missed.
        today: day by which waivers are judged; by default that of the clock, UTC.

    Returns:
        The record; `record.decision` is fail if any rule fails that no waiver covers, else inconclusive if any is
        undecided or the inputs do not fit together, else pass.

    Raises:
        InputError: the policy cannot be read, or has a waiver that is too long or for no rule.
        RunFolderError: run, baseline or evidence cannot be read.
    """
    file = policy if isinstance(policy, PolicyFile) else read_policy(policy)
    today = today or datetime.now(UTC).date()
    folder = RunFolder(run)
    summary = folder.read_summary()
    now = verdicts_of(folder, summary, side)
    old, identity = (None, None) if baseline is None else read_baseline(baseline)
    unlike = () if old is None else differences(old, now)
    inputs = Inputs(
        policy=file.policy,
        summary=summary,
        now=now,
        baseline=old,
        differences=unlike,
        bootstrap=bootstrap,
        others=read_others((folder.path, *map(Path, evidence))),
    )
    rules, uses = _with_waivers(_rules(inputs), file.policy.waiver, today)
    decision = decide(rules)
    record = CheckRecord(
        decision=decision,
        exit_code=_exit_code(decision, rules, file.policy),
        verdict=_verdict(decision, rules, file.policy),
        run=folder.path.resolve().name,
        side=now.side,
        model=now.model,
        judge=now.judge,
        rendering=now.rendering,
        chat_template_sha256=now.chat_template_sha256,
        policy=file.identity,
        baseline=None if identity is None else identity.model_copy(update={"differences": unlike}),
        rules=tuple(rules),
        waivers=tuple(uses),
        notes=tuple(_notes(inputs, identity)),
        checked_on=today.isoformat(),
        demur=version("demur"),
    )
    return Checked(record, now)


def _rules(inputs: Inputs) -> list[CheckRule]:
    """Every rule of the policy, in the order in which a reader asks."""
    return [
        records_agree(inputs),
        *expectations(inputs),
        *validity_rules(inputs),
        *limit_rules(inputs),
        *pressure_limits(inputs),
        *capability_limits(inputs),
        *baseline_rules(inputs),
        *evidence_rules(inputs.policy.evidence, inputs.others, inputs.now),
    ]


def decide(rules: Sequence[CheckRule]) -> Decision:
    """The decision of the rules that count: those that no waiver covers."""
    decisions = {rule.decision for rule in rules if not rule.waived}
    if "fail" in decisions:
        return "fail"
    return "inconclusive" if decisions & {"inconclusive", "error"} else "pass"


def _exit_code(decision: Decision, rules: Sequence[CheckRule], policy: Policy) -> int:
    errors = any(rule.decision == "error" for rule in rules)
    if decision == "inconclusive" and policy.on_inconclusive == "warn" and not errors:
        return 0
    return EXIT_CODES[decision]


# Waivers ------------------------------------------------------------------------------------------------------------


def _with_waivers(
    rules: Sequence[CheckRule], waivers: Sequence[PolicyWaiver], today: date
) -> tuple[list[CheckRule], list[WaiverUse]]:
    by_name = {rule.name: rule for rule in rules}
    uses = []
    for waiver in waivers:
        _check_waiver(waiver, list(by_name), today)
        rule = by_name[waiver.rule]
        use = _use(waiver, rule, today)
        if use.state == "used":
            by_name[waiver.rule] = rule.model_copy(update={"waived": True})
        uses.append(use)
    return list(by_name.values()), uses


def _check_waiver(waiver: PolicyWaiver, names: list[str], today: date) -> None:
    fixed = (RECORDS, COMPARABLE, FLOOR_RULE)
    if waiver.rule in fixed or waiver.rule.startswith("expect."):
        raise InputError(f"the rule {waiver.rule} cannot be waived: change what is measured, or the policy itself.")
    if waiver.rule not in names:
        raise InputError(f"a waiver names the rule {waiver.rule!r}, which the policy does not have; "
                         f"{nearest(waiver.rule, names)}.")  # fmt: skip
    on_refusals = waiver.rule.startswith(TRUE_REFUSAL_RULES)
    longest = LONGEST_WAIVER_OF_TRUE_REFUSALS if on_refusals else LONGEST_WAIVER
    if waiver.expires - today > longest:
        what = "a rule on true refusals" if on_refusals else "a rule"
        raise InputError(
            f"the waiver of {waiver.rule} expires on {waiver.expires.isoformat()}, which is more than {longest.days} "
            f"days ahead, the longest for {what}. Give {(today + longest).isoformat()} or earlier."
        )


def _use(waiver: PolicyWaiver, rule: CheckRule, today: date) -> WaiverUse:
    said = {"rule": waiver.rule, "owner": waiver.owner, "reason": waiver.reason, "expires": waiver.expires.isoformat()}
    if waiver.expires < today:
        return WaiverUse(**said, state="expired")
    if rule.decision == "error":
        return WaiverUse(**said, state="no_effect")
    return WaiverUse(**said, state="used" if rule.decision in {"fail", "inconclusive"} else "not_needed")


# Words --------------------------------------------------------------------------------------------------------------


def _verdict(decision: Decision, rules: Sequence[CheckRule], policy: Policy) -> str:
    counting = [rule for rule in rules if not rule.waived and rule.decision != "skipped"]
    failed = [rule.name for rule in counting if rule.decision == "fail"]
    open_ = [rule.name for rule in counting if rule.decision in {"inconclusive", "error"}]
    waived = sum(rule.waived for rule in rules)
    if decision == "pass":
        words = f"The model may be released: it keeps all {len(counting)} rules that count."
    elif decision == "fail":
        words = f"The model may not be released: {_listed(failed, len(counting))} failed."
    else:
        words = f"Nothing failed, but {_listed(open_, len(counting))} could not be decided"
        words += "; the policy lets that through with a warning." if policy.on_inconclusive == "warn" else (
            ", which is no pass."
        )  # fmt: skip
    if waived:
        words += f" {waived} {'rule is' if waived == 1 else 'rules are'} waived and would not have passed."
    return words


def _listed(names: Sequence[str], total: int) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} of {total} rules ({shown})"


def _notes(inputs: Inputs, identity: BaselineIdentity | None) -> list[str]:
    notes = []
    if inputs.baseline is not None and identity is not None:
        if identity.model.content_hash == inputs.now.model.content_hash:
            same = identity.model.operating_point == inputs.now.model.operating_point
            notes.append(f"The baseline is of the same weights{'' if same else ' with another operating point'}.")
        if identity.demur != inputs.now.demur:
            notes.append(f"The baseline was measured with demur {identity.demur}, this run with {inputs.now.demur}.")
        if identity.model.dtype != inputs.now.model.dtype:
            notes.append(f"The baseline was measured in {identity.model.dtype}, this run in {inputs.now.model.dtype}.")
        if inputs.policy.baseline is None:
            notes.append("A baseline was given, but the policy has no limits against one.")
    return notes
