"""What `demur capability` measures: tasks of an evaluation harness before and after, sample by sample."""

from typing import Literal

from pydantic import Field

from demur.records._base import Record
from demur.records._fidelity import InterventionForm
from demur.records._identity import ModelIdentity
from demur.records._rates import BeforeAfter, Mean, PairedComparison
from demur.records._summary import Rendering


class SampleMeans(Record):
    """A metric's value sample by sample, compared in pairs."""

    unit: Literal["value", "nats_per_unit"]
    """nats_per_unit: -log likelihood of a document over its words or bytes, of which the harness makes perplexity."""
    before: Mean
    """Mean over samples with its 95 % bootstrap interval."""
    after: Mean | None = None
    difference: Mean | None = None
    """after minus before, sample by sample."""


class TaskMetric(Record):
    """One metric of one task, before and after."""

    name: str
    """As the harness calls it, such as `acc` or `exact_match`."""
    filter: str
    """How answers were extracted, such as `strict-match`; `none` for no extraction."""
    higher_is_better: bool | None
    before: float
    """The harness's own number."""
    after: float | None = None
    share: BeforeAfter | None = None
    """For metrics that are 0 or 1 for each sample and their mean over samples: k of n with its interval."""
    comparison: PairedComparison | None = None
    """For the same metrics: the paired comparison (exact McNemar test, score interval of the difference)."""
    samples: SampleMeans | None = None
    """For all others that have one number per sample."""


class TaskCapability(Record):
    """One task or group of tasks."""

    name: str
    version: str
    """As the task states it."""
    n: int
    """Samples measured."""
    num_fewshot: int | None
    config_sha256: str | None
    """Over the task's configuration; null for a group."""
    samples_sha256: str
    """Over documents, prompts and targets in order: equal only if the same questions were put in the same words."""
    metrics: tuple[TaskMetric, ...]


class CapabilityRecord(Record):
    """Capability of a model, and with an intervention before and after it."""

    schema_: Literal["demur.capability/1"] = Field(default="demur.capability/1", alias="schema")
    model: ModelIdentity
    rendering: Rendering
    chat_template: bool
    """Whether questions were put through the chat template."""
    fingerprint: str | None = None
    """sha256 of the intervention; null where nothing was applied."""
    form: InterventionForm | None = None
    harness: str
    """Name and version."""
    limit: int | None
    """Most samples of a task; null for all."""
    batch_size: int
    seed: int
    tasks: tuple[TaskCapability, ...]
    groups: tuple[TaskCapability, ...] = ()
    """Groups of tasks; their comparisons pool the samples of their tasks."""


class HarnessResponse(Record):
    """One line of a response cache: what one state of a model answered to one request."""

    key: str
    """sha256 of the kind of request and all its arguments."""
    text: str | None = None
    log_likelihood: float | None = None
    is_greedy: bool | None = None
