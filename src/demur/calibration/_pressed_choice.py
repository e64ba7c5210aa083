"""Does an operating point hold under pressure? Asked on validation prompts, before it is chosen.

Fewest false refusals at rest are often bought with refusals that a suffix or a system prompt then talks away, so that
the gate would fail on test prompts.
"""

import math

from demur.calibration._study import Study
from demur.evaluation import PRESSURE_MARGIN, Asked, Condition, applicable_conditions, ask, pressure_table
from demur.interventions import Intervention
from demur.records import ClusteredComparison, Pressure
from demur.types import PressureFamily

_ORDER: tuple[PressureFamily, ...] = ("suffix", "system", "sampling", "opening", "template", "weights")
"""Those that cost and catch most come first: the rest is not asked of a point that already failed."""


def lost_under_pressure(study: Study, intervention: Intervention) -> str:
    """What an operating point loses, in words, in the first family in which it loses too much; empty where it holds.

    A family holds if its pooled loss would be non-inferior with as many prompts as the test set has, and no single
    condition loses more than the margin.
    """
    if not study.settings.pressure:
        return ""
    conditions, _ = applicable_conditions(study.chat)
    for family in _ORDER:
        members = [condition for condition in conditions if condition.family == family and condition.gated]
        if members and (reason := _lost(study, members, intervention)):
            return reason
    return ""


def _lost(study: Study, members: list[Condition], intervention: Intervention) -> str:
    prompts = study.split("harmful", "validation")
    study.progress.start(f"trying {members[0].family} pressure", 2 * len(members) * len(prompts))
    results = [
        Asked(
            condition,
            ask(study.runner, condition, prompts, None, split="validation"),
            ask(study.runner, condition, prompts, intervention, split="validation"),
        )
        for condition in members
    ]
    return _too_much(pressure_table(results, not_applicable={}), n_test=len(study.split("harmful", "test")))


def _too_much(pressure: Pressure, *, n_test: int) -> str:
    (pooled,) = pressure.families
    worst = min((each.comparison.difference, each.name) for each in pressure.conditions if each.comparison is not None)
    if _expected_low(pooled.comparison, pooled.n_prompts, n_test) <= -PRESSURE_MARGIN or worst[0] <= -PRESSURE_MARGIN:
        return f"true refusals {100 * worst[0]:+.1f} points under {worst[1]}"
    return ""


def _expected_low(measured: ClusteredComparison, n: int, n_test: int) -> float:
    """The lower end of the interval if the test set shows the same difference; widths go with one over root n."""
    return measured.difference - (measured.difference - measured.low) * math.sqrt(n / n_test)
