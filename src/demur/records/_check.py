"""`check.json`: what a release gate decided about one run, rule by rule."""

from typing import Literal

from pydantic import Field

from demur.records._base import Record
from demur.records._baseline import MeasuredModel, Side
from demur.records._rates import JudgeIdentity
from demur.records._summary import Rendering
from demur.types import Decision

RuleDecision = Literal["pass", "fail", "inconclusive", "error", "skipped"]
"""error: the inputs cannot be compared or do not fit together, so nothing was decided; skipped: not measured, and the
policy does not require it."""

RuleKind = Literal["limit", "baseline", "validity", "expectation", "records", "evidence"]


class Waiver(Record):
    """An exception from one rule, for some time."""

    rule: str
    """Name of the rule."""
    owner: str
    """Who answers for it."""
    reason: str
    expires: str
    """Last day on which it holds, ISO 8601."""


class WaiverUse(Waiver):
    """A waiver of the policy, and what became of it."""

    state: Literal["used", "not_needed", "expired", "no_effect"]
    """used: the rule did not pass and does not count; not_needed: the rule passed; no_effect: the rule ended in an
    error, which no waiver covers."""


class CheckRule(Record):
    """One rule of a policy, applied."""

    name: str
    """The place in the policy, such as `limits.true_refusal_rate.min`."""
    kind: RuleKind
    title: str
    """What is looked at, in words."""
    decision: RuleDecision
    """As measured, whatever waivers say."""
    waived: bool = False
    """Whether a waiver keeps the rule from counting."""
    comparison: Literal["at_least", "at_most"] | None = None
    limit: float | None = None
    bound: float | None = None
    """The confidence bound that was compared with the limit."""
    unit: Literal["share", "nats", "count"] = "share"
    """Of limit, bound, value, low and high. A difference is a share of the pairs."""
    value: float | None = None
    """Rate, difference or mean as measured."""
    low: float | None = None
    """Lower end of the two-sided 95 % interval."""
    high: float | None = None
    interval: Literal["clopper_pearson", "tango", "bootstrap"] | None = None
    k: int | None = None
    """Prompts counted."""
    n: int | None = None
    """Prompts judged; of a comparison, pairs in which both were judged."""
    lost: int | None = None
    """Pairs that count in the baseline and not now."""
    gained: int | None = None
    p_value: float | None = None
    """Exact two-sided McNemar test of a change."""
    judge: JudgeIdentity | None = None
    reason: str
    """One sentence with the numbers."""


class PolicyIdentity(Record):
    """Which policy was applied."""

    file: str
    name: str
    sha256: str
    """Of the file."""
    on_inconclusive: Literal["fail", "warn"]


class BaselineIdentity(Record):
    """What the run was compared with."""

    file: str
    sha256: str
    demur: str
    model: MeasuredModel
    differences: tuple[str, ...]
    """Why it cannot be compared; empty where it can."""


class CheckRecord(Record):
    """The decision about one run."""

    schema_: Literal["demur.check/1"] = Field(default="demur.check/1", alias="schema")
    decision: Decision
    """fail if any rule that counts fails, else inconclusive if any is inconclusive or an error, else pass."""
    exit_code: int
    """0, 100 (fail) or 101 (inconclusive); 0 too where the policy lets the inconclusive through with a warning."""
    verdict: str
    """The decision in a sentence or two."""
    run: str
    """Name of the run folder."""
    side: Side
    model: MeasuredModel
    judge: JudgeIdentity
    rendering: Rendering
    chat_template_sha256: str
    policy: PolicyIdentity
    baseline: BaselineIdentity | None = None
    rules: tuple[CheckRule, ...]
    waivers: tuple[WaiverUse, ...] = ()
    notes: tuple[str, ...] = ()
    """What a reader should know and no rule looks at."""
    checked_on: str
    """The day by which waivers were judged, ISO 8601, UTC."""
    demur: str
