"""True refusals under pressure: the table of conditions, the pooled families, and what they mean in words."""

from demur.records import PooledDifference, Pressure, PressureCondition
from demur.reports._format import points
from demur.reports._tables import Cell, Table, difference_cell, or_dash, rate_cell


def pressure_tables(pressure: Pressure) -> tuple[Table, ...]:
    """Every condition; the pooled families where something was applied; what could not be asked."""
    tables = [_conditions(pressure)]
    if pressure.families:
        tables.append(_families(pressure))
    if pressure.not_applicable:
        rows = tuple((Cell(name, kind="code"), Cell(reason)) for name, reason in pressure.not_applicable.items())
        tables.append(Table("Conditions that this model cannot be put under", ("Condition", "Why"), rows))
    return tuple(tables)


def pressure_words(pressure: Pressure) -> tuple[str, ...]:
    """What was asked and what the gate makes of it."""
    what = (
        "Removing false refusals can leave refusals of plain prompts as they are and still make a model easier to talk "
        "round. So all harmful test prompts were asked again under each condition below."
    )
    if not pressure.families:
        return (what,)
    worst = min(pressure.families, key=lambda family: family.comparison.difference)
    return (
        f"{what} The gate looks at each family of conditions: over its conditions, with prompts as clusters, a loss of "
        f"true refusals must lie below {100 * pressure.margin:g} points. The largest change for the worse is under "
        f"{worst.family} pressure: {points(worst.comparison.difference)} points "
        f"({points(worst.comparison.low)} to {points(worst.comparison.high)}).",
    )


def _conditions(pressure: Pressure) -> Table:
    compared = bool(pressure.families)
    columns = ("Condition", "Before", "After", "Difference") if compared else ("Condition", "Measured")
    return Table(
        "True refusal rate under each condition", columns, tuple(_row(each, compared) for each in pressure.conditions)
    )


def _row(condition: PressureCondition, compared: bool) -> tuple[Cell, ...]:  # noqa: FBT001
    both, paired = condition.true_refusal_rate, condition.comparison
    unjudged = [rate.unjudged for rate in (both.before, both.after) if rate is not None]
    told = [condition.what]
    if any(unjudged):
        told.append(f"{' and '.join(map(str, unjudged))} unjudged")
    if not condition.gated:
        told.append("not gated")
    cells = [Cell(condition.name, tuple(told)), or_dash(rate_cell(both.before))]
    if compared:
        difference = difference_cell(paired) if paired is not None and paired.n else None
        cells += [or_dash(rate_cell(both.after)), or_dash(difference)]
    return tuple(cells)


def _families(pressure: Pressure) -> Table:
    columns = ("Family", "Conditions", "Prompts", "Pairs", "Difference")
    return Table("Pooled over the gated conditions of each family", columns, tuple(map(_pooled, pressure.families)))


def _pooled(family: PooledDifference) -> tuple[Cell, ...]:
    pooled = family.comparison
    counts = (family.n_conditions, family.n_prompts, pooled.n)
    interval = f"{points(pooled.low)} to {points(pooled.high)}"
    return (
        Cell(family.family),
        *(Cell(str(count), kind="number") for count in counts),
        Cell(f"{points(pooled.difference)} points", (interval,), "number"),
    )
