"""Which column holds the prompt, and which hold split, category and answer. Reads no rows."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from demur.errors import PromptError
from demur.prompts._source import Source, Wanted

PROMPT_COLUMNS = ("prompt", "instruction", "goal", "behavior", "question", "text")
"""Names under which published sets keep their prompts; letter case does not count."""

_LISTED = 20
_NAME_CHARACTERS = 40
_NAME_WORDS = 3
"""A longer column name is a text: a file without a header, whose first prompt must not land in a message."""


@dataclass(frozen=True)
class Columns:
    """The columns to read, by their names in the source."""

    prompt: str
    split: str | None
    category: str | None
    answer: str | None
    others: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """Those that exist, each once."""
        every = (self.prompt, self.split, self.category, self.answer, *self.others)
        return list(dict.fromkeys(name for name in every if name is not None))


def shown_name(name: str) -> str:
    """A column name or a cell for a message; what reads like a text is only counted."""
    if len(name) > _NAME_CHARACTERS or len(name.split()) > _NAME_WORDS:
        return f"(a text of {len(name)} characters)"
    return repr(name)


def shown_names(names: Iterable[str]) -> str:
    """Column names for a message, at most 20."""
    every = [shown_name(name) for name in names]
    more = f" and {len(every) - _LISTED} more" if len(every) > _LISTED else ""
    return ", ".join(every[:_LISTED]) + more if every else "(none)"


def find_columns(names: Sequence[str], source: Source) -> Columns:
    """Choose the columns.

    Args:
        names: all columns of the source, in its order.
        source: where they come from, with the column that the user named, if any.

    Raises:
        PromptError: the prompt column is missing or ambiguous, or another column comes twice.
    """
    if source.wanted is not None:
        return _wanted_columns(names, source.wanted, source)
    prompt = _named_column(names, source) if source.column is not None else _known_column(names, source)
    others = [name for name in names if name != prompt]
    return Columns(
        prompt=prompt,
        split=_optional_column(others, ("split",), source),
        category=_optional_column(others, ("category",), source),
        answer=_optional_column(others, ("answer", "expected"), source),
    )


def column_called(wanted: str, names: Sequence[str]) -> str | None:
    """The column of this name as the source writes it; letter case does not count."""
    return next((name for name in names if _key(name) == _key(wanted)), None)


def _wanted_columns(names: Sequence[str], wanted: Wanted, source: Source) -> Columns:
    found = [column for one in wanted.prompt if (column := column_called(one, names)) is not None]
    if not found:
        raise PromptError(
            f"{source.name}: there is no column {' or '.join(map(repr, wanted.prompt))}; the columns are "
            f"{shown_names(names)}. {wanted.hint}"
        )
    others = (column_called(one, names) for one in wanted.others)
    return Columns(
        prompt=found[0],
        split=None,
        category=None if wanted.category is None else column_called(wanted.category, names),
        answer=None,
        others=tuple(column for column in others if column is not None),
    )


def _key(name: str) -> str:
    return name.strip().casefold()


def _named_column(names: Sequence[str], source: Source) -> str:
    wanted = source.column or ""
    if wanted in names:
        return wanted
    alike = [name for name in names if _key(name) == _key(wanted)]
    if len(alike) == 1:
        return alike[0]
    close = difflib.get_close_matches(wanted, [name for name in names if shown_name(name) == repr(name)], n=1)
    hint = f"Did you mean {source.with_column(close[0])}?" if close else f"Give {source.with_column('COLUMN')}."
    raise PromptError(f"{source.name}: there is no column {wanted!r}; the columns are {shown_names(names)}. {hint}")


def _known_column(names: Sequence[str], source: Source) -> str:
    found = [name for name in names if _key(name) in PROMPT_COLUMNS]
    if len(found) == 1:
        return found[0]
    if found:
        raise PromptError(
            f"{source.name}: several columns may hold the prompts: {shown_names(found)}. Name the one to use, "
            "for example " + " or ".join(source.with_column(name) for name in found) + "."
        )
    hint = ""
    if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
        hint = (
            " The columns seem to be separated by another mark than this kind of file has: save it again with commas."
        )
    elif any(shown_name(name) != repr(name) for name in names):
        hint = " The first line of the file must name its columns."
    raise PromptError(
        f"{source.name}: no prompt column; the columns are {shown_names(names)}.{hint} "
        f"Name the one that holds the prompts as {source.with_column('COLUMN')}, "
        f"or rename it to one of {', '.join(PROMPT_COLUMNS)}."
    )


def _optional_column(names: Sequence[str], known: Sequence[str], source: Source) -> str | None:
    found = [name for name in names if _key(name) in known]
    if len(found) > 1:
        raise PromptError(
            f"{source.name}: the columns {shown_names(found)} mean the same; keep one of them and rename the others."
        )
    return found[0] if found else None
