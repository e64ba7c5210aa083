"""How many prompts to run together: by a rule on device, memory and model, once for a run folder.

Another batch size rounds differently, so a run that goes on must use the size it began with: the choice is a record.
It is not measured: what else a machine does for a moment would decide for hours, and two runs of the same inputs would
differ in their last digits.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from demur.calibration._settings import CalibrationSettings
from demur.models import ChatModel, in_order
from demur.prompts import PromptSet
from demur.records import BatchSizeRecord, RunFolder, read_record, write_record
from demur.types import PromptLabel

MOST_ON_CPU = 256
"""Reading weights from memory is shared by the rows of a batch, until arithmetic takes longer than reading does. Two
cores read 78, 106, 109 and 117 tokens of prompts a second in batches of 8, 32, 64 and 128 with a model of 500 million
parameters, and generated 18, 30, 48, 61 and 81 in batches of 16, 32, 64, 128 and 256."""
MOST_ELSEWHERE = 128
"""The same reckoning for a GPU: operations over bytes read per second are 100 to 300."""
_SHARE = {"cuda": 0.5}
_SHARE_ELSEWHERE = 0.4
"""Of the memory that the weights leave. The rest is for what is not counted, and in main memory for other processes of
the same run and whoever else uses the machine; where it does not suffice, batches are halved."""
_MORE_TOKENS = 64
"""Beside prompt and answer: system prompts, openings and suffixes under pressure."""
_LOGITS = 16
"""Bytes for each entry of the vocabulary: float32 logits, their logarithms, and those of the base model."""


def with_batch_size(
    settings: CalibrationSettings, folder: RunFolder, chat: ChatModel, prompts: Mapping[PromptLabel, PromptSet]
) -> CalibrationSettings:
    """The settings with a batch size: the given one, that of this folder, or that of the rule, which is kept.

    Args:
        settings: of the run.
        folder: of the run, claimed.
        chat: the unchanged model.
        prompts: the longest of them says what a row needs.
    """
    if settings.batch_size:
        return settings
    if not folder.batch_size.exists():
        # The first process decides for all: the others may sit on other machines.
        (record,) = in_order(
            lambda tokens: choose_batch_size(chat, tokens),
            [_longest(chat, prompts) + settings.max_new_tokens],
            pack=lambda record: record.model_dump_json().encode(),
            unpack=BatchSizeRecord.model_validate_json,
        )
        write_record(folder.batch_size, record)
    return replace(settings, batch_size=read_record(folder.batch_size, BatchSizeRecord).batch_size)


def _longest(chat: ChatModel, prompts: Mapping[PromptLabel, PromptSet]) -> int:
    """Tokens of the longest prompt; the longest texts are looked at, as encoding all takes a while."""
    texts = {prompt.text for prompt_set in prompts.values() for prompt in prompt_set.prompts}
    return max(len(tokens) for tokens in chat.encode(sorted(texts, key=lambda text: (-len(text), text))[:16]))


def choose_batch_size(chat: ChatModel, tokens: int) -> BatchSizeRecord:
    """A power of two that is fast on this kind of device and fits.

    Args:
        chat: the model.
        tokens: of the longest prompt and its answer.
    """
    device = chat.device
    most = MOST_ON_CPU if device.type == "cpu" else MOST_ELSEWHERE
    memory = _memory(chat)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in chat.module.parameters())
    row = _row_bytes(chat, tokens + _MORE_TOKENS)
    share = _SHARE.get(device.type, _SHARE_ELSEWHERE)
    room = int(share * max(0, memory - weights))
    size = most
    while size > 1 and size * row > room:
        size //= 2
    why = f"the most that is worth it on a device of the kind {device.type}"
    if size < most:
        why = f"what fits into {share:.0%} of the memory that the weights leave"
    return BatchSizeRecord(
        batch_size=size,
        device=device.type,
        memory_bytes=memory,
        weight_bytes=weights,
        prompt_bytes=row,
        reason=why,
    )


def _memory(chat: ChatModel) -> int:
    """Of all devices that hold the model, in bytes. In all, not free: that is another number each time."""
    devices = {parameter.device for parameter in chat.module.parameters()}
    cards = [each for each in devices if each.type == "cuda"]
    if cards:
        return sum(int(torch.cuda.get_device_properties(each).total_memory) for each in cards)
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no such call here; 8 GiB is what a laptop has at the least
        memory = 8 * 2**30
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return memory
    return min(memory, int(limit)) if limit.isdecimal() else memory


def _row_bytes(chat: ChatModel, tokens: int) -> int:
    """What one prompt of a batch needs: keys and values of all layers, activations of one, logits."""
    config: Any = getattr(chat.module, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    width = chat.layout.d_model
    heads = getattr(config, "num_attention_heads", None) or 1
    groups = getattr(config, "num_key_value_heads", None) or heads
    inner = getattr(config, "intermediate_size", None) or 4 * width
    vocabulary = getattr(config, "vocab_size", None) or 0
    entry = next(chat.module.parameters()).element_size()
    kept = 2 * chat.n_layers * width * groups // heads
    passing = 6 * width + 3 * inner
    return tokens * entry * (kept + passing) + 4 * heads * tokens**2 + _LOGITS * vocabulary
