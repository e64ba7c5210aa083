"""The same prompt twice, within a set or in two of them. Never quotes a harmful prompt."""

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

from demur.errors import PromptError
from demur.prompts._prompts import Prompt, PromptSet, shown

_LISTED = 3


class _Repeat(NamedTuple):
    """Two prompts that are equal once normalised."""

    first: Prompt
    second: Prompt


def check_repeats(prompts: PromptSet) -> None:
    """Refuse a set that holds a prompt twice (letter case counts, the amount of whitespace does not).

    Raises:
        PromptError: with the rows of the first repeats, and how many there are.
    """
    seen: dict[str, Prompt] = {}
    repeats = []
    for prompt in prompts.prompts:
        first = seen.setdefault(prompt.sha256, prompt)
        if first is not prompt:
            repeats.append(_Repeat(first, prompt))
    if repeats:
        listed = _list(
            f"{_place(repeat.first)} and {_place(repeat.second)} ({shown(repeat.first)})" for repeat in repeats
        )
        raise PromptError(
            f"{prompts.source}: {_count(len(repeats), 'repeated')} in the {prompts.label} set: {listed}. "
            "Keep one row of each."
        )


def check_disjoint(sets: Sequence[PromptSet]) -> None:
    """Refuse sets that share a prompt: what is harmful in one cannot be harmless in another.

    Two prompts are the same when their texts are equal after normalisation (NFC, whitespace). No text is shown
    where either set is harmful.

    Args:
        sets: the sets of one run, each without repeats of its own.

    Raises:
        PromptError: with both sets, the rows of the first shared prompts, and how many there are.
    """
    for one, other in combinations(sets, 2):
        known = {prompt.sha256: prompt for prompt in one.prompts}
        shared = [_Repeat(known[prompt.sha256], prompt) for prompt in other.prompts if prompt.sha256 in known]
        if not shared:
            continue
        private = "harmful" in {one.label, other.label}
        listed = _list(
            f"{_place(repeat.first)} of {one.source} and {_place(repeat.second)} of {other.source} "
            f"({shown(repeat.first, private=private)})"
            for repeat in shared
        )
        raise PromptError(
            f"{_count(len(shared), 'shared')} by the {one.label} set and the {other.label} set: {listed}. "
            "Keep each prompt in one set only."
        )


def _place(prompt: Prompt) -> str:
    return prompt.where or "a prompt"


def _count(number: int, how: str) -> str:
    return f"{number} prompt{'' if number == 1 else 's'} {how}"


def _list(repeats: Iterable[str]) -> str:
    every = list(repeats)
    more = f"; and {len(every) - _LISTED} more" if len(every) > _LISTED else ""
    return "; ".join(every[:_LISTED]) + more
