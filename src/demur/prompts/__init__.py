"""Prompt sets: loading them from files, the Hub and a registry, their splits, and the checks against leakage."""

from demur.prompts._known_sets import published_set, published_sets
from demur.prompts._leakage import check_disjoint, find_leakage
from demur.prompts._loading import load_prompts
from demur.prompts._mixes import Mix, Part, named_mix, named_mixes
from demur.prompts._prompts import Prompt, PromptSet
from demur.prompts._published import Condition, PublishedSet, Rows
from demur.prompts._sets import TESTED, check_prompt_sets, leak_in_words, load_prompt_sets
from demur.prompts._similarity import NEAR_DUPLICATE
from demur.prompts._splits import assign_splits

__all__ = [
    "NEAR_DUPLICATE",
    "TESTED",
    "Condition",
    "Mix",
    "Part",
    "Prompt",
    "PromptSet",
    "PublishedSet",
    "Rows",
    "assign_splits",
    "check_disjoint",
    "check_prompt_sets",
    "find_leakage",
    "leak_in_words",
    "load_prompt_sets",
    "load_prompts",
    "named_mix",
    "named_mixes",
    "published_set",
    "published_sets",
]
