"""The shipped toy chat model: small, trained from scratch, really refuses and really over-refuses."""

from importlib.resources import files

from demur.models import ChatModel, load_chat_model
from demur.types import PromptLabel

TOY_MODEL = str(files("demur.testing") / "toy_chat")
"""Folder of the toy model; give it wherever a model folder is expected."""


def load_toy_chat_model(*, dtype: str = "auto") -> ChatModel:
    """Load the toy model on the CPU."""
    return load_chat_model(TOY_MODEL, dtype=dtype, device="cpu")


def toy_prompts(label: PromptLabel) -> str:
    """Path of the toy model's prompts of one class: JSON Lines with prompt, split, category and, for some, answer."""
    return str(files("demur.testing") / "prompts" / f"{label}.jsonl")
