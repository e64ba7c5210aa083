"""Two models side by side: a base model and its chat model, and the refusal direction of one model in another."""

from typing import Literal

from pydantic import Field

from demur.records._base import Record
from demur.records._identity import ModelIdentity, PromptSetIdentity
from demur.records._rates import JudgeIdentity, Mean, PairedComparison, Rate
from demur.records._summary import Provenance
from demur.types import PromptLabel


class Separation(Record):
    """How far harmful and harmless test prompts lie apart along one direction."""

    auroc: float
    """Share of pairs in which the harmful prompt lies further along the direction; 0.5 is chance."""
    low: float
    """Lower end of the two-sided 95 % interval (Newcombe 2006, method 5)."""
    high: float
    d_prime: float | None
    """Difference of the means over the pooled standard deviation; null where both kinds are all alike."""
    gap: float
    """Difference of the mean projections on the unit direction."""


class ModelAtPlace(Record):
    """One model at one place."""

    harmful_cosine: Mean
    """Of harmful test prompts with the chat model's refusal direction."""
    harmless_cosine: Mean
    along_r: Separation
    """Along the chat model's refusal direction."""
    along_own: Separation
    """Along the model's own difference in means at this place, fitted on train prompts."""


class BasePlace(Record):
    """Both models at the input of one block, at one token position."""

    layer: int
    position: int
    chat: ModelAtPlace
    base: ModelAtPlace
    cosine: float
    """Of the two models' own differences in means."""
    r_with_chat: float
    """Cosine of the refusal direction with the chat model's own difference in means here."""
    r_with_base: float


class BaseComparison(Record):
    """`base.json`: where along the layers the refusal direction appears, in the chat model and in its base model."""

    schema_: Literal["demur.base/1"] = Field(default="demur.base/1", alias="schema")
    chat: ModelIdentity
    base: ModelIdentity
    prompts: dict[PromptLabel, PromptSetIdentity]
    n_fit: dict[PromptLabel, int]
    """Train prompts of the differences in means."""
    n_test: dict[PromptLabel, int]
    source: str
    """Where the refusal direction comes from, in words."""
    layer: int
    """Block at whose input the chat model's refusal direction was read."""
    position: int
    positions: tuple[int, ...]
    position_texts: tuple[str, ...]
    appears_above: float
    """A direction counts as there from the first layer at which the lower end of its AUROC is above this."""
    chat_appears: int | None
    """First layer of the chat model at which its refusal direction is there, at its position; null if never."""
    base_appears: int | None
    """The same of the base model, along the chat model's direction."""
    places: tuple[BasePlace, ...]
    provenance: Provenance


TransferState = Literal["at rest", "other's direction", "own direction", "random direction"]


class TransferRow(Record):
    """The second model in one state."""

    state: TransferState
    ablated: Rate
    """Harmful prompts refused with the direction ablated; at rest nothing is."""
    ablated_change: PairedComparison | None = None
    """Against the model at rest on the same prompts; null at rest."""
    added: Rate
    """Harmless prompts refused with the direction added at its layer."""
    added_change: PairedComparison | None = None


class Transfer(Record):
    """`transfer.json`: the refusal direction of one model, used in another one of the same shape."""

    schema_: Literal["demur.transfer/1"] = Field(default="demur.transfer/1", alias="schema")
    source_model: ModelIdentity
    """Whose direction is tried."""
    target_model: ModelIdentity
    """In which it is tried."""
    prompts: dict[PromptLabel, PromptSetIdentity]
    judge: JudgeIdentity
    layer: int
    """Of the source's direction."""
    position: int
    own_layer: int
    """Of the target's own direction."""
    own_position: int
    cosine: float
    """Of the two refusal directions."""
    cosine_at_place: float
    """Of the source's direction with the target's own difference in means at the same place."""
    rows: tuple[TransferRow, ...]
    share_of_own: float | None
    """Refusals that the source's direction removes, as a share of those that the target's own removes; null where that
    removes none."""
    provenance: Provenance
