"""What `demur inspect` says about one model: its writers, the proof, and how exact an edit of its weights is."""

from typing import Literal

from pydantic import Field

from demur.records._base import Record

Exactness = Literal["exact", "exact_after_untying", "removed_not_identical", "runtime_only", "not_supported"]


class WriterRecord(Record):
    """One parameter that writes to the residual stream."""

    parameter: str
    kind: str
    """embedding, attention, mlp, bias, norm_bias or other."""
    block: int | None
    shape: tuple[int, ...]
    axis: int
    """The dimension of the parameter that runs along the residual stream (its orientation)."""
    norm_after: bool
    """Whether a norm stands between the parameter and the stream."""


class ProbeRecord(Record):
    """The numeric proof, on a few tokens. All values are relative."""

    residual: float
    """Largest component along a random unit vector at any block boundary, with every writer orthogonalized to it."""
    baseline: float
    """The same with the weights as they are."""
    per_block: tuple[float, ...]
    """The residual at the input of each block and after the last one."""
    silent_difference: float
    """How much the stream still changes through all blocks when every write site is silenced."""
    capture_difference: float
    """Largest difference between the input read at a block and the output of the block before it."""
    decomposition_error: float
    """What is left of a block's output after its input and its writes are taken off."""
    tolerance: float
    """What rounding in `stream_dtype` explains."""
    stream_dtype: str
    """What the numbers were computed in: the narrowest dtype on the way of a write to the stream, half precision
    widened to float32 where the model's kernels allow it."""


class EquivalenceRecord(Record):
    """Runtime ablation of a random direction (hooks) against folded weights."""

    logit_difference: float
    """Largest difference of next-token logits over all probe positions."""
    logit_change: float
    """Largest change of a logit by the ablation itself: what the difference is to be compared with."""
    same_tokens: int
    """Most likely next tokens, of `tokens` positions of one text, that are the same."""
    tokens: int


class PositionRecord(Record):
    """One post-instruction token."""

    position: int
    """From the end of the prompt, negative."""
    id: int
    text: str


class TemplateRecord(Record):
    """How prompts are rendered."""

    positions: tuple[PositionRecord, ...]
    bos_tokens: int
    """Beginning-of-sequence tokens at the start of a rendering: 0 or 1."""
    system_role: bool
    """Whether the template takes a system message."""
    system: str | None
    options: dict[str, str | bool | int | float | None]
    opens_thinking: bool
    """Whether the generation prompt opens a thinking block."""
    response_prefix: str


class Inspection(Record):
    """The whole result of `demur inspect`."""

    schema_: Literal["demur.inspection/1"] = Field(default="demur.inspection/1", alias="schema")
    model: str
    architecture: str
    dtype: str
    verdict: Exactness
    reason: str
    """The verdict in a sentence."""
    blocks: tuple[str, ...] = ()
    d_model: int | None = None
    writers: tuple[WriterRecord, ...] = ()
    sites: tuple[str, ...] = ()
    """Modules whose outputs are changed at run time."""
    probe: ProbeRecord | None = None
    equivalence: EquivalenceRecord | None = None
    template: TemplateRecord | None = None
