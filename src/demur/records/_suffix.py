"""What suffixes do to refusal, as in section 5 of Arditi et al.: projections, attribution, attention, rates."""

from typing import Literal

from pydantic import Field

from demur.records._base import Record
from demur.records._identity import ModelIdentity, PromptSetIdentity
from demur.records._rates import JudgeIdentity, Mean, PairedComparison, Rate
from demur.records._summary import Provenance, Rendering
from demur.types import PromptLabel

SuffixRole = Literal["harmful", "random", "suffix", "harmless"]
"""harmful and harmless: the prompts as they are; random and suffix: harmful prompts with something after them."""


class SuffixText(Record):
    """One suffix."""

    name: str
    """Such as `suffix-1`."""
    text: str
    """As given by the user, or as found on the toy model."""
    origin: Literal["given", "searched"]
    n_tokens: int
    """Tokens that it adds to a rendered prompt."""


class SuffixSearchStep(Record):
    """The search after one step."""

    step: int
    score: float
    """Mean refusal log-odds over the search's prompts, of the best suffix so far."""


class SuffixSearch(Record):
    """How a suffix was searched; the toy model only."""

    n_prompts: int
    """Harmful train prompts that it was searched on."""
    n_tokens: int
    steps: int
    candidates: int
    """Suffixes tried at each step."""
    seed: int
    curve: tuple[SuffixSearchStep, ...]
    """From step 0, the random suffix that the search began with."""


class AttentionShare(Record):
    """Where one head looks from the last position: shares of its attention."""

    block: int
    head: int
    instruction: Mean
    """On the tokens of the prompt itself."""
    suffix: Mean
    """On the tokens after it; 0 where there are none."""


class SuffixGroup(Record):
    """One group of prompts, everything measured at the last position."""

    name: str
    """Such as `harmful`, `random-1`, `suffix-1`, `harmless`."""
    role: SuffixRole
    what: str
    """In words."""
    n: int
    suffix: str | None = None
    """Name of the suffix that it belongs to; a random one has its length."""
    refusal_rate: Rate
    comparison: PairedComparison | None = None
    """Against the same prompts as they are; null for those."""
    refusal_score: Mean
    """Next-token log-odds of the refusal tokens."""
    projection: tuple[Mean, ...]
    """On the unit refusal direction, at the input of each block; the last one after the last block."""
    cosine: tuple[Mean, ...]
    """The same, divided by the length of the stream."""
    parts: tuple[float, ...] = ()
    """Mean contribution of each of `parts`, in their order."""
    top_heads: tuple[Mean, ...] = ()
    """Contribution of each of the top heads, with interval."""
    writes: tuple[Mean, ...] = ()
    """Contribution of each of `writes`, with interval."""
    attention: tuple[AttentionShare, ...] = ()
    """Of the top heads; empty where attention cannot be read."""


class AttributedPart(Record):
    """One summand of the residual stream."""

    kind: Literal["embedding", "head", "bias", "write"]
    """bias: what an attention adds beside its heads; write: a whole write, such as that of an MLP."""
    block: int | None
    module: str
    head: int | None = None


class SuffixAnalysis(Record):
    """The whole of suffixes.json."""

    schema_: Literal["demur.suffixes/1"] = Field(default="demur.suffixes/1", alias="schema")
    model: ModelIdentity
    prompts: dict[PromptLabel, PromptSetIdentity]
    judge: JudgeIdentity
    rendering: Rendering = Rendering()
    source: str
    """Where the refusal direction comes from, in words."""
    layer: int
    """Block at whose input the refusal direction was read."""
    position: int
    suffixes: tuple[SuffixText, ...]
    search: SuffixSearch | None = None
    """null where no suffix was searched."""
    groups: tuple[SuffixGroup, ...]
    """harmful first, then random and suffix for each suffix, harmless last."""
    parts: tuple[AttributedPart, ...]
    """What the stream after the last block is the sum of."""
    top_heads: tuple[int, ...]
    """Indices into `parts`: the heads that add most to the projection of plain harmful prompts."""
    writes: tuple[int, ...]
    """Indices into `parts`: the whole writes that add most to it by size, MLPs mostly."""
    unexplained: float
    """Largest difference between the sum of the parts and the stream's projection, as a share of the largest."""
    whole: dict[str, str] = Field(default_factory=dict)
    """Blocks whose attention could not be taken apart into heads, with the reason."""
    attention_read: bool
    """Whether the heads' attention could be read."""
    provenance: Provenance
