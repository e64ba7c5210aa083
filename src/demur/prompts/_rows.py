"""Rows into prompts: which cells a prompt is made of, and what may stand in them. Knows no file format."""

from collections.abc import Mapping
from typing import NamedTuple

from demur.errors import PromptError
from demur.prompts._columns import Columns, find_columns, shown_name
from demur.prompts._prompts import Prompt
from demur.prompts._source import Source
from demur.prompts._table import Row, Table, kind
from demur.types import PromptLabel, Split

_SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
}


class _Cell(NamedTuple):
    """A value and where it stands."""

    value: object
    where: str
    """File and row, for messages."""
    column: str


def prompts_of(table: Table, *, source: Source, label: PromptLabel) -> tuple[Prompt, ...]:
    """Make the prompts, in the order of the rows.

    Raises:
        PromptError: no usable prompt column, a cell that cannot be used, or a split in some rows only.
    """
    if not table.rows:
        raise PromptError(f"{source.name}: there is no prompt in it. Give a file with at least one prompt.")
    if table.columns is None:
        if source.column is not None:
            raise PromptError(
                f"{source.name}: the rows are strings, so there is no column {source.column!r}. "
                f"Give {source.name} without it."
            )
        return tuple(_string_prompt(row, table, source, label) for row in table.rows)
    columns = find_columns(table.columns, source)
    prompts = tuple(_object_prompt(row, columns, table, source, label) for row in table.rows)
    _check_mixed_splits(prompts, columns, source)
    return prompts


def _string_prompt(row: Row, table: Table, source: Source, label: PromptLabel) -> Prompt:
    where = f"{table.unit} {row.number}"
    return Prompt(_prompt_text(_Cell(row.value, f"{source.name}, {where}", "")), label, where=where)


def _object_prompt(row: Row, columns: Columns, table: Table, source: Source, label: PromptLabel) -> Prompt:
    where = f"{table.unit} {row.number}"
    value: Mapping[str, object] = row.value
    place = f"{source.name}, {where}"
    if columns.prompt not in value:
        raise PromptError(f"{place}: there is no {columns.prompt!r} in this row. Add it, or delete the row.")
    return Prompt(
        _prompt_text(_Cell(value[columns.prompt], place, columns.prompt)),
        label,
        split=_split(_Cell(value.get(columns.split), place, columns.split)) if columns.split else None,
        category=_optional(_Cell(value.get(columns.category), place, columns.category)) if columns.category else None,
        answer=_optional(_Cell(value.get(columns.answer), place, columns.answer)) if columns.answer else None,
        where=where,
    )


def _prompt_text(cell: _Cell) -> str:
    column = f" in column {cell.column!r}" if cell.column else ""
    if not isinstance(cell.value, str):
        raise PromptError(f"{cell.where}: the prompt{column} is {kind(cell.value)}, not a string. Write one string.")
    if not cell.value.strip():
        raise PromptError(f"{cell.where}: the prompt{column} is blank. Fill it in, or delete the row.")
    return _encodable(cell.value, cell)


def _encodable(text: str, cell: _Cell) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{cell.where}: character {error.start + 1} of the {cell.column or 'prompt'} is half of a surrogate pair "
            f"(\\u{ord(text[error.start]):04x}), not a character. Write the character itself, in UTF-8."
        ) from error
    return text


def _optional(cell: _Cell) -> str | None:
    value = cell.value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if value is None:
        return None
    if not isinstance(value, str):
        raise PromptError(
            f"{cell.where}: the value in column {cell.column!r} is {kind(value)}, not a string. "
            "Write one string, or leave it out."
        )
    return _encodable(value.strip(), cell) or None


def _split(cell: _Cell) -> Split | None:
    if cell.value is None or (isinstance(cell.value, str) and not cell.value.strip()):
        return None
    split = _SPLIT_NAMES.get(cell.value.strip().casefold()) if isinstance(cell.value, str) else None
    if split is None:
        given = shown_name(cell.value) if isinstance(cell.value, str) else kind(cell.value)
        raise PromptError(
            f"{cell.where}: {given} in column {cell.column!r} is not a split. Write train, validation or test, "
            "or rename the column where it means something else."
        )
    return split


def _check_mixed_splits(prompts: tuple[Prompt, ...], columns: Columns, source: Source) -> None:
    without = [prompt for prompt in prompts if prompt.split is None]
    if without and len(without) < len(prompts):
        raise PromptError(
            f"{source.name}, {without[0].where}: no {columns.split} in {len(without)} of {len(prompts)} rows, this one "
            "first. Write train, validation or test in every row, or leave the column out and the splits follow the "
            "content."
        )
