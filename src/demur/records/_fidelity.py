"""How far a changed model is from its base model where nothing should change: fidelity."""

from typing import Literal

from pydantic import Field

from demur.records._base import Record
from demur.records._rates import Mean

InterventionForm = Literal["folded", "applied"]
"""folded: in the weights, as an export ships it; applied: by hooks, at run time."""


class CrossEntropy(Record):
    """Cross-entropy of the same tokens under the base and the changed model, nats per token, paired by document."""

    before: Mean
    """Mean over documents of each document's mean per token; its interval resamples documents."""
    after: Mean
    difference: Mean
    """after minus before, document by document; above 0 the changed model predicts the text worse."""
    n_tokens: int
    """Tokens predicted, over all documents."""
    perplexity_before: float
    """exp of the cross-entropy per token over all tokens together (documents count by their length)."""
    perplexity_after: float


class Fidelity(Record):
    """What an intervention changes on harmless prompts and on plain text."""

    schema_: Literal["demur.fidelity/1"] = Field(default="demur.fidelity/1", alias="schema")
    fingerprint: str
    """sha256 of the intervention."""
    form: InterventionForm
    kl_first_token: Mean
    """KL(base || changed) of the first token of the answer, nats; mean over prompts."""
    kl_generated: Mean
    """Mean over prompts of each prompt's mean KL per token, nats, along the base model's own greedy answer."""
    n_tokens: int
    """Longest part of an answer that was used, in tokens."""
    cross_entropy_own: CrossEntropy
    """Of the base model's own greedy answers (their first `n_tokens` tokens, the end token included)."""
    cross_entropy_text: CrossEntropy | None = None
    """Of plain text; null where none was given."""
