"""Many processes that share one job: each computes some of the items, all get every result, in the items' order.

What a process computes for an item does not depend on how many processes there are, and results are taken up in the
order of the items everywhere, so the outcome is that of one process, bit for bit (with as many threads per process).
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor

from demur.errors import InputError, ModelError

Item = TypeVar("Item")
Result = TypeVar("Result")

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun and `accelerate launch` set."""
_PATIENCE = timedelta(days=1)
"""How long one process waits for another's batch; the launcher ends all processes when one dies."""
_RESULT, _ERROR = b"+", b"-"


@dataclass(frozen=True)
class World:
    """The processes of one job, seen from one of them."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0


def world() -> World:
    """The processes that share the work: this one alone until `join_processes` was called."""
    group = _joined.group
    return World() if group is None else World(dist.get_rank(group), dist.get_world_size(group))


@dataclass
class _Joined:
    group: dist.ProcessGroup | None = None


_joined = _Joined()


def join_processes(patience: timedelta = _PATIENCE) -> World:
    """Share work with the other processes that `torchrun` or `accelerate launch` started; alone, nothing happens.

    All of them must then make the same calls. That is why it is asked for, and not taken from the environment
    unasked: in a training job, a call from its first process alone would wait for the others for ever.

    Args:
        patience: how long to wait for the others to come.

    Raises:
        InputError: the launcher's variables are there, but not all of them or not as numbers.
        ModelError: the others did not come.
    """
    given = [name for name in _VARIABLES if os.environ.get(name)]
    if _joined.group is not None or "WORLD_SIZE" not in given or os.environ["WORLD_SIZE"] == "1":
        return world()
    numbers = all(os.environ[name].isdecimal() for name in given if name != "MASTER_ADDR")
    if len(given) < len(_VARIABLES) or not numbers:
        found = ", ".join(f"{name}={os.environ.get(name, '')!r}" for name in _VARIABLES)
        raise InputError(
            f"WORLD_SIZE is set, but the processes cannot be joined with {found}. Start them with: torchrun "
            "--nproc-per-node N -m demur ..., or unset WORLD_SIZE."
        )
    if not dist.is_initialized():
        try:
            dist.init_process_group("gloo", timeout=patience)
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"the {os.environ['WORLD_SIZE']} processes did not find one another: {error}") from error
    # A group of its own: that of a program that calls us may be one of GPUs, and what is exchanged here lies in memory.
    _joined.group = dist.new_group(backend="gloo", timeout=_PATIENCE)
    return world()


def leave_processes() -> None:
    """End what `join_processes` began."""
    if _joined.group is not None:
        _joined.group = None
        dist.destroy_process_group()


def local_rank() -> int:
    """The number of this process on its machine: which of its GPUs to use."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def in_order(
    compute: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    pack: Callable[[Result], bytes],
    unpack: Callable[[bytes], Result],
) -> Iterator[Result]:
    """`map(compute, items)`, of which each process computes every n-th item and gets all results.

    Results are exchanged a round at a time, so they can be written down as they come, and few are held.

    Args:
        compute: from an item to its result, on whichever process.
        items: the same on all processes.
        pack: from a result to bytes.
        unpack: and back, to an equal result.

    Raises:
        ModelError: `compute` failed on another process; where it failed, its own error is raised.
    """
    here = world()
    if here.size == 1:
        yield from map(compute, items)
        return
    for start in range(0, len(items), here.size):
        error: Exception | None = None
        message = _RESULT
        if start + here.rank < len(items):
            try:
                message = _RESULT + pack(compute(items[start + here.rank]))
            except Exception as caught:  # noqa: BLE001 (raised below, once the others know of it)
                error, message = caught, _ERROR + str(caught).encode()
        messages = _exchange(message)
        if error is not None:
            raise error
        for rank, received in enumerate(messages[: len(items) - start]):
            if received[:1] == _ERROR:
                raise ModelError(f"process {rank} of {here.size} failed: {received[1:].decode()}")
        for received in messages[: len(items) - start]:
            yield unpack(received[1:])


def tensors_in_order(compute: Callable[[Item], Tensor], items: Sequence[Item]) -> Iterator[Tensor]:
    """`in_order` for results that are tensors on the CPU, exchanged as safetensors."""

    def pack(tensor: Tensor) -> bytes:
        return safetensors.torch.save({"": tensor.contiguous()})

    return in_order(compute, items, pack=pack, unpack=lambda data: safetensors.torch.load(data)[""])


@contextmanager
def process_folder(path: Path | str) -> Iterator[Path]:
    """The run folder for this process: `path` itself for the first, a passing copy of what it holds for the others.

    All processes then read and write alike, without waiting for each other's files, and one of them writes the run.
    """
    here = world()
    if here.size == 1:
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="demur-") as scratch:
        own = Path(path) if here.is_first else Path(scratch) / "run"
        if not here.is_first and Path(path).is_dir():
            shutil.copytree(path, own, ignore=shutil.ignore_patterns(".*"))
        _exchange(b"")
        yield own


def _exchange(message: bytes) -> list[bytes]:
    """Every process's message, by rank.

    Raises:
        ModelError: another process has ended.
    """
    group = _joined.group
    count = dist.get_world_size(group)
    try:
        return _gathered(message, group, count)
    except RuntimeError as error:
        raise ModelError(
            f"another of the {count} processes that share this work has ended ({error}). What is computed is kept: "
            "give the same command again."
        ) from error


def _gathered(message: bytes, group: dist.ProcessGroup | None, count: int) -> list[bytes]:
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(count)]
    dist.all_gather(sizes, torch.tensor([len(message)]), group=group)
    widest = max(int(size) for size in sizes)
    sent = torch.zeros(widest, dtype=torch.uint8)
    sent[: len(message)] = torch.frombuffer(bytearray(message), dtype=torch.uint8) if message else 0
    received = [torch.empty(widest, dtype=torch.uint8) for _ in range(count)]
    if widest:
        dist.all_gather(received, sent, group=group)
    return [bytes(each[: int(size)].numpy()) for each, size in zip(received, sizes, strict=True)]
