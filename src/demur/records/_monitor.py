"""`monitor.json`: what a monitor reads, where its thresholds lie, and what it was worth on test prompts."""

from typing import Literal

from pydantic import Field

from demur.records._base import Record
from demur.records._identity import ModelIdentity, PromptSetIdentity
from demur.records._summary import Provenance, Rendering
from demur.types import PromptLabel

ProbeRole = Literal["harm", "refusal", "false_refusal"]
"""harm: how harmful the instruction looks, its peak over the instruction's tokens; refusal, false_refusal: the
projection on r, on w' at one position before the answer."""

MonitorScore = Literal["harm", "refusal", "suppression", "false_refusal"]
MonitorFlag = Literal["harmful", "refusal_high", "refusal_low", "suppressed", "false_refusal", "unreadable"]
MonitorPopulation = Literal["harmful", "harmless", "borderline", "suppressed", "planted"]
"""suppressed: prompts given as such; planted: harmful prompts while the direction is subtracted in memory."""


class MonitorProbe(Record):
    """One direction at one layer; its vector is in `monitor.safetensors` under the same name."""

    name: str
    role: ProbeRole
    layer: int
    """Block at whose input the stream is read."""
    position: int
    """Token position from the end of the prompt, negative. Of harm probes: the last token that counts."""
    low: float
    """Mean reading of harmless prompts: 0 on the standardised scale."""
    high: float
    """Mean reading of harmful prompts (of false_refusal probes: of borderline ones): 1 on that scale."""


class MonitorThreshold(Record):
    """When a score raises a flag."""

    flag: MonitorFlag
    score: MonitorScore
    side: Literal["above", "below"]
    """The flag is raised where the score lies strictly on this side."""
    value: float
    """On the standardised scale."""
    rate: float
    """The false-positive rate that was asked for."""
    attained: dict[PromptLabel, float]
    """By kind of prompt that must not be flagged: k / (n + 1), which the chance to flag a new such prompt does not
    exceed, averaged over validation sets of that size (order statistic, distribution-free)."""
    bound: dict[PromptLabel, float]
    """The same chance for this one validation set: at most this with 95 % confidence (Beta law of order statistics)."""
    n: dict[PromptLabel, int]
    """Validation prompts of each kind."""


class MonitorRate(Record):
    """How often a flag was raised on test prompts, with the exact two-sided 95 % interval (Clopper-Pearson)."""

    flag: MonitorFlag
    population: MonitorPopulation
    k: int
    n: int
    rate: float | None
    """k / n; null where n is 0."""
    low: float
    high: float


class MonitorSeparation(Record):
    """How well a score tells two kinds of test prompts apart."""

    score: MonitorScore
    above: MonitorPopulation
    """The kind that should score higher."""
    below: MonitorPopulation
    n_above: int
    n_below: int
    auroc: float
    """Chance that a prompt of the first kind scores higher than one of the second; ties count half."""
    low: float
    """Lower end of the two-sided 95 % score interval (Newcombe 2006, method 5), which does not collapse at 1."""
    high: float


class AnswerProjection(Record):
    """The refusal probe along the answers to test prompts of one kind, standardised like the score."""

    population: PromptLabel
    mean: tuple[float, ...]
    """By generated token, from the first."""
    low: tuple[float, ...]
    """Lower end of the 95 % interval of the mean (normal)."""
    high: tuple[float, ...]
    n: tuple[int, ...]
    """Answers that are as long."""


class MonitorEvidence(Record):
    """What was measured on test prompts, which set nothing."""

    directions: str
    """Where r and w' come from, in words."""
    prompts: dict[str, PromptSetIdentity]
    """By label; `suppressed` where such prompts were given."""
    reader: str
    """How the harm probe was fitted and its layer chosen, in words."""
    reader_auroc: float
    """Of the harm probe at its layer, harmful against the other training prompts, fitted on one half and read on the
    other."""
    planted_layer: int | None
    """Block at whose input the refusal direction was subtracted for the population `planted`; null: not done."""
    rates: tuple[MonitorRate, ...]
    separations: tuple[MonitorSeparation, ...]
    scores: dict[MonitorPopulation, dict[MonitorScore, tuple[float, ...]]]
    """Every test prompt's scores; no text, no hash."""
    answers: tuple[AnswerProjection, ...] = ()
    warnings: tuple[str, ...] = ()
    provenance: Provenance


class MonitorRecord(Record):
    """The whole of `monitor.json`."""

    schema_: Literal["demur.monitor/1"] = Field(default="demur.monitor/1", alias="schema")
    model: ModelIdentity | None
    """The model it was fitted on; null: any of the right width."""
    rendering: Rendering = Rendering()
    probes: tuple[MonitorProbe, ...]
    thresholds: tuple[MonitorThreshold, ...] = ()
    tensors_sha256: str
    """Of the bytes of `monitor.safetensors`."""
    evidence: MonitorEvidence | None = None
    """null of a monitor that was made by hand."""
