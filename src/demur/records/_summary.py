"""`summary.json`: the result of one run, documented field by field, versioned."""

from typing import Literal

from pydantic import Field

from demur.records._base import Record
from demur.records._fidelity import Fidelity
from demur.records._identity import ModelIdentity, PromptSetIdentity
from demur.records._leakage import LeakageReport
from demur.records._pressure import Pressure, SampledRefusals
from demur.records._rates import BeforeAfter, CategoryRates, JudgeIdentity, Mean, PairedComparison, Rate
from demur.records._statistics import NoiseFloor, Stability
from demur.records._threshold import RefusalThreshold
from demur.types import Decision, PromptLabel

SUMMARY_SCHEMA: Literal["demur.summary/2"] = "demur.summary/2"


Foldability = Literal["exact", "exact_after_untying", "removed_not_identical", "runtime_only"]
"""How an edit of the weights compares with the same edit at run time; runtime_only: packed weights take none, and
an addition needs a bias, for which most checkpoints have no place."""


class Metrics(Record):
    """What was measured on test prompts."""

    true_refusal_rate: BeforeAfter
    """Share of harmful prompts refused, fully or partly (higher is better)."""
    false_refusal_rate: BeforeAfter
    """Share of borderline prompts refused, fully or partly (lower is better)."""
    harmless_refusal_rate: BeforeAfter
    """Share of harmless prompts refused, fully or partly (lower is better)."""
    kl_harmless: Mean | None = None
    """KL(base || calibrated), nats, of the next token at the last position of harmless test prompts."""
    task_accuracy: BeforeAfter | None = None
    """Share of harmless prompts with a known answer whose completion holds it; null where none carries one."""


class Comparison(Record):
    """The paired comparison of each rate in `metrics`."""

    true_refusal_rate: PairedComparison
    false_refusal_rate: PairedComparison
    harmless_refusal_rate: PairedComparison
    task_accuracy: PairedComparison | None = None


class GateRule(Record):
    """One condition of the gate."""

    name: str
    decision: Decision
    bound: float | None
    """The confidence bound that was compared; null where it could not be computed."""
    limit: float
    unit: Literal["share", "nats"] = "share"
    """Of bound and limit."""
    reason: str
    """One sentence with the numbers."""


class Gate(Record):
    """The decision about an operating point, made on confidence bounds."""

    decision: Decision
    reasons: tuple[str, ...]
    """The sentences of the rules that did not pass; of all rules where all passed."""
    margin: float
    """The largest loss of true refusals that counts as none, as a share (0.02 = 2 points)."""
    rules: tuple[GateRule, ...]


class RefusalToken(Record):
    """One of the tokens whose probability makes the refusal score."""

    id: int
    text: str
    probability_refused: float | None
    """Mean first-token probability over refused train prompts; null where the user set the tokens."""
    probability_answered: float | None


class DirectionCard(Record):
    """Where a direction comes from, without the tensor (which is in directions.safetensors)."""

    position: int
    """Token position from the end of the prompt, negative."""
    position_text: str
    """The template token at that position."""
    layer: int
    """Block at whose input it was read, from 0."""
    norm: float
    """Euclidean norm of the difference in means."""
    scores: dict[str, Mean]
    """Validation scores of the candidate over prompts; refusal scores are log-odds, KL is in nats, and
    refusal_probability_harmful is a share."""
    n_candidates: int
    n_survivors: int
    unmet_filters: tuple[str, ...] = ()
    """Published filters that it does not meet: no candidate did, and judged answers decided."""
    n_fit: dict[str, int]
    """Prompts behind each mean, after filtering."""
    cosine_with_refusal_direction: float | None = None
    """Of w before orthogonalization, with r at the same position and layer."""


class AblationStrengths(Record):
    """How much of the direction each write loses: 0 nothing, 1 all."""

    attention: tuple[float, ...]
    """By block, of its first write."""
    mlp: tuple[float, ...]
    """By block, of its later writes."""
    embeddings: float


class OperatingPoint(Record):
    """Everything that fixes one calibrated model."""

    method: Literal["ablate_false_refusal_direction", "graded_ablation", "graded_ablation_and_addition"]
    """graded_*: with `strengths`, found by a search; *_and_addition: r is added too, which plain weights cannot do."""
    lambda_: float = Field(alias="lambda")
    """Share of the refusal direction that was removed from w before it is ablated: w' = w - lambda proj_r(w)."""
    position: int
    layer: int
    sites: Literal["all_writes"]
    """The ablation acts on every write to the residual stream, at every position."""
    fingerprint: str
    """sha256 of the intervention with its tensors; part of every cache key."""
    source_layer: float | None = None
    """Where the direction was mixed from two layers: the place between them; `layer` is the nearest."""
    strengths: AblationStrengths | None = None
    """null: 1 everywhere."""
    addition: float | None = None
    """Multiple of the refusal direction that is added at the input of its layer."""


class LimitMiss(Record):
    """A limit of the choice that a point is beyond, and by how much."""

    limit: str
    """true_refusals, false_refusals (not shown to fall), kl, or the family of conditions of pressure."""
    measured: float
    """Share: the paired net change, after minus before; nats: the mean KL."""
    low: float | None = None
    """Ends of its two-sided 95 % interval, where there is one."""
    high: float | None = None
    allowed: float
    """The limit. A margin as wide as -`measured` would have admitted the point."""
    unit: Literal["share", "nats"]
    by_scores: bool = False
    """Measured by next-token refusal probabilities, not by judged answers."""


class ProbabilityChange(Record):
    """Net change of the refusal probability that next tokens show, after minus before, over n prompts."""

    n: int
    difference: float
    low: float
    """Ends of its two-sided 95 % interval."""
    high: float


class LambdaPoint(Record):
    """One row of the lambda curve, measured on validation prompts."""

    lambda_: float = Field(alias="lambda")
    position: int | None
    """null where no candidate met the constraints at this lambda."""
    layer: int | None
    kl_harmless: Mean | None = None
    refusal_score_borderline: Mean | None = None
    """Mean refusal score (log-odds) of borderline prompts under the ablation."""
    true_refusal_rate: Rate | None = None
    false_refusal_rate: Rate | None = None
    true_refusals: PairedComparison | None = None
    """Judged harmful validation prompts, after against before; null where answers were not judged."""
    false_refusals: PairedComparison | None = None
    """The same of borderline prompts."""
    true_refusals_by_score: ProbabilityChange | None = None
    """Scored harmful validation prompts, by next tokens; null where not all were measured."""
    false_refusals_by_score: ProbabilityChange | None = None
    """The same of borderline prompts."""
    misses: tuple[LimitMiss, ...] = ()
    """The limits that it is beyond; empty for an admissible point, and where none was measured."""
    chosen: bool = False
    note: str = ""
    """Why a row was not chosen, in words."""


class LambdaBaseline(Record):
    """The base model on the validation prompts of the lambda curve."""

    true_refusal_rate: Rate
    false_refusal_rate: Rate


class Mechanism(Record):
    """Is the refusal direction causal? Measured in memory on test prompts; nothing of it is written out."""

    true_refusal_rate_r_ablated: Rate
    harmless_refusal_rate_r_added: Rate
    true_refusal_rate_random_ablated: Rate
    """Control: a random direction ablated."""
    harmless_refusal_rate_random_added: Rate
    """Control: a random direction of the same norm added at the same layer."""


class Rendering(Record):
    """How prompts were rendered, beyond the chat template itself."""

    system: str | None = None
    """System prompt put before every prompt."""
    options: dict[str, bool | int | float | str | None] = Field(default_factory=dict)
    """Variables of the chat template, such as enable_thinking."""
    response_prefix: str = ""
    """Text after the generation prompt, such as a closed thinking block."""


class LayoutSummary(Record):
    """What the numeric probe said about the model's writers."""

    verdict: Foldability
    n_writers: int
    probe_residual: float
    """Largest component along a random direction left at any block boundary, relative to the unedited one."""
    fold_difference: float
    """Largest logit difference between the runtime intervention and the folded weights, on probe tokens."""


class Provenance(Record):
    """What ran, where and with what."""

    demur: str
    python: str
    torch: str
    transformers: str
    platform: str
    device: str
    seed: int
    command: tuple[str, ...]
    created: str
    """UTC, ISO 8601."""


class Summary(Record):
    """The whole of summary.json."""

    schema_: Literal["demur.summary/2"] = Field(default=SUMMARY_SCHEMA, alias="schema")
    kind: Literal["calibration", "evaluation"]
    model: ModelIdentity
    layout: LayoutSummary
    rendering: Rendering = Rendering()
    prompts: dict[PromptLabel, PromptSetIdentity]
    judge: JudgeIdentity
    refusal_tokens: tuple[RefusalToken, ...] = ()
    refusal_threshold: RefusalThreshold | None = None
    """The refusal score from which the model refuses; null where nothing was read by it."""
    refusal_direction: DirectionCard | None = None
    false_refusal_direction: DirectionCard | None = None
    operating_point: OperatingPoint | None = None
    lambda_curve: tuple[LambdaPoint, ...] = ()
    lambda_baseline: LambdaBaseline | None = None
    mechanism: Mechanism | None = None
    metrics: Metrics
    comparison: Comparison | None = None
    pressure: Pressure | None = None
    """True refusals under pressure; null where that was not measured."""
    categories: tuple[CategoryRates, ...] = ()
    """Rates by category, where prompts carry several."""
    sampled: tuple[SampledRefusals, ...] = ()
    """Refusal probabilities over sampled answers to test prompts."""
    gate: Gate | None = None
    fidelity: Fidelity | None = None
    """KL and cross-entropy along the base model's own answers to harmless test prompts."""
    noise_floor: NoiseFloor | None = None
    """The base model twice: what changes though nothing was changed."""
    stability: tuple[Stability, ...] = ()
    """How often the chosen candidates are chosen again when validation prompts are drawn again."""
    leakage: LeakageReport | None = None
    """Copies and near copies between the splits and sets."""
    warnings: tuple[str, ...] = ()
    provenance: Provenance


class ExportRecord(Record):
    """`demur.json` in an exported folder."""

    schema_: Literal["demur.export/1"] = Field(default="demur.export/1", alias="schema")
    format: Literal["adapter", "merged"]
    base_model: ModelIdentity
    operating_point: OperatingPoint
    metrics: Metrics
    pressure: Pressure | None = None
    gate: Gate
    judge: JudgeIdentity
    layout: LayoutSummary
    logit_difference: float | None
    """Largest next-token logit difference between the reloaded export and the measured model; null where the export
    was written shard by shard and not loaded."""
    identical_answers: int
    """Greedy answers (up to 32 tokens) of the reloaded export that equal those of the measured model."""
    checked_prompts: int
    canaries: PairedComparison | None = None
    """Refusals of harmful prompts that ship with demur, before and after; null where the model was not asked, or does
    not tell them from harmless ones that ship with demur, as a model that reads no English."""
    untied_embeddings: bool
    """Whether the output head was given its own matrix."""
    provenance: Provenance
    """Of the run that was exported."""
