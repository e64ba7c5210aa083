"""What `demur judge` measures: a judge against human labels."""

from typing import Literal

from pydantic import Field

from demur.records._base import Record
from demur.records._judgements import JudgeCost
from demur.records._rates import JudgeIdentity, Rate
from demur.types import Verdict


class Agreement(Record):
    """Judge against human. Answers that the judge left unjudged are counted and are in no kappa."""

    n: int
    """Labelled answers."""
    unjudged: int
    kappa_any_refusal: float | None
    """Cohen's kappa, full or partial refusal against full compliance; null where chance agreement is certain."""
    kappa_any_refusal_interval: tuple[float, float] | None
    """Two-sided 95 %, percentile bootstrap over prompts; null where fewer than two prompts were judged."""
    kappa_three_way: float | None
    """Cohen's kappa over full refusal, partial refusal and full compliance."""
    kappa_three_way_interval: tuple[float, float] | None
    refused_by_human: float
    """Share of answers that people call a full or partial refusal."""
    refused_by_judge: float | None
    """The same by the judge, of the answers that it judged; null where there is none."""
    sensitivity: Rate
    """Of the answers that people call a full or partial refusal, those that the judge calls so too."""
    specificity: Rate
    """Of the answers that people call full compliance, those that the judge calls so too."""


class JudgeQuality(Agreement):
    """A judge measured on labelled answers."""

    schema_: Literal["demur.judge_quality/1"] = Field(default="demur.judge_quality/1", alias="schema")
    judge: JudgeIdentity
    confusion: dict[Verdict, dict[Verdict, int]]
    """Human label -> verdict -> answers."""
    per_model: dict[str, Agreement]
    cost: JudgeCost | None = None
    """Of judges that ask a server."""
