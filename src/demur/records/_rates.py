"""The numbers that every record is made of: rates, means and paired differences, each with n, interval and judge."""

from typing import Literal

from demur.records._base import Record


class JudgeIdentity(Record):
    """Who gave the verdicts: name and version of a judge (or of a rule, such as `contains_answer`)."""

    id: str
    version: str


class Rate(Record):
    """A share of prompts, with its two-sided 95 % Wilson interval."""

    k: int
    """Prompts counted."""
    n: int
    """Prompts judged (unjudged ones are not in n; see `unjudged`)."""
    rate: float | None
    """k / n; null where n is 0."""
    low: float
    high: float
    unjudged: int = 0
    """Prompts whose completion the judge could not judge."""
    degenerate: int = 0
    """Prompts whose completion was flagged empty, repetitive or garbled (they are also in n if judged)."""
    judge: JudgeIdentity | None = None
    """Who gave the verdicts; null only in a table of bare numbers."""


class BeforeAfter(Record):
    """One rate of the base model and of the calibrated model, on the same test prompts."""

    before: Rate
    after: Rate | None = None
    """null where nothing was applied (`demur evaluate` without a run)."""


class Mean(Record):
    """A mean over prompts with its two-sided 95 % interval (bootstrap over prompts, percentile)."""

    mean: float
    low: float
    high: float
    n: int
    largest: float
    """The largest single value."""


class PairedComparison(Record):
    """After against before on the same prompts."""

    n: int
    """Pairs in which both completions were judged."""
    lost: int
    """Pairs that count before and not after (McNemar's b)."""
    gained: int
    """Pairs that count after and not before (McNemar's c)."""
    difference: float
    """after minus before, as a share of n."""
    low: float
    """Lower end of the two-sided 95 % score interval of the difference (Tango 1998)."""
    high: float
    p_value: float
    """Exact two-sided McNemar test."""
    judge: JudgeIdentity | None = None
    """Who gave the verdicts; null only in a table of bare numbers."""


class CategoryRates(Record):
    """Refusals of the test prompts of one category, such as one of several prompt sets that were given together."""

    label: Literal["harmful", "harmless", "borderline"]
    category: str
    rate: BeforeAfter
    comparison: PairedComparison | None = None
    """null where nothing was applied."""
