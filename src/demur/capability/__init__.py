"""Capability: what a model can still do, through lm-evaluation-harness and inspect_ai, with an intervention active.

Resolved lazily: inspect_ai imports this package to find the provider, and should start without torch.
"""

from typing import TYPE_CHECKING

from demur._lazy import lazy_names

if TYPE_CHECKING:
    from demur.capability._inspect_provider import inspect_provider
    from demur.capability._lm_eval import measure_capability
    from demur.capability._tasks import PRESETS

__all__ = ["PRESETS", "inspect_provider", "measure_capability"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "PRESETS": "demur.capability._tasks",
        "inspect_provider": "demur.capability._inspect_provider",
        "measure_capability": "demur.capability._lm_eval",
    },
)
