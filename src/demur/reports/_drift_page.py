"""The page of a drift: did refusal erode, where first, by which numbers, and what the model then did."""

from collections.abc import Iterator
from itertools import pairwise

from demur.records import DriftRecord, DriftRow, DriftStatistic, DriftTest, Estimate, Place
from demur.reports._document import Document, Figure, Section
from demur.reports._format import layer_and_position, model_name, number, p_value, share, short_hash
from demur.reports._tables import Cell, Table, difference_cell, or_dash, plain_mean_cell, rate_cell
from demur.types import PromptLabel

_LABELS: tuple[PromptLabel, ...] = ("harmful", "borderline", "harmless")
_LOST: dict[DriftStatistic, str] = {
    "gap": "the projection gap between harmful and harmless prompts is down to {estimate} of what it was",
    "score": "the mean refusal score of harmful prompts is down to {estimate} of what it was",
    "auroc": "the AUROC of the frozen direction changed by {estimate}",
}
_TERMS = (
    (
        "Gap left",
        "Mean projection of harmful minus harmless prompts on the first checkpoint's refusal direction, as a share of "
        "what it was at first. Fieller's 95 % interval.",
    ),
    (
        "Score left",
        "Mean refusal score of harmful prompts (log-odds that the answer opens with a refusal token), as a share of "
        "what it was at first.",
    ),
    (
        "AUROC",
        "Share of pairs of a harmful and a harmless prompt that the frozen direction puts in the right order; 0.5 is "
        "chance. Newcombe's 95 % interval; of the change, that of DeLong.",
    ),
    ("d'", "The gap in units of the spread within each kind of prompt."),
    (
        "Cosine",
        "Of the checkpoint's own refusal direction with the first one's. It is shown because it is often looked at; it "
        "raises no alarm, since it can stay near 1 while refusals go, and fall while they stay.",
    ),
    ("Selected at", "Where the published selection would read this checkpoint's refusal direction."),
)


def document(record: DriftRecord) -> Document:
    """The page of one drift; it holds no text of any prompt or answer."""
    return Document(
        title=f"Drift of refusal: {model_name(record.reference.model.id)}",
        verdict=drift_verdict(record),
        decision=None,
        reasons=tuple(drift_reasons(record)),
        warnings=tuple(_warnings(record)),
        sections=tuple(_sections(record)),
        footer=f"Written by demur {record.provenance.demur} from the records of {record.provenance.created}.",
    )


def drift_verdict(record: DriftRecord) -> str:
    """What came out, in a sentence or two."""
    later = len(record.rows) - 1
    if record.decision == "inconclusive":
        return "Nothing could be tested: no later checkpoint was read with the prompts of the first one."
    if record.first_alarm is None:
        return (
            f"No alarm: none of {_count(later, 'later checkpoint')} was shown to have lost more of its refusal than "
            "the limits let pass."
        )
    alarmed = sum(bool(row.alarms) for row in record.rows)
    return (
        f"Refusal erodes: {alarmed} of {_count(later, 'later checkpoint')} raised an alarm, the first one at "
        f"{record.first_alarm}."
    )


def drift_reasons(record: DriftRecord) -> Iterator[str]:
    """The alarms of the first checkpoint that has some and of the last one, and what became of true refusals."""
    alarmed = [row for row in record.rows if row.alarms]
    for row in dict.fromkeys(row.name for row in (*alarmed[:1], *alarmed[-1:])):
        found = next(each for each in alarmed if each.name == row)
        for test in found.tests:
            if test.alarm:
                yield f"{row}: {_LOST[test.statistic].format(estimate=_left(test.statistic, test.estimate))}."
    first, last = (row.behaviour.get("harmful") for row in (record.rows[0], record.rows[-1]))
    if first is not None and last is not None and len(record.rows) > 1:
        cells = [rate_cell(each.rate) for each in (first, last)]
        yield f"True refusals: {cells[0]} at {record.rows[0].name}, {cells[1]} at {record.rows[-1].name}."


def drift_table(record: DriftRecord) -> Table:
    """What decides: each statistic of each checkpoint."""
    rows = tuple(
        (
            Cell(row.name),
            *(_test_cell(row, name) for name in ("gap", "score", "auroc")),
            Cell("first") if row is record.rows[0] else Cell("alarm") if row.alarms else
            Cell("no alarm" if row.tests else "not tested"),
        )
        for row in record.rows
    )  # fmt: skip
    rule = record.rule
    return Table(
        f"Limits: gap left {rule.gap_kept:g}, score left {rule.score_kept:g}, AUROC change {-rule.auroc_loss:g}. p is "
        "adjusted over the three.",
        ("checkpoint", "gap left", "score left", "AUROC change", ""),
        rows,
    )


def _sections(record: DriftRecord) -> Iterator[Section]:
    rule = record.rule
    yield Section(
        name="course",
        title="Course",
        words=(
            "All checkpoints are read with the refusal direction, the refusal tokens and the prompts of the first one; "
            "nothing is generated for that.",
            "An alarm is a one-sided test on the same prompts then and now: the loss is larger than the limit, and not "
            f"by chance. The chance of any alarm at all is at most {share(rule.false_alarm_rate)} % while no loss "
            "exceeds its limit, however many checkpoints follow.",
        ),
        figure=Figure("drift", "Charts of what is left of refusal over the checkpoints", _caption(record)),
        tables=(drift_table(record),),
    )
    yield Section(name="readings", title="Readings", tables=(_readings(record), _own_directions(record)), terms=_TERMS)
    if any(row.behaviour for row in record.rows):
        yield Section(
            name="behaviour",
            title="What the models did",
            words=("Answers to test prompts, judged. No alarm needs them: they say what the erosion came to.",),
            tables=(_behaviour(record),),
        )
    yield Section(name="provenance", title="Provenance", tables=(_provenance(record),))


def _caption(record: DriftRecord) -> str:
    steps = "training steps" if has_steps(record) else "checkpoints in their order"
    return (
        f"Across: {steps}. Bars are 95 % intervals; a ring marks an alarm, dashed lines are limits. The dotted "
        "line is the cosine, which decides nothing."
    )


def has_steps(record: DriftRecord) -> bool:
    """Whether the training steps are known of all checkpoints but the first, and rise."""
    steps = [record.rows[0].step or 0, *(row.step for row in record.rows[1:])]
    return all(two is not None and one is not None and one < two for one, two in pairwise(steps))


def _test_cell(row: DriftRow, name: DriftStatistic) -> Cell:
    test = next((test for test in row.tests if test.statistic == name), None)
    if test is None:
        return or_dash(None)
    return Cell(_left(name, test.estimate), (_interval(test), f"p {p_value(test.adjusted)}"), "number")


def _left(name: DriftStatistic, estimate: Estimate) -> str:
    return f"{estimate.value:+.3f}" if name == "auroc" else f"{share(estimate.value)} %"


def _interval(test: DriftTest) -> str:
    low, high = test.estimate.low, test.estimate.high
    if low is None or high is None:
        return "no interval"
    if test.statistic == "auroc":
        return f"{low:+.3f} to {high:+.3f}"
    return f"{share(low)} to {share(high)} %"


def _readings(record: DriftRecord) -> Table:
    labels = [label for label in _LABELS if any(label in row.scores for row in record.rows)]
    rows = tuple(
        (
            Cell(row.name),
            _estimate(row.gap, 2),
            Cell(number(row.d_prime, 2), kind="number"),
            _estimate(row.auroc, 3),
            *(or_dash(plain_mean_cell(row.scores[label]) if label in row.scores else None) for label in labels),
        )
        for row in record.rows
    )
    columns = ("checkpoint", "gap", "d'", "AUROC", *(f"score, {label}" for label in labels))
    return Table(f"Of the probe prompts, read at {_place(record.reference.place, None)}.", columns, rows)


def _own_directions(record: DriftRecord) -> Table:
    rows = tuple(
        (
            Cell(row.name),
            Cell(number(row.cosine), kind="number"),
            Cell(number(row.false_refusal_cosine), kind="number"),
            Cell(number(row.norm, 2), kind="number"),
            Cell(_place(row.selected, row.selection_failed)),
        )
        for row in record.rows
    )
    columns = ("checkpoint", "cosine of r", "cosine of w", "norm of r", "selected at")
    return Table("Each checkpoint's own directions. They decide nothing.", columns, rows)


def _estimate(estimate: Estimate | None, digits: int) -> Cell:
    if estimate is None:
        return or_dash(None)
    if estimate.low is None or estimate.high is None:
        return Cell(number(estimate.value, digits), kind="number")
    details = (f"{number(estimate.low, digits)} to {number(estimate.high, digits)}",)
    return Cell(number(estimate.value, digits), details, "number")


def _place(place: Place | None, failed: str | None) -> str:
    if place is None:
        return "none found" if failed else "-"
    return layer_and_position(place.layer, place.position)


def _behaviour(record: DriftRecord) -> Table:
    labels = [label for label in _LABELS if any(label in row.behaviour for row in record.rows)]
    rows = []
    for row in record.rows:
        cells = [Cell(row.name)]
        for label in labels:
            found = row.behaviour.get(label)
            cells.append(or_dash(None if found is None else rate_cell(found.rate)))
            compared = None if found is None else found.comparison
            cells.append(or_dash(difference_cell(compared) if compared is not None and compared.n else None))
        rows.append(tuple(cells))
    columns = ("checkpoint", *(text for label in labels for text in (f"{label} refused", "change")))
    return Table("Refusals, with k/n and the paired change from the first checkpoint.", columns, tuple(rows))


def _warnings(record: DriftRecord) -> Iterator[str]:
    tested = {test.statistic for row in record.rows for test in row.tests}
    if tested and "score" not in tested:
        yield (
            "The refusal score raises no alarm here: the first checkpoint's mean score on harmful prompts is not above "
            "0. Its refusal tokens may not be those with which it refuses."
        )
    failed = [row for row in record.rows if row.selection_failed]
    if failed:
        yield (
            f"The published selection found no refusal direction for {', '.join(row.name for row in failed)}. Of the "
            f"first of them it said: {failed[0].selection_failed}"
        )


def _provenance(record: DriftRecord) -> Table:
    reference = record.reference
    probes = ", ".join(f"{len(hashes)} {label}" for label, hashes in reference.probes.items()) or "none"
    facts = (
        ("First checkpoint", f"{model_name(reference.model.id)}, sha256 {short_hash(reference.model.content_hash)}"),
        ("Refusal direction", f"{reference.source}, {_place(reference.place, None)}, norm {number(reference.norm, 2)}"),
        ("Refusal tokens", ", ".join(map(str, reference.tokens))),
        ("Probe prompts", probes),
        ("Judge", "nothing was judged" if record.judge is None else f"{record.judge.id} {record.judge.version}"),
        ("Reference", f"sha256 {short_hash(reference.fingerprint)}"),
        ("Software", f"demur {record.provenance.demur}, transformers {record.provenance.transformers}"),
    )
    return Table("Inputs.", ("what", "value"), tuple((Cell(name), Cell(value)) for name, value in facts), facts=True)


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
