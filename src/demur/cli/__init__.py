"""The command line: thin. Settings in, one library call, records out; the only code that talks to a terminal."""

from demur.cli._main import main

__all__ = ["main"]
