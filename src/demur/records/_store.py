"""Reading and writing records: atomic files, append-only JSON Lines that survive a kill at any moment."""

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, TypeVar

from pydantic import ValidationError

from demur.errors import RunFolderError
from demur.records._base import Record

R = TypeVar("R", bound=Record)


def write_text(path: Path, text: str) -> None:
    """Write `text` so that `path` holds either the old content or all of the new one, also after a kill."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to a temporary file in the same folder, fsync it, rename it to `path`.

    Raises:
        RunFolderError: the folder cannot be written (missing rights, full disk).
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _unwritable(path, error) from error
        raise


def _unwritable(path: Path, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"cannot write {path}: {error.strerror or error}. Free some space or give a folder that you may write, "
        "for example --out ./run; what was already written is kept and the same command continues from it."
    )


def write_record(path: Path, record: Record) -> None:
    """Write one record as indented JSON, atomically."""
    write_text(path, record.model_dump_json(indent=2) + "\n")


def read_record(path: Path, kind: type[R]) -> R:
    """Read one record.

    Raises:
        RunFolderError: the file is missing, is no JSON, or is not of this kind and version.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {error.strerror or error}.") from error
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise RunFolderError(
            f"{path} is not a {kind.__name__} that this version of demur reads: {where}: {first['msg']}. "
            "Run the command that wrote it again with this version."
        ) from error


class JsonLines:
    """A file of records, one JSON object a line, to which batches of records are appended.

    Each is written with one write and one fsync. A kill can leave at most one broken last line, which is skipped by
    readers and cut off by the next append.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, kind: type[R]) -> list[R]:
        """All whole records; a broken last line is skipped, and the file is not changed.

        Raises:
            RunFolderError: the file cannot be read, or a line before the last is no such record.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunFolderError(f"cannot read {self.path}: {error.strerror or error}.") from error
        whole = data[: data.rfind(b"\n") + 1]
        records = []
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                records.append(kind.model_validate_json(line))
            except ValidationError as error:
                raise RunFolderError(
                    f"{self.path}, line {number} is not a {kind.__name__}: {error.errors()[0]['msg']}. "
                    "Delete that line; the next run computes it again."
                ) from error
        return records

    def append(self, records: Iterable[Record]) -> None:
        """Append records durably, all of them in one write, after cutting off a broken last line."""
        data = _lines(records)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                _cut_broken_line(file)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def replace(self, records: Iterable[Record]) -> None:
        """Put these records in the place of all that are there; a kill leaves the old ones or the new ones."""
        write_bytes(self.path, _lines(records))


def _lines(records: Iterable[Record]) -> bytes:
    return "".join(record.model_dump_json() + "\n" for record in records).encode()


def _cut_broken_line(file: BinaryIO) -> None:
    end = file.seek(0, os.SEEK_END)
    if not end:
        return
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: the same value always gives the same text, so it can be hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
