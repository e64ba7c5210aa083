"""Directions of the residual stream: difference in means, partial orthogonalization, files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from demur.activations import ActivationMeans
from demur.errors import RunFolderError
from demur.records import write_bytes

EPSILON = 1e-8
"""Added to r . r before dividing, as in Wang et al.'s published code."""


@dataclass(frozen=True)
class Direction:
    """A vector of the residual stream and where it was read."""

    vector: Tensor
    """[d_model], float64; not normalized: its length carries meaning for activation addition."""
    position: int
    """Token position from the end of the prompt, negative."""
    layer: int
    """Block at whose input it was read."""

    @property
    def norm(self) -> float:
        """Euclidean length."""
        return float(self.vector.norm())

    @property
    def unit(self) -> Tensor:
        """The vector with length 1; a zero vector stays zero."""
        unit: Tensor = self.vector / (self.vector.norm() + torch.finfo(torch.float64).tiny)
        return unit


def difference_in_means(positive: ActivationMeans, negative: ActivationMeans) -> Tensor:
    """mean(positive) - mean(negative) at every position and layer: [position, layer, d_model], float64.

    With harmful minus harmless this is r of Arditi et al. (section 2.3); with refused borderline minus harmless it is w
    of Wang et al. (section 3).
    """
    return positive.mean - negative.mean


def orthogonalize(w: Tensor, r: Tensor, *, strength: float) -> Tensor:
    """Return w' = w - strength * ((w . r) / (r . r + eps)) r, along the last dimension (Wang et al. section 3).

    Args:
        w: false-refusal directions, [..., d_model].
        r: refusal directions at the same positions and layers, [..., d_model].
        strength: lambda; 1 removes the whole component along r, 0 none.
    """
    along = (w * r).sum(-1, keepdim=True) / (r.pow(2).sum(-1, keepdim=True) + EPSILON)
    return w - strength * along * r


def cosine(one: Tensor, two: Tensor) -> float:
    """Cosine of the angle between two vectors; 0 if either is zero."""
    scale = one.norm() * two.norm()
    return float(one @ two / scale) if scale > 0 else 0.0


def save_directions(path: Path, directions: Mapping[str, Direction]) -> None:
    """Write named directions to one safetensors file, atomically."""
    places = {name: [direction.position, direction.layer] for name, direction in directions.items()}
    # One key: safetensors writes several in an order that changes from process to process, and a run repeated or shared
    # between processes must leave the same bytes.
    metadata = {"places": json.dumps(places, sort_keys=True)}
    tensors = {name: direction.vector.contiguous().clone() for name, direction in directions.items()}
    write_bytes(path, save(tensors, metadata=metadata))


def load_directions(path: Path) -> dict[str, Direction]:
    """Read what `save_directions` wrote.

    Raises:
        RunFolderError: the file is missing or damaged.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            places = json.loads((file.metadata() or {})["places"])
            result = {}
            for name in file.keys():  # noqa: SIM118 (not a dict)
                position, layer = (int(part) for part in places[name])
                result[name] = Direction(file.get_tensor(name), position, layer)
            return result
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunFolderError(
            f"cannot read directions from {path}: {error}. Run the `demur calibrate` command of this folder again."
        ) from error
