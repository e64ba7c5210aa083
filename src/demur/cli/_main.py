"""The command table, and the one place where exceptions become exit codes.

0 ok, 1 bug, 2 bad input or usage, 100 gate failed, 101 gate inconclusive, 130 interrupted.
"""

import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer

from demur.cli import _capability, _commands, _compare, _judge, _power, _prompts
from demur.cli._console import Out
from demur.cli._options import app
from demur.errors import DemurError

# typer carries its own copy of click in some releases and not in others; it is reached through what it exports.
_ClickException: type[Exception] = typer.BadParameter.__mro__[2]
COMMANDS = (_capability, _commands, _compare, _judge, _power, _prompts)
"""Importing a module of commands registers them."""
EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    out = Out(as_json="--json" in words)
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
