"""Loading a chat model from a local folder or the hub, with errors that say what is missing."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from transformers.utils import cached_file, find_adapter_config_file
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import extract_commit_hash

from demur.errors import ModelError
from demur.models._chat_model import ChatModel
from demur.models._chat_template import ChatTemplate
from demur.models._gguf import (
    GgufFile,
    find_gguf,
    hub_gguf_files,
    load_gguf_config,
    load_gguf_tokenizer,
    load_gguf_weights,
    require_recorded_file,
)
from demur.models._precision import in_native_precision
from demur.models._processes import local_rank, world
from demur.types import Progress

_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def load_chat_model(
    model_id: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    system: str | None = None,
    template_options: Mapping[str, Any] | None = None,
    response_prefix: str = "",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> ChatModel:
    """Load a model with its tokenizer and prove its layout.

    A PEFT adapter is loaded with the base model that it names, and merged into it. The weights of a GGUF file are
    dequantised; the model is a plain one then.

    Args:
        model_id: local folder or hub id, of a model or of a PEFT adapter; or a GGUF file: its path, a folder that holds
            one, or owner/name:file.gguf on the hub.
        revision: hub branch, tag or commit; an error for a folder or a file, which have none.
        dtype: "auto" (the checkpoint's own; of a quantised GGUF file, float32), "float32", "bfloat16", "float16" or
            "float64".
        device: "auto" (all devices there are), "cpu", "cuda", "cuda:1", "mps".
        system: system prompt put before every prompt.
        template_options: variables of the chat template, such as {"enable_thinking": False}.
        response_prefix: text put after the generation prompt, such as a closed thinking block.
        trust_remote_code: run Python code that comes with the checkpoint. Off unless asked for.
        progress: told how far the proof of the layout is.

    Raises:
        ModelError: the model, its weights, its tokenizer or its chat template cannot be loaded.
        LayoutError: its writers cannot be found or proved.
    """
    parts = load_parts(
        model_id,
        revision=revision,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
        needs_chat_template=True,
    )
    template = ChatTemplate(parts.tokenizer, system, dict(template_options or {}), response_prefix)
    if unused := template.unused_options():
        raise ModelError(
            f"{model_id}: its chat template has no variable {unused[0]!r}, so --template-option {unused[0]}=... would "
            "change nothing. Leave it out, or look up the name in the template."
        )
    return ChatModel(
        parts.model,
        parts.tokenizer,
        parts.name,
        parts.commit,
        template,
        parts.gguf,
        progress=progress,
        keep_proof=True,
    )


@dataclass(frozen=True)
class LoadedParts:
    """A model that is loaded, and what else is known of it."""

    model: Any
    tokenizer: Any
    name: str
    """The model id; for a folder with a GGUF file, the file."""
    commit: str | None
    """On the hub."""
    gguf: GgufFile | None
    """The file that the weights are from; that of the base model for an adapter."""


def load_parts(
    model_id: str, *, revision: str | None, dtype: str, device: str, trust_remote_code: bool, needs_chat_template: bool
) -> LoadedParts:
    """The model with its tokenizer; arguments and errors are those of `load_chat_model`."""
    if dtype != "auto" and dtype not in _DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}; type one of: auto, {', '.join(_DTYPES)}.")
    _check_device(device)
    _check_revision(model_id, revision)
    transformers_logging.disable_progress_bar()
    shared: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    gguf = find_gguf(model_id, revision)
    adapter = None if gguf is not None else _find_adapter(model_id, revision)
    base_id, base_revision = (model_id, revision) if adapter is None else (adapter.base, adapter.base_revision)
    if adapter is not None and (gguf := find_gguf(base_id, base_revision)) is not None:
        require_recorded_file(model_id, gguf)
    if gguf is None:
        _check_folder(base_id)
    tokenizer = _load_tokenizer(model_id, base_id, {**shared, "revision": revision}, base_revision, gguf)
    if needs_chat_template and not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            f"{model_id}: the tokenizer has no chat template, so this looks like a base model. Use its chat (instruct) "
            "version, or save a `chat_template` with its tokenizer."
        )
    shared["revision"] = base_revision
    config = _load(base_id, "config", AutoConfig.from_pretrained, shared) if gguf is None else load_gguf_config(gguf)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{base_id} is an encoder-decoder model; demur works on decoder-only chat models.")
    model = _load_weights(base_id, config, {**shared, "dtype": _DTYPES.get(dtype, "auto")}, device, gguf)
    if adapter is not None:
        return LoadedParts(_merge(model, model_id, revision), tokenizer, model_id, adapter.commit, gguf)
    if gguf is not None:
        return LoadedParts(model, tokenizer, gguf.name, gguf.commit, gguf)
    return LoadedParts(model, tokenizer, model_id, getattr(config, "_commit_hash", None), None)


@dataclass(frozen=True)
class _Adapter:
    """What an adapter says about the model that it changes."""

    base: str
    base_revision: str | None
    commit: str | None


def _find_adapter(model_id: str, revision: str | None) -> _Adapter | None:
    if _is_path(model_id) and not Path(model_id).is_dir():
        return None
    path = _load(model_id, "adapter config", find_adapter_config_file, {"revision": revision})
    if path is None:
        return None
    try:
        settings = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"cannot read {path}: {error}.") from error
    base = settings.get("base_model_name_or_path")
    if not base:
        raise ModelError(
            f"{model_id} is a PEFT adapter that does not name its base model. Write `base_model_name_or_path` into "
            "its adapter_config.json."
        )
    if _find_file(model_id, "adapter_model.safetensors", revision) is None:
        raise ModelError(
            f"{model_id} is a PEFT adapter without adapter_model.safetensors. Pickled weights (.bin) can run code: "
            "convert them to safetensors."
        )
    commit = None if Path(model_id).is_dir() else extract_commit_hash(str(path), None)
    return _Adapter(str(base), settings.get("revision"), commit)


def _merge(model: Any, adapter_id: str, revision: str | None) -> Any:
    # Only adapters need peft, and importing it takes seconds.
    from peft import PeftModel  # noqa: PLC0415

    if getattr(model.config, "quantization_config", None) is not None:
        raise ModelError(
            f"{adapter_id} is an adapter on quantised weights, into which it cannot be merged exactly. Name the "
            "unquantised base model in its adapter_config.json (`base_model_name_or_path`)."
        )

    def attach(adapter_id: str, **options: Any) -> Any:
        with warnings.catch_warnings():
            # peft goes on with the adapter's initial values in their place.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            # About the tied weights that `_untie_adapted` parts.
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
            return PeftModel.from_pretrained(model, adapter_id, **options)

    attached = _load(adapter_id, "adapter", attach, {"revision": revision})
    if not hasattr(attached, "merge_and_unload"):
        kind = attached.peft_config["default"].peft_type.value
        raise ModelError(
            f"{adapter_id} is an adapter of kind {kind}, which does not change the weights and so cannot be merged "
            "into them; demur needs a plain model. Adapters such as LoRA can be merged."
        )
    _untie_adapted(attached)
    try:
        return attached.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError, AttributeError, TypeError) as error:
        raise ModelError(f"the adapter {adapter_id} cannot be merged into its base model: {error}") from error


def _untie_adapted(attached: Any) -> None:
    """Give the output head its own matrix where the adapter changes the input embeddings that it shares.

    PEFT adds to what the embeddings give, and leaves the head as it is; merged into the shared matrix, the change would
    reach the head too.
    """
    model = attached.get_base_model()
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    shared = getattr(embeddings, "base_layer", None)
    if shared is None or head is None or getattr(head, "weight", None) is not shared.weight:
        return
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    for config in {id(each): each for each in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = False
    # What the class declares as tied is left out when the model is saved.
    model._tied_weights_keys = {} if isinstance(model._tied_weights_keys, dict) else None


def _load_tokenizer(
    model_id: str, base_id: str, options: dict[str, Any], base_revision: str | None, gguf: GgufFile | None
) -> Any:
    """The tokenizer that lies beside the weights; that of the base model where an adapter brings none."""
    if gguf is not None and model_id == base_id:
        return load_gguf_tokenizer(gguf)
    if model_id != base_id:
        files = (_find_file(model_id, name, options["revision"]) for name in _TOKENIZER_FILES)
        if not any(files) and gguf is not None:
            return load_gguf_tokenizer(gguf)
        if not any(files):
            model_id, options = base_id, {**options, "revision": base_revision}
    try:
        tokenizer = _load(model_id, "tokenizer", AutoTokenizer.from_pretrained, options)
    except ModelError as error:
        # Asked only now: a repository that loads needs no further request.
        if not _is_path(model_id) and (named := hub_gguf_files(model_id, options["revision"])):
            raise ModelError(
                f"{model_id} holds GGUF files and no config.json: {', '.join(named)}. Name one: {model_id}:{named[0]}."
            ) from error
        raise
    if not getattr(tokenizer, "chat_template", None):
        # Older vision-language checkpoints keep the template with their processor.
        path = _find_file(model_id, "chat_template.json", options["revision"])
        if path is not None:
            tokenizer.chat_template = json.loads(Path(path).read_text(encoding="utf-8")).get("chat_template")
    return tokenizer


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "tekken.json")


def _find_file(model_id: str, name: str, revision: str | None) -> str | None:
    if Path(model_id).is_dir():
        path = Path(model_id) / name
        return str(path) if path.is_file() else None
    found = cached_file(
        model_id,
        name,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else str(found)


def _load_weights(model_id: str, config: Any, options: dict[str, Any], device: str, gguf: GgufFile | None) -> Any:
    if device == "auto" and world().size > 1 and torch.cuda.is_available():
        options["device_map"] = f"cuda:{local_rank()}"  # each process holds the whole model
    elif device == "auto":
        options["device_map"] = "auto" if torch.cuda.is_available() else None
    elif device != "cpu":
        options["device_map"] = device
    if gguf is not None:
        dtype = gguf.dtype if options["dtype"] == "auto" else options["dtype"]
        model, report = load_gguf_weights(gguf, config, {"dtype": dtype, "device_map": options.get("device_map")})
    else:
        options |= {"output_loading_info": True, "use_safetensors": True}
        model, report = _load(model_id, "model", _auto_class(config).from_pretrained, options)
    if missing := sorted(report["missing_keys"]):
        # transformers would go on with random numbers in their place.
        raise ModelError(
            f"{model_id}: its weight files lack {len(missing)} of the model's tensors ({missing[0]}, ...); the "
            "download or the conversion is incomplete."
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ModelError(
            f"{model_id} does not fit into the memory of the GPUs, and demur needs all weights at hand. Type "
            "--device cpu, or --dtype bfloat16, or use more GPUs."
        )
    if options["dtype"] == "auto":
        model = in_native_precision(model)
    return model


def _auto_class(config: Any) -> Any:
    """The class of vision-language checkpoints that have no class for text alone; otherwise that of causal models."""
    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if own_code or type(config) in AutoModelForCausalLM._model_mapping:
        return AutoModelForCausalLM
    known = type(config) in AutoModelForImageTextToText._model_mapping
    return AutoModelForImageTextToText if known else AutoModelForCausalLM


def _check_device(device: str) -> None:
    if device == "auto":
        return
    try:
        wanted = torch.device(device)
    except RuntimeError:
        wanted = None
    if wanted is None or wanted.type not in {"cpu", "cuda", "mps", "xpu"}:
        raise ModelError(f"unknown device {device!r}; type one of: auto, cpu, cuda, cuda:1, mps.")
    if wanted.type == "cpu":
        return
    count = getattr(torch, wanted.type).device_count()
    if (wanted.index or 0) >= count:
        raise ModelError(
            f"there is no device {device}: torch finds {count} of kind {wanted.type}. Type --device auto, or "
            "--device cpu."
        )


def _check_revision(model_id: str, revision: str | None) -> None:
    if revision is not None and Path(model_id).is_dir():
        raise ModelError(
            f"{model_id} is a folder, which has no revisions: leave out --revision, or give the hub id "
            "(owner/name) whose revision you mean."
        )


def _is_path(model_id: str) -> bool:
    return Path(model_id).exists() or model_id.startswith((".", "/", "~"))


def _check_folder(model_id: str) -> None:
    folder = Path(model_id)
    if not folder.is_dir():
        if _is_path(model_id):
            raise ModelError(
                f"there is no model folder {model_id}. Give a folder that holds config.json, a .gguf file, or a hub id "
                "such as owner/name."
            )
        return
    names = {path.name for path in folder.iterdir()}
    if "config.json" not in names:
        raise ModelError(f"{folder} holds no config.json and no .gguf file, so it is not a model folder.")
    if not any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names):
        pickled = any(name.endswith(".bin") for name in names)
        more = " It holds pickled weights (.bin), which can run code: convert them to safetensors." if pickled else ""
        raise ModelError(f"{folder} holds no weights (model.safetensors or a sharded index).{more}")
    if not names & set(_TOKENIZER_FILES):
        raise ModelError(
            f"{folder} holds no tokenizer (tokenizer.json). Copy the tokenizer files of the base model into it."
        )


def _load(model_id: str, what: str, loader: Any, options: dict[str, Any]) -> Any:
    try:
        return loader(model_id, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError, UserWarning, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{model_id} comes with Python code of its own (auto_map in its config), which demur does not run "
                "unasked. Read that code; if you trust it, add --trust-remote-code."
            ) from error
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        first = first.rstrip(".")
        raise ModelError(
            f"cannot load the {what} of {model_id}: {first}. Give a local model folder, or a hub id that you can reach "
            "(for gated models: `hf auth login`)."
        ) from error
