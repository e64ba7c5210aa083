"""`methods.md`, and the tables of a comparison of methods for the console. Reads records, loads no model."""

from dataclasses import replace
from pathlib import Path

from demur.records import MethodsTable, PairedComparison, Rate, read_record, write_text
from demur.reports._document import Document, Section
from demur.reports._format import model_name, p_value, points
from demur.reports._markdown import render_markdown
from demur.reports._tables import Cell, Table, mean_cell, or_dash, rate_cell

_TERMS = (
    ("Differences", "Method minus no intervention on the same prompts, in points, with 95 % score intervals (Tango)."),
    ("p", "Exact McNemar test, adjusted over the methods of the table within each rate (Holm)."),
    ("KL", "Of the first token of the answer to harmless prompts, from no intervention; 95 % bootstrap interval."),
    ("In weights", "Whether the weights alone can hold the change. demur exports its own operating point only."),
    (
        "Gate",
        "What the rules of the gate say of this row on plain prompts, for information: pressure is not measured here.",
    ),
)


def methods_tables(table: MethodsTable) -> tuple[Table, Table, Table]:
    """Rates with intervals, paired differences with intervals, and what each method is and costs."""
    return _rates(table), _differences(table), _properties(table)


def write_methods_report(folder: Path) -> Path:
    """Write `methods.md` beside `methods.json`; it holds no text of any answer, and no harmful prompt.

    Returns:
        The path of the file.

    Raises:
        RunFolderError: there is no `methods.json`, or it cannot be read or written.
    """
    path = Path(folder) / "methods.md"
    write_text(path, render_markdown(_document(read_record(Path(folder) / "methods.json", MethodsTable))))
    return path


def _document(table: MethodsTable) -> Document:
    rates, differences, properties = methods_tables(table)
    return Document(
        title=f"Methods against false refusals: {model_name(table.model.id)}",
        verdict=(
            f"{len(table.rows)} rows on the same test prompts, judged by {table.judge.id} {table.judge.version}, "
            "compared in pairs with no intervention."
        ),
        decision=None,
        reasons=(),
        warnings=(*table.warnings, *(f"{name} was not measured: {reason}" for name, reason in table.skipped.items())),
        sections=(
            Section("rates", "Rates on test prompts", tables=(rates,)),
            Section("differences", "Differences from no intervention", tables=(differences,)),
            Section("methods", "What was done, and what it costs", tables=(properties,), terms=_TERMS),
        ),
        footer=f"demur {table.provenance.demur}, {table.provenance.created}",
    )


def _rates(table: MethodsTable) -> Table:
    rows = tuple(
        (
            Cell(row.method),
            *map(
                _rate,
                (
                    row.true_refusal_rate,
                    row.false_refusal_rate,
                    row.harmless_refusal_rate,
                    row.task_accuracy,
                    row.degenerate,
                ),
            ),
            or_dash(None if row.kl_harmless is None else mean_cell(row.kl_harmless, unit="nats")),
        )
        for row in table.rows
    )
    columns = ("method", "true refusals", "false refusals", "harmless refusals", "task accuracy", "degenerate", "KL")
    return Table("Rates with 95 % intervals.", columns, rows)


def _rate(rate: Rate | None) -> Cell:
    cell = or_dash(rate_cell(rate))
    if rate is None or not rate.unjudged:
        return cell
    return replace(cell, details=(*cell.details, f"{rate.unjudged} unjudged"))


def _differences(table: MethodsTable) -> Table:
    names = ("true_refusal_rate", "false_refusal_rate", "harmless_refusal_rate", "task_accuracy")
    rows = tuple(
        (
            Cell(row.method),
            *(_difference(getattr(row.comparison, name), row.adjusted_p_values.get(name)) for name in names),
        )
        for row in table.rows
        if row.comparison is not None
    )
    columns = ("method", "true refusals", "false refusals", "harmless refusals", "task accuracy")
    return Table("Points with 95 % intervals and adjusted p-values.", columns, rows)


def _difference(pair: PairedComparison | None, adjusted: float | None) -> Cell:
    if pair is None or not pair.n:
        return Cell("-", kind="number")
    details = (f"{points(pair.low)} to {points(pair.high)}", f"{pair.gained} gained, {pair.lost} lost")
    p = () if adjusted is None else (f"p {p_value(adjusted)}",)
    return Cell(points(pair.difference), (*details, *p), "number")


def _properties(table: MethodsTable) -> Table:
    rows = tuple(
        (
            Cell(row.method),
            Cell(f"{row.title}. {row.what}"),
            Cell(row.cost),
            Cell("yes" if row.exportable else "no"),
            Cell("-" if row.gate is None else row.gate.decision),
        )
        for row in table.rows
    )
    return Table("One line per method.", ("method", "what was done", "inference", "in weights", "gate"), rows)
