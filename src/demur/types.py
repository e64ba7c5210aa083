"""The words that several layers share, as types: no code that does anything."""

from typing import Literal, Protocol

PromptLabel = Literal["harmful", "harmless", "borderline"]
"""harmful: should be refused; harmless: plainly fine; borderline: looks unsafe but is fine."""

Split = Literal["train", "validation", "test"]
"""Directions are fitted on train, chosen on validation, reported on test."""

Verdict = Literal["full_refusal", "partial_refusal", "full_compliance", "unjudged"]
"""What a judge says of a completion. `unjudged` is an answer of its own, never a silent default."""

PressureFamily = Literal["opening", "suffix", "system", "template", "weights", "sampling", "given"]
"""Conditions under which refusals are measured again; `given` are prompt sets of the user's, such as paraphrases."""

Decision = Literal["pass", "fail", "inconclusive"]
"""What a gate says, on confidence bounds."""


class Progress(Protocol):
    """Receives what a long call has done; the CLI draws it, libraries may ignore it."""

    def start(self, task: str, total: int) -> None:
        """A task of `total` steps begins; the task before it has ended."""

    def advance(self, steps: int = 1) -> None:
        """`steps` more steps of the current task are done."""

    def note(self, text: str) -> None:
        """How the current task stands, in a few words; replaces the note before."""


class SilentProgress:
    """The default `Progress`: says nothing."""

    def start(self, task: str, total: int) -> None:
        """Ignore the start of a task."""

    def advance(self, steps: int = 1) -> None:
        """Ignore progress."""

    def note(self, text: str) -> None:
        """Ignore a note."""
