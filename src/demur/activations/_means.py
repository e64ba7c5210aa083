"""Reading the residual stream: streamed means over prompts, and the stream at one place.

The stream is read at the input of each block (`resid_pre`), at the last positions of the rendered prompt. A pass ends
where the last block that is read begins: no logits are computed. Under several processes (`join_processes`) each runs
some of the batches, and the results are the same.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from demur.errors import ModelError
from demur.models import ChatModel, FittingBatches, length_sorted_batches, reading_inputs, tensors_in_order
from demur.types import Progress, SilentProgress


@dataclass(frozen=True)
class ActivationMeans:
    """Mean block inputs over a set of prompts."""

    mean: Tensor
    """[position, layer, d_model], float64, on the CPU; position 0 is the earliest of the post-instruction tokens."""
    n: int
    """Prompts averaged."""


def mean_activations(
    chat: ChatModel,
    prompts: Sequence[str],
    *,
    n_positions: int,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> ActivationMeans:
    """Mean of the block inputs at the last `n_positions` tokens (Arditi et al. section 2.3), float64, in one pass.

    Raises:
        ModelError: an activation is NaN or infinite.
    """
    progress = progress or SilentProgress()
    shape = (n_positions, chat.n_layers, chat.layout.d_model)
    encoded = chat.encode(prompts)
    batches = list(length_sorted_batches([len(tokens) for tokens in encoded], batch_size))

    fitting = FittingBatches(progress.note)

    def some(indices: Sequence[int]) -> Tensor:
        # One batch's sums, added up in the order of the batches below, whichever process computed them.
        sums = torch.zeros(shape, dtype=torch.float64, device=chat.device)

        def add(layer: int, stream: Tensor) -> None:
            sums[:, layer] = stream[:, -n_positions:].to(sums).sum(0)

        _read(chat, [encoded[index] for index in indices], add, range(chat.n_layers))
        return sums.cpu()

    def summed(indices: Sequence[int]) -> Tensor:
        return torch.stack(fitting.pieces(some, indices)).sum(0)

    total = torch.zeros(shape, dtype=torch.float64)
    for indices, sums in zip(batches, tensors_in_order(summed, batches), strict=True):
        total += sums
        progress.advance(len(indices))
    if not torch.isfinite(total).all():
        layer = int((~torch.isfinite(total)).any(0).any(-1).nonzero()[0])
        raise ModelError(
            f"{chat.name}: activations at the input of block {layer} are NaN or infinite. Half precision overflows in "
            "some models: load it with --dtype bfloat16 or --dtype float32; if that does not help, the weights are "
            "damaged."
        )
    return ActivationMeans(total / len(prompts), len(prompts))


def stream_at(chat: ChatModel, prompts: Sequence[str], *, layer: int, position: int, batch_size: int = 32) -> Tensor:
    """The input of block `layer` at token `position` (negative, from the end) of each prompt: [prompt, d_model]."""
    encoded = chat.encode(prompts)
    batches = list(length_sorted_batches([len(tokens) for tokens in encoded], batch_size))

    def read(indices: Sequence[int]) -> Tensor:
        rows: list[Tensor] = []

        def keep(_layer: int, stream: Tensor) -> None:
            rows.append(stream[:, position].to(torch.float64).cpu())

        _read(chat, [encoded[index] for index in indices], keep, [layer])
        return torch.cat(rows)

    result = torch.empty(len(prompts), chat.layout.d_model, dtype=torch.float64)
    for indices, rows in zip(batches, tensors_in_order(read, batches), strict=True):
        result[indices] = rows
    return result


class _AllRead(Exception):  # noqa: N818 (no error: it ends a pass of which the rest is not needed)
    """Every block that was asked for has been read."""


def _read(
    chat: ChatModel,
    sequences: Sequence[Sequence[int]],
    read: Callable[[int, Tensor], None],
    layers: Sequence[int],
) -> None:
    """One pass over one batch, as far as the last of `layers`."""
    unread = set(layers)

    def note(layer: int, stream: Tensor) -> None:
        read(layer, stream)
        unread.discard(layer)
        if not unread:
            raise _AllRead

    readers = {chat.layout.blocks[layer]: partial(note, layer) for layer in layers}
    with reading_inputs(chat.module, readers), suppress(_AllRead):
        chat.run(chat.batch(sequences))
