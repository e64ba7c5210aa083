"""Asking an export, in a fresh process with plain transformers, what it answers."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from demur.errors import ModelError
from demur.models import _reload
from demur.models._chat_model import ChatModel
from demur.models._generation import Completion, completion_of, end_tokens

ExportFormat = Literal["adapter", "merged"]


@dataclass(frozen=True)
class ReloadAnswers:
    """What the reloaded export says to some prompts."""

    logits: Tensor
    """Next-token logits, [prompt, vocabulary], float64."""
    completions: list[Completion]


def reload_answers(
    chat: ChatModel,
    folder: Path,
    *,
    form: ExportFormat,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int = 32,
) -> ReloadAnswers:
    """Load the export in `folder` in a fresh Python process, on the CPU, and let it answer `prompts`.

    Raises:
        ModelError: the fresh process could not load it or failed.
    """
    encoded = chat.encode(prompts)
    batches = [chat.batch(encoded[start : start + batch_size]) for start in range(0, len(encoded), batch_size)]
    ends = end_tokens(chat.model, chat.tokenizer)
    request = {
        "format": form,
        "folder": str(folder),
        "base": chat.name,
        "revision": chat.revision,
        "gguf": None if chat.gguf is None else chat.gguf.place,
        "dtype": chat.identity.dtype,
        "trust_remote_code": False,
        "max_new_tokens": max_new_tokens,
        "ends": sorted(ends),
        "pad": chat.pad_token,
        "batches": [{name: tensor.tolist() for name, tensor in batch.items()} for batch in batches],
    }
    with tempfile.TemporaryDirectory() as scratch:
        asked, answered = Path(scratch, "request.json"), Path(scratch, "answer.safetensors")
        asked.write_text(json.dumps(request))
        done = subprocess.run(
            [sys.executable, str(_reload.__file__), str(asked), str(answered)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise ModelError(f"a fresh process could not load the export in {folder}: {lines[-1]}")
        tensors = load_file(answered)
    rows = [row for index in range(len(batches)) for row in tensors[f"tokens.{index}"].tolist()]
    return ReloadAnswers(
        torch.cat([tensors[f"logits.{index}"] for index in range(len(batches))]),
        [completion_of(row, chat.tokenizer, ends) for row in rows],
    )
