"""The same prompt, or nearly the same, in two places: in a set, across splits, across sets. Never quotes harmful text.

What is refused: a repeat within a set; a prompt in two sets, because it cannot be harmful and harmless; a copy or a
near copy of a prompt in a later split of its set, because a direction fitted on one would be tested on the other. Near
copies between *labels* are counted and never refused: a borderline prompt and its harmful contrast may be alike on
purpose.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

from demur.errors import PromptError
from demur.prompts._prompts import SPLITS, Prompt, PromptSet, shown
from demur.prompts._similarity import NEAR_DUPLICATE, check_threshold, nearest
from demur.records import LeakageExample, LeakagePair, LeakageReport
from demur.types import Split

_LISTED = 3
_EXAMPLES = 5
_SAME = 1.0


class _Match(NamedTuple):
    """A prompt of the later side and the one of the earlier side that it repeats."""

    first: Prompt
    second: Prompt
    similarity: float
    exact: bool


class _Side(NamedTuple):
    """A whole set, or one split of it."""

    prompts: PromptSet
    split: Split | None

    def members(self) -> tuple[Prompt, ...]:
        return self.prompts.prompts if self.split is None else self.prompts.split(self.split)


def check_repeats(prompts: PromptSet) -> None:
    """Refuse a set that holds a prompt twice; letter case, punctuation and whitespace do not count.

    Raises:
        PromptError: with the rows of the first repeats, and how many there are.
    """
    seen: dict[str, Prompt] = {}
    repeats = []
    for prompt in prompts.prompts:
        first = seen.setdefault(prompt.comparison_text, prompt)
        if first is not prompt:
            repeats.append((first, prompt))
    if repeats:
        listed = _list(f"{_place(first)} and {_place(second)} ({shown(first)})" for first, second in repeats)
        raise PromptError(
            f"{prompts.source}: {_count(len(repeats), 'repeated')} in the {prompts.label} set: {listed}. "
            'Keep one row of each, or let demur keep the first (repeats="drop", --repeats drop).'
        )


def drop_repeats(prompts: PromptSet) -> PromptSet:
    """The set with the first of the prompts that `check_repeats` calls equal."""
    first: dict[str, Prompt] = {}
    for prompt in prompts.prompts:
        first.setdefault(prompt.comparison_text, prompt)
    return PromptSet(prompts.label, prompts.source, tuple(first.values()))


def check_disjoint(sets: Sequence[PromptSet]) -> None:
    """Refuse sets that share a prompt: what is harmful in one cannot be harmless in another.

    Two prompts are the same when their texts are equal after NFKC, case folding and the removal of punctuation. No
    text is shown where either set is harmful.

    Args:
        sets: the sets of one run, each without repeats of its own.

    Raises:
        PromptError: with both sets, the rows of the first shared prompts, and how many there are.
    """
    for one, other in combinations(sets, 2):
        shared = _matches(_Side(one, None), _Side(other, None), None)
        if not shared:
            continue
        private = "harmful" in {one.label, other.label}
        listed = _list(
            f"{_place(match.first)} of {one.source} and {_place(match.second)} of {other.source} "
            f"({shown(match.first, private=private)})"
            for match in shared
        )
        raise PromptError(
            f"{_count(len(shared), 'shared')} by the {one.label} set and the {other.label} set: {listed}. "
            "Keep each prompt in one set only."
        )


def find_leakage(sets: Iterable[PromptSet], *, threshold: float | None = NEAR_DUPLICATE) -> LeakageReport:
    """Compare the splits of each set, and every set with every other; refuse nothing.

    Args:
        sets: the sets, with splits or without (then only whole sets are compared).
        threshold: Jaccard similarity of character trigrams from which prompts are near duplicates; None finds only
            copies.

    Raises:
        PromptError: the threshold is not above 0 and at most 1, or a set has splits in some rows only.
    """
    check_threshold(threshold)
    every = list(sets)
    pairs = [(left, right) for one in every for left, right in _split_pairs(one)]
    pairs += [(_Side(one, None), _Side(other, None)) for one, other in combinations(every, 2)]
    return LeakageReport(threshold=threshold, pairs=tuple(_pair(left, right, threshold) for left, right in pairs))


def refused_pairs(report: LeakageReport) -> list[LeakagePair]:
    """The pairs that a calibration refuses: copies or near copies across splits, copies across labels."""
    return [
        pair
        for pair in report.pairs
        if (pair.kind == "splits" and (pair.exact or pair.near)) or (pair.kind == "labels" and pair.exact)
    ]


def check_splits(prompts: PromptSet, threshold: float | None) -> None:
    """Refuse a set whose later splits hold copies or near copies of earlier ones.

    Raises:
        PromptError: with the numbers, the rows of the first ones, and the remedies.
    """
    check_threshold(threshold)
    found = [(left, right, _matches(left, right, threshold)) for left, right in _split_pairs(prompts)]
    listed = [
        f"{left.split} {_place(match.first)} and {right.split} {_place(match.second)} "
        f"({shown(match.second)}, similarity {match.similarity:.2f})"
        for left, right, matches in found
        for match in matches
    ]
    if not listed:
        return
    counts = ", ".join(
        f"{left.split} and {right.split} share {_copies(matches)}" for left, right, matches in found if matches
    )
    near = any(not match.exact for _, _, matches in found for match in matches)
    wider = " or raise or end the search for near ones (near_duplicates=, --near-duplicates 0.7 or off)" if near else ""
    raise PromptError(
        f"{prompts.source}: the splits of the {prompts.label} set leak: {counts}: {_list(listed)}. Drop them from the "
        f'later split with leakage="drop" (--leakage drop), delete the rows,{wider or " or put them in one split"}.'
    )


def drop_leaks(prompts: PromptSet, threshold: float | None) -> PromptSet:
    """The set without those prompts of a later split that an earlier one holds a copy or a near copy of.

    The earlier split keeps its copy: what a direction was fitted or chosen on is then never tested on.
    """
    check_threshold(threshold)
    kept: dict[Split, PromptSet] = {}
    gone: set[str] = set()
    for name in SPLITS:
        side = PromptSet(prompts.label, prompts.source, prompts.split(name))
        for earlier in kept.values():
            gone.update(match.second.sha256 for match in _matches(_Side(earlier, None), _Side(side, None), threshold))
        left_over = tuple(prompt for prompt in side.prompts if prompt.sha256 not in gone)
        kept[name] = PromptSet(prompts.label, prompts.source, left_over)
    chosen = {prompt.sha256 for one in kept.values() for prompt in one.prompts}
    return PromptSet(prompts.label, prompts.source, tuple(one for one in prompts.prompts if one.sha256 in chosen))


def _split_pairs(prompts: PromptSet) -> Iterator[tuple[_Side, _Side]]:
    """Every earlier split with every later one; nothing where no prompt has a split."""
    if any(prompt.split is not None for prompt in prompts.prompts):
        for one, other in combinations(SPLITS, 2):
            yield _Side(prompts, one), _Side(prompts, other)


def _matches(left: _Side, right: _Side, threshold: float | None) -> list[_Match]:
    """For each prompt of the right that repeats one of the left, the closest one; copies come first."""
    known: dict[str, Prompt] = {}
    for prompt in left.members():
        known.setdefault(prompt.comparison_text, prompt)
    members = right.members()
    exact = [
        _Match(known[one.comparison_text], one, _SAME, exact=True) for one in members if one.comparison_text in known
    ]
    if threshold is None:
        return exact
    others = [prompt for prompt in members if prompt.comparison_text not in known]
    texts = list(known)
    near = nearest(texts, [prompt.comparison_text for prompt in others], threshold)
    return exact + [
        _Match(known[texts[found.index]], prompt, found.similarity, exact=False)
        for prompt, found in zip(others, near, strict=True)
        if found is not None
    ]


def _pair(left: _Side, right: _Side, threshold: float | None) -> LeakagePair:
    matches = _matches(left, right, threshold)
    exact = sum(match.exact for match in matches)
    kind: Literal["splits", "labels", "sets"] = "splits"
    if left.prompts is not right.prompts:
        kind = "sets" if left.prompts.label == right.prompts.label else "labels"
    return LeakagePair(
        kind=kind,
        left=left.prompts.label,
        left_source=left.prompts.source,
        left_split=left.split,
        right=right.prompts.label,
        right_source=right.prompts.source,
        right_split=right.split,
        exact=exact,
        near=None if threshold is None else len(matches) - exact,
        examples=tuple(
            LeakageExample(
                left_row=match.first.where,
                left_sha256=match.first.sha256,
                right_row=match.second.where,
                right_sha256=match.second.sha256,
                similarity=match.similarity,
            )
            for match in matches[:_EXAMPLES]
        ),
    )


def _copies(matches: list[_Match]) -> str:
    exact = sum(match.exact for match in matches)
    near = len(matches) - exact
    parts = [f"{exact} cop{'y' if exact == 1 else 'ies'}"] if exact else []
    parts += [f"{near} near cop{'y' if near == 1 else 'ies'}"] if near else []
    return " and ".join(parts)


def _place(prompt: Prompt) -> str:
    return prompt.where or "a prompt"


def _count(number: int, how: str) -> str:
    return f"{number} prompt{'' if number == 1 else 's'} {how}"


def _list(repeats: Iterable[str]) -> str:
    every = list(repeats)
    more = f"; and {len(every) - _LISTED} more" if len(every) > _LISTED else ""
    return "; ".join(every[:_LISTED]) + more
