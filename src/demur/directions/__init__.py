"""Directions of the residual stream and how they are estimated."""

from demur.directions._direction import (
    Direction,
    cosine,
    difference_in_means,
    load_directions,
    orthogonalize,
    save_directions,
)

__all__ = ["Direction", "cosine", "difference_in_means", "load_directions", "orthogonalize", "save_directions"]
