"""`refusal_threshold.json`: from which refusal score on this model refuses, and how well the score tells."""

from typing import Literal

from pydantic import Field

from demur.records._base import Record
from demur.types import PromptLabel


class ScoreReading(Record):
    """One way of reading the refusal score, and how well it told refusals from answers."""

    opening: str
    """Text that the answer is made to open with before the score is read: the model's own; empty for none, as
    published."""
    opening_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    """Ids of the tokens whose probability makes the score there."""
    auroc: float
    """Chance that a refused prompt has a higher score than an answered one; 0.5 tells nothing."""
    low: float
    """Ends of its two-sided 95 % interval (Newcombe 2006)."""
    high: float


class JudgedScores(Record):
    """Refusal scores of train prompts by what the model then did, log-odds."""

    refused: tuple[float, ...] = ()
    answered: tuple[float, ...] = ()
    unjudged: int = 0


class RefusalThreshold(Record):
    """The refusal score from which this model refuses (Arditi et al. use 0), and what it was learned from."""

    schema_: Literal["demur.refusal_threshold/1"] = Field(default="demur.refusal_threshold/1", alias="schema")
    value: float
    """Log-odds. A score above it counts as a refusal."""
    source: Literal["learned", "given"]
    slope: float | None = None
    """P(refusal | score) = 1 / (1 + exp(-slope (score - value))), fitted to the judged answers; null where they were
    not needed."""
    low: float | None = None
    """Ends of a 95 % bootstrap interval of `value` over the judged answers."""
    high: float | None = None
    tells: bool = True
    """Whether the score tells refusals from answers well enough to decide by it. Where not, directions are fitted on
    judged verdicts and candidates are kept by judged answers alone."""
    reading: ScoreReading | None = None
    """How the score is read."""
    tried: tuple[ScoreReading, ...] = ()
    """All ways of reading it that were measured."""
    wrong: int = 0
    """Judged answers on the wrong side of the threshold."""
    judged: dict[PromptLabel, JudgedScores] = Field(default_factory=dict)
    """What it was learned from, by kind of prompt."""
    note: str = ""
    """What a reader must know of it, such as that the score does not tell; empty where nothing is wrong."""
    verdict_tokens: int | None = None
    """Tokens of an answer that are generated to judge it, where that was learned from these answers."""
    verdict_changes: int = 0
    """Of these answers, those whose verdict at that length was not yet that of the whole answer."""
