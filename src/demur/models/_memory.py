"""Batches that do not fit into memory are halved, for good."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def is_out_of_memory(error: Exception) -> bool:
    """Of a GPU, of Python, or of torch's allocator on a CPU, which raises a plain RuntimeError."""
    said = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        words in said for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


@dataclass
class FittingBatches:
    """Computes batches, in smaller pieces where memory does not suffice, and remembers what fits.

    Args:
        say: is told when a batch is halved.
        most: rows that fit together, where that was found.
    """

    say: Callable[[str], None] = lambda _: None
    most: int | None = None

    def pieces(
        self, compute: Callable[[Sequence[Item]], Result], items: Sequence[Item], *, rows: int = 1
    ) -> list[Result]:
        """`compute` of all items together, or of one piece of them after the other.

        Args:
            compute: from some items, in order, to their result.
            items: of one batch.
            rows: that each item takes in a forward pass.

        Raises:
            MemoryError, torch.OutOfMemoryError, RuntimeError: not even one item fits; or what `compute` raises.
        """
        results: list[Result] = []
        start = 0
        while start < len(items):
            room = len(items) if self.most is None else max(1, self.most // rows)
            piece = items[start : start + room]
            try:
                result = compute(piece)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or len(piece) == 1:
                    raise
                self.most = rows * max(1, len(piece) // 2)
                self.say(f"out of memory; now {self.most} rows at a time")
            else:
                results.append(result)
                start += len(piece)
                continue
            # Not before the error is gone, which holds the tensors of the failed batch.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return results
