"""What is said of results on the prompts that ship with demur."""

from collections.abc import Mapping

from demur.prompts import PromptSet
from demur.types import PromptLabel

_SHIPPED = "demur:"


def first_look_warnings(prompts: Mapping[PromptLabel, PromptSet]) -> list[str]:
    """A sentence where some of the sets ship with demur; they are no evidence for a claim."""
    shipped = [prompt_set.source for prompt_set in prompts.values() if prompt_set.source.startswith(_SHIPPED)]
    if not shipped:
        return []
    return [
        f"This is a first look: {', '.join(shipped)} ship with demur. They were written by one author, validated by "
        "no annotators, and are neither adversarial nor a benchmark. Before a claim or a release, measure with prompts "
        "of your own or published ones (demur prompts list)."
    ]
