"""The records of a search for an operating point: `search.jsonl` by trial, `search.json` with its decision."""

from typing import Literal

from pydantic import Field

from demur.records._base import Record
from demur.records._rates import Rate

SEARCH = "search.json"
SEARCH_TRIALS = "search.jsonl"
SEARCH_JOURNAL = "search.journal"
"""Names of the files of a search in its run folder; the journal is Optuna's."""


class SearchPoint(Record):
    """What a trial tries. Equal strengths of 1 and no addition are an ablation of w' as in the grid."""

    lambda_: float = Field(alias="lambda")
    position: int
    """Token position from the end of the prompt at which w' was read, negative."""
    layer: float
    """Block at whose input w' was read; between two layers it is mixed from both."""
    attention: float
    """Strength of the ablation at the centre, for the first write of each block."""
    mlp: float
    """The same for its later writes."""
    embeddings: float
    centre: float
    """Layer at which the strengths are those above."""
    width: float
    """Distance in layers at which the edge is reached."""
    edge: float
    """Share of the strength that is left there and beyond."""
    addition: float
    """Multiple of r that is added at its layer; 0 for none."""


class SearchTrial(Record):
    """One line of `search.jsonl`: scores of next tokens on validation prompts, as far as they were needed."""

    number: int
    point: SearchPoint
    rejected_by: str | None
    """The first limit that was broken: `zero`, `kl`, `true_refusals`, a condition of pressure, or `nan`."""
    kl: float | None = None
    """Mean KL on harmless prompts, nats; null where a partial sum was above the limit already."""
    false_refusals: float | None = None
    """Mean probability of a refusal token after borderline prompts; null for rejected trials."""
    violation: float
    """0 where all limits hold; else larger the sooner and the further one is broken."""
    prompts_read: int
    """Forward passes over one prompt each."""


class JudgedTrial(Record):
    """A trial whose answers to validation prompts were judged."""

    number: int
    exportable: bool
    """Whether plain weights can hold it."""
    false_refusal_rate: Rate
    true_refusal_rate: Rate | None = None
    """null where the false refusals were not fewer than the best so far."""
    note: str = ""
    """Why it was not chosen, in words."""


class ConditionalRow(Record):
    """An ablation of only those prompts that a linear discriminant calls borderline; it cannot be exported."""

    ablated: Literal["refusal_direction", "operating_point"]
    layer: int
    """Block at whose input the discriminant reads, and below which each prompt is read once more."""
    position: int
    threshold: float
    harmful_changed: float
    """Share of harmful validation prompts that are changed; about the quantile that sets the threshold."""
    borderline_changed: float
    """Share of borderline validation prompts that are changed."""
    false_refusal_rate: Rate
    true_refusal_rate: Rate
    note: str = ""
    """What it loses, at rest or under pressure, in words; empty where it is admissible."""
    fingerprint: str


class SearchRecord(Record):
    """`search.json`: what was tried, what was judged, what was chosen, and what it cost."""

    schema_: Literal["demur.search/1"] = Field(default="demur.search/1", alias="schema")
    n_trials: int
    n_feasible: int
    rejected: dict[str, int]
    """Trials by the limit that they broke first."""
    front: tuple[int, ...]
    """Feasible trials that no other beats in both false refusals and KL, fewest false refusals first."""
    judged: tuple[JudgedTrial, ...]
    chosen: int | None
    """Trial; null where the grid's operating point was kept."""
    grid_false_refusal_rate: Rate
    """Of the grid's operating point, on the same validation prompts."""
    grid_true_refusal_rate: Rate
    conditional: tuple[ConditionalRow, ...] = ()
    tokens_generated: int
    """By the search, conditional rows included; trials generate nothing."""
    grid_tokens_generated: int
    """By everything before the search: refusal tokens, base model, lambda grid and its pressure."""
    prompts_read: int
    """Forward passes over one prompt each, of all trials."""
