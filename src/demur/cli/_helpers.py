"""More processes of the same command on this machine, started by the command itself."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from demur.cli._console import WORDS

_PATIENCE = timedelta(minutes=2)
"""For their start; Python and torch take seconds."""


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def sharing_cores(processes: int) -> Iterator[None]:
    """Run this very command in as many processes as are asked for, and share the threads of the machine among them."""
    with helped(processes - 1, WORDS.get()):
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size > 1 and "OMP_NUM_THREADS" not in os.environ:
            import torch  # noqa: PLC0415

            torch.set_num_threads(max(1, usable_cores() // size))
        yield


@contextmanager
def helped(count: int, words: Sequence[str]) -> Iterator[None]:
    """Share the work of a command with processes that run it too, while the context is open.

    They join as under `torchrun`, so the results are those of one process. They are silent, and end with the context.

    Args:
        count: how many more; 0 for none. Under a launcher there are others already, and none are started.
        words: the command line that they run, which must come to this very call.

    Raises:
        ModelError: they did not start.
    """
    if count < 1 or os.environ.get("WORLD_SIZE", "1") != "1":
        yield
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count + 1), "RANK": "0"}
    helpers = [
        subprocess.Popen(
            [sys.executable, "-m", "demur", *words],
            env={**os.environ, **meeting, "RANK": str(rank)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for rank in range(1, count + 1)
    ]
    before = dict(os.environ)
    os.environ.update(meeting)
    try:
        from demur.models import join_processes, leave_processes  # noqa: PLC0415 (torch; they load it meanwhile)

        join_processes(_PATIENCE)
        yield
        leave_processes()
    finally:
        os.environ.clear()
        os.environ.update(before)
        for helper in helpers:
            helper.terminate()
        for helper in helpers:
            helper.wait()
