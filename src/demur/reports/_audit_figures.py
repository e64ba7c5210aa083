"""The figures of an audit's page."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from demur.records import AttackRates, Audit, Conditions, Depth, FineTuningRun, Ladder, LadderRung, Rate, Strength
from demur.reports._audit_page import rung_name
from demur.reports._svg import ACCENT, BORDERLINE, HARMFUL, HARMLESS, INK, MUTED, draw

_WIDTH = 9.6
_BAR = {"markersize": 5, "linewidth": 1.4, "elinewidth": 1, "capsize": 2}
_SERIES = {
    "differences in means, to zero": HARMFUL,
    "differences in means, to harmless mean": BORDERLINE,
    "principal components": ACCENT,
}
Series = Sequence[tuple[float, Rate | None, bool]]
"""Where, which rate, and whether the model is broken there."""


def draw_audit(record: Audit) -> dict[str, str]:
    """Every figure whose section is there, by name."""
    figures: dict[str, str] = {}

    def add(name: str, label: str, paint: Callable[[], Figure]) -> None:
        figures[name] = draw(name, label, paint)

    if record.ladder is not None:
        add("ladder", "True refusals and task accuracy by rank", partial(_paint_ladder, record, record.ladder))
    if record.strength is not None:
        add("strength", "Refusals over dose", partial(_paint_strength, record.strength))
    if record.conditions is not None:
        add("conditions", "True refusals by condition", partial(_paint_conditions, record, record.conditions))
    if record.depth is not None:
        add("depth", "Refusal scores over forced tokens", partial(_paint_depth, record.depth))
    if record.fine_tuning is not None:
        add("fine-tuning", "Refusals over steps", partial(_paint_fine_tuning, record.fine_tuning))
    if record.suffixes is not None:
        from demur.reports._suffix_figures import draw_suffixes  # noqa: PLC0415 (only where there are any)

        figures.update(draw_suffixes(record.suffixes))
    if record.base is not None:
        from demur.reports._model_pairs_figures import draw_base  # noqa: PLC0415 (only where there is one)

        figures.update(draw_base(record.base))
    return figures


def _plot(axes: Any, series: Series, colour: str, label: str | None, *, style: str = "o-") -> None:
    shown = [(x, rate, broken) for x, rate, broken in series if rate is not None and rate.rate is not None]
    if not shown:
        return
    xs = [x for x, _, _ in shown]
    ys = [100 * (rate.rate or 0.0) for _, rate, _ in shown]
    below = [max(0.0, y - 100 * rate.low) for y, (_, rate, _) in zip(ys, shown, strict=True)]
    above = [max(0.0, 100 * rate.high - y) for y, (_, rate, _) in zip(ys, shown, strict=True)]
    axes.errorbar(xs, ys, [below, above], fmt=style, color=colour, label=label, **_BAR)
    crossed = [(x, y) for (x, _, broken), y in zip(shown, ys, strict=True) if broken]
    if crossed:
        axes.plot([x for x, _ in crossed], [y for _, y in crossed], "x", color=INK, markersize=9, markeredgewidth=1.8)


def _percent_axis(axes: Any, title: str, x: str) -> None:
    axes.set_ylim(-4, 104)
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel("%")
    axes.grid()
    axes.tick_params(length=0)


def _two_panels(height: float = 3.2) -> tuple[Figure, Any, Any]:
    figure = Figure(figsize=(_WIDTH, height))
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.065, right=0.985, top=0.9, bottom=0.15, wspace=0.2)
    return figure, left, right


def _working_share(rates: AttackRates) -> Rate | None:
    return rates.accuracy if rates.accuracy is not None else rates.harmless_refusals


def _paint_ladder(record: Audit, ladder: Ladder) -> Figure:
    figure, left, right = _two_panels()
    rest = record.scorecard.at_rest
    ranks = sorted({rung.rank for rung in ladder.rungs})
    places = {rank: index + 1 for index, rank in enumerate(ranks)}
    with_accuracy = rest.accuracy is not None
    for axes, pick in ((left, lambda rates: rates.true_refusals), (right, _working_share)):
        for offset, name in enumerate((*_SERIES, "random")):
            rungs = [rung for rung in ladder.rungs if rung_name(rung) == name]
            if name == "principal components":  # the first of them is the first mean
                rungs += [one for one in ladder.rungs if (one.rank, one.kind, one.reference) == (1, "means", "zero")]
                rungs.sort(key=lambda rung: rung.rank)
            shift = 0.07 * (offset - 1.5)
            for seed in sorted({rung.seed or 0 for rung in rungs}):
                of_seed: list[LadderRung] = [rung for rung in rungs if (rung.seed or 0) == seed]
                series: list[tuple[float, Rate | None, bool]] = [(0.0, pick(rest), False)]
                series += [(places[one.rank] + shift, pick(one.rates), one.rates.broken is not None) for one in of_seed]
                label = name if seed == min(one.seed or 0 for one in rungs) else None
                _plot(axes, series, _SERIES.get(name, MUTED), label)
        axes.set_xticks(range(len(ranks) + 1), ["0", *map(str, ranks)])
    _percent_axis(left, "True refusals", "directions ablated")
    _percent_axis(right, "Task accuracy" if with_accuracy else "Harmless refusals", "directions ablated")
    (right if with_accuracy else left).legend(loc="lower left" if with_accuracy else "center right")
    return figure


def _paint_strength(strength: Strength) -> Figure:
    figure, left, right = _two_panels()
    for axes, kind in ((left, "ablation"), (right, "addition")):
        points = [point for point in strength.points if point.kind == kind]
        for name, colour, pick in _STRENGTH_SERIES:
            _plot(axes, [(one.dose, pick(one.rates), one.rates.broken is not None) for one in points], colour, name)
    _percent_axis(left, "Ablating a share", "share of the direction ablated")
    _percent_axis(right, "Adding a multiple", "multiple of the direction added")
    left.legend(loc="center right")
    return figure


_STRENGTH_SERIES: tuple[tuple[str, str, Callable[[AttackRates], Rate | None]], ...] = (
    ("true refusals", HARMFUL, lambda rates: rates.true_refusals),
    ("harmless refusals", HARMLESS, lambda rates: rates.harmless_refusals),
    ("task accuracy", MUTED, lambda rates: rates.accuracy),
)


def _paint_conditions(record: Audit, conditions: Conditions) -> Figure:
    rows: list[tuple[str, AttackRates]] = [("at rest", record.scorecard.at_rest)]
    rows += [(one.name, one.rates) for one in conditions.conditions]
    figure = Figure(figsize=(_WIDTH, 0.24 * len(rows) + 0.7))
    axes = figure.add_axes((0.15, 0.4 / figure.get_figheight(), 0.83, 1 - 0.5 / figure.get_figheight()))
    for row, (_, rates) in enumerate(rows):
        rate = rates.true_refusals
        if rate.rate is None:
            continue
        colour = MUTED if rates.broken else HARMFUL
        axes.hlines(row, 100 * rate.low, 100 * rate.high, color=colour, linewidth=2.2, alpha=0.55)
        axes.plot(100 * rate.rate, row, "x" if rates.broken else "o", markersize=6, color=colour)
    axes.set_yticks(range(len(rows)), [name + (" (broken)" if rates.broken else "") for name, rates in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(-2, 102)
    axes.set_xlabel("true refusals, %")
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    return figure


def _paint_depth(depth: Depth) -> Figure:
    figure, left, right = _two_panels()
    for axes, suffix, title in (
        (left, "", "At the next token"),
        (right, "_again", "Beginning of an answer put in again"),
    ):
        for label, colour in (("harmful", HARMFUL), ("harmless", HARMLESS)):
            means = [getattr(point, f"{label}{suffix}") for point in depth.points]
            axes.errorbar(
                [point.tokens for point in depth.points],
                [mean.mean for mean in means],
                [[mean.mean - mean.low for mean in means], [mean.high - mean.mean for mean in means]],
                fmt="o-",
                color=colour,
                label=label,
                **_BAR,
            )
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.set_title(title)
        axes.set_xlabel("forced tokens")
        axes.set_ylabel("refusal score, log-odds")
        axes.grid()
        axes.tick_params(length=0)
    left.legend(loc="center right")
    return figure


def _paint_fine_tuning(run: FineTuningRun) -> Figure:
    figure, left, right = _two_panels()
    judged = [(point.step, point.rates) for point in run.points if point.rates is not None]
    for name, colour, pick in _STRENGTH_SERIES:
        _plot(left, [(step, pick(rates), rates.broken is not None) for step, rates in judged], colour, name)
    _percent_axis(left, "Judged answers", "step")
    left.legend(loc="center left")
    means = [point.harmful_score for point in run.points]
    right.errorbar(
        [point.step for point in run.points],
        [mean.mean for mean in means],
        [[mean.mean - mean.low for mean in means], [mean.high - mean.mean for mean in means]],
        fmt="o-",
        color=HARMFUL,
        **_BAR,
    )
    right.axhline(0, color=MUTED, linewidth=0.8)
    right.set_title("Refusal score of harmful prompts")
    right.set_xlabel("step")
    right.set_ylabel("log-odds")
    right.grid()
    right.tick_params(length=0)
    return figure
