"""The shipped toy chat model and tiny random models: for our tests and for our users' tests."""

from demur.testing._conformance import Conformance, check_family
from demur.testing._families import WRAPPERS, families
from demur.testing._scope import NOT_SUPPORTED, OUT_OF_SCOPE
from demur.testing._tiny import tiny_chat_model, tiny_model, tiny_tokenizer
from demur.testing._toy import TOY_MODEL, load_toy_chat_model, toy_prompt_sets, toy_prompts, toy_settings

__all__ = [
    "NOT_SUPPORTED",
    "OUT_OF_SCOPE",
    "TOY_MODEL",
    "WRAPPERS",
    "Conformance",
    "check_family",
    "families",
    "load_toy_chat_model",
    "tiny_chat_model",
    "tiny_model",
    "tiny_tokenizer",
    "toy_prompt_sets",
    "toy_prompts",
    "toy_settings",
]
