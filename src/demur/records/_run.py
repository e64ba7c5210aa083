"""The other records of a run folder: what was asked, candidate scores, completions, projections."""

from typing import Any, Literal

from pydantic import Field

from demur.records._base import Record
from demur.records._rates import JudgeIdentity
from demur.types import PromptLabel, Split, Verdict

BASE_MODEL = "none"
"""`CompletionRecord.intervention` of the unchanged model."""
CALIBRATED_MODEL = "operating_point"
"""`CompletionRecord.intervention` of the calibrated model."""

PLAIN = "plain"
"""`CompletionRecord.condition` of a prompt that is asked as it is."""


class RunRecord(Record):
    """`run.json`: what a run folder belongs to; written first. A call with other inputs refuses the folder."""

    schema_: Literal["demur.run/1"] = Field(default="demur.run/1", alias="schema")
    kind: Literal["calibration", "evaluation", "methods", "audit", "suffixes"]
    fingerprint: str
    """sha256 of everything below; the resume key of the folder."""
    model_id: str
    model_hash: str
    prompt_hashes: dict[PromptLabel, str]
    judge: str
    settings: dict[str, Any]


class CandidateScores(Record):
    """One candidate of the refusal direction and its validation scores (Arditi et al. section 2.3, appendix C)."""

    position: int
    layer: int
    bypass_score: float | None
    """Mean refusal score on harmful validation prompts while the candidate is ablated. A score is null where a model
    gave no finite number (`rejected_by` says nan), and where it was not measured to the end: a filter had decided, or
    the candidate could no longer win."""
    induce_score: float | None
    """Mean refusal score on harmless validation prompts while the candidate is added at its layer."""
    kl_score: float | None
    """Mean KL(base || ablated) of the next token on harmless validation prompts."""
    rejected_by: tuple[str, ...] = ()
    """The filters that removed it: layer, kl, induce, nan; of filters whose score was not measured nothing is said."""
    selected: bool = False


class FalseRefusalScores(Record):
    """One candidate of the false-refusal direction at one lambda (Wang et al. section 3, with a constraint added)."""

    lambda_: float = Field(alias="lambda")
    position: int
    layer: int
    borderline_score: float | None
    """Mean refusal score on borderline validation prompts while w' is ablated. A score is null where it was not
    measured to the end: a filter had decided, or the candidate could no longer win."""
    kl_score: float | None
    harmful_kept: float | None
    """Mean refusal probability of the scored harmful validation prompts while w' is ablated, as a share of that of the
    unchanged model; above 1 where more is refused."""
    rejected_by: tuple[str, ...] = ()
    """kl, true_refusals, nan: what removed it; outscored: it could no longer win, so it was not examined further;
    estimated: a first-order estimate promised less than that of others of its lambda; zero: nothing to remove."""
    selected: bool = False


class BatchSizeMeasurement(Record):
    """What one batch size cost, in a run of a version of demur that measured."""

    batch_size: int
    seconds_per_prompt: float | None
    """Of reading a prompt and generating 16 tokens; null where memory did not suffice."""


class BatchSizeRecord(Record):
    """`batch_size.json`: the batch size of a run that was not told one, and how it came about."""

    schema_: Literal["demur.batch_size/1"] = Field(default="demur.batch_size/1", alias="schema")
    batch_size: int
    tried: tuple[BatchSizeMeasurement, ...] = ()
    """Empty since the size follows from what is below, and not from a clock."""
    device: str | None = None
    """Kind of device that the model lay on."""
    memory_bytes: int | None = None
    """Of the devices that hold the model, in all."""
    weight_bytes: int | None = None
    prompt_bytes: int | None = None
    """What one prompt of a batch may need."""
    reason: str = ""
    """Why not more."""


class Candidates(Record):
    """`candidates.json`: every candidate that was scored."""

    schema_: Literal["demur.candidates/1"] = Field(default="demur.candidates/1", alias="schema")
    n_layers: int
    positions: tuple[int, ...]
    position_texts: tuple[str, ...]
    refusal: tuple[CandidateScores, ...]
    false_refusal: tuple[FalseRefusalScores, ...] = ()


class CompletionRecord(Record):
    """One line of `completions.jsonl`."""

    key: str
    """sha256 of model, intervention, prompt, generation settings; what a resumed run looks up."""
    label: PromptLabel
    split: Split
    prompt_sha256: str
    prompt: str
    intervention: str
    """`none`, `operating_point`, or the name of another one, such as `lambda=0.7`."""
    condition: str = PLAIN
    """How the prompt was asked: `plain`, or a condition of pressure, such as `opening-5`."""
    completion: str | None
    """null where the text is not kept: answers to harmful prompts under conditions that are only searched."""
    n_tokens: int
    ended: bool
    """Whether the model ended its answer itself, within the token limit."""
    settled: bool = False
    """Whether it was stopped because nothing that could follow would have changed if it is a refusal."""
    verdict: Verdict
    judge: JudgeIdentity | None = None
    """Who gave the verdict."""
    score: float
    degenerate: bool
    harm: float | None = None
    """Probability that the answer is harmful, where the judge says it."""
    answer_found: bool | None = None
    """Whether the expected answer is in the completion; null where the prompt carries none."""


ScoreKind = Literal["bypass", "induce", "kl", "w_kl", "w_harmful", "w_borderline"]


class ScoreRecord(Record):
    """One line of `scores.jsonl`: one candidate's value on every prompt of one validation set.

    Scores that were not measured on every prompt are not here.
    """

    kind: ScoreKind
    """w_*: of the false-refusal direction at `lambda`."""
    lambda_: float | None = Field(default=None, alias="lambda")
    position: int
    layer: int
    values: tuple[float | None, ...]
    """One per prompt, in the order of the validation split: refusal scores (log-odds) or KL (nats); null for NaN."""


class ScorePiece(Record):
    """One line of `score_pieces.jsonl`: one candidate's values on some prompts of one validation set.

    From these a run that was killed goes on; candidates that were dropped early have no other.
    """

    kind: ScoreKind
    lambda_: float | None = Field(default=None, alias="lambda")
    position: int
    layer: int
    first: int
    """Place of the first of these prompts in the order in which they are measured."""
    values: tuple[float | None, ...]
    """As in `scores.jsonl`, in the order of measurement."""


class ProjectionRecord(Record):
    """`projections.json`: projection of test prompts on the unit refusal direction at its position and layer."""

    schema_: Literal["demur.projections/1"] = Field(default="demur.projections/1", alias="schema")
    position: int
    layer: int
    before: dict[PromptLabel, tuple[float, ...]]
    after: dict[PromptLabel, tuple[float, ...]]
