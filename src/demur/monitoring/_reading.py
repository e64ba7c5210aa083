"""What was read of one row: projections before the answer and along it, scores, flags."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from demur.records import MonitorFlag, MonitorScore


class Flag(NamedTuple):
    """A score that lies beyond its threshold."""

    name: MonitorFlag
    score: float
    threshold: float


@dataclass(frozen=True)
class Reading:
    """One row of a batch: one prompt, and its answer as far as it was read."""

    prompt: Mapping[str, float]
    """By probe: the reading before the answer. Plain inner products; of harm probes the peak over the instruction."""
    answer: Mapping[str, Tensor]
    """By probe: the projection of each token after the prompt that the model has read, [tokens], float64."""
    tokens: tuple[int, ...]
    """Those tokens, up to the first end token. The last one that was sampled is read with the next."""
    rendered: bool
    """Whether the row holds a prompt as the chat template renders it; if not, the scores are NaN."""
    scores: Mapping[MonitorScore, float]
    """Standardised: 0 is the mean of harmless prompts, 1 that of harmful ones; suppression is harm minus refusal."""
    raised: tuple[Flag, ...]

    def flags(self) -> tuple[Flag, ...]:
        """The flags of this row, empty where nothing is the matter.

        `unreadable` (a projection is not a number, or the row is no rendered prompt) comes alone: treat it as an alarm.
        """
        return self.raised

    def windowed(self, probe: str, width: int = 8) -> Tensor:
        """Mean projection over each `width` tokens of the answer that stand together, [tokens - width + 1], float64.

        Single tokens are noisy; an answer that is shorter has one value, its mean, and an empty one none.
        """
        values = self.answer[probe]
        return values.unfold(0, min(width, len(values)), 1).mean(-1) if len(values) else values


class Place(NamedTuple):
    """Where the parts of a row lie, as indices of its real tokens."""

    start: int
    """First token of the instruction."""
    end: int
    """Just after the last token of the prompt."""
    rendered: bool


def locate(tokens: Sequence[int], opening: Sequence[int], closing: Sequence[int], *, first: int) -> Place:
    """Find the instruction and the end of the prompt in the tokens of a row.

    The prompt ends where the template's last closing ends; what follows (a forced opening, an answer) is no part.

    Args:
        tokens: the row without padding.
        opening: with which all renderings begin.
        closing: with which all renderings end.
        first: tokens of the first pass: the end of a row without closing.
    """
    start = 0
    while start < min(len(opening), len(tokens)) and tokens[start] == opening[start]:
        start += 1
    closing = list(closing)
    for end in range(len(tokens), len(closing) - 1, -1):
        if list(tokens[end - len(closing) : end]) == closing:
            return Place(start, end, rendered=True)
    return Place(start, first, rendered=False)


def value_at(values: Tensor, place: Place, position: int) -> float:
    """The value at a position from the end of the prompt; NaN where the row is too short."""
    index = place.end + position
    return float(values[index]) if index >= 0 else float("nan")


def peak(values: Tensor, place: Place, position: int) -> float:
    """The largest value over the instruction, up to a position from the end of the prompt; NaN if one is, or of none.

    In a causal model no text that follows can lower it: what stands before is read as it was.
    """
    inside = values[place.start : max(place.end + position + 1, 0)]
    return float(torch.max(inside)) if len(inside) else float("nan")
