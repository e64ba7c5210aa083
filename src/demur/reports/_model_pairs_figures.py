"""A base model and its chat model over the layers."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from demur.records import BaseComparison, BasePlace, Separation
from demur.reports._svg import ACCENT, BORDERLINE, GRID, MUTED, draw


def draw_base(record: BaseComparison) -> dict[str, str]:
    """SVG by name, for the page of the comparison and for an audit's."""
    here = [place for place in record.places if place.position == record.position]
    if not here:
        return {}
    label = "Separation along the refusal direction, and cosines between directions, over layers"
    return {"base": draw("base", label, partial(_paint, record, here))}


def _paint(record: BaseComparison, here: Sequence[BasePlace]) -> Figure:
    figure = Figure(figsize=(9.6, 3.6))
    left, right = (figure.add_axes((start, 0.27, 0.41, 0.62)) for start in (0.06, 0.56))
    layers = [place.layer for place in here]
    _line(left, layers, [place.chat.along_r for place in here], ACCENT, "o", "chat model, along r")
    _line(left, layers, [place.base.along_r for place in here], BORDERLINE, "D", "base model, along r")
    _line(left, layers, [place.base.along_own for place in here], MUTED, "s", "base model, along its own")
    left.axhline(0.5, color=MUTED, linewidth=0.9)
    left.set_title("AUROC, harmful against harmless")
    left.set_ylim(-0.02, 1.02)
    pairs = (
        ("r with the chat model's own", [place.r_with_chat for place in here], ACCENT, "o"),
        ("r with the base model's own", [place.r_with_base for place in here], BORDERLINE, "D"),
        ("own with own", [place.cosine for place in here], MUTED, "s"),
    )
    for name, values, colour, marker in pairs:
        right.plot(layers, values, color=colour, marker=marker, markersize=4, label=name)
    right.axhline(0, color=GRID, linewidth=0.9)
    right.set_title("Cosine of directions")
    right.set_ylim(min(-0.05, *(value for _, values, _, _ in pairs for value in values)) - 0.02, 1.03)
    for axes in (left, right):
        axes.axvline(record.layer, color=MUTED, linewidth=0.9, linestyle=":")
        axes.set_xlabel("input of block")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
        axes.tick_params(length=0)
        axes.grid(axis="y")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, borderaxespad=0)
    return figure


def _line(axes: Any, layers: Sequence[int], values: Sequence[Separation], colour: str, marker: str, name: str) -> None:
    lows, highs = [each.low for each in values], [each.high for each in values]
    axes.fill_between(layers, lows, highs, color=colour, alpha=0.18, linewidth=0)
    axes.plot(layers, [each.auroc for each in values], color=colour, marker=marker, markersize=4, label=name)
