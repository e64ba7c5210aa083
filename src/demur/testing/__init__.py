"""The shipped toy chat model and tiny random models: for our tests and for our users' tests.

The pytest plugin is in here too and is loaded by every pytest run, so each name is imported when it is first used.
"""

from typing import TYPE_CHECKING

from demur._lazy import lazy_names

if TYPE_CHECKING:
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

_DOORS = {
    "_conformance": ("Conformance", "check_family"),
    "_families": ("WRAPPERS", "families"),
    "_scope": ("NOT_SUPPORTED", "OUT_OF_SCOPE"),
    "_tiny": ("tiny_chat_model", "tiny_model", "tiny_tokenizer"),
    "_toy": ("TOY_MODEL", "load_toy_chat_model", "toy_prompt_sets", "toy_prompts", "toy_settings"),
}
__getattr__, __dir__ = lazy_names(
    __name__, {name: f"{__name__}.{module}" for module, names in _DOORS.items() for name in names}
)
