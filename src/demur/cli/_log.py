"""`log.txt` of a run folder: the command, its stages with their times, warnings, the decision. No texts of prompts."""

import re
import shlex
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from demur.records import LOG_FILE, other_files

_OURS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ  ")
_RECORDS = ("run.json", "reference.json", "suite.json", "monitor.json")
"""A folder with one of them is one of ours."""
_TEXTS = ("--system", "--suffix", "--response-prefix")
"""Options whose values are texts that a model reads; a log holds none."""


class RunLog:
    """Appends lines with UTC times to a file, once it is sure that the file may be written there.

    A folder belongs to a command only when the library has claimed it, which takes until the model is loaded. Until
    then lines wait in memory; they are lost where the folder turns out to be another run's, which they do not concern.

    Args:
        now: gives the time.
    """

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self._path: Path | None = None
        self._open = False
        self._waiting: list[str] = []
        self.problem: str | None = None
        """Why nothing is written any more."""

    @property
    def written_to(self) -> Path | None:
        """The file; None while nothing is written."""
        return self._path if self._open else None

    def attach(self, folder: Path | None) -> None:
        """From here on lines are meant for `log.txt` of this folder; what waits is written there as well."""
        self.attach_file(None if folder is None else folder / LOG_FILE)

    def attach_file(self, path: Path | None) -> None:
        """The same for a file of another name."""
        self._path, self._open = path, False

    def write(self, text: str) -> None:
        """One line."""
        shown = "".join(each if each.isprintable() else " " for each in text)
        self._waiting.append(f"{self._now():%Y-%m-%dT%H:%M:%SZ}  {shown}\n")
        if self._open:
            self._flush()

    def open_new(self) -> None:
        """Write what waits, and from here on every line as it comes, if the folder is new or empty."""
        if self._path is not None and not self._others():
            self.open()

    def open_started(self) -> None:
        """The same if it is new or empty, or holds records of ours."""
        if self._path is not None and any((self._path.parent / name).exists() for name in _RECORDS):
            self.open()
        self.open_new()

    def open(self) -> None:
        """The same, as the folder is known to be that of this command."""
        if self._open or self._path is None or self.problem is not None:
            return
        try:
            with self._path.open(encoding="utf-8", errors="replace") as file:
                theirs = file.readline()
        except OSError:
            theirs = ""
        if theirs and not _OURS.match(theirs):
            self.problem = f"{self._path} was not written by demur, so no log is kept there"
            return
        self._open = True
        self._flush()

    def _others(self) -> list[str]:
        assert self._path is not None
        # A file of a name of its own was named by the user, wherever it lies.
        return other_files(self._path.parent) if self._path.name == LOG_FILE else []

    def _flush(self) -> None:
        assert self._path is not None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(self._waiting))
        except OSError as error:  # a log is no reason to lose a run
            self.problem, self._open = f"cannot write {self._path}: {error.strerror or error}; no log is kept", False
        self._waiting.clear()


def command_line(words: Sequence[str]) -> str:
    """A command as it was typed, without the texts in it."""
    shown, hidden = [], False
    for word in words:
        name, equals, value = word.partition("=")
        if hidden:
            shown.append(_length(word))
        elif equals and name in _TEXTS:
            shown.append(f"{name}={_length(value)}")
        else:
            shown.append(shlex.quote(word))
        hidden = not hidden and word in _TEXTS
    return " ".join(["demur", *shown])


def _length(text: str) -> str:
    return f"<{len(text)} characters>"
