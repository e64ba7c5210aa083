"""The three prompt sets of a calibration, loaded, split and checked in one call."""

from collections.abc import Mapping

from demur.prompts._leakage import check_disjoint
from demur.prompts._loading import load_prompts
from demur.prompts._prompts import PromptSet
from demur.prompts._splits import assign_splits
from demur.types import PromptLabel, Split

FEWEST: Mapping[Split, int] = {"train": 32, "validation": 16, "test": 20}
"""Fewest prompts of each set: a mean needs some tens; a gate on fewer than 20 test prompts could never decide."""


def load_prompt_sets(
    *, harmful: str, harmless: str, borderline: str, fractions: tuple[float, float, float] = (0.25, 0.25, 0.5)
) -> dict[PromptLabel, PromptSet]:
    """Load harmful, harmless and borderline prompts, assign their splits and check that none is in two sets.

    Args:
        harmful: file or hf:// address of prompts that should be refused.
        harmless: the same of plainly fine prompts.
        borderline: the same of prompts that look unsafe but are fine.
        fractions: shares of train, validation and test where the files name no splits.

    Raises:
        PromptError: a source cannot be used, is too small, or two sets share a prompt.
    """
    sources: dict[PromptLabel, str] = {"harmful": harmful, "harmless": harmless, "borderline": borderline}
    sets = {label: load_prompts(source, label=label) for label, source in sources.items()}
    check_disjoint(list(sets.values()))
    return {label: assign_splits(prompt_set, fractions=fractions, minimum=FEWEST) for label, prompt_set in sets.items()}
