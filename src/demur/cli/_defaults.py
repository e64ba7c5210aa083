"""What a command takes where its user gave nothing: prompts, a run folder, and what to type next."""

import re
import shlex
from collections.abc import Callable, Iterator
from datetime import date
from itertools import count
from pathlib import Path
from typing import TypeVar

from demur.cli._console import Out
from demur.errors import InputError, RunFolderError
from demur.records import Summary, other_files

Result = TypeVar("Result")

RUNS = Path("demur-runs")
"""Where runs lie whose folder nobody gave."""
_RESULTS = ("summary.json", "methods.json", "audit.json")
"""What a finished run holds."""
_LONGEST_NAME = 80


def prompt_sources(harmful: str | None, harmless: str | None, borderline: str | None) -> tuple[str, str, str]:
    """The three sources: the given ones, or those that ship with demur where none is given.

    Raises:
        InputError: some are given and others are not. To fill these up would mix prompts that do not fit.
    """
    given = {"harmful": harmful, "harmless": harmless, "borderline": borderline}
    missing = [label for label, source in given.items() if source is None]
    if harmful is not None and harmless is not None and borderline is not None:
        return harmful, harmless, borderline
    if len(missing) == len(given):
        return "demur:harmful", "demur:harmless", "demur:borderline"
    named = " and ".join(f"--{label}" for label in given if label not in missing)
    typed = " ".join(f"--{label} demur:{label}" for label in missing)
    raise InputError(
        f"{named} {'was' if len(missing) == 2 else 'were'} given without "
        f"{' and '.join(f'--{label}' for label in missing)}: harmful, harmless and borderline prompts are measured "
        f"together. Give a source for each, such as {typed}, or none of the three for a first look with the prompts "
        "that ship with demur."
    )


def in_run_folder(
    given: Path | None, model: str, command: str, out: Out, attempt: Callable[[Path], Result]
) -> tuple[Path, Result]:
    """Make a run in the folder that was given, or in one named after the model and the day.

    Of the latter the first that takes the run: one that holds an unfinished run of the same inputs, also of an earlier
    day, or today's; where that holds something else, the next number.

    Args:
        given: the folder of --out.
        model: as it was typed.
        command: part of the folder's name, but for a calibration.
        out: its log goes into the folder.
        attempt: makes the run.

    Raises:
        RunFolderError: the given folder holds something else, or no folder can be written.
    """
    if given is not None:
        return given, attempt(given)
    for folder in _folders(model, command, date.today()):
        out.log_into(folder)
        try:
            return folder, attempt(folder)
        except RunFolderError as error:
            if not error.taken:
                raise
    raise AssertionError  # the numbers do not end


def new_folder(given: Path | None, model: str, command: str) -> Path:
    """The folder that was given, or the first of the same names that is new or empty."""
    if given is not None:
        return given
    return next(folder for folder in _today(_stem(model, command), date.today()) if not other_files(folder))


def _folders(model: str, command: str, today: date) -> Iterator[Path]:
    stem = _stem(model, command)
    dated = re.compile(re.escape(stem) + r"-(\d{4}-\d\d-\d\d)(-\d+)?")
    found = ((folder, dated.fullmatch(folder.name)) for folder in RUNS.glob("*"))
    earlier = sorted(
        (
            folder
            for folder, named in found
            if named is not None
            and named[1] != today.isoformat()
            and (folder / "run.json").is_file()
            and not any((folder / name).exists() for name in _RESULTS)
        ),
        reverse=True,
    )
    yield from earlier
    yield from _today(stem, today)


def _today(stem: str, today: date) -> Iterator[Path]:
    yield RUNS / f"{stem}-{today.isoformat()}"
    yield from (RUNS / f"{stem}-{today.isoformat()}-{number}" for number in count(2))


def _stem(model: str, command: str) -> str:
    """The model's own name, as every file system takes it, and the command."""
    try:
        local = Path(model).exists()
    except (OSError, ValueError):  # no file can have that name
        local = False
    name = Path(model).resolve().name if local else model.rstrip("/").rpartition("/")[2]
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:_LONGEST_NAME].strip("-.") or "model"
    return safe if command == "calibrate" else f"{safe}-{command}"


def next_lines(summary: Summary, run: Path) -> list[str]:
    """What to type after a calibration."""
    gate = summary.gate
    if gate is None:
        return []
    if gate.decision == "pass":
        adapter = run.with_name(run.name + "-adapter")
        if adapter.exists():  # it was exported before
            return []
        return [f"next: {_typed('export', run, '--format', 'adapter', '--to', adapter)}"]
    if gate.decision == "fail":
        return [
            f"nothing to export. The report shows what went wrong and where; to build it again: {_typed('report', run)}"
        ]
    tests = summary.prompts["harmful"].splits.get("test", 0)
    return [
        f"not decided on {tests} harmful test prompts: more of them make the intervals above narrower. How many are "
        "needed:",
        f"next: {_typed('power', '--margin', f'{gate.margin:g}', '--n', max(tests, 1))}",
    ]


def _typed(*words: object) -> str:
    return shlex.join(["demur", *map(str, words)])
