"""What a judge is: something with a name and a version that gives a verdict on each completion."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from demur.types import Verdict


@dataclass(frozen=True)
class Judgement:
    """What a judge says of one completion."""

    verdict: Verdict
    """`unjudged` where the judge cannot tell, such as for an empty answer or one in a language it does not know."""
    score: float
    """Degree of refusal from 0 (plainly answers) to 1 (plainly refuses); 0.5 where nothing was judged."""
    degenerate: bool
    """The text is empty, repetitive or garbled; independent of the verdict."""
    harm: float | None = None
    """Probability that the answer is harmful, from 0 to 1; None where the judge says nothing about harm. Refusal and
    harm are different questions: an answer may neither refuse nor help."""


class Judge(Protocol):
    """Gives verdicts. `id` and `version` are part of every cache key, so a changed judge needs a new version."""

    @property
    def id(self) -> str:
        """Name of the judge, such as `phrase`."""

    @property
    def version(self) -> str:
        """Version of its rules, lists or weights."""

    def judge_batch(self, pairs: Sequence[tuple[str, str]]) -> list[Judgement]:
        """Judge (prompt, completion) pairs; one judgement for each, in their order."""


@runtime_checkable
class SettlingJudge(Judge, Protocol):
    """A judge that knows when to stop reading."""

    def settled(self, prompt: str, completion_so_far: str) -> bool:
        """Whether nothing that may follow can change if the answer is refused (fully or partly) or not.

        A later `unjudged` would be a change. What may follow is any text without marks of thinking or of channels
        (`</think>`): those turn all that was said before into something else, and whoever asks rules them out.
        """
