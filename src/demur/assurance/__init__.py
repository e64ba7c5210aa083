"""Testing, attacking, watching and gating refusal: targeted suites, audit, drift, release gate.

Everything that removes a refusal direction does so in memory; records hold verdicts, hashes and numbers.
"""

from typing import TYPE_CHECKING

from demur._lazy import lazy_names

if TYPE_CHECKING:
    from demur.assurance._directions import Directions, directions_of

__all__ = [
    "Directions",
    "directions_of",
]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Directions": "demur.assurance._directions",
        "directions_of": "demur.assurance._directions",
    },
)
