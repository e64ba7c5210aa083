"""Prompt sets: loading them from files and the Hub, their splits, and the checks against leakage."""

from demur.prompts._leakage import check_disjoint
from demur.prompts._loading import load_prompts
from demur.prompts._prompts import Prompt, PromptSet
from demur.prompts._sets import load_prompt_sets
from demur.prompts._splits import assign_splits

__all__ = ["Prompt", "PromptSet", "assign_splits", "check_disjoint", "load_prompt_sets", "load_prompts"]
