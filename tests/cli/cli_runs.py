"""Prompt files and a way to call the command line, in this process and in another."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from demur.cli import main
from demur.testing import toy_prompts

LABELS = ("harmful", "harmless", "borderline")
SIZES = {"train": 64, "validation": 32, "test": 20}
LENIENT = [
    *("--lambdas", "0.7,0.6", "--margin", "0.05", "--gate-kl-limit", "1", "--kl-limit", "2", "--induce-minimum", "-15"),
    *("--max-new-tokens", "24", "--batch-size", "32", "--no-pressure"),
]


class Called(NamedTuple):
    code: int
    out: str
    err: str


def call(*words: str) -> Called:
    """`demur` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return Called(code, out.getvalue(), err.getvalue())


def process(*words: str, code: str | None = None) -> Called:
    """`python -m demur` (or other code) in a fresh process."""
    command = [sys.executable, *(("-m", "demur") if code is None else ("-c", code)), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return Called(done.returncode, done.stdout, done.stderr)


def error_of(called: Called) -> dict:
    """The error object of a `--json` call: the only thing on stdout."""
    document = json.loads(called.out)
    assert list(document) == ["error"]
    assert set(document["error"]) == {"type", "message", "exit_code"}
    assert document["error"]["exit_code"] == called.code
    return document["error"]


def prompt_files(folder: Path) -> list[str]:
    """A few of the toy's prompts as files, and the options that name them."""
    options = []
    for label in LABELS:
        left, kept = dict(SIZES), []
        for line in Path(toy_prompts(label)).read_text().splitlines():
            split = json.loads(line)["split"]
            if left[split]:
                left[split] -= 1
                kept.append(line)
        path = folder / f"{label}.jsonl"
        path.write_text("\n".join(kept) + "\n")
        options += [f"--{label}", str(path)]
    return [*options, "--near-duplicates", "off"]
