"""The command table, and the one place where exceptions become exit codes.

0 ok, 1 bug, 2 bad input or usage, 100 gate failed, 101 gate inconclusive, 130 interrupted.
"""

import os
import pathlib
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from typing import Any

import typer

from demur.cli import (
    _audit,
    _capability,
    _check,
    _commands,
    _compare,
    _demo,
    _drift,
    _judge,
    _monitor,
    _power,
    _prompts,
    _suffixes,
    _suite,
)
from demur.cli._console import WORDS, Out
from demur.cli._options import app
from demur.errors import DemurError

# typer carries its own copy of click in some releases and not in others; it is reached through what it exports.
_ClickException: type[Exception] = typer.BadParameter.__mro__[2]
COMMANDS = (
    _audit,
    _capability,
    _check,
    _commands,
    _compare,
    _demo,
    _drift,
    _judge,
    _monitor,
    _power,
    _prompts,
    _suffixes,
    _suite,
)
"""Importing a module of commands registers them."""
SHARED = ("calibrate", "evaluate", "compare-methods", "demo")
"""Commands whose forward passes several processes share."""
EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return _run(words)
    return _run_as_one_of_many(words)


def _run_as_one_of_many(words: list[str]) -> int:
    """Under `torchrun` or `accelerate launch`: commands that measure share the work, and the first process speaks."""
    first = os.environ.get("RANK", "0") == "0"
    if not words or words[0] not in SHARED:
        return _run(words) if first else 0
    waiting = Out(as_json=True).working("waiting for the other processes", quiet=True) if first else nullcontext()
    try:
        with waiting:
            from demur.models import (  # noqa: PLC0415 (torch, which other commands do not load)
                join_processes,
                leave_processes,
            )

            join_processes()
    except DemurError as error:
        _fail(Out(as_json="--json" in words), type(error).__name__, str(error), error.exit_code)
        return error.exit_code
    try:
        if first:
            return _run(words)
        with (
            pathlib.Path(os.devnull).open("w", encoding="utf-8") as nowhere,
            redirect_stdout(nowhere),
            redirect_stderr(nowhere),
        ):
            _run(words)
        return 0  # what went wrong, went wrong in the first process too, and is said there
    finally:
        leave_processes()


def _run(words: list[str]) -> int:
    out = Out(as_json="--json" in words)
    WORDS.set(tuple(words))
    try:
        result = typer.main.get_command(app).main(args=words, prog_name="demur", standalone_mode=False)
        if result == EXIT_INTERRUPTED:  # newer releases of typer swallow Ctrl-C and return this
            raise KeyboardInterrupt
        return int(result or 0)
    except _ClickException as error:
        _usage(out, error)
        return EXIT_USAGE
    except DemurError as error:
        _fail(out, type(error).__name__, str(error), error.exit_code)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        message = "interrupted; what was computed is kept, and the same command continues from it"
        _fail(out, "Interrupted", message, EXIT_INTERRUPTED)
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 (the last door: whatever arrives here is a bug and is shown as one)
        out.note(traceback.format_exc())
        _fail(out, type(error).__name__, f"this is a bug in demur: {error}", EXIT_BUG)
        return EXIT_BUG


def _usage(out: Out, error: Any) -> None:
    context = getattr(error, "ctx", None)
    hint = "" if context is None else f" See: {context.command_path} --help"
    _fail(out, "UsageError", error.format_message() + hint, EXIT_USAGE)


def _fail(out: Out, kind: str, message: str, code: int) -> None:
    out.note(f"error: {message}")
    out.json({"error": {"type": kind, "message": message, "exit_code": code}})
