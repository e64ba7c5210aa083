"""Weights rounded to few bits: what a quantised copy of a model would compute, without a quantisation library."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from demur.interventions._intervention import require_foldable
from demur.models import ChatModel, swapped_parameters

GROUP = 128
"""Weights that share one scale, along the last axis (the usual group of 4-bit formats)."""


@dataclass(frozen=True)
class RoundedWeights:
    """Every matrix inside the decoder blocks, rounded to the nearest of 2^bits - 1 values, symmetric, in groups.

    Embeddings, output head, norms and biases stay as they are, as in the common weight-only formats.
    """

    bits: int

    @property
    def fingerprint(self) -> str:
        """The name says it all."""
        return f"rounded_weights:{self.bits}:{GROUP}"

    def applied_to(self, chat: ChatModel) -> AbstractContextManager[None]:
        """The same as folding: rounding has no run-time form."""
        return self.folded_into(chat)

    def folded_into(self, chat: ChatModel) -> AbstractContextManager[None]:
        """Round the weights as they are now, so after any intervention that was folded in before.

        Raises:
            UnsupportedInterventionError: the model's weights are packed (quantised) already.
        """
        require_foldable(chat)
        blocks = tuple(f"{block}." for block in chat.layout.blocks)
        matrices = {
            name: parameter
            for name, parameter in chat.module.named_parameters()
            if parameter.dim() >= 2 and name.startswith(blocks)
        }
        return swapped_parameters(
            chat.module, {name: round_to_nearest(matrix.detach(), self.bits) for name, matrix in matrices.items()}
        )


def round_to_nearest(matrix: Tensor, bits: int) -> Tensor:
    """The matrix with each group of `GROUP` weights of a row on a grid of 2^bits - 1 steps from -max to max.

    Args:
        matrix: [..., row, column].
        bits: 2 or more.
    """
    largest = 2 ** (bits - 1) - 1
    result = matrix.clone()
    for group in torch.split(result, GROUP, dim=-1):
        scale = (group.abs().amax(-1, keepdim=True).float() / largest).clamp_min(torch.finfo(torch.float32).tiny)
        group.copy_((group.float() / scale).round().clamp(-largest, largest) * scale)
    return result
