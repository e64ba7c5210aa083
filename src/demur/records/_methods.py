"""`methods.json`: every baseline and demur's operating point, measured on the same prompts by the same judge."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from demur.records._base import Record
from demur.records._identity import ModelIdentity, PromptSetIdentity
from demur.records._rates import JudgeIdentity, Mean, Rate
from demur.records._run import CompletionRecord
from demur.records._store import JsonLines
from demur.records._summary import (
    Comparison,
    Gate,
    Provenance,
    Rendering,
)
from demur.types import PromptLabel

MethodName = Literal[
    "none",
    "system-relaxing",
    "system-raising",
    "ablate-r",
    "ablate-w",
    "ablate-w-prime",
    "add-minus-r",
    "self-cd",
    "scans",
    "demur",
    "random",
]
"""The rows, in the order of the table."""


class MethodRow(Record):
    """One method on the test prompts. No text of any answer is kept."""

    method: MethodName
    title: str
    """The method in a few words."""
    what: str
    """What was done, with every chosen value and where it was chosen."""
    settings: dict[str, float | int | str]
    """The chosen values; for system prompts the text."""
    fingerprint: str | None
    """sha256 of the change or of the way of asking; null where nothing is changed."""
    true_refusal_rate: Rate
    false_refusal_rate: Rate
    harmless_refusal_rate: Rate
    task_accuracy: Rate | None
    """null where no harmless prompt carries an answer."""
    degenerate: Rate
    """Share of all completions that are empty, repetitive or garbled."""
    kl_harmless: Mean | None
    """KL(no intervention || method) of the first token of the answer to harmless test prompts, nats; null for the row
    without intervention."""
    comparison: Comparison | None
    """Paired, against no intervention; null for that row itself."""
    adjusted_p_values: dict[str, float]
    """By rate: the McNemar p-value adjusted over the methods of the table (Holm 1979)."""
    cost: str
    """Of inference, against the unchanged model."""
    exportable: bool
    """Whether the weights alone can hold the change. demur exports its own operating point only, if its gate passed."""
    gate: Gate | None
    """What the gate would say, for information; null for the row without intervention."""


class MethodsTable(Record):
    """The whole of `methods.json`."""

    schema_: Literal["demur.methods/1"] = Field(default="demur.methods/1", alias="schema")
    model: ModelIdentity
    rendering: Rendering
    prompts: dict[PromptLabel, PromptSetIdentity]
    judge: JudgeIdentity
    settings: dict[str, Any]
    rows: tuple[MethodRow, ...]
    skipped: dict[MethodName, str]
    """Methods that could not be measured on this model, and why."""
    warnings: tuple[str, ...] = ()
    provenance: Provenance


class VerdictLines(JsonLines):
    """A store of completion records that never writes a text, neither of a prompt nor of an answer."""

    def append(self, records: Iterable[Record]) -> None:
        """Append the records without their texts."""
        super().append(
            record.model_copy(update={"prompt": "", "completion": None})
            if isinstance(record, CompletionRecord)
            else record
            for record in records
        )
