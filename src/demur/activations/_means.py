"""Reading the residual stream: streamed means over prompts, and the stream at one place.

The stream is read at the input of each block (`resid_pre`), at the last positions of the rendered prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from demur.errors import ModelError
from demur.models import ChatModel, length_sorted_batches, reading_inputs
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
    total = torch.zeros(n_positions, chat.n_layers, chat.layout.d_model, dtype=torch.float64, device=chat.device)

    def add(layer: int, stream: Tensor) -> None:
        total[:, layer] += stream[:, -n_positions:].to(total).sum(0)

    _read(chat, prompts, add, range(chat.n_layers), batch_size, progress)
    if not torch.isfinite(total).all():
        layer = int((~torch.isfinite(total)).any(0).any(-1).nonzero()[0])
        raise ModelError(
            f"{chat.name}: activations at the input of block {layer} are NaN or infinite. Half precision overflows in "
            "some models: load it with --dtype bfloat16 or --dtype float32; if that does not help, the weights are "
            "damaged."
        )
    return ActivationMeans((total / len(prompts)).cpu(), len(prompts))


def stream_at(chat: ChatModel, prompts: Sequence[str], *, layer: int, position: int, batch_size: int = 32) -> Tensor:
    """The input of block `layer` at token `position` (negative, from the end) of each prompt: [prompt, d_model]."""
    rows: list[Tensor] = []
    order: list[int] = []

    def keep(_layer: int, stream: Tensor) -> None:
        rows.append(stream[:, position].to(torch.float64).cpu())

    _read(chat, prompts, keep, [layer], batch_size, SilentProgress(), order)
    result = torch.empty(len(prompts), chat.layout.d_model, dtype=torch.float64)
    result[order] = torch.cat(rows)
    return result


def _read(
    chat: ChatModel,
    prompts: Sequence[str],
    read: Callable[[int, Tensor], None],
    layers: Sequence[int],
    batch_size: int,
    progress: Progress,
    order: list[int] | None = None,
) -> None:
    encoded = chat.encode(prompts)
    readers = {chat.layout.blocks[layer]: partial(read, layer) for layer in layers}
    with reading_inputs(chat.module, readers):
        for indices in length_sorted_batches([len(tokens) for tokens in encoded], batch_size):
            if order is not None:
                order.extend(indices)
            chat.run(chat.batch([encoded[index] for index in indices]))
            progress.advance(len(indices))
