"""The figure of a release gate: every rate and change with its interval against its limit."""

from functools import partial
from typing import Any

from matplotlib.figure import Figure

from demur.records import CheckRecord, CheckRule
from demur.reports._check_page import plotted, state_of
from demur.reports._svg import ACCENT, GRID, INK, MARK, MUTED, draw

_WIDTH = 9.6
_ROW = 0.34


def draw_check(record: CheckRecord) -> dict[str, str]:
    """SVG by name; empty where no rule has an interval."""
    rules = plotted(record)
    if not rules:
        return {}
    label = "Rates and changes with 95 % intervals, and their limits"
    return {"check": draw("check", label, partial(_paint, rules))}


def _paint(rules: list[CheckRule]) -> Figure:
    """Rates above, changes below: they have no common axis."""
    groups = [
        ("Rates, %", [rule for rule in rules if rule.interval == "clopper_pearson"]),
        ("Changes from the baseline, points", [rule for rule in rules if rule.interval == "tango"]),
    ]
    groups = [(title, members) for title, members in groups if members]
    heights = [_ROW * len(members) + 0.75 for _, members in groups]
    figure = Figure(figsize=(_WIDTH, sum(heights)))
    top = sum(heights)
    for (title, members), height in zip(groups, heights, strict=True):
        top -= height
        axes = figure.add_axes((0.30, (top + 0.32) / sum(heights), 0.67, (height - 0.66) / sum(heights)))
        axes.set_title(title)
        _rows(axes, members)
    return figure


def _rows(axes: Any, rules: list[CheckRule]) -> None:
    labels = []
    for row, rule in enumerate(rules):
        if rule.low is None or rule.high is None or rule.limit is None or rule.value is None:
            continue
        colour = ACCENT if rule.decision == "pass" else MUTED if rule.decision == "inconclusive" else MARK
        low, high, limit = 100 * rule.low, 100 * rule.high, 100 * rule.limit
        axes.plot([low, high], [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
        axes.plot([100 * rule.value], [row], "o", color=colour, markersize=5)
        axes.plot([limit, limit], [row - 0.42, row + 0.42], color=INK, linewidth=1.4)
        labels.append(f"{rule.name}: {state_of(rule)}")
    axes.set_yticks(range(len(labels)), labels)
    _shade(axes, rules)


def _shade(axes: Any, rules: list[CheckRule]) -> None:
    left, right = axes.get_xlim()
    for row, rule in enumerate(rules):
        limit = 100 * (rule.limit or 0.0)
        bad = (left, limit) if rule.comparison == "at_least" else (limit, right)
        axes.fill_betweenx([row - 0.42, row + 0.42], *bad, color=GRID, linewidth=0, alpha=0.55)
    axes.set_xlim(left, right)
    axes.set_ylim(len(rules) - 0.5, -0.5)
