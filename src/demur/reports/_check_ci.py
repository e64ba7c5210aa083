"""A release gate's decision in the forms that CI systems read: JUnit XML, GitHub annotations, a step summary."""

from collections.abc import Iterator
from dataclasses import replace
from xml.etree import ElementTree

from demur.records import CheckRecord, CheckRule
from demur.reports._check_page import document
from demur.reports._format import clean
from demur.reports._markdown import render_markdown

_CLASS = "demur.gate"
_MOST_ANNOTATIONS = 10
"""GitHub shows ten of each kind in a step; the rest would be dropped in silence."""
_MOST_SUMMARY_BYTES = 1_000_000
"""GitHub refuses a step summary above 1 MiB."""


def check_junit(record: CheckRecord) -> str:
    """JUnit XML with one test case for each rule.

    failure: the rule failed, or is inconclusive in a policy that takes that for a failure; error: the inputs do not fit
    together; skipped: waived, not measured, or inconclusive where the policy only warns. The same record gives the
    same text.
    """
    suite = ElementTree.Element("testsuite", {"name": _CLASS, "time": "0"})
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in _properties(record):
        ElementTree.SubElement(properties, "property", {"name": name, "value": clean(value)})
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for rule in record.rules:
        outcome, kind, message = _outcome(record, rule)
        case = ElementTree.SubElement(suite, "testcase", {"classname": _CLASS, "name": clean(rule.name), "time": "0"})
        counts["tests"] += 1
        if outcome is None:
            ElementTree.SubElement(case, "system-out").text = clean(message)
            continue
        counts["skipped" if outcome == "skipped" else f"{outcome}s"] += 1
        attributes = {"message": clean(message)} | ({} if outcome == "skipped" else {"type": kind})
        ElementTree.SubElement(case, outcome, attributes).text = clean(message)
    numbers = {name: str(count) for name, count in counts.items()}
    suite.attrib.update(numbers)
    root = ElementTree.Element("testsuites", {"name": "demur", "time": "0", **numbers})
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def check_annotations(record: CheckRecord) -> list[str]:
    """Workflow commands: the verdict, then errors for what failed, and warnings for what is open, waived or expired."""
    errors = [_command("error", rule.name, rule.reason) for rule in record.rules
              if rule.decision in {"fail", "error"} and not rule.waived]  # fmt: skip
    warnings = [_command("warning", rule.name, f"{_prefix(record, rule)}{rule.reason}") for rule in record.rules
                if rule.waived or rule.decision == "inconclusive"]  # fmt: skip
    warnings += [
        _command("warning", use.rule, f"the waiver by {use.owner} expired on {use.expires} and has no effect")
        for use in record.waivers
        if use.state == "expired"
    ]
    kind = "error" if record.exit_code else "warning" if record.decision != "pass" else "notice"
    verdict = [_command(kind, "demur release gate", record.verdict)]
    if kind == "error":
        return [*_capped([*verdict, *errors], "error"), *_capped(warnings, "warning")]
    return [*_capped(errors, "error"), *_capped([*verdict, *warnings] if kind == "warning" else warnings, "warning"),
            *(verdict if kind == "notice" else [])]  # fmt: skip


def check_summary(record: CheckRecord) -> str:
    """The page as markdown for a CI's summary, without figures, cut to what GitHub takes."""
    page = document(record)
    text = render_markdown(replace(page, sections=tuple(replace(each, figure=None) for each in page.sections)))
    data = text.encode()
    if len(data) <= _MOST_SUMMARY_BYTES:
        return text
    return data[:_MOST_SUMMARY_BYTES].decode(errors="ignore") + "\n\n(cut; the whole is in check.md)\n"


def _properties(record: CheckRecord) -> Iterator[tuple[str, str]]:
    yield "decision", record.decision
    yield "verdict", record.verdict
    yield "model", f"{record.model.name} {record.model.content_hash}"
    yield "judge", f"{record.judge.id} {record.judge.version}"
    yield "policy", f"{record.policy.file} {record.policy.sha256}"
    if record.baseline is not None:
        yield "baseline", f"{record.baseline.file} {record.baseline.sha256}"
    yield "demur", record.demur


def _outcome(record: CheckRecord, rule: CheckRule) -> tuple[str | None, str, str]:
    """Element of the test case, its type, and what it says."""
    if rule.decision == "pass":
        return None, "", rule.reason
    if rule.waived:
        return "skipped", "waived", f"{_prefix(record, rule)}{rule.reason}"
    if rule.decision == "error":
        return "error", "incompatible", rule.reason
    if rule.decision == "skipped" or (rule.decision == "inconclusive" and not record.exit_code):
        return "skipped", rule.decision, f"{rule.decision}: {rule.reason}"
    return "failure", rule.decision, rule.reason


def _prefix(record: CheckRecord, rule: CheckRule) -> str:
    if not rule.waived:
        return f"{rule.decision}: "
    use = next(each for each in record.waivers if each.rule == rule.name and each.state == "used")
    return f"waived until {use.expires} by {use.owner} ({use.reason}), would be {rule.decision}: "


def _capped(commands: list[str], kind: str) -> list[str]:
    if len(commands) <= _MOST_ANNOTATIONS:
        return commands
    left = len(commands) - _MOST_ANNOTATIONS + 1
    return [*commands[: _MOST_ANNOTATIONS - 1], _command(kind, "demur release gate", f"and {left} more; see check.md")]


def _command(kind: str, title: str, message: str) -> str:
    """One workflow command; in the message %, CR and LF are escaped, in a property : and , as well."""
    data = clean(message).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    name = clean(title).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return f"::{kind} title={name.replace(':', '%3A').replace(',', '%2C')}::{data}"
