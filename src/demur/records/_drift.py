"""`drift.json`: how refusal changed over the checkpoints of a fine-tune or the versions of a model."""

from typing import Literal

from pydantic import Field

from demur.records._base import Record
from demur.records._identity import ModelIdentity
from demur.records._rates import JudgeIdentity, Mean, PairedComparison, Rate
from demur.records._summary import Provenance, Rendering
from demur.types import Decision, PromptLabel

DriftStatistic = Literal["gap", "auroc", "score"]
"""What alarms are decided on; the cosine of the direction is shown and decides nothing."""


class Place(Record):
    """Where a direction is read."""

    position: int
    """Token position from the end of the prompt, negative."""
    layer: int
    """Block at whose input it is read."""


class DriftReference(Record):
    """`reference.json`: what all checkpoints are measured with; it is fixed on the first one."""

    schema_: Literal["demur.drift-reference/1"] = Field(default="demur.drift-reference/1", alias="schema")
    fingerprint: str
    """sha256 of everything that the numbers depend on: direction, place, tokens, prompts, rendering."""
    model: ModelIdentity
    rendering: Rendering
    source: str
    """Where the refusal direction comes from, in words."""
    place: Place
    """Where the stream is read, of every checkpoint."""
    norm: float
    """Length of the frozen refusal direction."""
    tokens: tuple[int, ...]
    """Ids of the refusal tokens."""
    threshold: float = 0.0
    """Refusal score, log-odds, from which the first checkpoint refuses; scores are compared from there."""
    probes: dict[PromptLabel, tuple[str, ...]]
    """sha256 of the prompts whose projections and scores are read, in order (test split)."""
    falsely_refused: tuple[str, ...]
    """sha256 of the borderline probe prompts that the first checkpoint would refuse by its refusal score; w is computed
    from these."""


class DriftCheckpoint(Record):
    """One line of `checkpoints.jsonl`: one checkpoint as measured. It holds hashes, numbers and verdicts, no text."""

    schema_: Literal["demur.checkpoint/1"] = Field(default="demur.checkpoint/1", alias="schema")
    name: str
    step: int | None
    """Training step, where it is known."""
    source: Literal["model", "calibration", "training"]
    """Measured from a model folder, read from a calibration's records, or measured while it was trained."""
    reference: str
    """Fingerprint of the reference."""
    model_id: str
    model_hash: str | None
    """sha256 of the weights; null while a model is trained, where hashing it would cost more than measuring."""
    cosine: float
    """Of the checkpoint's own refusal direction with the first one's. Both are the difference in means of the probe
    prompts at the reference's place; of a calibration, the one that it selected."""
    norm: float
    """Length of its own refusal direction."""
    false_refusal_cosine: float | None = None
    """The same of w: the mean of the falsely refused borderline prompts minus that of the harmless ones."""
    false_refusal_norm: float | None = None
    selected: Place | None = None
    """Where the published selection would read this checkpoint's refusal direction; null where it was not asked, or
    found none."""
    selection_failed: str | None = None
    """Why the selection found none."""
    projections: dict[PromptLabel, tuple[float, ...]] = Field(default_factory=dict)
    """Of each probe prompt on the frozen unit direction, in the order of the reference; empty for calibrations."""
    scores: dict[PromptLabel, tuple[float, ...]] = Field(default_factory=dict)
    """Refusal score of each probe prompt, log-odds."""
    verdicts: dict[PromptLabel, dict[str, bool | None]] = Field(default_factory=dict)
    """Whether each test prompt was refused, by its sha256; null where the judge could not say. Empty where nothing was
    generated."""
    judge: JudgeIdentity | None = None
    """Who gave the verdicts."""


class Estimate(Record):
    """A number with its two-sided 95 % interval."""

    value: float
    low: float | None
    """null: no bound, as of a ratio whose denominator is not clearly above zero."""
    high: float | None


class DriftRule(Record):
    """When an alarm is raised."""

    false_alarm_rate: float
    """Largest chance of any alarm, over all statistics and all checkpoints, while no loss exceeds its limit."""
    gap_kept: float
    """Share of the first checkpoint's projection gap that must be left."""
    score_kept: float
    """Share of the first checkpoint's mean refusal score on harmful prompts that must be left."""
    auroc_loss: float
    """Largest loss of AUROC that is let pass."""


class DriftTest(Record):
    """One statistic of one checkpoint against its limit: a one-sided test on paired probe prompts."""

    statistic: DriftStatistic
    estimate: Estimate
    """gap and score: the share that is left; auroc: the change."""
    limit: float
    """An alarm needs an estimate below it, beyond chance."""
    p_value: float
    """Of the hypothesis that the true value is at the limit or above."""
    adjusted: float
    """The p-value adjusted over the statistics of this checkpoint (Holm 1979)."""
    level: float
    """The share of the false-alarm rate that this checkpoint may spend: rate / (m (m + 1)) at the m-th."""
    alarm: bool


class DriftBehaviour(Record):
    """Refusals of one kind of prompt, and the paired difference from the first checkpoint."""

    rate: Rate
    comparison: PairedComparison | None
    """null for the first checkpoint itself."""


class DriftRow(Record):
    """One checkpoint beside the first one. Values are null where a checkpoint was not measured that way."""

    name: str
    step: int | None
    source: Literal["model", "calibration", "training"]
    model_hash: str | None
    """sha256 of the weights; null while a model is trained."""
    cosine: float
    norm: float
    false_refusal_cosine: float | None
    selected: Place | None
    selection_failed: str | None
    gap: Estimate | None
    """Mean projection of harmful minus that of harmless probe prompts on the frozen unit direction."""
    gap_kept: Estimate | None
    """As a share of the first checkpoint's (Fieller)."""
    d_prime: float | None
    """The gap in units of the pooled standard deviation."""
    auroc: Estimate | None
    """Of telling harmful from harmless probe prompts by that projection (Newcombe 2006, method 5)."""
    scores: dict[PromptLabel, Mean]
    """Mean refusal score, log-odds."""
    behaviour: dict[PromptLabel, DriftBehaviour]
    """Refusals in generated answers to test prompts; empty where nothing was generated."""
    tests: tuple[DriftTest, ...]
    """Empty for the first checkpoint, and where there are no probe values."""
    alarms: tuple[DriftStatistic, ...]


class DriftRecord(Record):
    """The whole of `drift.json`."""

    schema_: Literal["demur.drift/1"] = Field(default="demur.drift/1", alias="schema")
    reference: DriftReference
    rule: DriftRule
    judge: JudgeIdentity | None
    rows: tuple[DriftRow, ...]
    decision: Decision
    """fail: an alarm was raised; pass: none; inconclusive: nothing could be tested."""
    first_alarm: str | None
    """Name of the first checkpoint with an alarm."""
    provenance: Provenance
