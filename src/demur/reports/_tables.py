"""Tables as plain data: the summary table first of all. Knows nothing about HTML, markdown or the console."""

from dataclasses import dataclass
from typing import Literal

from demur.records import (
    BeforeAfter,
    ClusteredComparison,
    ClusteredRate,
    Mean,
    PairedComparison,
    Rate,
    SampledRefusals,
    Summary,
)
from demur.reports._format import number, p_value, points, share
from demur.types import PromptLabel

CellKind = Literal["text", "number", "code", "pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class Cell:
    """One cell: what is said, and in small print what it rests on."""

    text: str
    details: tuple[str, ...] = ()
    """Counts and interval, such as `443/450` and `96.8 to 99.2 %`; each can stand on a line of its own."""
    kind: CellKind = "text"

    def __str__(self) -> str:
        """The cell on one line."""
        return f"{self.text} ({', '.join(self.details)})" if self.details else self.text


@dataclass(frozen=True)
class Table:
    """A table with a caption; `columns` and every row have the same length."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    facts: bool = False
    """Names on the left and values on the right: the column headings say nothing that one cannot see."""


@dataclass(frozen=True)
class SummaryRow:
    """One measure before and after, with its paired difference. A value that was not measured is null."""

    measure: str
    better: Literal["higher", "lower"]
    before: Cell | None
    """Percent, with k/n and the 95 % interval."""
    after: Cell | None
    difference: Cell | None
    """After minus before in percentage points, with its 95 % interval and the pairs that changed."""
    p_value: str | None
    """Exact two-sided McNemar test."""
    notes: str
    """Unjudged and degenerate completions; empty where there are none."""


def summary_table(summary: Summary) -> list[SummaryRow]:
    """The rows of the summary table, in the order in which a reader asks for them."""
    metrics, comparison = summary.metrics, summary.comparison
    rows = [
        _rate_row(
            "True refusal rate",
            "higher",
            metrics.true_refusal_rate,
            comparison.true_refusal_rate if comparison else None,
        ),
        _rate_row(
            "False refusal rate",
            "lower",
            metrics.false_refusal_rate,
            comparison.false_refusal_rate if comparison else None,
        ),
        _rate_row(
            "Harmless refusal rate",
            "lower",
            metrics.harmless_refusal_rate,
            comparison.harmless_refusal_rate if comparison else None,
        ),
    ]
    rows += [_sampled_row(each) for each in summary.sampled]
    if metrics.task_accuracy is not None:
        pairs = comparison.task_accuracy if comparison else None
        rows.append(_rate_row("Task accuracy", "higher", metrics.task_accuracy, pairs))
    if metrics.kl_harmless is not None:
        kl = mean_cell(metrics.kl_harmless, unit="nats")
        rows.append(SummaryRow("KL from the base model", "lower", None, kl, None, None, ""))
    return rows


def rate_cell(rate: Rate | None) -> Cell | None:
    """A rate in percent with k/n and its interval; null where nothing was counted."""
    if rate is None:
        return None
    if rate.rate is None:
        return Cell("not measured", (f"{rate.k}/{rate.n}",), "number")
    interval = f"{share(rate.low)} to {share(rate.high)} %"
    return Cell(f"{share(rate.rate)} %", (f"{rate.k}/{rate.n}", interval), "number")


def mean_cell(mean: Mean, *, unit: str) -> Cell:
    """A mean with its interval and its largest value."""
    plain = plain_mean_cell(mean)
    return Cell(f"{plain.text} {unit}", (*plain.details, f"largest {number(mean.largest)}"), "number")


def plain_mean_cell(mean: Mean) -> Cell:
    """A mean with its interval, where the column or the row says the unit."""
    low, high = _significant(mean.low), _significant(mean.high)
    return Cell(_significant(mean.mean), (f"n {mean.n}", f"{low} to {high}"), "number")


def _significant(value: float) -> str:
    """Three decimals; two digits where three decimals would show hardly any."""
    return number(value) if value == 0 or abs(value) >= 0.1 else f"{value:.2g}"


def or_dash(cell: Cell | None) -> Cell:
    """The cell, or a dash where nothing was measured."""
    return Cell("-", kind="number") if cell is None else cell


def _rate_row(
    measure: str, better: Literal["higher", "lower"], pair: BeforeAfter, paired: PairedComparison | None
) -> SummaryRow:
    measured = paired is not None and paired.n > 0
    return SummaryRow(
        measure=measure,
        better=better,
        before=rate_cell(pair.before),
        after=rate_cell(pair.after),
        difference=difference_cell(paired) if paired is not None and measured else None,
        p_value=p_value(paired.p_value) if paired is not None and measured else None,
        notes=_notes(pair),
    )


_SAMPLED: dict[PromptLabel, tuple[str, Literal["higher", "lower"]]] = {
    "harmful": ("True refusal rate, sampled", "higher"),
    "borderline": ("False refusal rate, sampled", "lower"),
    "harmless": ("Harmless refusal rate, sampled", "lower"),
}


def _sampled_row(sampled: SampledRefusals) -> SummaryRow:
    """Refusal probability over sampled answers, with prompts as clusters."""
    name, better = _SAMPLED[sampled.label]
    change = sampled.comparison
    moved = None
    if change is not None and change.n:
        changed = f"{change.gained} gained, {change.lost} lost"
        moved = Cell(f"{points(change.difference)} points", (_span(change), changed), "number")
    return SummaryRow(
        measure=name,
        better=better,
        before=_clustered_cell(sampled.before),
        after=None if sampled.after is None else _clustered_cell(sampled.after),
        difference=moved,
        p_value=None if change is None or not change.n else p_value(change.p_value),
        notes=f"{sampled.n_samples} answers to each of {sampled.n_prompts} prompts",
    )


def _span(change: ClusteredComparison) -> str:
    return f"{points(change.low)} to {points(change.high)}"


def _clustered_cell(rate: ClusteredRate) -> Cell | None:
    if rate.rate is None:
        return None
    return Cell(f"{share(rate.rate)} %", (f"{rate.k}/{rate.n}", f"{share(rate.low)} to {share(rate.high)} %"), "number")


def difference_cell(paired: PairedComparison) -> Cell:
    """After minus before in points, with its interval and the pairs that changed."""
    interval = f"{points(paired.low)} to {points(paired.high)}"
    changed = f"{paired.gained} gained, {paired.lost} lost"
    return Cell(f"{points(paired.difference)} points", (interval, changed), "number")


def _notes(pair: BeforeAfter) -> str:
    found = []
    for when, rate in (("before", pair.before), ("after", pair.after)):
        if rate is not None and rate.unjudged:
            found.append(f"{rate.unjudged} unjudged {when}")
        if rate is not None and rate.degenerate:
            found.append(f"{rate.degenerate} degenerate {when}")
    return ", ".join(found)
