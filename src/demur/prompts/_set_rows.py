"""A published set into a table with the columns prompt and category: the rows of one label, and no others."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from demur.errors import PromptError
from demur.prompts._columns import column_called, find_columns
from demur.prompts._files import read_file
from demur.prompts._hub import read_hub
from demur.prompts._known_sets import published_set, rows_with_label
from demur.prompts._published import Condition, PublishedSet, Rows
from demur.prompts._source import BundledSource, FileSource, HubSource, SetSource, Source, Wanted
from demur.prompts._table import Row, Table
from demur.types import PromptLabel


def bundled_file(name: str) -> Path:
    """Path of a set that ships with demur."""
    return Path(str(files("demur.prompts") / "english" / f"{name}.jsonl"))


def read_bundled(source: BundledSource, label: PromptLabel) -> tuple[Table, Source]:
    """Read a set that ships with demur.

    Raises:
        PromptError: its rows have another label, or the file was not installed.
    """
    rows_with_label(published_set(f"demur:{source.set}"), label)
    file = FileSource(source.given, bundled_file(source.set))
    return read_file(file), file


def read_set(source: SetSource, label: PromptLabel) -> tuple[Table, Source]:
    """Read the rows of one label, from a local copy or from the Hub.

    Returns:
        The table, and where it was read from, for messages.

    Raises:
        PromptError: no such set, it has no rows of the label, there is no route to it, or what the readers refuse.
    """
    known = published_set(source.set)
    if known.source.startswith("demur:"):
        raise PromptError(f"{source.given}: this set ships with demur; give it as {known.source}.")
    rows = rows_with_label(known, label)
    wanted = _wanted(known, rows)
    if source.path is not None:
        file = FileSource(source.given, source.path, wanted=wanted)
        return _chosen(read_file(file), known, rows, file), FileSource(source.given, source.path)
    if known.hub is None:
        raise PromptError(f"{source.given}: this set is read from a local copy only. {local_copy(known)}")
    address = HubSource(
        given=source.given,
        dataset=known.hub,
        config=rows.config,
        split=rows.split,
        revision=known.revision,
        wanted=wanted,
        reader=known.reader,
        instead=_instead(known),
    )
    return _chosen(read_hub(address), known, rows, address), HubSource(source.given, known.hub, rows.config)


def local_copy(known: PublishedSet) -> str:
    """How to get and give a local copy, as a sentence."""
    text = _instead(known)
    return f"{text[0].upper()}{text[1:]}."


def _instead(known: PublishedSet) -> str:
    place = f"download {known.file}" if known.file else "download its file elsewhere"
    return f"{place} and give {known.source}=PATH"


def _wanted(known: PublishedSet, rows: Rows) -> Wanted:
    others = [condition.column for condition in rows.where]
    if known.context is not None:
        others.append(known.context)
    return Wanted(
        prompt=known.columns,
        category=known.category,
        others=tuple(others),
        hint=f"Is this the file of {known.source}? Give another file by its path alone, without set:.",
    )


def _chosen(table: Table, known: PublishedSet, rows: Rows, source: Source) -> Table:
    if table.columns is None:
        if rows.where or known.context:
            raise PromptError(
                f"{source.name}: the rows are strings, and those of {known.source} are told apart by the column "
                f"{rows.where[0].column!r}. Give the published file."
            )
        return table
    condition = _condition(table.columns, known, rows, source)
    column = None if condition is None else column_called(condition.column, table.columns)
    columns = find_columns(table.columns, source)
    context = None if known.context is None else _context_column(table.columns, known, source)
    chosen = [
        Row(number, {"prompt": _prompt(value, columns.prompt, context), "category": _cell(value, columns.category)})
        for number, value in table.rows
        if condition is None or column is None or condition.holds(value.get(column))
    ]
    if table.rows and not chosen:
        raise PromptError(
            f"{source.name}: no row of {len(table.rows)} is {rows.label}, that is {condition}. "
            f"Is this the file of {known.source}?"
        )
    return Table(table.unit, chosen, ("prompt", "category"))


def _condition(names: tuple[str, ...], known: PublishedSet, rows: Rows, source: Source) -> Condition | None:
    """The first condition whose column is there; a file without any is refused, since it could hold other rows."""
    for condition in rows.where:
        if column_called(condition.column, names) is not None:
            return condition
    if not rows.where or (isinstance(source, HubSource) and not all(one.on_hub for one in rows.where)):
        return None
    wanted = " or ".join(repr(condition.column) for condition in rows.where)
    raise PromptError(
        f"{source.name}: there is no column {wanted}, which tells the {rows.label} rows of {known.source} from others. "
        "Give the published file."
    )


def _context_column(names: tuple[str, ...], known: PublishedSet, source: Source) -> str:
    column = column_called(known.context or "", names)
    if column is None:
        raise PromptError(f"{source.name}: there is no column {known.context!r}, which completes each prompt.")
    return column


def _prompt(value: dict[str, Any], column: str, context: str | None) -> Any:
    """The cell; of a list of turns the first. What is no text is left for the row's own message."""
    prompt = value.get(column)
    if isinstance(prompt, list) and prompt:
        prompt = prompt[0]
    before = None if context is None else value.get(context)
    return f"{before.strip()}\n\n{prompt}" if isinstance(before, str) and isinstance(prompt, str) else prompt


def _cell(value: dict[str, Any], column: str | None) -> Any:
    cell = None if column is None else value.get(column)
    return cell if isinstance(cell, str | int) else None
