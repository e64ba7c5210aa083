"""Chat models in GGUF files: which file is meant, what its header says, and its weights as plain tensors.

transformers reads the file. What stands here is what it leaves open: telling apart files that hold no model, a header
that is damaged, what the loader would leave out in silence, and a model that is plain once its weights are dequantised.
"""

import hashlib
import importlib.util
import json
import re
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from demur.errors import ModelError
from demur.models._gguf_header import GgufHeader, read_header
from demur.models._gguf_rope import restore_rope

_ON_HUB = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+):(?P<file>[^:]+\.gguf)", re.IGNORECASE)
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_READING_ERRORS = (
    OSError, ValueError, KeyError, IndexError, ImportError, RuntimeError, TypeError, AttributeError, struct.error,
)  # fmt: skip
"""What transformers and gguf raise on a file that they cannot read; NotImplementedError is a RuntimeError."""


@dataclass
class GgufFile:
    """One GGUF file that holds a model."""

    name: str
    """As it is typed: a path, or owner/name:file.gguf."""
    path: Path
    header: GgufHeader
    hub: tuple[str, str] | None = None
    """The repository on the hub that it is from, and its name there."""
    commit: str | None = None
    """The commit there."""
    positions_restored: bool = False
    """Whether transformers' own loader, without demur, leaves out how positions are scaled."""
    readers: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What the gguf package read of it, until the weights are loaded."""

    @cached_property
    def sha256(self) -> str:
        """Of the whole file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def place(self) -> tuple[str, str]:
        """What `from_pretrained` takes for it: a folder or a hub id, and gguf_file."""
        return self.hub or (str(self.path.parent), self.path.name)

    @property
    def dtype(self) -> torch.dtype:
        """What "auto" means: float32 for quantised weights, the file's own precision for others.

        Rounding what dequantisation gives once more, to bfloat16, would measure another model than the file's; who
        lacks the memory names a dtype.
        """
        kinds = self.header.tensor_types
        if not kinds <= {"F32", "F16", "BF16"}:
            return torch.float32
        return torch.bfloat16 if "BF16" in kinds else torch.float16 if "F16" in kinds else torch.float32


def find_gguf(model_id: str, revision: str | None) -> GgufFile | None:
    """The GGUF file that a model id means: a file, a folder that holds one and no config.json, or one on the hub.

    Returns:
        None if the id means no GGUF file.

    Raises:
        ModelError: there is no such file, several could be meant, or it holds no model.
    """
    path = Path(model_id)
    if path.is_dir():
        chosen = _only_file(path)
        if chosen is None:
            return None
        return _opened(str(chosen), chosen)
    if not model_id.lower().endswith(".gguf"):
        return None
    on_hub = _ON_HUB.fullmatch(model_id)
    if path.is_file():
        if revision is not None:
            raise ModelError(
                f"{model_id} is a file, which has no revisions: leave out --revision, or name a file on the hub "
                "(owner/name:file.gguf)."
            )
        return _opened(model_id, path)
    if on_hub is None:
        raise ModelError(
            f"there is no file {model_id}. Give the path of a .gguf file, or a file on the hub as owner/name:file.gguf."
        )
    return _downloaded(model_id, on_hub["repository"], on_hub["file"], revision)


def _only_file(folder: Path) -> Path | None:
    names = {path.name for path in folder.iterdir()}
    if names & {"config.json", "adapter_config.json"}:
        return None
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf")
    # The image encoder lies beside the language model that it belongs to, and is never meant by the folder.
    models = [path for path in files if not path.name.lower().startswith("mmproj")] or files
    if len(models) > 1 and not all(_PART.search(path.name) for path in models):
        listed = ", ".join(path.name for path in models)
        raise ModelError(f"{folder} holds {len(models)} GGUF files: {listed}. Name one: {models[0]}.")
    return models[0] if models else None


def _opened(name: str, path: Path, hub: tuple[str, str] | None = None) -> GgufFile:
    if _PART.search(path.name):
        raise ModelError(
            f"{name} is one part of a GGUF file that was split, and transformers reads whole files only. Put the parts "
            "together with llama.cpp (llama-gguf-split --merge FIRST_PART.gguf WHOLE.gguf) and give the whole file."
        )
    _require_package(name)
    header = read_header(path, name)
    if header.metadata.get("split.count", 0) > 1:
        raise ModelError(
            f"{name} is one of {header.metadata['split.count']} parts of a GGUF file that was split. Put them together "
            "with llama.cpp (llama-gguf-split --merge FIRST_PART.gguf WHOLE.gguf) and give the whole file."
        )
    kind = header.metadata.get("general.type", "model")
    if kind != "model" or header.architecture == "clip":
        what = "an image encoder (mmproj)" if header.architecture == "clip" else f"of the type {kind!r}"
        raise ModelError(f"{name} is a GGUF file, but {what} and no language model. Give the file of the model itself.")
    return GgufFile(name, path, header, hub, None if hub is None else extract_commit_hash(str(path), None))


def _downloaded(name: str, repository: str, file: str, revision: str | None) -> GgufFile:
    try:
        path = cached_file(repository, file, revision=revision)
    except _READING_ERRORS as error:
        raise ModelError(
            f"cannot find the file {file} in {repository} on the hub: {_first_line(error)}. Give a file that the "
            "repository has as owner/name:file.gguf, or a .gguf file on disk."
        ) from error
    return _opened(name, Path(str(path)), (repository, file))


def hub_gguf_files(model_id: str, revision: str | None) -> list[str]:
    """The GGUF files of a hub repository; none if it cannot be asked."""
    try:
        names = HfApi().list_repo_files(model_id, revision=revision)
    except (OSError, ValueError, RuntimeError):
        return []
    return [] if "config.json" in names else sorted(name for name in names if name.lower().endswith(".gguf"))


def _require_package(name: str) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(
            f"{name} is a GGUF file, which takes the package gguf to read: type pip install 'demur[gguf]'."
        )


def require_recorded_file(adapter: str, file: GgufFile) -> None:
    """Hold the file to the one that an adapter exported by demur was made for, where it says which.

    Raises:
        ModelError: it is another one.
    """
    record = Path(adapter, "demur.json")
    try:
        wanted = json.loads(record.read_text(encoding="utf-8"))["base_model"]["gguf_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if wanted is not None and wanted != file.sha256:
        raise ModelError(
            f"{adapter} was exported for a GGUF file with sha256 {wanted[:12]}, and {file.name} has "
            f"{file.sha256[:12]}: it is another file. Name the original one in its adapter_config.json "
            "(`base_model_name_or_path`)."
        )


def load_gguf_tokenizer(file: GgufFile) -> Any:
    """The tokenizer, made from the file's metadata.

    Raises:
        ModelError: transformers cannot make it.
    """
    tokenizer = _from_file(file, "tokenizer", AutoTokenizer.from_pretrained)
    tokenizer.name_or_path = tokenizer.init_kwargs["name_or_path"] = file.name
    return tokenizer


def load_gguf_config(file: GgufFile) -> Any:
    """The config, made from the file's metadata.

    Raises:
        ModelError: transformers knows no such architecture, or would leave out how positions are scaled.
    """
    config = _from_file(file, "config", AutoConfig.from_pretrained)
    file.positions_restored = restore_rope(config, file.header, file.path, file.name)
    return config


def load_gguf_weights(file: GgufFile, config: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model with its weights dequantised to plain tensors, and transformers' report of its tensors.

    Args:
        file: the file.
        config: what `load_gguf_config` gave.
        options: of `from_pretrained`: dtype, device_map.

    Raises:
        ModelError: transformers cannot load it, or would leave out some of its weights.
    """
    options = {**options, "config": config, "output_loading_info": True}
    if hasattr(transformers, "GgufConfig"):
        # Where a GPU kernel is installed, newer transformers keep the weights packed, which nothing can be folded into.
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model, report = _from_file(file, "model", AutoModelForCausalLM.from_pretrained, **options)
    file.readers.clear()
    _make_plain(model, file)
    if not report["missing_keys"]:
        _require_all_used(model, file)
    return model, report


def _make_plain(model: Any, file: GgufFile) -> None:
    """Take off the marks of quantisation: transformers leaves them on dequantised weights and would refuse to save."""
    model.hf_quantizer = None
    model.is_quantized = False
    for name in ("quantization_method", "_is_quantized_training_enabled"):
        if hasattr(model, name):
            setattr(model, name, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    # It was loaded from an empty folder that is gone.
    model.config.name_or_path = file.name


def _require_all_used(model: Any, file: GgufFile) -> None:
    """Transformers passes over tensors that it has no place for, such as biases that the architecture rarely has."""
    layers = model.config.get_text_config().num_hidden_layers
    tied = bool(model.config.get_text_config().tie_word_embeddings)
    held = sum(
        tensor.numel
        for tensor in file.header.tensors
        if not tensor.name.startswith("rope_")  # read by `restore_rope`
        and not (tied and tensor.name == "output.weight")
        # Layers for predicting several tokens at once come after the model's own; generation does not use them.
        and (tensor.block is None or tensor.block < layers)
    )
    distinct = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}
    if held > sum(distinct.values()):
        raise ModelError(
            f"{file.name} holds {held:,} weights, of which transformers has a place for {sum(distinct.values()):,} "
            f"only in {type(model).__name__}: the model would not be the one in the file. Give its safetensors "
            "checkpoint instead (a folder or a hub id)."
        )


def _from_file(file: GgufFile, what: str, loader: Callable[..., Any], **options: Any) -> Any:
    # From an empty folder, so that the file alone decides: transformers would also read a tokenizer_config.json or a
    # chat template that lies beside it, and prefers a file of the same name in the working directory.
    with tempfile.TemporaryDirectory() as empty, _explained(file, what), _read_once(file):
        return loader(empty, gguf_file=str(file.path.resolve()), **options)


@contextmanager
def _read_once(file: GgufFile) -> Iterator[None]:
    """Let transformers read the file once and show no progress.

    It makes a reader for the tokenizer, for the config and for the weights, each of which takes as long as the weights
    themselves (an object is made of every word of the vocabulary).
    """
    import gguf  # noqa: PLC0415 (optional: `demur[gguf]`)

    def read(path: Any) -> Any:
        if str(path) not in file.readers:
            file.readers[str(path)] = reader(path)
        return file.readers[str(path)]

    reader, bar = gguf.GGUFReader, getattr(modeling_gguf_pytorch_utils, "tqdm", None)
    gguf.GGUFReader = read
    if bar is not None:
        modeling_gguf_pytorch_utils.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        gguf.GGUFReader = reader
        if bar is not None:
            modeling_gguf_pytorch_utils.tqdm = bar


@contextmanager
def _explained(file: GgufFile, what: str) -> Iterator[None]:
    try:
        yield
    except _READING_ERRORS as error:
        text = _first_line(error)
        if "not supported" in text or "Unknown gguf model_type" in text or "Unrecognized" in text:
            advice = "Give the model's safetensors checkpoint instead (a folder or a hub id), or update transformers."
        else:
            advice = "Download the file again, or give the model's safetensors checkpoint (a folder or a hub id)."
        raise ModelError(
            f"cannot load the {what} of {file.name} (GGUF, architecture {file.header.architecture!r}): {text}. {advice}"
        ) from error


def _first_line(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"it does not say {error}"
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
