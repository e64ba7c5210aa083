"""Weight orthogonalization of a checkpoint on disk, one tensor at a time: for models larger than the memory.

Needs no model: the writers were found and proved when the model was calibrated. The peak is one shard and one tensor.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from demur.errors import InputError, RunFolderError, UnsupportedInterventionError
from demur.interventions._intervention import DirectionalAblation
from demur.models import ChatModel, Writer
from demur.records import write_bytes

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
HEAD = "lm_head.weight"
"""Name of an untied output head in every transformers checkpoint with tied embeddings that demur knows."""


def edits_of(chat: ChatModel, ablation: DirectionalAblation) -> tuple[list[Writer], dict[str, Tensor]]:
    """What `write_merged_sharded` needs of a loaded model: its writers, and what to remove from each parameter."""
    basis: dict[str, Tensor] = {}
    for writer in chat.layout.writers:
        readings = torch.stack([writer.reading(direction) for direction in ablation.basis])
        known = basis.get(writer.parameter)
        basis[writer.parameter] = readings if known is None else torch.cat([known, readings])
    plain = {writer.parameter: replace(writer, steps=()) for writer in chat.layout.writers}
    return list(plain.values()), basis


@dataclass(frozen=True)
class Edits:
    """What a calibration leaves behind for editing its checkpoint without loading it."""

    writers: list[Writer]
    basis: dict[str, Tensor]
    tied: str | None
    fingerprint: str
    """Of the intervention."""


def save_edits(path: Path, chat: ChatModel, ablation: DirectionalAblation) -> None:
    """Write the edits of an operating point to one safetensors file, atomically."""
    writers, basis = edits_of(chat, ablation)
    described = {
        "writers": [[writer.parameter, writer.axis] for writer in writers],
        "tied": chat.layout.tied_embedding,
        "fingerprint": ablation.fingerprint,
        "other_ties": _other_ties(chat),
    }
    tensors = {name: tensor.contiguous() for name, tensor in basis.items()}
    write_bytes(path, save(tensors, metadata={"edits": json.dumps(described)}))


def _other_ties(chat: ChatModel) -> list[str]:
    """Parameters that several modules share, input embedding and output head aside."""
    names: dict[int, list[str]] = {}
    for name, parameter in chat.module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group[0] for group in names.values() if len(group) > 1 and chat.layout.tied_embedding not in group]


def load_edits(path: Path) -> Edits:
    """Read what `save_edits` wrote.

    Raises:
        RunFolderError: the file is missing or damaged.
        UnsupportedInterventionError: tensors are shared in a way that only the loaded model can undo.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            described = json.loads((file.metadata() or {})["edits"])
            basis = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise RunFolderError(
            f"cannot read {path}: {error}. Run the `demur calibrate` command of this folder again in a new one."
        ) from error
    if described["tied"] and described["other_ties"]:
        raise UnsupportedInterventionError(
            f"this model shares {described['other_ties'][0]} between modules beside its embeddings, which untying on "
            "disk would break. Export it without --low-memory."
        )
    writers = [Writer(name, axis, None, "other") for name, axis in described["writers"]]
    return Edits(writers, basis, described["tied"], described["fingerprint"])


def write_merged_sharded(
    source: Path, writers: Sequence[Writer], basis: Mapping[str, Tensor], target: Path, *, tied: str | None
) -> None:
    """Copy a checkpoint folder with every writer orthogonalized, shard by shard.

    Args:
        source: folder of a safetensors checkpoint, sharded or not.
        writers: the proved writers of the model, without norm steps (they are in `basis` already).
        basis: per parameter, the directions to remove from it, [k, d_model].
        target: new folder.
        tied: the input embedding's parameter if the output head shares it; the head then keeps the original.

    Raises:
        InputError: the folder holds no readable safetensors checkpoint.
        UnsupportedInterventionError: the checkpoint names its tensors differently from the loaded model.
    """
    shards = shard_files(source)
    _check_names(source, shards, [writer.parameter for writer in writers])
    target.mkdir(parents=True, exist_ok=True)
    by_name: dict[str, list[Writer]] = {}
    for writer in writers:
        by_name.setdefault(writer.parameter, []).append(writer)
    added: dict[str, str] = {}
    for shard in shards:
        tensors: dict[str, Tensor] = {}
        with safe_open(str(source / shard), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                tensor = file.get_tensor(name)
                if name == tied:
                    tensors[HEAD] = tensor.clone()
                    added[HEAD] = shard
                for writer in by_name.get(name, ()):
                    tensor = writer.without(tensor, basis[name])
                tensors[name] = tensor
        save_file(tensors, target / shard, metadata={"format": "pt"})
    _copy_rest(source, shards, target, untied=tied is not None)
    if len(shards) > 1:
        _write_index(source, target, added)


def shard_files(source: Path) -> list[str]:
    """Names of the weight files of a checkpoint folder, in order.

    Raises:
        InputError: there are none.
    """
    if (source / INDEX).exists():
        index = json.loads((source / INDEX).read_text())
        return sorted(set(index["weight_map"].values()))
    if (source / SINGLE).exists():
        return [SINGLE]
    raise InputError(f"{source} holds neither {INDEX} nor {SINGLE}; give the folder of a safetensors checkpoint.")


def _check_names(source: Path, shards: Iterable[str], wanted: Sequence[str]) -> None:
    """Transformers renames or fuses some checkpoints' tensors when it loads them; those cannot be edited in place."""
    found: set[str] = set()
    for shard in shards:
        try:
            with safe_open(str(source / shard), framework="pt") as file:
                found.update(file.keys())
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot read {source / shard}: {error}.") from error
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UnsupportedInterventionError(
            f"{source}: the checkpoint does not hold {len(missing)} of {len(wanted)} writers under their names in the "
            f"loaded model ({missing[0]}, ...): transformers converts it while loading. Export it without --low-memory."
        )


def _copy_rest(source: Path, shards: Sequence[str], target: Path, *, untied: bool) -> None:
    for path in source.iterdir():
        if path.is_file() and path.name not in (*shards, INDEX) and path.suffix not in (".bin", ".pt", ".safetensors"):
            shutil.copy2(path, target / path.name)
    if untied:
        config = json.loads((target / "config.json").read_text())
        for part in (config, config.get("text_config")):
            if isinstance(part, dict):
                part["tie_word_embeddings"] = False
        (target / "config.json").write_text(json.dumps(config, indent=2))


def _write_index(source: Path, target: Path, added: Mapping[str, str]) -> None:
    index: dict[str, Any] = json.loads((source / INDEX).read_text())
    index["weight_map"].update(added)
    sizes = [(target / shard).stat().st_size for shard in set(index["weight_map"].values())]
    index.setdefault("metadata", {})["total_size"] = sum(sizes)
    (target / INDEX).write_text(json.dumps(index, indent=2))
