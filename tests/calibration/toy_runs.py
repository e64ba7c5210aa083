"""Small calibrations of the toy model: fewer prompts and wide limits, so that they are quick and always finish.

What is tested with them is how a calibration works, not how well the toy does.
"""

from dataclasses import dataclass
from pathlib import Path

from demur.calibration import CalibrationSettings
from demur.models import ChatModel
from demur.prompts import PromptSet, assign_splits
from demur.records import Summary
from demur.testing import toy_prompt_sets

SMALL = CalibrationSettings(
    n_train=64,
    n_scored=8,
    n_validation=24,
    n_mechanism=8,
    max_new_tokens=24,
    batch_size=64,
    lambdas=(1.0, 0.8, 0.7),
    margin=0.05,
    kl_limit=2.0,
    false_refusal_kl_limit=1.0,
    gate_kl_limit=1.0,
    induce_minimum=-15.0,
    pressure=False,
)


def small_sets(*, train: int = 64, validation: int = 24, test: int = 100) -> dict[str, PromptSet]:
    counts = {"train": train, "validation": validation, "test": test}
    return {
        label: assign_splits(prompts, counts=counts, minimum=counts) for label, prompts in toy_prompt_sets().items()
    }


@dataclass
class ToyRun:
    """One finished calibration, with everything that tests look at."""

    chat: ChatModel
    prompts: dict[str, PromptSet]
    settings: CalibrationSettings
    folder: Path
    summary: Summary
    parameters_before: dict
