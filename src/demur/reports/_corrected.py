"""Rates corrected for the judge's errors: a table, and lines for the console."""

from demur.records import CorrectedDifference, CorrectedMeasure, CorrectedRate, CorrectedRun, Rate
from demur.reports._format import points, share
from demur.reports._tables import Cell, Table


def corrected_table(run: CorrectedRun) -> Table:
    """Before, after and difference of every measure."""
    rows = tuple((Cell(name.replace("_", " ")), *_cells(measure)) for name, measure in run.measures.items())
    caption = (
        f"Corrected for the errors of judge {run.judge.id} {run.judge.version} on {run.n_labels} labelled answers "
        f"({_errors(run)})"
    )
    return Table(caption, ("Measure", "Before", "After", "Difference"), rows)


def corrected_lines(run: CorrectedRun) -> list[str]:
    """The same in lines."""
    table = corrected_table(run)
    return [table.caption + ":", *(f"  {row[0]}: " + "; ".join(str(cell) for cell in row[1:]) for row in table.rows)]


def _errors(run: CorrectedRun) -> str:
    before, after = run.errors_before, run.errors_after
    text = f"sensitivity {_counts(before.sensitivity)}, specificity {_counts(before.specificity)}"
    if after != before:
        text += f"; after: {_counts(after.sensitivity)}, {_counts(after.specificity)}"
    return text


def _counts(rate: Rate) -> str:
    return f"{rate.k}/{rate.n}"


def _cells(measure: CorrectedMeasure) -> tuple[Cell, ...]:
    return _rate(measure.before), _rate(measure.after), _difference(measure.difference)


def _rate(rate: CorrectedRate | None) -> Cell:
    if rate is None or rate.rate is None:
        return Cell("-" if rate is None else rate.reason, kind="number")
    return Cell(f"{share(rate.rate)} %", (f"{share(rate.low)} to {share(rate.high)} %",), "number")


def _difference(difference: CorrectedDifference | None) -> Cell:
    if difference is None or difference.difference is None:
        return Cell("-" if difference is None else difference.reason, kind="number")
    interval = f"{points(difference.low)} to {points(difference.high)}"
    return Cell(f"{points(difference.difference)} points", (interval,), "number")
