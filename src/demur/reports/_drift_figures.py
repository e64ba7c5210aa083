"""The figure of a drift: what is left of refusal over the checkpoints, with intervals, limits and alarms."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from demur.records import DriftRecord, DriftRow, DriftStatistic
from demur.reports._drift_page import has_steps
from demur.reports._svg import ACCENT, BORDERLINE, HARMFUL, HARMLESS, INK, MARK, MUTED, draw
from demur.types import PromptLabel

_WIDTH = 9.6
_COLOURS: dict[PromptLabel, str] = {"harmful": HARMFUL, "borderline": BORDERLINE, "harmless": HARMLESS}
_LEFT: tuple[tuple[DriftStatistic, str, str], ...] = (
    ("gap", "projection gap", ACCENT),
    ("score", "refusal score", HARMFUL),
)
_BAR = {"markersize": 4.5, "linewidth": 1.4, "elinewidth": 1, "capsize": 2}
_LONGEST_NAME = 16
Point = tuple[float, float, float, float]
"""x, value, lower and upper end."""


def draw_drift(record: DriftRecord) -> dict[str, str]:
    """SVG by name."""
    label = "What is left of the projection gap, of the refusal score, of AUROC and of refusals, by checkpoint"
    return {"drift": draw("drift", label, partial(_paint, record))}


def _paint(record: DriftRecord) -> Figure:
    panels: list[Callable[[Any, DriftRecord, Sequence[float]], None]] = [_left_panel]
    if any(row.scores for row in record.rows):
        panels += [_score_panel, _auroc_panel]
    if any(row.behaviour for row in record.rows):
        panels.append(_behaviour_panel)
    places = _places(record)
    height = 2.9 * (1 + (len(panels) - 1) // 2)
    figure = Figure(figsize=(_WIDTH, height))
    subplots = figure.subplots((len(panels) + 1) // 2, 2, squeeze=False).flatten()
    figure.subplots_adjust(left=0.065, right=0.985, wspace=0.17, hspace=0.42)
    figure.subplots_adjust(top=1 - 0.28 / height, bottom=0.45 / height)
    for axes, paint in zip(subplots, panels, strict=False):
        paint(axes, record, places)
        _across(axes, record, places)
    for axes in subplots[len(panels) :]:
        axes.set_visible(False)
    return figure


def _places(record: DriftRecord) -> list[float]:
    if has_steps(record):
        return [float(row.step or 0) for row in record.rows]
    return [float(index) for index in range(len(record.rows))]


def _across(axes: Any, record: DriftRecord, places: Sequence[float]) -> None:
    axes.grid()
    axes.tick_params(length=0)
    if has_steps(record):
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        return
    names = [row.name if len(row.name) <= _LONGEST_NAME else row.name[: _LONGEST_NAME - 1] + "…" for row in record.rows]
    every = -(-len(names) // 6)
    axes.set_xticks(places[::every], names[::every])
    axes.set_xlim(-0.4, len(names) - 0.6)


def _left_panel(axes: Any, record: DriftRecord, places: Sequence[float]) -> None:
    for statistic, name, colour in _LEFT:
        _line(axes, _tested(record, places, statistic, first=1.0), colour, name, scale=100)
        _rings(axes, record, places, statistic, scale=100)
    cosines = [100 * row.cosine for row in record.rows]
    axes.plot(places, cosines, ":", color=MUTED, linewidth=1.4, label="cosine of r (no alarm)")
    rule = record.rule
    for limit in sorted({rule.gap_kept, rule.score_kept}):
        axes.axhline(100 * limit, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_title("Left of the first checkpoint, %")
    axes.set_ylim(top=max(112.0, axes.get_ylim()[1]))
    axes.legend(loc="best")


def _auroc_panel(axes: Any, record: DriftRecord, places: Sequence[float]) -> None:
    points = [
        (x, row.auroc.value, row.auroc.low, row.auroc.high)
        for x, row in zip(places, record.rows, strict=True)
        if row.auroc is not None and row.auroc.low is not None and row.auroc.high is not None
    ]
    _line(axes, points, ACCENT, None)
    for index, (x, row) in enumerate(zip(places, record.rows, strict=True)):
        if "auroc" in row.alarms and row.auroc is not None:
            _ring(axes, x, row.auroc.value, f"auroc-{index}")
    if points:
        axes.axhline(points[0][1] - record.rule.auroc_loss, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_title("AUROC of the frozen direction")
    axes.set_ylim(top=1.01)


def _score_panel(axes: Any, record: DriftRecord, places: Sequence[float]) -> None:
    for label, colour in _COLOURS.items():
        points = [
            (x, row.scores[label].mean, row.scores[label].low, row.scores[label].high)
            for x, row in zip(places, record.rows, strict=True)
            if label in row.scores
        ]
        if points:
            _line(axes, points, colour, label)
    axes.axhline(0, color=MUTED, linewidth=1)
    axes.set_title("Mean refusal score, log-odds")
    axes.legend(loc="best")


def _behaviour_panel(axes: Any, record: DriftRecord, places: Sequence[float]) -> None:
    for label, colour in _COLOURS.items():
        points = []
        for x, row in zip(places, record.rows, strict=True):
            found = row.behaviour.get(label)
            if found is not None and found.rate.rate is not None:
                points.append((x, found.rate.rate, found.rate.low, found.rate.high))
        if points:
            _line(axes, points, colour, label, scale=100)
    axes.set_title("Prompts refused, %")
    axes.set_ylim(-4, 104)
    axes.legend(loc="best")


def _tested(record: DriftRecord, places: Sequence[float], statistic: DriftStatistic, *, first: float) -> list[Point]:
    """The first checkpoint, and every one with a test of that statistic."""
    points: list[Point] = [(places[0], first, first, first)]
    for x, row in zip(places, record.rows, strict=True):
        for test in row.tests:
            if test.statistic == statistic:
                value, low, high = test.estimate.value, test.estimate.low, test.estimate.high
                points.append((x, value, value if low is None else low, value if high is None else high))
    return points


def _line(axes: Any, points: Sequence[Point], colour: str, name: str | None, *, scale: float = 1) -> None:
    values = [scale * point[1] for point in points]
    below = [scale * max(0.0, point[1] - point[2]) for point in points]
    above = [scale * max(0.0, point[3] - point[1]) for point in points]
    axes.errorbar([point[0] for point in points], values, [below, above], fmt="o-", color=colour, label=name, **_BAR)


def _rings(axes: Any, record: DriftRecord, places: Sequence[float], statistic: DriftStatistic, *, scale: float) -> None:
    for index, (x, row) in enumerate(zip(places, record.rows, strict=True)):
        if statistic in row.alarms:
            _ring(axes, x, scale * _estimate_of(row, statistic), f"{statistic}-{index}")


def _estimate_of(row: DriftRow, statistic: DriftStatistic) -> float:
    return next(test.estimate.value for test in row.tests if test.statistic == statistic)


def _ring(axes: Any, x: float, y: float, name: str) -> None:
    axes.plot(x, y, "o", markersize=11, color=MARK, markerfacecolor="none", markeredgewidth=1.5, gid=f"alarm-{name}")
