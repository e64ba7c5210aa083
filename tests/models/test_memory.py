"""Batches that do not fit into memory."""

import pytest
import torch

from demur.models import FittingBatches, is_out_of_memory


class Memory:
    """Doubles numbers, of which so many fit."""

    def __init__(self, room):
        self.room, self.asked = room, []

    def double(self, numbers):
        self.asked.append(len(numbers))
        if len(numbers) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [2 * number for number in numbers]


def joined(pieces):
    return [number for piece in pieces for number in piece]


@pytest.mark.parametrize("room", [1, 2, 3, 7, 10])
def test_all_is_computed_in_order(room):
    assert joined(FittingBatches().pieces(Memory(room).double, range(10))) == list(range(0, 20, 2))


def test_what_fits_is_remembered_and_said():
    said, memory = [], Memory(3)
    fitting = FittingBatches(said.append)
    fitting.pieces(memory.double, range(10))
    assert memory.asked == [10, 5, 2, 2, 2, 2, 2]
    memory.asked.clear()
    fitting.pieces(memory.double, range(5))
    assert memory.asked == [2, 2, 1]
    assert said == ["out of memory; now 5 rows at a time", "out of memory; now 2 rows at a time"]


def test_rows_count_not_items():
    fitting, memory = FittingBatches(most=12), Memory(10)
    fitting.pieces(memory.double, range(7), rows=4)
    assert memory.asked == [3, 3, 1]
    memory.asked.clear()
    fitting.pieces(memory.double, range(2), rows=50)
    assert memory.asked == [1, 1]


def test_one_that_does_not_fit_is_an_error_and_so_is_any_other():
    with pytest.raises(torch.OutOfMemoryError):
        FittingBatches().pieces(Memory(0).double, [1, 2])
    with pytest.raises(RuntimeError, match="shapes"):
        FittingBatches().pieces(lambda _: (_ for _ in ()).throw(RuntimeError("shapes differ")), [1, 2])
    assert not is_out_of_memory(ValueError("out of range"))
