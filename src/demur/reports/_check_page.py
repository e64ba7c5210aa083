"""The page of a release gate: the decision, every rule with its numbers, waivers, and what was measured with what."""

from collections.abc import Iterator

from demur.records import CheckRecord, CheckRule, RuleKind
from demur.reports._document import Document, Figure, Section
from demur.reports._format import bound, number, points, share, short_hash
from demur.reports._tables import Cell, CellKind, Table

_KINDS: tuple[tuple[RuleKind, str, str, tuple[str, ...]], ...] = (
    (
        "limit",
        "limits",
        "Limits",
        (
            "The bound of the 95 % interval is compared, never the rate itself: the lower one where a rate should be "
            "high, the upper one where it should be low. Rates have exact intervals (Clopper-Pearson), so a model "
            "whose true rate is exactly the limit passes in at most 2.5 % of test sets.",
        ),
    ),
    (
        "baseline",
        "baseline",
        "Against the baseline",
        (
            "The same prompts, one by one, then and now. Differences are this run minus the baseline, in points of the "
            "prompts judged both times, with Tango's 95 % score interval and the exact McNemar test.",
        ),
    ),
    ("evidence", "evidence", "Other records", ()),
    ("validity", "validity", "Do the numbers mean anything?", ()),
    ("expectation", "expectations", "Measured as expected?", ()),
    ("records", "records", "Records", ()),
)
_TERMS = (
    ("pass, fail", "The whole 95 % interval is on the good, or on the bad, side of the limit."),
    ("inconclusive", "The interval holds the limit, or something was not measured: not proven, so no pass."),
    ("error", "The inputs do not fit together; nothing was decided, and no waiver helps."),
    ("skipped", "Not measured, and the policy does not require it."),
    ("waived", "The rule did not pass, and a waiver of the policy keeps it from counting for some time."),
)
_BADGES: dict[str, CellKind] = {"pass": "pass", "fail": "fail", "inconclusive": "inconclusive"}
_PLOTTED = ("clopper_pearson", "tango")


def document(record: CheckRecord) -> Document:
    """The page of one decision; it holds no text of any prompt or answer."""
    whose = "calibrated model" if record.side == "after" else "model"
    return Document(
        title=f"Release gate: {record.model.name}",
        verdict=record.verdict,
        decision=record.decision,
        reasons=tuple(f"{rule.name}: {rule.reason}" for rule in record.rules if _tells(rule)),
        warnings=tuple(_warnings(record)),
        sections=tuple(_sections(record, whose)),
        footer=f"Written by demur {record.demur}; waivers judged by {record.checked_on}.",
    )


def plotted(record: CheckRecord) -> list[CheckRule]:
    """The rules that the figure shows: shares with an interval and a limit."""
    return [rule for rule in record.rules if rule.interval in _PLOTTED and rule.limit is not None]


def state_of(rule: CheckRule) -> str:
    """The decision of a rule in a word, waivers told."""
    return f"waived ({rule.decision})" if rule.waived else rule.decision


def _tells(rule: CheckRule) -> bool:
    return rule.decision in {"fail", "inconclusive", "error"} and not rule.waived


def _warnings(record: CheckRecord) -> Iterator[str]:
    for rule in record.rules:
        if rule.waived:
            use = next(each for each in record.waivers if each.rule == rule.name and each.state == "used")
            yield f"{rule.name} is waived until {use.expires} by {use.owner}: {use.reason}"
    for use in record.waivers:
        if use.state == "expired":
            yield f"The waiver of {use.rule} by {use.owner} expired on {use.expires} and has no effect."
    yield from record.notes


def _sections(record: CheckRecord, whose: str) -> Iterator[Section]:
    chart = None
    if plotted(record):
        chart = Figure(
            "check",
            "Chart of every rate and change with its 95 % interval, and of its limit",
            "Dots are what was measured, bars are 95 % intervals, and the ruled line is the limit: the whole bar must "
            "lie on its clear side, away from the shaded one.",
        )
    for kind, name, title, words in _KINDS:
        rules = [rule for rule in record.rules if rule.kind == kind]
        if rules:
            yield Section(name, title, words, figure=chart, tables=(_table(rules),))
            chart = None
    if record.waivers:
        yield Section("waivers", "Waivers", tables=(_waivers(record),))
    yield Section("provenance", "What was checked", tables=(_provenance(record, whose),), terms=_TERMS)


def _table(rules: list[CheckRule]) -> Table:
    rows = tuple(
        (Cell(rule.title, (rule.name,)), _decision(rule), _measured(rule), _limit(rule), Cell(rule.reason))
        for rule in rules
    )
    return Table(
        "Every rule, with what was measured and its limit.", ("rule", "decision", "measured", "limit", "why"), rows
    )


def _decision(rule: CheckRule) -> Cell:
    if rule.waived or rule.decision not in _BADGES:
        return Cell(state_of(rule))
    return Cell(rule.decision, kind=_BADGES[rule.decision])


def _measured(rule: CheckRule) -> Cell:
    if rule.value is None:
        return Cell("-", kind="number")
    if rule.unit == "count":
        return Cell(f"{rule.value:g}", kind="number")
    if rule.unit == "nats":
        return Cell(f"{rule.value:.3g} nats", (f"n {rule.n}", f"{number(rule.low)} to {number(rule.high)}"), "number")
    if rule.interval == "tango":
        changed = f"{rule.gained} gained, {rule.lost} lost of {rule.n}"
        interval = f"{points(rule.low or 0.0)} to {points(rule.high or 0.0)}"
        return Cell(f"{points(rule.value)} points", (interval, changed), "number")
    counts = f"{rule.k}/{rule.n}"
    if rule.low is None or rule.high is None:
        return Cell(f"{share(rule.value)} %", (counts,), "number")
    return Cell(f"{share(rule.value)} %", (counts, f"{share(rule.low)} to {share(rule.high)} %"), "number")


def _limit(rule: CheckRule) -> Cell:
    if rule.limit is None:
        return Cell("-", kind="number")
    words = "at least" if rule.comparison == "at_least" else "at most"
    if rule.unit == "count":
        return Cell(f"{words} {rule.limit:g}", kind="number")
    if rule.interval == "tango":
        return Cell(f"{'loss' if rule.comparison == 'at_least' else 'rise'} below {100 * abs(rule.limit):.3g} points",
                    kind="number")  # fmt: skip
    return Cell(f"{words} {bound(rule.limit, rule.unit)}", kind="number")


def _waivers(record: CheckRecord) -> Table:
    rows = tuple(
        (Cell(use.rule, kind="code"), Cell(use.state.replace("_", " ")), Cell(use.owner), Cell(use.expires),
         Cell(use.reason))
        for use in record.waivers
    )  # fmt: skip
    columns = ("rule", "state", "owner", "last day", "reason")
    return Table(f"All waivers of the policy, judged by {record.checked_on}.", columns, rows)


def _provenance(record: CheckRecord, whose: str) -> Table:
    policy, baseline = record.policy, record.baseline
    facts = [
        ("Run", f"{record.run}, the {whose}"),
        ("Model", f"{record.model.name}, sha256 {short_hash(record.model.content_hash)}, {record.model.dtype}"),
        ("Operating point", short_hash(record.model.operating_point) if record.model.operating_point else "none"),
        ("Judge", f"{record.judge.id} {record.judge.version}"),
        ("Chat template", f"sha256 {short_hash(record.chat_template_sha256)}"),
        ("System prompt", record.rendering.system or "none"),
        ("Policy", f"{policy.file}{f' ({policy.name})' if policy.name else ''}, sha256 {short_hash(policy.sha256)}"),
        ("Inconclusive rules", "do not fail the check" if policy.on_inconclusive == "warn" else "fail the check"),
    ]
    if baseline is not None:
        facts.append(("Baseline", f"{baseline.file}, sha256 {short_hash(baseline.sha256)}, of {baseline.model.name}"))
    rows = tuple((Cell(name), Cell(value)) for name, value in facts)
    return Table("Inputs of this decision.", ("what", "value"), rows, facts=True)
