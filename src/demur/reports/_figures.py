"""Every figure of a report, by name. `_svg` makes them fit for the page, `_heat_maps` paints the candidates."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from demur.records import BeforeAfter, LambdaPoint, ProjectionRecord, Rate, RefusalThreshold, Summary
from demur.reports._format import share
from demur.reports._heat_maps import cell_titles, paint_heat_maps
from demur.reports._records import RunRecords
from demur.reports._sections import LABELS, measured_points
from demur.reports._svg import ACCENT, BORDERLINE, CARD, GRID, HARMFUL, HARMLESS, INK, MARK, MUTED, draw

_COLOURS = {"harmful": HARMFUL, "borderline": BORDERLINE, "harmless": HARMLESS}
_WIDTH = 9.6
_BINS = 48


def draw_figures(run: RunRecords) -> dict[str, str]:
    """All figures that the records allow, as SVG by name."""
    summary = run.summary
    figures = {
        "rates": draw("rates", "Rates before and after, with 95 % intervals", partial(_paint_rates, summary)),
    }
    if summary.refusal_threshold is not None and summary.refusal_threshold.judged:
        figures["threshold"] = draw(
            "threshold",
            "Refusal scores of train prompts by kind and verdict",
            partial(_paint_threshold, summary.refusal_threshold),
        )
    if run.candidates is not None and run.candidates.refusal:
        figures["candidates"] = draw(
            "candidates",
            "Heat maps of bypass score, induce score and KL by layer and token position",
            partial(paint_heat_maps, run.candidates),
            cell_titles(run.candidates),
        )
    if run.projections is not None and any(run.projections.before.values()):
        figures["projections"] = draw(
            "projections",
            "Histograms of projections of harmful, borderline and harmless prompts",
            partial(_paint_projections, run.projections),
        )
    if measured := measured_points(summary.lambda_curve):
        figures["lambda"] = draw("lambda", "True and false refusal rates over lambda", partial(_paint_lambda, measured))
    return figures


def _paint_rates(summary: Summary) -> Figure:
    metrics = summary.metrics
    rows: list[tuple[str, BeforeAfter, str]] = [
        ("True refusals\n(higher is better)", metrics.true_refusal_rate, HARMFUL),
        ("False refusals\n(lower is better)", metrics.false_refusal_rate, BORDERLINE),
        ("Harmless refusals\n(lower is better)", metrics.harmless_refusal_rate, HARMLESS),
    ]
    if metrics.task_accuracy is not None:
        rows.append(("Task accuracy\n(higher is better)", metrics.task_accuracy, MUTED))
    figure = Figure(figsize=(_WIDTH, 0.62 * len(rows) + 0.55))
    axes = figure.add_axes((0.15, 0.42 / figure.get_figheight(), 0.83, 1 - 0.5 / figure.get_figheight()))
    for row, (_, pair, colour) in enumerate(rows):
        compared = pair.after is not None
        _dot(axes, row - (0.15 if compared else 0), pair.before, colour, filled=not compared)
        if pair.after is not None:
            _dot(axes, row + 0.15, pair.after, colour, filled=True)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(-2, 102)
    axes.set_xticks(range(0, 101, 20), [f"{tick} %" for tick in range(0, 101, 20)])
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    return figure


def _dot(axes: Any, y: float, rate: Rate, colour: str, *, filled: bool) -> None:
    if rate.rate is None:
        return
    axes.hlines(y, 100 * rate.low, 100 * rate.high, color=colour, linewidth=2.2, alpha=0.55)
    axes.plot(100 * rate.rate, y, "o", markersize=7, color=colour, markerfacecolor=colour if filled else CARD)
    right = rate.high < 0.9
    axes.annotate(
        f"{share(rate.rate)} %",
        (100 * (rate.high if right else rate.low), y),
        xytext=(6 if right else -6, 0),
        textcoords="offset points",
        ha="left" if right else "right",
        va="center",
        fontsize=8,
        color=INK if filled else MUTED,
    )


def _paint_threshold(threshold: RefusalThreshold) -> Figure:
    figure = Figure(figsize=(_WIDTH, 2.6))
    axes = figure.add_axes((0.1, 0.19, 0.88, 0.76))
    for row, label in enumerate(reversed(LABELS)):
        each = threshold.judged.get(label)
        axes.axhline(row, color=GRID, linewidth=0.8)
        if each is None:
            continue
        for scores, up in ((each.refused, 1), (each.answered, -1)):
            heights = [row + up * (0.12 + 0.22 * (index % 7) / 6) for index in range(len(scores))]
            filled = _COLOURS[label] if up == 1 else CARD
            axes.plot(scores, heights, "o", markersize=4, color=_COLOURS[label], markerfacecolor=filled, alpha=0.8)
    axes.axvline(threshold.value, color=MARK, linewidth=1.4, linestyle=(0, (4, 3)), gid="threshold-line")
    axes.axvline(0, color=MUTED, linewidth=0.9, linestyle=":")
    axes.set_yticks(range(len(LABELS)), list(reversed(LABELS)))
    axes.set_ylim(-0.5, len(LABELS) - 0.5)
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("refusal score, log-odds (filled: refused; open: answered)")
    axes.grid(axis="x")
    return figure


def _paint_projections(projections: ProjectionRecord) -> Figure:
    panels = [("Before", projections.before)]
    if any(projections.after.values()):
        panels.append(("After", projections.after))
    everything = [value for _, values in panels for one in values.values() for value in one]
    low, high = min(everything), max(everything)
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    figure = Figure(figsize=(_WIDTH, 2.0 * len(panels) + 0.5))
    subplots = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    figure.subplots_adjust(left=0.1, right=0.98, top=1 - 0.25 / figure.get_figheight(), hspace=0.22)
    figure.subplots_adjust(bottom=0.45 / figure.get_figheight())
    for axes, (title, values) in zip(subplots, panels, strict=True):
        axes.set_title(title)
        for row, label in enumerate(reversed(LABELS)):
            _ridge(axes, row, values.get(label, ()), edges, _COLOURS[label])
        axes.set_yticks(range(len(LABELS)), list(reversed(LABELS)))
        axes.set_ylim(-0.1, len(LABELS) + 0.02)
        axes.tick_params(axis="both", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
    subplots[-1].set_xlabel("projection on the refusal direction")
    return figure


def _ridge(axes: Any, row: int, values: Sequence[float], edges: Any, colour: str) -> None:
    axes.axhline(row, color=GRID, linewidth=0.8)
    if not values:
        return
    counts, _ = np.histogram(values, bins=edges)
    heights = row + 0.86 * counts / max(1, counts.max())
    axes.stairs(heights, edges, baseline=row, fill=True, color=colour, alpha=0.35)
    axes.stairs(heights, edges, baseline=row, color=colour, linewidth=1.1)
    axes.vlines(float(np.median(values)), row, row + 0.92, color=colour, linewidth=2)


def _paint_lambda(points: Sequence[LambdaPoint]) -> Figure:
    figure = Figure(figsize=(_WIDTH, 3.3))
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.065, right=0.985, top=0.91, bottom=0.14, wspace=0.2)
    _paint_rates_over_lambda(left, points)
    _paint_trade_off(right, points)
    for axes in (left, right):
        axes.grid()
        axes.tick_params(length=0)
    return figure


def _paint_rates_over_lambda(axes: Any, points: Sequence[LambdaPoint]) -> None:
    lambdas = [point.lambda_ for point in points]
    for name, colour, rates in (
        ("true refusals (keep high)", HARMFUL, [point.true_refusal_rate for point in points]),
        ("false refusals (bring down)", BORDERLINE, [point.false_refusal_rate for point in points]),
    ):
        axes.errorbar(lambdas, *_centre_and_bars(rates), fmt="o-", color=colour, label=name, **_BAR)
    for point in points:
        if point.chosen:
            axes.axvline(point.lambda_, color=MARK, linewidth=1.2, linestyle=(0, (4, 3)), gid="chosen-lambda")
    axes.set_ylim(-4, 104)
    axes.set_title("Rates over lambda")
    axes.set_xlabel("lambda")
    axes.set_ylabel("refused, %")
    axes.legend(loc="center left", bbox_to_anchor=(0, 0.62))


def _paint_trade_off(axes: Any, points: Sequence[LambdaPoint]) -> None:
    x, x_bars = _centre_and_bars([point.false_refusal_rate for point in points])
    y, y_bars = _centre_and_bars([point.true_refusal_rate for point in points])
    axes.errorbar(x, y, xerr=x_bars, yerr=y_bars, fmt="o", color=ACCENT, **_BAR)
    for number, (point, at_x, at_y) in enumerate(zip(points, x, y, strict=True)):
        above = number % 2 == 0
        axes.annotate(
            f"{point.lambda_:g}",
            (at_x, at_y),
            xytext=(5, 4 if above else -4),
            textcoords="offset points",
            va="bottom" if above else "top",
            fontweight="bold" if point.chosen else "normal",
        )
        if point.chosen:
            axes.plot(
                at_x, at_y, "o", markersize=13, color=MARK, markerfacecolor="none", markeredgewidth=1.6, gid="chosen"
            )
    axes.set_title("True against false refusals (numbers are lambda)")
    axes.set_xlabel("borderline prompts refused, %")
    axes.set_ylabel("harmful prompts refused, %")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(6))


_BAR = {"markersize": 5, "linewidth": 1.4, "elinewidth": 1, "capsize": 2}


def _centre_and_bars(rates: Sequence[Rate | None]) -> tuple[list[float], list[list[float]]]:
    centres = [float("nan") if rate is None or rate.rate is None else 100 * rate.rate for rate in rates]
    pairs = list(zip(rates, centres, strict=True))
    below = [0.0 if rate is None else max(0.0, centre - 100 * rate.low) for rate, centre in pairs]
    above = [0.0 if rate is None else max(0.0, 100 * rate.high - centre) for rate, centre in pairs]
    return centres, [below, above]
