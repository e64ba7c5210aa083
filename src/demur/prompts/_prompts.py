"""What a prompt and a prompt set are, and by what hash each is known. Knows nothing about files or the Hub."""

import hashlib
import unicodedata
from dataclasses import dataclass, field
from functools import cached_property
from typing import get_args

from demur.errors import PromptError
from demur.prompts._similarity import comparison_text
from demur.records import PromptSetIdentity, canonical_json
from demur.types import PromptLabel, Split

SPLITS: tuple[Split, ...] = get_args(Split)
"""train, validation, test: the order that fractions are given in."""

_SHOWN_CHARACTERS = 40
_SHOWN_HASH = 12
"""Hex digits: 48 bits tell the prompts of any set apart, and still fit in a sentence."""


def normalise(text: str) -> str:
    """The text that counts when prompts are compared: NFC, stripped, each run of whitespace one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


@dataclass(frozen=True)
class Prompt:
    """One user message, with what its set says about it."""

    text: str
    """As in the file; this is what a model is given."""
    label: PromptLabel
    split: Split | None = None
    """From the file's `split` column, else set by `assign_splits`; None until then."""
    category: str | None = None
    answer: str | None = None
    """The expected answer, where the set carries one."""
    where: str | None = field(default=None, compare=False)
    """Line or row of the source, for messages, such as `line 12`; no part of what makes two prompts equal."""

    @cached_property
    def sha256(self) -> str:
        """Sha256 of the normalised text, 64 hex digits: how records, splits and leakage checks know the prompt."""
        return hashlib.sha256(normalise(self.text).encode()).hexdigest()

    @cached_property
    def comparison_text(self) -> str:
        """The text by which copies are found: NFKC, case folded, no punctuation. The hash stays the identity."""
        return comparison_text(self.text)

    def __repr__(self) -> str:
        """The label and `shown`, so that a traceback never quotes a harmful prompt."""
        return f"Prompt({self.label}, {shown(self)})"


def shown(prompt: Prompt, *, private: bool = False) -> str:
    """The prompt as a message may show it: the first 40 characters, or 12 digits of its hash where it is harmful.

    Args:
        prompt: the prompt.
        private: show the hash whatever the label, as where a harmless prompt equals a harmful one.
    """
    if private or prompt.label == "harmful":
        return f"sha256 {prompt.sha256[:_SHOWN_HASH]}"
    text = normalise(prompt.text)
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "...")


@dataclass(frozen=True)
class PromptSet:
    """Prompts of one label from one source, in the order of the source."""

    label: PromptLabel
    source: str
    """As the user gave it: a path, `path:column` or an hf:// address."""
    prompts: tuple[Prompt, ...]

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.prompts)

    def __repr__(self) -> str:
        """Label, source and size; never the texts."""
        return f"PromptSet({self.label}, {self.source!r}, {len(self)} prompts)"

    @cached_property
    def sha256(self) -> str:
        """Sha256 over the sorted (hash, split, answer) of the prompts, 64 hex digits; the order does not count."""
        entries = sorted((prompt.sha256, prompt.split or "", prompt.answer or "") for prompt in self.prompts)
        return hashlib.sha256(canonical_json(entries).encode()).hexdigest()

    def split(self, name: Split) -> tuple[Prompt, ...]:
        """The prompts of one split, in the order of the source.

        Args:
            name: train, validation or test.

        Raises:
            PromptError: no such split exists, or some prompt has no split yet.
        """
        if name not in SPLITS:
            raise PromptError(f"{name!r} is not a split; give one of {', '.join(SPLITS)}.")
        unassigned = sum(prompt.split is None for prompt in self.prompts)
        if unassigned:
            raise PromptError(
                f"{unassigned} of {len(self)} {self.label} prompts from {self.source} have no split yet; "
                "call assign_splits(prompts, minimum=...) first and use the set that it returns."
            )
        return tuple(prompt for prompt in self.prompts if prompt.split == name)

    def identity(self) -> PromptSetIdentity:
        """The record that names this set: source, number of prompts, hash, prompts per split (0 where unassigned)."""
        return PromptSetIdentity(
            source=self.source,
            n=len(self),
            sha256=self.sha256,
            splits={name: sum(prompt.split == name for prompt in self.prompts) for name in SPLITS},
        )
