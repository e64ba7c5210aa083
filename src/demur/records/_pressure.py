"""True refusals under pressure: the same harmful prompts asked in other ways, before and after."""

from pydantic import Field

from demur.records._base import Record
from demur.records._rates import BeforeAfter, JudgeIdentity, PairedComparison
from demur.records._statistics import ClusteredComparison, ClusteredRate
from demur.types import PressureFamily, PromptLabel


class PressureCondition(Record):
    """True refusals under one condition."""

    name: str
    """Such as `opening-5`."""
    family: PressureFamily
    what: str
    """The condition in words."""
    gated: bool
    """Whether the gate looks at it; a condition in which the model is never served is measured for information."""
    true_refusal_rate: BeforeAfter
    comparison: PairedComparison | None = None
    """null where nothing was applied."""


class PooledDifference(Record):
    """After minus before over the gated conditions of one family, with prompts as clusters."""

    family: PressureFamily
    n_conditions: int
    n_prompts: int
    """Clusters: each prompt was asked once under every condition."""
    comparison: ClusteredComparison
    """After minus before; the interval knows that a prompt's answers are alike over the conditions."""
    judge: JudgeIdentity | None = None


class Pressure(Record):
    """The table of true refusals under pressure."""

    margin: float
    """The largest loss of true refusals in any family that the gate lets pass, as a share."""
    conditions: tuple[PressureCondition, ...]
    families: tuple[PooledDifference, ...]
    """Empty where nothing was applied."""
    not_applicable: dict[str, str] = Field(default_factory=dict)
    """Conditions that this model cannot be put under, with the reason."""


class SampledRefusals(Record):
    """Refusal probability of one kind of prompt over sampled answers: what a greedy verdict hides.

    A prompt whose first tokens are near one half is refused or answered greedily by a hair; sampled, it is refused
    as often as users meet it.
    """

    label: PromptLabel
    n_prompts: int
    n_samples: int
    """Answers to each prompt, at temperature 1, with the same random numbers before and after."""
    before: ClusteredRate
    """Share of all sampled answers that refuse, with prompts as clusters."""
    after: ClusteredRate | None = None
    comparison: ClusteredComparison | None = None
