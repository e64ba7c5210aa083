"""What is known about a published prompt set: where it lies, what its rows are, what its licence allows."""

from dataclasses import dataclass
from typing import Literal

from demur.types import PromptLabel

Redistribution = Literal["with attribution", "run time only", "never", "ships with demur"]
"""run time only: the terms are accepted by each user; never: non-commercial, or no licence found."""


@dataclass(frozen=True)
class Condition:
    """Which rows are meant, by one column. Letter case and surrounding spaces of the cells do not count."""

    column: str
    values: tuple[str, ...] = ()
    """The cell is one of these, in lower case; an empty or missing cell is the empty string."""
    prefix: str | None = None
    """In place of values: the cell starts like this."""
    negated: bool = False
    on_hub: bool = True
    """False where the config of the Hub's dataset already makes the choice."""

    def holds(self, value: object) -> bool:
        """Whether a row with this cell is meant."""
        cell = "" if value is None else str(value).strip().casefold()
        found = cell.startswith(self.prefix) if self.prefix is not None else cell in self.values
        return found != self.negated

    def __str__(self) -> str:
        """In words, for people."""
        if self.prefix is not None:
            return f"{self.column} {'does not start' if self.negated else 'starts'} with {self.prefix!r}"
        values = " or ".join(value or "(empty)" for value in self.values)
        return f"{self.column} {'is not' if self.negated else 'is'} {values}"


@dataclass(frozen=True)
class Rows:
    """The rows of a set that carry one label."""

    label: PromptLabel
    n: int | None
    """How many, as published; None where no number is known."""
    where: tuple[Condition, ...] = ()
    """Alternatives: the first whose column the file has is applied; none: all rows of the file."""
    config: str | None = None
    split: str = "train"
    """Config and split of the Hub's dataset."""


@dataclass(frozen=True)
class PublishedSet:
    """One set of the registry, typed as `set:NAME` or, where it ships with demur, `demur:NAME`."""

    name: str
    title: str
    rows: tuple[Rows, ...]
    columns: tuple[str, ...]
    """Names of the prompt column in the published files; the first that a file has is read."""
    licence: str
    redistribution: Redistribution
    hub: str | None = None
    """Dataset of the Hub; None where only a file is published."""
    revision: str | None = None
    """Commit of the dataset that is loaded; None: floating, whatever the Hub serves today."""
    file: str | None = None
    """Address of the same prompts as a file, for a local copy."""
    category: str | None = None
    context: str | None = None
    """Column of a text that belongs before the prompt, with an empty line between."""
    gated: bool = False
    reader: tuple[tuple[str, str | bool], ...] = ()
    """Options for the reader of `datasets`."""
    note: str = ""
    """What the set is not, and what to know before using it."""

    @property
    def source(self) -> str:
        """What to type."""
        return self.name if self.name.startswith("demur:") else f"set:{self.name}"

    @property
    def page(self) -> str | None:
        """The dataset's page, where terms are accepted."""
        return None if self.hub is None else f"https://huggingface.co/datasets/{self.hub}"

    @property
    def labels(self) -> tuple[PromptLabel, ...]:
        """The labels that its rows carry."""
        return tuple(rows.label for rows in self.rows)

    @property
    def n(self) -> int | None:
        """Prompts of all labels; None where one number is not known."""
        sizes = [rows.n for rows in self.rows]
        return None if None in sizes else sum(size for size in sizes if size is not None)
