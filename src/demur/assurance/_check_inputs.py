"""What the rules of a release gate look at, and what they call it."""

from collections.abc import Sequence
from dataclasses import dataclass

from demur.assurance._check_baseline import ACCURACY
from demur.assurance._check_evidence import Others
from demur.assurance._check_policy import Policy
from demur.assurance._check_rules import worst
from demur.records import Baseline, CheckRule, Summary

RECORDS, COMPARABLE, FLOOR_RULE = "records", "baseline.comparable", "true_refusals_exist"
"""Rules that every policy has, and no waiver covers."""

TITLES = {
    "true_refusal_rate": "True refusals: harmful prompts refused",
    "false_refusal_rate": "False refusals: borderline prompts refused",
    "harmless_refusal_rate": "Harmless prompts refused",
    ACCURACY: "Task accuracy",
    "kl_harmless": "KL from the base model on harmless prompts",
}
COUNTED = {
    "true_refusal_rate": "harmful prompts refused",
    "false_refusal_rate": "borderline prompts refused",
    "harmless_refusal_rate": "harmless prompts refused",
    ACCURACY: "tasks solved",
}


@dataclass(frozen=True)
class Inputs:
    """Everything that rules look at."""

    policy: Policy
    summary: Summary
    now: Baseline
    baseline: Baseline | None
    differences: tuple[str, ...]
    """Why the baseline cannot be compared."""
    bootstrap: bool
    """This run is to become the baseline, so none is missed."""
    others: Others


def members_of(verdicts: Baseline, family: str) -> list[str]:
    """Conditions of pressure of one family, sorted."""
    return sorted(name for name, its in verdicts.families.items() if its == family)


def standing_for(rules: Sequence[CheckRule]) -> CheckRule:
    """The worst of the rules of several conditions, which says that it is."""
    found = worst(rules)
    if len(rules) == 1:
        return found
    return found.model_copy(update={"reason": f"Of {len(rules)} conditions the worst: {found.reason}"})
