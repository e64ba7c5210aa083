import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def cli_run(tmp_path_factory):
    """One calibration from the command line: interrupted with Ctrl-C in a fresh process, then finished in this one."""
    from cli_runs import LENIENT, call, prompt_files

    from demur.testing import TOY_MODEL

    folder = tmp_path_factory.mktemp("cli")
    run = folder / "run"
    options = prompt_files(folder)
    words = ["calibrate", TOY_MODEL, *options, "--out", str(run), *LENIENT, "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "demur", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores Ctrl-C
    )
    deadline = time.monotonic() + 120
    while not (run / "scores.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    kept = {path.name: path.read_bytes() for path in run.glob("*.jsonl")}
    interrupted = SimpleNamespace(code=process.returncode, out=out, err=err, kept=kept)
    unfinished = call("report", run, "--json")
    return SimpleNamespace(
        folder=folder, run=run, options=options, words=words, interrupted=interrupted, unfinished=unfinished,
        finished=call(*words),
    )  # fmt: skip
