"""Local files into tables: JSONL, JSON, CSV, TSV, Parquet, text. Knows nothing about labels or splits."""

import csv
import difflib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from demur.errors import PromptError
from demur.prompts._columns import find_columns, shown_names
from demur.prompts._source import FORMATS, FileSource
from demur.prompts._table import Row, Table, checked_table

_SUPPORTED = ", ".join(FORMATS)
_SUGGESTED = 3


def read_file(source: FileSource) -> Table:
    """Read a prompt file.

    Raises:
        PromptError: the file is missing, a folder, unreadable, empty, of an unknown kind, or malformed.
    """
    if _holds(source.path.is_dir):
        raise PromptError(f"{source.name} is a folder, not a prompt file.{_files_in(source.path)}")
    form = FORMATS.get(source.path.suffix.lower())
    if form is None and _holds(source.path.exists):
        ending = f"the ending {source.path.suffix!r} is not known" if source.path.suffix else "it has no ending"
        raise PromptError(
            f"{source.name}: cannot tell what kind of file this is: {ending}. "
            f"Supported are {_SUPPORTED}; rename the file, or save it as one of these."
        )
    data = _read_bytes(source)
    if not data.strip():
        raise PromptError(f"{source.name}: the file is empty. Give a file with at least one prompt.")
    if form == "parquet":
        return _read_parquet(data, source)
    return _TEXT_READERS[form or "text"](_decode(data, source), source)


def _read_bytes(source: FileSource) -> bytes:
    try:
        return source.path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PromptError(_missing(source)) from error
    except PermissionError as error:
        raise PromptError(
            f"{source.name}: you may not read this file. Change its rights, for example chmod u+r {source.name}."
        ) from error
    except (OSError, ValueError) as error:
        raise PromptError(f"{source.name}: cannot read this file: {error}. Give the path of a prompt file.") from error


def _holds(test: Callable[[], bool]) -> bool:
    """A test of a path, False where the system cannot say: opening the file then says why."""
    try:
        return test()
    except OSError:
        return False


def _files_in(folder: Path) -> str:
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() in FORMATS)
    except OSError:
        names = []
    if not names:
        return f" It holds no file of a supported kind ({_SUPPORTED})."
    return " Give one of its files: " + ", ".join(str(folder / name) for name in names[:_SUGGESTED]) + "."


def _missing(source: FileSource) -> str:
    folder = source.path.parent
    if not _holds(folder.is_dir):
        return f"{source.name}: no such file: the folder {folder} does not exist. Check the path."
    try:
        names = [entry.name for entry in folder.iterdir()]
    except OSError:
        names = []
    close = difflib.get_close_matches(source.path.name, names, n=_SUGGESTED)
    if close:
        return f"{source.name}: no such file. Did you mean {' or '.join(str(folder / name) for name in close)}?"
    return (
        f"{source.name}: no such file in {folder.resolve()}. Check the path, or give a Hub dataset as hf://OWNER/NAME."
    )


def _decode(data: bytes, source: FileSource) -> str:
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        # The BOM, where there is one, is not in error.object.
        at = error.start + len(data) - len(error.object)
        line = data.count(b"\n", 0, at) + 1
        hint = " The file starts like UTF-16." if data[:2] in {b"\xff\xfe", b"\xfe\xff"} else ""
        raise PromptError(
            f"{source.name}, line {line}: byte {at} of the file (0x{data[at]:02x}) is not UTF-8.{hint} "
            "Save the file with the encoding UTF-8."
        ) from error


def _parse_json(text: str, source: FileSource, line: int, hint: str) -> Any:
    """One JSON text that starts on the given line of the file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise PromptError(
            f"{source.name}, line {line + error.lineno - 1}, column {error.colno}: not valid JSON: {error.msg}.{hint}"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise PromptError(f"{source.name}, line {line}: not JSON that can be read: {error}.") from error


def _read_jsonl(text: str, source: FileSource) -> Table:
    hint = " Each line holds one object or one string."
    if text.lstrip().startswith("["):
        hint = " The file starts like one JSON list: if it is one, let its name end in .json."

    def rows() -> Iterator[Row]:
        # Not str.splitlines: it also cuts at characters that JSON strings may hold, such as U+2028.
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield Row(number, _parse_json(line, source, number, hint))

    return checked_table(rows(), "line", source)


def _read_json(text: str, source: FileSource) -> Table:
    hint = " If each line is an object of its own, let the file name end in .jsonl."
    value = _parse_json(text, source, 1, hint if text.lstrip().startswith("{") else "")
    if isinstance(value, dict):
        lists = [key for key, item in value.items() if isinstance(item, list)]
        if len(lists) != 1:
            found = "no list" + (f", only {shown_names(value)}" if value else "")
            if lists:
                found = f"several lists: {shown_names(lists)}"
            raise PromptError(
                f"{source.name}: the file is an object that holds {found}. "
                "Save one list of prompts alone: a list of objects or of strings."
            )
        value = value[lists[0]]
    if not isinstance(value, list):
        raise PromptError(f"{source.name}: the file holds no list. Write a list of objects or of strings.")
    return checked_table((Row(number, item) for number, item in enumerate(value, start=1)), "row", source)


def _read_csv(text: str, source: FileSource) -> Table:
    return _read_separated(text, source, ",")


def _read_tsv(text: str, source: FileSource) -> Table:
    return _read_separated(text, source, "\t")


def _read_separated(text: str, source: FileSource, separator: str) -> Table:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header: list[str] = []
    rows: list[Row] = []
    line = 1
    try:
        for cells in reader:
            if cells and not header:
                header = _checked_header(cells, source, line)
            elif cells:
                _check_width(cells, header, source, line)
                rows.append(Row(line, dict(zip(header, cells, strict=True))))
            line = reader.line_num + 1
    except csv.Error as error:
        raise PromptError(
            f"{source.name}, line {line}: the row that starts here cannot be read: {error}. A text with quotes, "
            'separators or line breaks stands in double quotes, and a quote inside it is written twice ("").'
        ) from error
    return Table("line", rows, tuple(header))


def _checked_header(cells: list[str], source: FileSource, line: int) -> list[str]:
    header = [cell.strip() for cell in cells]
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise PromptError(f"{source.name}, line {line}: the header names {shown_names(twice)} twice; rename one.")
    find_columns(header, source)  # a wrong separator shows here, before it shows as rows of unequal width
    return header


def _check_width(cells: list[str], header: list[str], source: FileSource, line: int) -> None:
    if len(cells) != len(header):
        raise PromptError(
            f"{source.name}, line {line}: the row has {len(cells)} cells and the header {len(header)}. "
            "Put texts that hold the separator in double quotes."
        )


def _read_text(text: str, source: FileSource) -> Table:
    if source.column is not None:
        raise PromptError(
            f"{source.name}: a text file has no columns, each line is a prompt. Give {source.name} without "
            f":{source.column}."
        )
    lines = enumerate(text.replace("\r", "\n").split("\n"), start=1)
    return checked_table((Row(number, line) for number, line in lines if line.strip()), "line", source)


def _read_parquet(data: bytes, source: FileSource) -> Table:
    import pyarrow as pa  # noqa: PLC0415 - start-up time: only Parquet needs it
    import pyarrow.parquet as pq  # noqa: PLC0415 - start-up time

    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        names = [str(name) for name in file.schema_arrow.names]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise PromptError(f"{source.name}: this is not a Parquet file: {error}. Write it again.") from error
    chosen = find_columns(names, source)
    try:
        values = file.read(columns=chosen.names()).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise PromptError(f"{source.name}: the Parquet file is damaged: {error}. Write it again.") from error
    return Table("row", [Row(number, value) for number, value in enumerate(values, start=1)], tuple(names))


_TEXT_READERS: dict[str, Callable[[str, FileSource], Table]] = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "text": _read_text,
}
