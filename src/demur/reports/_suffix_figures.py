"""The three plots of an analysis of suffixes: cosine over layers, contributions of parts, attention of heads."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from demur.records import Mean, SuffixAnalysis, SuffixGroup
from demur.reports._suffix_page import part_names, strongest
from demur.reports._svg import ACCENT, BORDERLINE, GRID, HARMFUL, HARMLESS, INK, MUTED, draw

_WIDTH = 9.6
_COLOURS = {"harmful": HARMFUL, "random": MUTED, "suffix": BORDERLINE, "harmless": HARMLESS}
_MARKERS = {"harmful": "o", "random": "s", "suffix": "D", "harmless": "v"}
_LABELS = {
    "harmful": "harmful",
    "random": "harmful + random tokens",
    "suffix": "harmful + suffix",
    "harmless": "harmless",
}


def draw_suffixes(record: SuffixAnalysis) -> dict[str, str]:
    """SVG by name, for the page of suffixes and for an audit's."""
    groups = strongest(record)
    figures = {
        "suffix-layers": draw(
            "suffix-layers", "Cosine with the refusal direction over layers", partial(_paint_layers, record, groups)
        ),
        "suffix-parts": draw(
            "suffix-parts", "Contributions of heads and MLPs to the projection", partial(_paint_parts, record, groups)
        ),
    }
    if all(group.attention for group in groups[:3]):
        figures["suffix-attention"] = draw(
            "suffix-attention", "Attention of the top heads on prompt and suffix", partial(_paint_attention, groups[:3])
        )
    return figures


def _paint_layers(record: SuffixAnalysis, groups: Sequence[SuffixGroup]) -> Figure:
    figure = Figure(figsize=(_WIDTH, 3.3))
    axes = figure.add_axes((0.07, 0.15, 0.7, 0.8))
    places = range(len(groups[0].cosine))
    for group in groups:
        colour = _COLOURS[group.role]
        means = [each.mean for each in group.cosine]
        lows, highs = [each.low for each in group.cosine], [each.high for each in group.cosine]
        axes.fill_between(places, lows, highs, color=colour, alpha=0.22, linewidth=0)
        axes.plot(places, means, color=colour, marker=_MARKERS[group.role], markersize=4, label=_LABELS[group.role])
    axes.axvline(record.layer, color=MUTED, linewidth=0.9, linestyle=":")
    axes.axhline(0, color=GRID, linewidth=0.9)
    axes.set_xlabel("input of block (the last point: after the last block)")
    axes.set_ylabel("cosine with the refusal direction")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))
    axes.tick_params(length=0)
    axes.grid(axis="y")
    figure.legend(loc="upper left", bbox_to_anchor=(0.78, 0.96), borderaxespad=0)
    return figure


def _paint_parts(record: SuffixAnalysis, groups: Sequence[SuffixGroup]) -> Figure:
    names = part_names(record)
    height = 0.34 * len(names) + 0.75
    figure = Figure(figsize=(_WIDTH, height))
    axes = figure.add_axes((0.2, 0.45 / height, 0.56, 1 - 0.55 / height))
    for offset, group in zip((-0.24, -0.08, 0.08, 0.24), groups, strict=True):
        values: tuple[Mean, ...] = (*group.top_heads, *group.writes)
        rows = [row + offset for row in range(len(values))]
        colour = _COLOURS[group.role]
        axes.hlines(
            rows, [each.low for each in values], [each.high for each in values], color=colour, linewidth=2, alpha=0.5
        )
        axes.plot(
            [each.mean for each in values],
            rows,
            _MARKERS[group.role],
            color=colour,
            markersize=4.5,
            label=_LABELS[group.role],
        )
    axes.axvline(0, color=MUTED, linewidth=0.9)
    if record.top_heads and record.writes:
        axes.axhline(len(record.top_heads) - 0.5, color=GRID, linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("contribution to the projection on the refusal direction")
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    figure.legend(loc="upper left", bbox_to_anchor=(0.78, 1 - 0.1 / height), borderaxespad=0)
    return figure


def _paint_attention(groups: Sequence[SuffixGroup]) -> Figure:
    count = len(groups[0].attention)
    height = 0.27 * count + 1.0
    figure = Figure(figsize=(_WIDTH, height))
    names = [f"head {each.block}.{each.head}" for each in groups[0].attention]
    for column, group in enumerate(groups):
        axes = figure.add_axes((0.09 + 0.31 * column, 0.62 / height, 0.26, 1 - 0.95 / height))
        _paint_bars(axes, group)
        axes.set_title(_LABELS[group.role])
        axes.set_yticks(range(count), names if column == 0 else [""] * count)
        axes.set_ylim(count - 0.5, -0.5)
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", bbox_to_anchor=(0.54, 0), ncols=3, borderaxespad=0)
    return figure


def _paint_bars(axes: Any, group: SuffixGroup) -> None:
    rows = range(len(group.attention))
    prompt = [100 * each.instruction.mean for each in group.attention]
    after = [100 * each.suffix.mean for each in group.attention]
    rest = [max(0.0, 100 - one - two) for one, two in zip(prompt, after, strict=True)]
    axes.barh(rows, prompt, color=ACCENT, height=0.68, label="on the prompt")
    axes.barh(rows, after, left=prompt, color=BORDERLINE, height=0.68, label="on what follows it")
    both = [one + two for one, two in zip(prompt, after, strict=True)]
    axes.barh(rows, rest, left=both, color=GRID, height=0.68, label="on the template")
    axes.set_xlim(0, 100)
    axes.set_xticks((0, 50, 100), ("0 %", "50 %", "100 %"), color=INK)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
