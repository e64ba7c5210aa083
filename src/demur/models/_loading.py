"""Loading a chat model from a local folder or the hub, with errors that say what is missing."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from demur.errors import ModelError
from demur.models._chat_model import ChatModel
from demur.models._chat_template import ChatTemplate

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
    trust_remote_code: bool = False,
) -> ChatModel:
    """Load a model with its tokenizer and prove its layout.

    Args:
        model_id: local folder or hub id.
        revision: hub branch, tag or commit; ignored for a folder.
        dtype: "auto" (the checkpoint's own), "float32", "bfloat16", "float16" or "float64".
        device: "auto" (all devices there are), "cpu", "cuda", "cuda:1", "mps".
        system: system prompt put before every prompt.
        trust_remote_code: run Python code that comes with the checkpoint. Off unless asked for.

    Raises:
        ModelError: the model, its weights, its tokenizer or its chat template cannot be loaded.
        LayoutError: its writers cannot be found or proved.
    """
    if dtype != "auto" and dtype not in _DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}; type one of: auto, {', '.join(_DTYPES)}.")
    _check_folder(model_id)
    transformers_logging.disable_progress_bar()
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    tokenizer = _load(model_id, "tokenizer", AutoTokenizer.from_pretrained, options)
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            f"{model_id}: the tokenizer has no chat template, so this looks like a base model. Use its chat (instruct) "
            "version, or save a `chat_template` with its tokenizer."
        )
    config = _load(model_id, "config", AutoConfig.from_pretrained, options)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{model_id} is an encoder-decoder model; demur works on decoder-only chat models.")
    options["dtype"] = _DTYPES.get(dtype, "auto")
    if device == "auto":
        options["device_map"] = "auto" if torch.cuda.is_available() else None
    options["output_loading_info"] = True
    model, report = _load(model_id, "model", AutoModelForCausalLM.from_pretrained, options)
    if missing := sorted(report["missing_keys"]):
        # transformers would go on with random numbers in their place.
        raise ModelError(
            f"{model_id}: its weight files lack {len(missing)} of the model's tensors ({missing[0]}, ...); the "
            "download or the conversion is incomplete."
        )
    if device != "auto":
        model = model.to(device)
    commit = getattr(config, "_commit_hash", None)
    return ChatModel(model, tokenizer, model_id, commit, ChatTemplate(tokenizer, system))


def _check_folder(model_id: str) -> None:
    folder = Path(model_id)
    if not folder.is_dir():
        if folder.exists() or model_id.startswith((".", "/", "~")):
            raise ModelError(
                f"there is no model folder {model_id}. Give a folder that holds config.json, or a hub id such as "
                "owner/name."
            )
        return
    names = {path.name for path in folder.iterdir()}
    if "config.json" not in names:
        raise ModelError(f"{folder} holds no config.json, so it is not a model folder.")
    if not any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names):
        pickled = any(name.endswith(".bin") for name in names)
        more = " It holds pickled weights (.bin), which can run code: convert them to safetensors." if pickled else ""
        raise ModelError(f"{folder} holds no weights (model.safetensors or a sharded index).{more}")
    if not names & {"tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "tekken.json"}:
        raise ModelError(
            f"{folder} holds no tokenizer (tokenizer.json). Copy the tokenizer files of the base model into it."
        )


def _load(model_id: str, what: str, loader: Any, options: dict[str, Any]) -> Any:
    try:
        return loader(model_id, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        first = first.rstrip(".")
        raise ModelError(
            f"cannot load the {what} of {model_id}: {first}. Give a local model folder, or a hub id that you can reach "
            "(for gated models: `hf auth login`)."
        ) from error
