"""What every reader hands on: rows with their numbers, all objects or all strings. Knows no file format."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from demur.errors import PromptError
from demur.prompts._source import Source


class Row(NamedTuple):
    """One row and its number in the source, counted from 1."""

    number: int
    value: Any
    """A mapping of columns to values, or a string; `checked_table` refuses anything else."""


@dataclass(frozen=True)
class Table:
    """The rows of one source."""

    unit: Literal["line", "row"]
    """What the numbers count: lines of a text file as an editor shows them, or rows."""
    rows: Sequence[Row]
    columns: tuple[str, ...] | None
    """All columns of the source; None where the rows are strings."""


_KINDS = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}


def kind(value: object) -> str:
    """What a value is, in words, without showing it."""
    return "null" if value is None else _KINDS.get(type(value), f"of type {type(value).__name__}")


def checked_table(rows: Iterable[Row], unit: Literal["line", "row"], source: Source) -> Table:
    """The table of rows that were just read from JSON or text.

    Raises:
        PromptError: a row is neither an object nor a string, or some are objects and some strings.
    """
    kept = list(rows)
    columns: dict[str, None] = {}
    strings = sum(isinstance(row.value, str) for row in kept)
    for row in kept:
        if isinstance(row.value, Mapping):
            columns.update(dict.fromkeys(row.value))
        elif not isinstance(row.value, str):
            raise PromptError(
                f"{source.name}, {unit} {row.number}: this is {kind(row.value)}, not an object or a string. "
                'Each row is {"prompt": "..."} or "...".'
            )
    if strings and strings < len(kept):
        odd = next(row for row in kept if isinstance(row.value, str) != isinstance(kept[0].value, str))
        raise PromptError(
            f"{source.name}, {unit} {odd.number}: {strings} of {len(kept)} rows are strings and the others are "
            "objects, from this row on. Write all of them one way."
        )
    return Table(unit, kept, None if strings else tuple(columns))
