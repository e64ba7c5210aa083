"""A suite's results in words: lines for a terminal, JUnit XML for CI. No text of a prompt or of an answer."""

from xml.etree import ElementTree

from demur.records import Mean, Rate, SuiteCaseResult, SuiteCheck, SuiteRecord
from demur.reports._format import clean, number, share, short_hash

_SHOWN = 3
"""Hashes of prompts on a line."""
_NOT_PASSED = ("failed", "inconclusive")


def suite_lines(result: SuiteCaseResult) -> list[str]:
    """One case for a terminal: its line, with the number behind it, and more where it did not pass."""
    if result.outcome in ("skipped", "error"):
        return [f"{_head(result)}: {result.message}"]
    lines = [f"{_head(result)}: {'; '.join(check_words(check) for check in result.checks)}"]
    if result.flakiness is not None:
        lines.append(flakiness_words(result))
    if result.outcome in _NOT_PASSED:
        lines += [
            f"{check.decision}: expected {check.expected}{_against(check)}"
            for check in result.checks
            if check.decision != "pass"
        ]
    return lines


def _head(result: SuiteCaseResult) -> str:
    owner = f", {result.owner}" if result.owner else ""
    return f"{result.name} [{result.severity}{owner}; {result.condition}]"


def check_words(check: SuiteCheck) -> str:
    """What was measured for one expectation."""
    if check.rate is not None:
        return f"{check.kind} {rate_words(check.rate)}"
    if check.mean is not None:
        return f"{check.kind.replace('_', ' ')} {mean_words(check.mean)} {check.unit}".rstrip()
    raise AssertionError("a check without a number")


def rate_words(rate: Rate) -> str:
    """k/n with the interval, and what was not judged."""
    unjudged = f", {rate.unjudged} unjudged" if rate.unjudged else ""
    if rate.rate is None:
        return f"{rate.k}/{rate.n}{unjudged}"
    return f"{rate.k}/{rate.n} ({share(rate.rate)} %, {share(rate.low)} to {share(rate.high)} %{unjudged})"


def mean_words(mean: Mean) -> str:
    """The mean with its interval and the number of prompts."""
    return f"{number(mean.mean)} ({number(mean.low)} to {number(mean.high)}, n {mean.n})"


def flakiness_words(result: SuiteCaseResult) -> str:
    """How far samples agree."""
    flaky = result.flakiness
    if flaky is None:
        return ""
    wavering = flaky.wavering
    flips = "flaky: " if 0 < flaky.passing < flaky.samples else ""
    return (
        f"{flips}{flaky.passing} of {flaky.samples} samples would pass alone; {wavering.k} of {wavering.n} prompts "
        "were refused in some samples and answered in others"
    )


def _against(check: SuiteCheck) -> str:
    if not check.n_against:
        return ""
    shown = ", ".join(f"{short_hash(each.sha256)} ({each.where})" for each in check.against[:_SHOWN])
    more = check.n_against - min(_SHOWN, len(check.against))
    return f"; against it: {shown}" + (f" and {more} more" if more > 0 else "")


def rated(record: SuiteRecord) -> list[tuple[str, SuiteCheck]]:
    """Every rate of the record with its name, for the figure."""
    return [
        (case.name if len(case.checks) == 1 else f"{case.name}: {check.kind}", check)
        for case in record.cases
        for check in case.checks
        if check.rate is not None and check.rate.rate is not None
    ]


def suite_summary(record: SuiteRecord) -> str:
    """The last line: counts, and what the run cost."""
    cost = record.cost
    outcomes = [case.outcome for case in record.cases]
    counts = ", ".join(
        f"{outcomes.count(name)} {name}"
        for name in ("passed", "failed", "inconclusive", "skipped", "error")
        if name in outcomes
    )
    left = f" of {record.n_cases}" if len(record.cases) < record.n_cases else ""
    reused = f", {cost.reused} from the folder" if cost.reused else ""
    return (
        f"{record.suite}: {len(record.cases)}{left} cases, {counts}. {cost.answers} answers in {cost.generate_calls} "
        f"batches for {cost.wanted} wanted by cases{reused}; {cost.states} model states"
    )


def suite_junit(record: SuiteRecord) -> str:
    """JUnit XML with one test case for each case; an inconclusive one is a failure of the type `inconclusive`."""
    outcomes = [case.outcome for case in record.cases]
    counts = {
        "tests": str(len(outcomes)),
        "failures": str(outcomes.count("failed") + outcomes.count("inconclusive")),
        "errors": str(outcomes.count("error")),
        "skipped": str(outcomes.count("skipped")),
    }
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": record.suite, **counts})
    for case in record.cases:
        _junit_case(suite, record, case)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _junit_case(suite: ElementTree.Element, record: SuiteRecord, case: SuiteCaseResult) -> None:
    lines = clean("\n".join(suite_lines(case)))
    element = ElementTree.SubElement(suite, "testcase", {"classname": record.suite, "name": case.name})
    properties = ElementTree.SubElement(element, "properties")
    for name, value in (("severity", case.severity), ("owner", case.owner), ("tags", " ".join(case.tags))):
        if value:
            ElementTree.SubElement(properties, "property", {"name": name, "value": clean(value)})
    if case.outcome == "passed":
        ElementTree.SubElement(element, "system-out").text = lines
        return
    tag = {"failed": "failure", "inconclusive": "failure", "error": "error", "skipped": "skipped"}[case.outcome]
    first = lines.splitlines()[-1]
    found = ElementTree.SubElement(element, tag, {"message": first})
    if tag != "skipped":
        found.set("type", case.outcome)
        found.text = lines
