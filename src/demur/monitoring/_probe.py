"""One direction that is watched: where it is read, and what is usual there."""

from dataclasses import dataclass

import torch
from torch import Tensor

from demur.errors import InputError
from demur.records import MonitorProbe, ProbeRole


@dataclass(frozen=True)
class Probe:
    """One direction at one layer."""

    name: str
    role: ProbeRole
    layer: int
    """Block at whose input the stream is read."""
    position: int
    """Token position from the end of the prompt, negative. A harm probe reads its peak from the first token of the
    instruction up to here."""
    vector: Tensor
    """[d_model]; a reading is the plain inner product with it."""
    low: float = 0.0
    """Reading that counts as 0, by convention the mean of harmless prompts."""
    high: float = 1.0
    """Reading that counts as 1, by convention the mean of harmful prompts."""

    def standardised(self, reading: float) -> float:
        """A reading in units of the gap between the two means."""
        return (reading - self.low) / (self.high - self.low)

    def check(self, width: int) -> None:
        """Refuse values that nothing can be read with.

        Raises:
            InputError: the vector is not [width], zero, NaN or infinite; the place or the scale makes no sense.
        """
        if self.vector.shape != (width,):
            raise InputError(
                f"the probes of a monitor read one stream; {self.name} has the shape {tuple(self.vector.shape)}, not "
                f"({width},)."
            )
        if not torch.isfinite(self.vector).all() or not self.vector.norm() > 0:
            raise InputError(f"the vector of {self.name} is zero, NaN or infinite; it would read nothing.")
        if self.layer < 0 or self.position >= 0:
            raise InputError(
                "a probe is read at a layer from 0 up and a negative position (from the end of the prompt); "
                f"{self.name} has layer {self.layer}, position {self.position}."
            )
        if not abs(self.high - self.low) > 0:
            raise InputError(f"{self.name}: low and high must differ, they are 0 and 1 of its scale; got {self.low}.")

    def record(self) -> MonitorProbe:
        """Everything but the vector."""
        return MonitorProbe(
            name=self.name, role=self.role, layer=self.layer, position=self.position, low=self.low, high=self.high
        )
