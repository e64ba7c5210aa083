"""The figures of a monitor's page: the plane of harm and refusal, and the reading along answers."""

from collections.abc import Sequence
from functools import partial

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from demur.records import AnswerProjection, MonitorEvidence, MonitorPopulation, MonitorRecord
from demur.reports._monitor_page import POPULATIONS
from demur.reports._svg import BORDERLINE, GRID, HARMFUL, HARMLESS, INK, MARK, MUTED
from demur.reports._svg import draw as svg

_WIDTH = 9.6
_DRAWN = 120
"""Dots of a kind: more hide each other, and make the page heavy."""
_STYLES: dict[MonitorPopulation, tuple[str, str]] = {
    "harmless": (HARMLESS, "o"),
    "borderline": (BORDERLINE, "s"),
    "harmful": (HARMFUL, "o"),
    "planted": (INK, "v"),
    "suppressed": (MARK, "^"),
}


def draw(record: MonitorRecord) -> dict[str, str]:
    """All figures that the record allows, as SVG by name."""
    evidence = record.evidence
    if evidence is None:
        return {}
    threshold = next((each.value for each in record.thresholds if each.flag == "suppressed"), None)
    figures = {
        "plane": svg("plane", "Harm against refusal of test prompts", partial(_paint_plane, evidence, threshold)),
    }
    answers = [each for each in evidence.answers if each.mean]
    if answers:
        figures["answers"] = svg("answers", "Refusal along answers", partial(_paint_answers, answers))
    return figures


def _paint_plane(evidence: MonitorEvidence, threshold: float | None) -> Figure:
    figure = Figure(figsize=(_WIDTH, 4.6))
    axes = figure.add_axes((0.07, 0.11, 0.91, 0.85))
    for population, (colour, marker) in _STYLES.items():
        scores = evidence.scores.get(population)
        if scores is None:
            continue
        step = max(1, -(-len(scores["harm"]) // _DRAWN))
        axes.plot(
            scores["refusal"][::step],
            scores["harm"][::step],
            marker,
            color=colour,
            markersize=4.2,
            alpha=0.55,
            markeredgewidth=0,
            label=POPULATIONS[population],
        )
    left, right = axes.get_xlim()
    axes.plot([left, right], [left, right], color=GRID, linewidth=1)
    if threshold is not None:
        axes.plot(
            [left, max(left, 0.5 - threshold), right],
            [max(0.5, left + threshold), max(0.5, left + threshold), right + threshold],
            color=MUTED,
            linewidth=1.2,
            linestyle=(0, (4, 3)),
            gid="suppressed-line",
        )
    axes.set_xlim(left, right)
    axes.set_xlabel("refusal before the answer (0: harmless mean, 1: harmful mean)")
    axes.set_ylabel("harm in the early layers")
    axes.grid()
    axes.tick_params(length=0)
    axes.legend(loc="lower right", handletextpad=0.2)
    return figure


def _paint_answers(answers: Sequence[AnswerProjection]) -> Figure:
    figure = Figure(figsize=(_WIDTH, 2.9))
    axes = figure.add_axes((0.07, 0.16, 0.91, 0.78))
    for each in answers:
        colour, _ = _STYLES[each.population]
        tokens = range(1, len(each.mean) + 1)
        axes.fill_between(tokens, each.low, each.high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(tokens, each.mean, color=colour, linewidth=1.6, label=each.population)
    axes.set_xlabel("generated token")
    axes.set_ylabel("refusal reading")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid()
    axes.tick_params(length=0)
    axes.legend(loc="upper right")
    return figure
