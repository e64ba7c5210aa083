"""The shipped toy chat model: small, trained from scratch, really refuses and really over-refuses."""

from importlib.resources import files
from typing import TYPE_CHECKING

from demur.models import ChatModel, load_chat_model
from demur.prompts import PromptSet, load_prompt_sets
from demur.types import PromptLabel

if TYPE_CHECKING:
    from demur.calibration import CalibrationSettings

TOY_MODEL = str(files("demur.testing") / "toy_chat")
"""Folder of the toy model; give it wherever a model folder is expected."""


def load_toy_chat_model(*, dtype: str = "auto") -> ChatModel:
    """Load the toy model on the CPU."""
    return load_chat_model(TOY_MODEL, dtype=dtype, device="cpu")


def toy_prompts(label: PromptLabel) -> str:
    """Path of the toy model's prompts of one class: JSON Lines with prompt, split, category and, for some, answer."""
    return str(files("demur.testing") / "prompts" / f"{label}.jsonl")


def toy_prompt_sets() -> dict[PromptLabel, PromptSet]:
    """The toy model's prompts, loaded, split and checked for copies.

    Near copies are not looked for: the toy's language has a few hundred words and some tens of templates, so prompts
    of different splits are alike by nature.
    """
    return load_prompt_sets(
        harmful=toy_prompts("harmful"),
        harmless=toy_prompts("harmless"),
        borderline=toy_prompts("borderline"),
        near_duplicates=None,
    )


def toy_settings() -> "CalibrationSettings":
    """Settings that suit the toy: its answers are short, so the token limit can be small."""
    from demur.calibration import CalibrationSettings  # noqa: PLC0415 (the model alone should load without it)

    # Sets of 160 and 480 prompts then fall into even numbers of batches, half of them for each of two processes.
    return CalibrationSettings(max_new_tokens=32, batch_size=80, n_pressed=0, n_pressure=0)
