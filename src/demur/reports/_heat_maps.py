"""The three scores of every candidate, layer by position."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from demur.records import Candidates, CandidateScores
from demur.reports._format import number, token
from demur.reports._svg import CARD, INK, MARK, MUTED, ON_BETTER, ON_WORSE, SHADES

_SMALLEST_KL = 1e-4
"""Below this, KL is colour of nothing: smaller differences are noise of the number format."""

_LARGEST_FOR_NUMBERS = 12
"""With more layers than this the cells are too narrow for numbers; tooltips have them."""


@dataclass(frozen=True)
class _Panel:
    name: str
    title: str
    read: Callable[[CandidateScores], float | None]
    high_is_good: bool
    logarithmic: bool = False

    def score(self, one: CandidateScores) -> float:
        """The score of a candidate that has one."""
        value = self.read(one)
        if value is None:
            raise ValueError("this candidate has no score")
        return value


_PANELS = (
    _Panel("bypass", "Bypass score (log-odds; lower is better)", lambda one: one.bypass_score, high_is_good=False),
    _Panel("induce", "Induce score (log-odds; higher is better)", lambda one: one.induce_score, high_is_good=True),
    _Panel("kl", "KL (nats; lower is better)", lambda one: one.kl_score, high_is_good=False, logarithmic=True),
)


def cell_titles(candidates: Candidates) -> dict[str, str]:
    """The tooltip of every cell."""
    texts = _position_texts(candidates)
    titles = {}
    for panel in _PANELS:
        for one in candidates.refusal:
            state = "selected" if one.selected else f"rejected: {', '.join(one.rejected_by)}" if one.rejected_by else ""
            where = f"layer {one.layer}, position {one.position} {texts.get(one.position, '')}"
            value = number(panel.score(one)) if _has_score(one, panel) else _why_none(one)
            titles[_cell_id(panel, one)] = f"{where}: {panel.name} {value}{f', {state}' if state else ''}"
    return titles


def paint_heat_maps(candidates: Candidates) -> Figure:
    """One panel per score, with a scale of its own."""
    positions = sorted({*candidates.positions, *(one.position for one in candidates.refusal)})
    height = 0.29 * len(positions)
    total = len(_PANELS) * (height + 0.42) + 0.75
    figure = Figure(figsize=(9.6, total))
    for number_, panel in enumerate(_PANELS):
        bottom = total - (number_ + 1) * (height + 0.42) + 0.12
        axes = figure.add_axes((0.165, bottom / total, 0.72, height / total))
        scale = figure.add_axes((0.905, bottom / total, 0.012, height / total))
        _paint_panel(axes, scale, candidates, positions, panel)
        axes.tick_params(labelbottom=panel is _PANELS[-1])
    axes.set_xlabel("layer")
    figure.legend(
        handles=[
            Patch(facecolor="none", edgecolor=MARK, linewidth=2, label="selected"),
            Patch(
                facecolor="none",
                edgecolor=MUTED,
                linewidth=0.4,
                hatch="////",
                label="rejected by a filter, or not measured",
            ),
        ],
        loc="lower right",
        bbox_to_anchor=(0.885, 0),
        ncols=2,
        borderaxespad=0,
    )
    return figure


def _paint_panel(axes: Any, scale: Any, candidates: Candidates, positions: Sequence[int], panel: _Panel) -> None:
    norm, colours = _norm(candidates.refusal, panel), _colours(high_is_good=panel.high_is_good)
    for one in candidates.refusal:
        _paint_cell(axes, one, positions.index(one.position), panel, norm, colours)
    if candidates.n_layers <= _LARGEST_FOR_NUMBERS:
        for one in candidates.refusal:
            _print_value(axes, one, positions.index(one.position), panel, norm, colours)
    texts = _position_texts(candidates)
    axes.set_title(panel.title)
    axes.set_xlim(-0.5, candidates.n_layers - 0.5)
    axes.set_ylim(len(positions) - 0.5, -0.5)
    axes.set_yticks(range(len(positions)), [f"{position} {texts.get(position, '')}" for position in positions])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=20, integer=True, min_n_ticks=1))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = axes.figure.colorbar(ScalarMappable(norm=norm, cmap=colours), cax=scale)
    bar.outline.set_visible(False)
    bar.solids.set_edgecolor("face")  # else the page shows through between the shades
    bar.locator = LogLocator(subs=(1, 3), numticks=6) if panel.logarithmic else MaxNLocator(4)
    bar.formatter = FuncFormatter(_plain)
    bar.update_ticks()
    scale.tick_params(length=0, labelsize=7.5)
    scale.minorticks_off()


def _paint_cell(
    axes: Any, one: CandidateScores, row: int, panel: _Panel, norm: Normalize, colours: ListedColormap
) -> None:
    scored = _has_score(one, panel)
    colour = colours(norm(panel.score(one))) if scored else CARD
    corner = (one.layer - 0.5, row - 0.5)
    faded = bool(one.rejected_by) or not scored
    axes.add_patch(
        Rectangle(
            corner,
            1,
            1,
            facecolor=colour,
            edgecolor=CARD,
            linewidth=1,
            alpha=0.25 if faded else 1,
            gid=_cell_id(panel, one),
        )
    )
    if faded:
        axes.add_patch(
            Rectangle(corner, 1, 1, facecolor="none", edgecolor=MUTED, linewidth=0, hatch="////", alpha=0.55)
        )
    if one.selected:
        axes.add_patch(
            Rectangle(
                corner,
                1,
                1,
                facecolor="none",
                edgecolor=MARK,
                linewidth=2.6,
                zorder=5,
                clip_on=False,
                gid=f"selected-{panel.name}",
            )
        )


def _print_value(
    axes: Any, one: CandidateScores, row: int, panel: _Panel, norm: Normalize, colours: ListedColormap
) -> None:
    if not _has_score(one, panel):
        return
    value = panel.score(one)
    better = SHADES.index(to_hex(colours(norm(value)))) >= len(SHADES) // 2
    colour = INK if one.rejected_by else ON_BETTER if better else ON_WORSE
    weight = "bold" if one.selected else "normal"
    axes.text(
        one.layer,
        row,
        _in_cell(value, panel),
        ha="center",
        va="center",
        fontsize=7.5,
        color=colour,
        weight=weight,
        zorder=6,
    )


def _in_cell(value: float, panel: _Panel) -> str:
    """KL is small wherever it matters, so it is shown with two significant digits instead of two decimals."""
    return f"{value:.2g}" if panel.logarithmic else number(value, 2)


def _norm(scores: Sequence[CandidateScores], panel: _Panel) -> Normalize:
    values = [panel.score(one) for one in scores if _has_score(one, panel)] or [0.0, 1.0]
    low, high = min(values), max(values)
    if panel.logarithmic:
        low = max(low, _SMALLEST_KL)
        return LogNorm(low, max(high, 2 * low), clip=True)
    return Normalize(low, high if high > low else low + 1)


def _colours(*, high_is_good: bool) -> ListedColormap:
    return ListedColormap(SHADES if high_is_good else SHADES[::-1])


def _plain(value: float, _: int) -> str:
    """Matplotlib's own format of powers of ten is mathematics, which is switched off here."""
    return f"{value:g}"


def _has_score(one: CandidateScores, panel: _Panel) -> bool:
    return "nan" not in one.rejected_by and panel.read(one) is not None


def _why_none(one: CandidateScores) -> str:
    return "not a number" if "nan" in one.rejected_by else "not measured, as it was decided without"


def _position_texts(candidates: Candidates) -> dict[int, str]:
    return {
        position: token(text, longest=18)
        for position, text in zip(candidates.positions, candidates.position_texts, strict=False)
    }


def _cell_id(panel: _Panel, one: CandidateScores) -> str:
    return f"cell-{panel.name}-{one.layer}-{one.position}"
