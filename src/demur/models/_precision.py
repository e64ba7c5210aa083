"""In which precision a model is computed where nobody said."""

import os
from typing import Any

import torch

_HALF = (torch.bfloat16, torch.float16)
_SHARE = 0.5
"""Of the machine's memory that weights in float32 may take."""


def in_native_precision(model: Any) -> Any:
    """The model; in float32 where it is in half precision on a CPU that has no instructions for that, and fits.

    Such a CPU converts every number twice: prompts were read at a quarter of the speed of float32. Nothing is lost, as
    float32 holds every value of a half precision; what is measured and exported is then the float32 model.
    """
    parameters = list(model.parameters())
    half = all(parameter.dtype in _HALF for parameter in parameters if parameter.is_floating_point())
    on_cpu = all(parameter.device.type == "cpu" for parameter in parameters)
    packed = getattr(model, "hf_quantizer", None) is not None or not all(map(torch.is_floating_point, parameters))
    if not (half and on_cpu) or packed or _native_half():
        return model
    if 4 * sum(parameter.numel() for parameter in parameters) > _SHARE * _memory():
        return model
    model = model.float()
    model.config.dtype = torch.float32
    return model


def _native_half() -> bool:
    """Whether this CPU multiplies bfloat16 matrices by itself."""
    cpu = torch.cpu
    return any(
        bool(getattr(cpu, name)())
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
        if hasattr(cpu, name)
    )


def _memory() -> int:
    """Bytes of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
