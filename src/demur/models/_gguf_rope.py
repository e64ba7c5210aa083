"""How a GGUF file scales rotary positions: transformers' loader leaves that out for most architectures."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from demur.errors import ModelError
from demur.models._gguf_header import GgufHeader, GgufTensor

_LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""Of Llama 3.1 to 3.3. A file holds none of it, only what comes out: by how much each frequency is divided."""


def restore_rope(config: Any, header: GgufHeader, path: Path, name: str) -> bool:
    """Put Llama 3's scaling of frequencies, which the file holds as a tensor, back into the config.

    Args:
        config: as transformers made it from the file.
        header: of the file.
        path: of the file.
        name: what messages call it.

    Returns:
        Whether the config was changed.

    Raises:
        ModelError: positions are scaled in a way that the config does not say and that cannot be put back.
    """
    text = config.get_text_config()
    parameters = getattr(text, "rope_parameters", None) or {}
    tensors = [tensor for tensor in header.tensors if tensor.name.startswith("rope_")]
    scaling = header.metadata.get(f"{header.architecture}.rope.scaling.type", "none")
    if header.metadata.get(f"{header.architecture}.rope.scaling.factor") == 1:
        scaling = "none"
    if _is_scaled(parameters) or (not tensors and scaling == "none"):
        return False
    if [(tensor.name, tensor.type) for tensor in tensors] == [("rope_freqs.weight", "F32")]:
        factors = _read(path, tensors[0])
        restored = {**parameters, **_LLAMA3, "factor": float(factors.max())}
        if torch.equal(factors, torch.ones_like(factors)):
            return False
        if _matches(text, restored, factors):
            text.rope_parameters = restored
            return True
    raise ModelError(
        f"{name} scales its rotary positions ({tensors[0].name if tensors else scaling}), which transformers' GGUF "
        f"loader leaves out for the architecture {header.architecture!r}: the model would not be the one in the file. "
        "Give its safetensors checkpoint instead (a folder or a hub id)."
    )


def _is_scaled(parameters: dict[str, Any]) -> bool:
    """Some models have one set of parameters for each kind of layer."""
    sets = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    return any(each.get("rope_type", "default") != "default" for each in sets)


def _matches(text: Any, restored: dict[str, Any], factors: Tensor) -> bool:
    """Whether transformers computes the file's factors from the parameters."""
    scaled, plain = copy.deepcopy(text), copy.deepcopy(text)
    scaled.rope_parameters = restored
    # A factor of 1 is no scaling.
    plain.rope_parameters = {**restored, "factor": 1.0}
    compute = ROPE_INIT_FUNCTIONS["llama3"]
    ratio = compute(plain, torch.device("cpu"))[0] / compute(scaled, torch.device("cpu"))[0]
    return ratio.shape == factors.shape and torch.allclose(ratio, factors, rtol=1e-4)


def _read(path: Path, tensor: GgufTensor) -> Tensor:
    return torch.from_numpy(np.fromfile(path, dtype="<f4", count=tensor.numel, offset=tensor.start))
