"""The page of a suite: what held and what did not first, then every number. Reads the record only."""

from demur.records import SuiteCaseResult, SuiteCheck, SuiteRecord
from demur.reports._document import Document, Figure, Section
from demur.reports._format import model_name, number, share, short_hash
from demur.reports._suite_words import flakiness_words, rated
from demur.reports._tables import Cell, CellKind, Table

_KINDS: dict[str, CellKind] = {"passed": "pass", "failed": "fail", "error": "fail", "inconclusive": "inconclusive"}
_ORDER = ("error", "failed", "inconclusive", "skipped", "passed")
_SEVERITIES = ("blocker", "major", "minor")
_TERMS = (
    ("Interval", "95 %, Wilson's for a rate (with prompts as clusters where they were sampled), bootstrap for a mean."),
    ("Pass", "The whole interval keeps the limit; where every prompt is asked for, each one does."),
    ("Fail", "The whole interval lies beyond the limit; where every prompt is asked for, one does not keep it."),
    ("Inconclusive", "The interval straddles the limit, or too much was not judged. More prompts may decide."),
    ("Unjudged", "Answers that the judge could not read. They count against every limit."),
    ("r, w'", "The refusal direction, and the false-refusal direction of a calibration's operating point."),
    (
        "Ablated, added",
        "Removed from every write to the residual stream; added to its block's input with the length it was found "
        "with, if no other is named. In memory only.",
    ),
    ("random", "A direction drawn at random, with the length of r: what any direction would do."),
)


def document(record: SuiteRecord) -> Document:
    """The page of one run of a suite."""
    not_passed = tuple(case for case in record.cases if case.outcome in ("failed", "error", "inconclusive"))
    flaky = tuple(case for case in record.cases if case.flakiness is not None)
    sections = [
        Section(
            "cases",
            "Every case",
            words=(record.description,) if record.description else (),
            figure=Figure("suite", "Dot chart of the rates with their limits", _CAPTION) if rated(record) else None,
            tables=(_case_table(record),),
            terms=_TERMS,
        )
    ]
    if flaky:
        sections.append(Section("flaky", "Do samples agree?", tables=(_flaky_table(flaky),)))
    if not_passed:
        sections.append(Section("against", "Prompts against a case", tables=(_against_table(not_passed),)))
    sections.append(Section("provenance", "Provenance", tables=(_provenance(record),)))
    return Document(
        title=f"Suite {record.suite}: {model_name(record.model.id)}",
        verdict=_verdict(record),
        decision=None,
        reasons=tuple(_reason(case) for case in sorted(not_passed, key=_rank)),
        warnings=_warnings(record),
        sections=tuple(sections),
        footer=f"demur {record.provenance.demur}, {record.provenance.created}",
    )


_CAPTION = (
    "Each dot is a measured rate with its 95 % interval; the short upright line is the limit, and the shade shows the "
    "side on which it is kept."
)


def figures(record: SuiteRecord) -> dict[str, str]:
    """SVG of the page's figure by name."""
    from demur.reports._suite_figures import draw  # noqa: PLC0415 (matplotlib)

    return draw(record)


def _rank(case: SuiteCaseResult) -> tuple[int, int]:
    return _SEVERITIES.index(case.severity), _ORDER.index(case.outcome)


def _verdict(record: SuiteRecord) -> str:
    counts = {name: sum(case.outcome == name for case in record.cases) for name in _ORDER}
    ran = len(record.cases)
    if record.decision == "pass":
        skipped = f" ({counts['skipped']} could not be asked of this model)" if counts["skipped"] else ""
        return f"Passed: all {counts['passed']} cases hold{skipped}."
    bad = counts["failed"] + counts["error"]
    if bad:
        worst = next(
            severity
            for severity in _SEVERITIES
            if any(case.severity == severity and case.outcome in ("failed", "error") for case in record.cases)
        )
        doubt = f"; {counts['inconclusive']} more are not decided" if counts["inconclusive"] else ""
        return f"Failed: {bad} of {ran} cases do not hold, the most severe a {worst}{doubt}."
    if not counts["inconclusive"]:
        return "Inconclusive: no case could be asked of this model."
    return f"Inconclusive: no case failed, but {counts['inconclusive']} of {ran} are not decided by these prompts."


def _reason(case: SuiteCaseResult) -> str:
    what = f" {case.description.rstrip('.')}." if case.description else ""
    head = f"{case.name} ({case.severity}{', not decided' if case.outcome == 'inconclusive' else ''}):{what}"
    if case.outcome == "error":
        return f"{head} Could not be run: {case.message}"
    said = "; ".join(
        f"expected {check.expected}, found {_measured(check)}" for check in case.checks if check.decision != "pass"
    )
    return f"{head} {said[0].upper()}{said[1:]}."


def _measured(check: SuiteCheck) -> Cell:
    if check.rate is not None:
        rate = check.rate
        if rate.rate is None:
            return Cell("not measured", (f"{rate.unjudged} unjudged",), "number")
        unjudged = (f"{rate.unjudged} unjudged",) if rate.unjudged else ()
        interval = f"{share(rate.low)} to {share(rate.high)} %"
        return Cell(f"{share(rate.rate)} %", (f"{rate.k}/{rate.n}", interval, *unjudged), "number")
    if check.mean is None:
        raise AssertionError("a check without a number")
    mean = check.mean
    return Cell(number(mean.mean), (f"n {mean.n}", f"{number(mean.low)} to {number(mean.high)}"), "number")


def _case_table(record: SuiteRecord) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for case in record.cases:
        first = Cell(case.name, tuple(each for each in (case.description,) if each))
        who = Cell(case.severity, tuple(each for each in (case.owner,) if each))
        if not case.checks:
            rows.append((first, who, Cell(case.condition), Cell("-"), Cell("-", kind="number"), _outcome(case)))
        for number_, check in enumerate(case.checks):
            rows.append(
                (
                    first if number_ == 0 else Cell(case.name),
                    who if number_ == 0 else Cell(""),
                    Cell(case.condition, (f"{case.repeat} samples",) if case.repeat > 1 else ()),
                    Cell(check.expected),
                    _measured(check),
                    Cell(check.decision, kind=check.decision),
                )
            )
    columns = ("case", "severity", "condition", "expected", "found", "")
    return Table("Cases in the order of the suite.", columns, tuple(rows))


def _outcome(case: SuiteCaseResult) -> Cell:
    return Cell(case.outcome, (case.message,) if case.message else (), _KINDS.get(case.outcome, "text"))


def _flaky_table(cases: tuple[SuiteCaseResult, ...]) -> Table:
    rows = tuple((Cell(case.name), Cell(flakiness_words(case))) for case in cases)
    return Table("Answers were sampled at temperature 1; a seed belongs to each prompt and sample.", ("case", ""), rows)


def _against_table(cases: tuple[SuiteCaseResult, ...]) -> Table:
    rows = tuple(
        (
            Cell(case.name),
            Cell(check.kind.replace("_", " ")),
            Cell(str(check.n_against), kind="number"),
            Cell(", ".join(f"{short_hash(each.sha256)} ({each.where})" for each in check.against), kind="code"),
        )
        for case in cases
        for check in case.checks
        if check.n_against
    )
    return Table(
        "First digits of the prompts' sha256, and where they stand in their source; no text of any prompt is shown.",
        ("case", "expectation", "prompts", "which"),
        rows,
    )


def _warnings(record: SuiteRecord) -> tuple[str, ...]:
    skipped = [case for case in record.cases if case.outcome == "skipped"]
    found = [f"{case.name} was skipped: {case.message}." for case in skipped]
    if record.stopped:
        found.append("The run stopped at the first failure; later cases were not run.")
    left = record.n_cases - len(record.cases)
    if left and not record.stopped:
        found.append(f"{left} of the suite's {record.n_cases} cases were left out by filters.")
    return tuple(found)


def _provenance(record: SuiteRecord) -> Table:
    cost, made = record.cost, record.provenance
    facts = (
        ("Suite", f"{record.source}, sha256 {short_hash(record.suite_sha256)}"),
        ("Model", f"{model_name(record.model.id)}, sha256 {short_hash(record.model.content_hash)}"),
        ("Judge", f"{record.judge.id} {record.judge.version}"),
        ("Directions", record.directions or "none needed"),
        (
            "Cost",
            f"{cost.answers} answers in {cost.generate_calls} batches ({cost.wanted} wanted by cases, {cost.reused} "
            f"there already); {cost.score_passes} batches read for scores; {cost.states} model states",
        ),
        ("Versions", f"demur {made.demur}, torch {made.torch}, transformers {made.transformers}"),
    )
    rows = tuple((Cell(name), Cell(value)) for name, value in facts)
    return Table("What was run.", ("", ""), rows, facts=True)
