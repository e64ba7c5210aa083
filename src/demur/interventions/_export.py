"""Writing an ablated model to disk: a PEFT LoRA adapter, or a merged safetensors checkpoint.

Mechanical: whether an operating point may be exported is decided in `calibration`, which alone calls this.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from demur.errors import UnsupportedInterventionError
from demur.interventions._graded import WeightAblation, writer_strengths
from demur.interventions._intervention import require_foldable
from demur.models import ChatModel, Writer


def write_merged(chat: ChatModel, ablation: WeightAblation, folder: Path) -> None:
    """Write the orthogonalized model as a checkpoint that plain transformers loads, with its tokenizer.

    Tied embeddings are untied: the output head keeps the original matrix, which is what makes the result exact.
    """
    with ablation.folded_into(chat), _untied(chat):
        # Without tied embeddings transformers ties nothing again when it loads: every shared tensor (Zamba's blocks) is
        # written under each of its names.
        untied = chat.layout.tied_embedding is not None
        state = {name: tensor.clone() for name, tensor in chat.model.state_dict().items()} if untied else None
        chat.model.save_pretrained(folder, state_dict=state)
    chat.tokenizer.save_pretrained(folder)


@contextmanager
def _untied(chat: ChatModel) -> Iterator[None]:
    """Say in the config that embeddings are not tied, while the context is open."""
    if chat.layout.tied_embedding is None:
        yield
        return
    configs = [chat.model.config]
    text = getattr(chat.model.config, "text_config", None)
    if text is not None:
        configs.append(text)
    before = [getattr(config, "tie_word_embeddings", None) for config in configs]
    tied_keys = chat.model._tied_weights_keys
    try:
        for config in configs:
            config.tie_word_embeddings = False
        # save_pretrained drops what the class declares as tied, whatever the config says.
        chat.model._tied_weights_keys = {} if isinstance(tied_keys, dict) else None
        yield
    finally:
        chat.model._tied_weights_keys = tied_keys
        for config, value in zip(configs, before, strict=True):
            config.tie_word_embeddings = value


def write_adapter(chat: ChatModel, ablation: WeightAblation, folder: Path) -> None:
    """Write the ablation as a LoRA adapter: W' = W - s u u^T W is an update of rank 1 per direction and writer.

    Raises:
        UnsupportedInterventionError: a writer is no linear layer, embedding or bias of one; or the base model is a GGUF
            file that transformers does not load as it is meant.
    """
    require_foldable(chat)
    if chat.gguf is not None and chat.gguf.positions_restored:
        raise _no_adapter(
            chat,
            "its base model would be the GGUF file, of which transformers' own loader leaves out how positions are "
            "scaled, so that the two together were another model than the calibrated one",
        )
    basis, strengths = ablation.basis, writer_strengths(chat, ablation)
    weights = [writer for writer in chat.layout.writers if not writer.parameter.endswith("bias")]
    modules = {writer.parameter.rpartition(".")[0]: writer for writer in weights}
    if len(modules) < len(weights):
        raise _no_adapter(chat, "one module holds several writers")
    tensors: dict[str, Tensor] = {}
    kinds: set[bool] = set()
    for path, writer in modules.items():
        module = chat.module.get_submodule(path)
        tensors.update(_factors(chat, path, module, writer, basis, strengths[writer.parameter]))
        if not isinstance(module, nn.Embedding):
            kinds.add(writer.axis == 1)
    tensors.update(_edited_biases(chat, ablation, modules))
    if len(kinds) > 1:
        raise _no_adapter(chat, "linear layers of both orientations are mixed")
    folder.mkdir(parents=True, exist_ok=True)
    _adapter_config(chat, sorted(modules), rank=len(basis), fan_in_fan_out=True in kinds).save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _adapter_config(chat: ChatModel, modules: list[str], *, rank: int, fan_in_fan_out: bool) -> Any:
    return LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=chat.name,
        revision=chat.revision,
        inference_mode=True,
        r=rank,
        lora_alpha=rank,
        target_modules=modules,
        bias="none",
        fan_in_fan_out=fan_in_fan_out,
    )


def _factors(
    chat: ChatModel, path: str, module: nn.Module, writer: Writer, basis: Tensor, strength: float
) -> dict[str, Tensor]:
    """A and B with B A = -s U U^T W, in the weight's dtype; float64 until the end."""
    weight = module.weight
    if not isinstance(weight, Tensor) or weight.dim() != 2 or hasattr(module, "experts"):
        raise _no_adapter(chat, f"{writer.parameter} is no matrix")
    readings = torch.linalg.qr(torch.stack([writer.reading(direction) for direction in basis]).T).Q
    readings = readings.to(weight.device)
    rows = weight.detach().to(torch.float64).movedim(writer.axis, 0)
    a, b = readings.T @ rows, -strength * readings
    names = ("lora_embedding_A", "lora_embedding_B")
    if not isinstance(module, nn.Embedding):
        names = ("lora_A.weight", "lora_B.weight")
    prefix = f"base_model.model.{path}"
    return {
        f"{prefix}.{name}": factor.to(weight.dtype).cpu().contiguous()
        for name, factor in zip(names, (a, b), strict=True)
    }


def _edited_biases(chat: ChatModel, ablation: WeightAblation, modules: dict[str, Writer]) -> dict[str, Tensor]:
    """Biases have no low-rank update; PEFT loads whole ones when the adapter names them."""
    biases = [writer for writer in chat.layout.writers if writer.parameter.endswith("bias")]
    if not biases:
        return {}
    parameters = dict(chat.module.named_parameters(remove_duplicate=False))
    strengths = writer_strengths(chat, ablation)
    result = {}
    for writer in biases:
        path, _, leaf = writer.parameter.rpartition(".")
        if path not in modules:
            raise _no_adapter(chat, f"{writer.parameter} belongs to no linear layer")
        edited = writer.without(parameters[writer.parameter], ablation.basis, strength=strengths[writer.parameter])
        result[f"base_model.model.{path}.base_layer.{leaf}"] = edited.cpu().contiguous()
    return result


def _no_adapter(chat: ChatModel, why: str) -> UnsupportedInterventionError:
    return UnsupportedInterventionError(
        f"{chat.name}: this model's edit cannot be written as a LoRA adapter: {why}. Use --format merged."
    )
