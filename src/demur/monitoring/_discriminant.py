"""A reader of harmfulness: Fisher's linear discriminant with a shrunk covariance.

It reads well and is no direction to ablate: it weighs directions of low variance up.
"""

import torch
from torch import Tensor

from demur.errors import ModelError

_LEAST_SHRINKAGE = 0.01
"""Keeps the covariance invertible where there are many more prompts than dimensions, or dead dimensions."""


def discriminant(positive: Tensor, negative: Tensor) -> Tensor:
    """Return w = Sigma^-1 (mean(positive) - mean(negative)), scaled so that w . (difference of the means) = 1.

    Sigma is the within-class covariance, shrunk towards a multiple of the identity by as much as Ledoit and Wolf (2004)
    find best. All is solved among prompts, so the cost is that of n x n matrices, however wide the model.

    Args:
        positive: [n, d_model].
        negative: [m, d_model].

    Returns:
        [d_model], float64.

    Raises:
        ModelError: the two means are the same, or a value is NaN or infinite.
    """
    positive, negative = positive.to(torch.float64), negative.to(torch.float64)
    difference = positive.mean(0) - negative.mean(0)
    centred = torch.cat([positive - positive.mean(0), negative - negative.mean(0)])
    n, d = centred.shape
    if not torch.isfinite(centred).all() or not difference.norm() > 0:
        raise ModelError(
            "harmful and harmless prompts cannot be told apart here: their activations are the same, NaN or infinite."
        )
    gram = centred @ centred.T
    shrinkage, scale = max(_shrinkage(gram, d), _LEAST_SHRINKAGE), float(gram.trace()) / (n * d)
    if scale == 0:
        return difference / (difference @ difference)
    # Sigma = a X^T X / n + g I; Woodbury: g Sigma^-1 v = v - X^T (g n / a I + X X^T)^-1 X v.
    ridge = shrinkage * scale
    kept = (1 - shrinkage) or torch.finfo(torch.float64).tiny
    inner = gram + (ridge * n / kept) * torch.eye(n, dtype=torch.float64, device=gram.device)
    vector = difference - centred.T @ torch.linalg.solve(inner, centred @ difference)
    unit_gap: Tensor = vector / (vector @ difference)
    return unit_gap


def _shrinkage(gram: Tensor, d: int) -> float:
    """Ledoit and Wolf's intensity, from the inner products of the n centred rows of width d alone."""
    n = len(gram)
    mean = float(gram.trace()) / (n * d)
    squared = float(gram.square().sum()) / n**2
    spread = squared / d - mean**2
    error = (float(gram.diagonal().square().sum()) / n - squared) / (n * d)
    return min(error / spread, 1.0) if spread > 0 else 1.0
