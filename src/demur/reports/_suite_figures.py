"""The figure of a suite: rates with their limits."""

from functools import partial

from matplotlib.figure import Figure

from demur.records import SuiteCheck, SuiteRecord
from demur.reports._suite_words import rated
from demur.reports._svg import ACCENT, GRID, HARMFUL, INK, MARK
from demur.reports._svg import draw as to_svg

_WIDTH = 9.6
_NAMES = 0.36
"""Share of the width for the names."""
_LONGEST = 46


def draw(record: SuiteRecord) -> dict[str, str]:
    """SVG by name."""
    rows = rated(record)
    if not rows:
        return {}
    return {"suite": to_svg("suite", "Rates with 95 % intervals and limits", partial(_paint, rows))}


def _paint(rows: list[tuple[str, SuiteCheck]]) -> Figure:
    figure = Figure(figsize=(_WIDTH, 0.3 * len(rows) + 0.5))
    height = figure.get_figheight()
    axes = figure.add_axes((_NAMES, 0.38 / height, 0.98 - _NAMES, 1 - 0.46 / height))
    for row, (_, check) in enumerate(rows):
        low = 0.0 if check.at_least is None else 100 * check.at_least
        high = 100.0 if check.at_most is None else 100 * check.at_most
        axes.barh(row, max(high - low, 0.4), left=low, height=0.62, color=GRID, alpha=0.6, zorder=1)
        for limit in (check.at_least, check.at_most):
            if limit is not None:
                axes.vlines(100 * limit, row - 0.38, row + 0.38, color=INK, linewidth=1.6, zorder=2)
        rate = check.rate
        if rate is None or rate.rate is None:
            continue
        colour = {"pass": ACCENT, "fail": HARMFUL, "inconclusive": MARK}[check.decision]
        axes.hlines(row, 100 * rate.low, 100 * rate.high, color=colour, linewidth=2.2, zorder=3)
        axes.plot(100 * rate.rate, row, "o", markersize=6, color=colour, zorder=4)
    axes.set_yticks(range(len(rows)), [_short(name) for name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(-2, 102)
    axes.set_xticks(range(0, 101, 20), [f"{tick} %" for tick in range(0, 101, 20)])
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
