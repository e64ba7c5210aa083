"""Train, validation and test by content: a prompt's split depends on its own hash and on nothing else."""

import math
from collections.abc import Mapping
from dataclasses import replace

from demur.errors import PromptError
from demur.prompts._prompts import SPLITS, Prompt, PromptSet
from demur.types import Split

_HEX_DIGITS = 13
"""52 bits of the hash: as many as a float between 0 and 1 holds exactly."""

_SUM_TOLERANCE = 1e-6
"""How far the fractions may be from 1 in sum: typed decimals and thirds round, mistakes are larger."""

_SPREAD = 2.0
"""Standard deviations of a split's size that the suggested number of prompts allows for: 19 of 20 sets suffice."""


def assign_splits(
    prompts: PromptSet,
    *,
    fractions: tuple[float, float, float] = (0.25, 0.25, 0.5),
    counts: Mapping[Split, int] | None = None,
    minimum: Mapping[Split, int],
) -> PromptSet:
    """Give each prompt its split.

    The splits of a `split` column stay as they are. Without one, a prompt goes where its sha256, read as a number
    between 0 and 1, falls among the cumulated fractions; so adding prompts never moves another one to a different
    split.

    Args:
        prompts: the set, with all splits given or none.
        fractions: shares of train, validation and test, with sum 1; not used where the splits are given.
        counts: the most prompts that a split keeps, where it is limited; those with the smallest hashes stay.
        minimum: the fewest prompts that each split needs; a split that is not named needs none.

    Returns:
        A new set, in the order of the old one, without the prompts that `counts` left out.

    Raises:
        PromptError: some prompts have a split and others not, a split is too small, or an argument makes no sense.
    """
    limits = dict(counts or {})
    _check_fractions(fractions)
    _check_numbers(limits, minimum)
    given = [prompt for prompt in prompts.prompts if prompt.split is not None]
    if given and len(given) < len(prompts):
        raise PromptError(
            f"{prompts.source}: {len(given)} of {len(prompts)} {prompts.label} prompts have a split and the others "
            "have none. Give every prompt a split, or none."
        )
    assigned = given or [replace(prompt, split=_split_of(prompt, fractions)) for prompt in prompts.prompts]
    kept = _limited(assigned, limits)
    result = PromptSet(prompts.label, prompts.source, tuple(kept))
    check_sizes(result, minimum, None if given else fractions, total=len(prompts))
    return result


def _split_of(prompt: Prompt, fractions: tuple[float, float, float]) -> Split:
    number = int(prompt.sha256[:_HEX_DIGITS], 16) / 16**_HEX_DIGITS
    cumulated = 0.0
    chosen: Split = SPLITS[0]
    for name, fraction in zip(SPLITS, fractions, strict=True):
        if fraction > 0:  # an empty split stays empty, also where the sum rounds to just below 1
            chosen = name
            cumulated += fraction
            if number < cumulated:
                break
    return chosen


def _limited(prompts: list[Prompt], limits: Mapping[Split, int]) -> list[Prompt]:
    dropped: set[str] = set()
    for name, limit in limits.items():
        dropped.update(sorted(prompt.sha256 for prompt in prompts if prompt.split == name)[limit:])
    return [prompt for prompt in prompts if prompt.sha256 not in dropped]


def _check_fractions(fractions: tuple[float, float, float]) -> None:
    usable = len(fractions) == len(SPLITS) and all(math.isfinite(share) and share >= 0 for share in fractions)
    if not usable or abs(math.fsum(fractions) - 1) > _SUM_TOLERANCE:
        raise PromptError(
            f"the fractions {fractions} are not shares of train, validation and test: give three numbers from 0 to 1 "
            "whose sum is 1, for example (0.25, 0.25, 0.5)."
        )


def _check_numbers(limits: Mapping[Split, int], minimum: Mapping[Split, int]) -> None:
    for title, numbers in (("counts", limits), ("minimum", minimum)):
        for name, number in numbers.items():
            if name not in SPLITS:
                raise PromptError(f"{title} names the split {name!r}; the splits are {', '.join(SPLITS)}.")
            if number < 0:
                raise PromptError(f"{title} of {name} is {number}; give 0 or more prompts.")
    for name, limit in limits.items():
        if limit < minimum.get(name, 0):
            raise PromptError(
                f"counts keeps at most {limit} {name} prompts, and at least {minimum[name]} are needed. "
                f"Give {minimum[name]} or more."
            )


def check_sizes(
    prompts: PromptSet, minimum: Mapping[Split, int], fractions: tuple[float, float, float] | None, *, total: int
) -> None:
    """Refuse a set with a split that is too small.

    Args:
        prompts: the set, with splits.
        minimum: the fewest prompts that each split needs.
        fractions: those by which the splits were made; None where the source named them.
        total: prompts before any were left out.

    Raises:
        PromptError: with the splits that are too small, and how many prompts to supply.
    """
    sizes = {name: sum(prompt.split == name for prompt in prompts.prompts) for name in SPLITS}
    short = [name for name in SPLITS if sizes[name] < minimum.get(name, 0)]
    if not short:
        return
    found = " and ".join(f"{sizes[name]} in {name}, where at least {minimum[name]} are needed" for name in short)
    raise PromptError(
        f"{prompts.source}: too few {prompts.label} prompts: {found}. {_remedy(short, minimum, fractions, total)}"
    )


def _remedy(
    short: list[Split], minimum: Mapping[Split, int], fractions: tuple[float, float, float] | None, total: int
) -> str:
    if fractions is None:
        return "The file names the splits: add rows with these splits, or leave its split column out."
    shares = dict(zip(SPLITS, fractions, strict=True))
    empty = [name for name in short if shares[name] == 0]
    if empty:
        return f"The fraction of {' and '.join(empty)} is 0: give it a share."
    needed = max(
        math.ceil((count + _SPREAD * math.sqrt(count)) / shares[name])
        for name, count in minimum.items()
        if count and shares[name]
    )
    return (
        f"There are {total} in all; supply about {max(needed, total + 1)}, "
        "or name the splits yourself in a column `split`."
    )
