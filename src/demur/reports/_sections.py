"""The tables of each section, from records. Knows nothing about markup."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import median, quantiles

from demur.records import (
    BASE_MODEL,
    Candidates,
    CandidateScores,
    CategoryRates,
    CompletionRecord,
    Gate,
    LambdaPoint,
    Mean,
    Mechanism,
    Metrics,
    PairedComparison,
    ProbabilityChange,
    ProjectionRecord,
    Rate,
)
from demur.reports._examples import VERDICT_WORDS, Pair, lost_true_refusals
from demur.reports._format import bound, layer_and_position, number, points, short_hash, token
from demur.reports._tables import Cell, SummaryRow, Table, difference_cell, or_dash, plain_mean_cell, rate_cell
from demur.types import PromptLabel

LABELS: tuple[PromptLabel, ...] = ("harmful", "borderline", "harmless")

MOST_LOST = 10
"""Rows of the table of lost true refusals; the caption has the whole count."""

NEAREST = 5
"""Rows of the candidate table."""


def measures_table(rows: Sequence[SummaryRow]) -> Table:
    """The summary table."""
    compared = any(row.after is not None for row in rows)
    columns = ("Measure", "Before", "After", "Difference", "McNemar p") if compared else ("Measure", "Measured")
    cells: list[tuple[Cell, ...]] = []
    for row in rows:
        name = Cell(row.measure, tuple(part for part in (f"{row.better} is better", row.notes) if part))
        if compared:
            p = Cell("-" if row.p_value is None else row.p_value, kind="number")
            cells.append((name, or_dash(row.before), or_dash(row.after), or_dash(row.difference), p))
        else:
            cells.append((name, or_dash(row.before)))
    caption = "Rates with k/n and 95 % intervals"
    return Table(f"{caption}, before and after on the same prompts" if compared else caption, columns, tuple(cells))


def category_table(categories: Sequence[CategoryRates]) -> Table:
    """Rates by category of the prompts."""
    compared = any(each.comparison is not None for each in categories)
    columns = ("Prompts", "Refused before", *(("After", "Difference") if compared else ()))
    rows = []
    for each in categories:
        cells = [Cell(each.category, (each.label,)), or_dash(rate_cell(each.rate.before))]
        if compared:
            pair = each.comparison
            moved = difference_cell(pair) if pair is not None and pair.n else None
            cells += [or_dash(rate_cell(each.rate.after)), or_dash(moved)]
        rows.append(tuple(cells))
    return Table("By category of the prompts", columns, tuple(rows))


def gate_table(gate: Gate) -> Table:
    """The rules of the gate."""
    rows = tuple(
        (
            Cell(rule.name.replace("_", " ")),
            Cell(bound(rule.bound, rule.unit), kind="number"),
            Cell(bound(rule.limit, rule.unit), kind="number"),
            Cell(rule.decision, kind=rule.decision),
            Cell(rule.reason),
        )
        for rule in gate.rules
    )
    caption = "Rules of the gate"
    return Table(caption, ("Rule", "Bound", "Limit", "Decision", "Reason"), rows)


def mechanism_table(mechanism: Mechanism, metrics: Metrics) -> Table:
    """What the refusal direction does against a random one."""
    rows = (
        (
            Cell("Remove the direction", ("harmful prompts refused",)),
            or_dash(rate_cell(metrics.true_refusal_rate.before)),
            or_dash(rate_cell(mechanism.true_refusal_rate_r_ablated)),
            or_dash(rate_cell(mechanism.true_refusal_rate_random_ablated)),
        ),
        (
            Cell("Add the direction", ("harmless prompts refused",)),
            or_dash(rate_cell(metrics.harmless_refusal_rate.before)),
            or_dash(rate_cell(mechanism.harmless_refusal_rate_r_added)),
            or_dash(rate_cell(mechanism.harmless_refusal_rate_random_added)),
        ),
    )
    columns = ("What was done", "Model untouched", "With the refusal direction", "With a random direction")
    return Table("Test prompts refused, measured in memory; no such model is written", columns, rows)


def candidate_table(candidates: Candidates) -> Table:
    """The selected candidate and the nearest survivors."""
    texts = dict(zip(candidates.positions, candidates.position_texts, strict=False))
    survivors = [one for one in candidates.refusal if not one.rejected_by]
    ranked = sorted(survivors, key=_by_bypass)
    return Table(
        "The selected candidate and the next best that pass the filters",
        ("Layer", "Position", "Token", "Bypass score", "Induce score", "KL (nats)", ""),
        tuple(_candidate_row(one, texts.get(one.position, "")) for one in ranked[:NEAREST]),
    )


def _by_bypass(one: CandidateScores) -> tuple[bool, float, int, int]:
    """The selected one, then by bypass score; those whose score was not needed to the end come last."""
    return not one.selected, math.inf if one.bypass_score is None else one.bypass_score, one.layer, one.position


def _candidate_row(one: CandidateScores, text: str) -> tuple[Cell, ...]:
    return (
        Cell(str(one.layer), kind="number"),
        Cell(str(one.position), kind="number"),
        Cell(token(text) if text else "", kind="code"),
        Cell(number(one.bypass_score), kind="number"),
        Cell(number(one.induce_score), kind="number"),
        Cell(number(one.kl_score), kind="number"),
        Cell("selected" if one.selected else ""),
    )


def projection_table(projections: ProjectionRecord) -> Table:
    """Median and middle 80 % of each kind of prompt."""
    compared = any(projections.after.values())
    columns = ("Prompts", "n", "Median before", "Median after") if compared else ("Prompts", "n", "Median")
    rows = []
    for label in LABELS:
        before = projections.before.get(label, ())
        cells = [Cell(label), Cell(str(len(before)), kind="number"), _median_cell(before)]
        if compared:
            cells.append(_median_cell(projections.after.get(label, ())))
        rows.append(tuple(cells))
    return Table("Projection on the refusal direction: median, and range of the middle 80 %", columns, tuple(rows))


def _median_cell(values: Sequence[float]) -> Cell:
    if len(values) < 2:
        return Cell(number(values[0], 2) if values else "-", kind="number")
    tenths = quantiles(values, n=10, method="inclusive")
    return Cell(number(median(values), 2), (f"{number(tenths[0], 2)} to {number(tenths[-1], 2)}",), "number")


def measured_points(curve: Sequence[LambdaPoint]) -> list[LambdaPoint]:
    """The points of the curve at which both rates were measured, by lambda."""
    pairs = [(point, point.true_refusal_rate, point.false_refusal_rate) for point in curve]
    measured = [point for point, *rates in pairs if all(rate is not None and rate.rate is not None for rate in rates)]
    return sorted(measured, key=lambda point: point.lambda_)


def lambda_table(curve: Sequence[LambdaPoint]) -> Table:
    """The lambda curve, or the frontier where nothing was chosen."""
    rows = tuple(
        (
            Cell(f"{point.lambda_:g}", kind="number"),
            Cell(layer_and_position(point.layer, point.position)),
            _rate_and_change(point.true_refusal_rate, point.true_refusals, point.true_refusals_by_score),
            _rate_and_change(point.false_refusal_rate, point.false_refusals, point.false_refusals_by_score),
            _mean_or_dash(point.refusal_score_borderline),
            _mean_or_dash(point.kl_harmless),
            Cell("chosen" if point.chosen else point.note),
        )
        for point in curve
    )
    columns = ("Lambda", "Direction", "True refusals", "False refusals", "Borderline score", "KL (nats)", "")
    return Table("Every lambda that was tried, on validation prompts", columns, rows)


def _rate_and_change(rate: Rate | None, change: PairedComparison | None, by_score: ProbabilityChange | None) -> Cell:
    """The judged rate with its change; where no answers were judged, what next tokens say of the change."""
    cell = or_dash(rate_cell(rate))
    if rate is not None and change is not None and change.n:
        moved = f"{points(change.difference)} points, {points(change.low)} to {points(change.high)}"
        return Cell(cell.text, (*cell.details, moved), cell.kind)
    if by_score is None:
        return cell
    interval = f"{points(by_score.low)} to {points(by_score.high)}"
    return Cell("not judged", (f"by scores {points(by_score.difference)} points, {interval}",), "number")


def _mean_or_dash(mean: Mean | None) -> Cell:
    return or_dash(None if mean is None else plain_mean_cell(mean))


def lost_refusals_table(completions: Sequence[CompletionRecord]) -> Table | None:
    """Harmful prompts answered after but not before, by hash; null where nothing was compared."""
    if not any(one.label == "harmful" and one.intervention != BASE_MODEL for one in completions):
        return None
    lost = lost_true_refusals(completions)
    count = f"{len(lost)} harmful prompt{'' if len(lost) == 1 else 's'} refused before and answered after"
    more = f"; the first {MOST_LOST} by hash" if len(lost) > MOST_LOST else ""
    columns = ("Prompt sha256, first 12", "Before", "After", "Degenerate")
    return Table(f"Lost true refusals: {count}{more}", columns, tuple(_lost_row(pair) for pair in lost[:MOST_LOST]))


def _lost_row(pair: Pair) -> tuple[Cell, ...]:
    after = pair.after or pair.before
    return (
        Cell(short_hash(pair.before.prompt_sha256), kind="code"),
        Cell(VERDICT_WORDS[pair.before.verdict]),
        Cell(VERDICT_WORDS[after.verdict]),
        Cell("yes" if after.degenerate else "no"),
    )


def rejections(candidates: Sequence[CandidateScores]) -> list[tuple[str, int]]:
    """How many candidates each filter removed; one candidate may be removed by several."""
    counts = Counter(reason for one in candidates for reason in one.rejected_by)
    return sorted(counts.items())
