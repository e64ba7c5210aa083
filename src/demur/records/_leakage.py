"""What `demur prompts check` finds: copies and near copies between splits, labels and sets. Never a prompt's text."""

from typing import Literal

from pydantic import Field

from demur.records._base import Record
from demur.records._identity import PromptSetIdentity
from demur.types import PromptLabel, Split


class LeakageExample(Record):
    """A prompt of the right side and the one of the left side that is most like it."""

    left_row: str | None
    """Line or row of the source; null where the prompt was made by hand."""
    left_sha256: str
    right_row: str | None
    right_sha256: str
    similarity: float
    """Jaccard similarity of the character trigrams; 1 where the texts are equal once normalised."""


class LeakagePair(Record):
    """Two splits of one set, or two whole sets. Rows are counted on the right, which is the later split."""

    kind: Literal["splits", "labels", "sets"]
    """Two splits of one set, two sets of different labels, or two sets of one label."""
    left: PromptLabel
    left_source: str
    left_split: Split | None
    """Null where the whole set is compared."""
    right: PromptLabel
    right_source: str
    right_split: Split | None
    exact: int
    """Prompts of the right that stand on the left too: equal after NFKC, case folding, without punctuation."""
    near: int | None
    """Other prompts of the right that are at least as similar as the threshold to one of the left; null: not looked
    for."""
    examples: tuple[LeakageExample, ...]
    """The first of them, equal ones before near ones."""


class LeakageReport(Record):
    """Copies and near copies between prompt sets and their splits."""

    schema_: Literal["demur.leakage/1"] = Field(default="demur.leakage/1", alias="schema")
    threshold: float | None
    """Jaccard similarity of character trigrams from which two prompts are near duplicates; null: not looked for."""
    pairs: tuple[LeakagePair, ...]
    """Every pair that was compared, also those without a find."""


class PromptCheck(Record):
    """What a calibration would be given, and what speaks against it."""

    schema_: Literal["demur.prompt_check/1"] = Field(default="demur.prompt_check/1", alias="schema")
    sets: dict[PromptLabel, PromptSetIdentity]
    leakage: LeakageReport
    dropped: dict[PromptLabel, int]
    """Prompts left out of a later split because an earlier one holds a copy; only where that was asked for."""
    problems: tuple[str, ...]
    """Why a calibration would refuse the sets; empty where it would take them."""
    notes: tuple[str, ...]
    """What it would take, but could conclude little from."""
