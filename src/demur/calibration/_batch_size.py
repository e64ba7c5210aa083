"""How many prompts to run together: found by measuring, once for a run folder.

Another batch size rounds differently, so a run that goes on must use the size it began with: the choice is a record.
"""

import time
from collections.abc import Mapping
from dataclasses import replace

from demur.calibration._settings import CalibrationSettings
from demur.models import ChatModel, in_order, is_out_of_memory
from demur.prompts import PromptSet
from demur.records import BatchSizeMeasurement, BatchSizeRecord, RunFolder, read_record, write_record
from demur.types import PromptLabel

SIZES = (8, 16, 32, 64, 128, 256)
_TOKENS = 16
"""Generated for each prompt: reading and generating both count, as both make up a calibration."""
_WORTH = 0.9
"""A larger batch must need at most this share of the time per prompt, else memory is spent for nothing."""


def with_batch_size(
    settings: CalibrationSettings, folder: RunFolder, chat: ChatModel, prompts: Mapping[PromptLabel, PromptSet]
) -> CalibrationSettings:
    """The settings with a batch size: the given one, that of this folder, or the best of a few, which is kept.

    Args:
        settings: of the run.
        folder: of the run, claimed.
        chat: the unchanged model.
        prompts: the longest of them are what is measured on.
    """
    if settings.batch_size:
        return settings
    if not folder.batch_size.exists():
        record = _measured(chat, prompts)
        write_record(folder.batch_size, record)
    return replace(settings, batch_size=read_record(folder.batch_size, BatchSizeRecord).batch_size)


def _measured(chat: ChatModel, prompts: Mapping[PromptLabel, PromptSet]) -> BatchSizeRecord:
    """What the first process measures, for all of them."""
    (record,) = in_order(
        lambda texts: _measure(chat, texts),
        [_longest(prompts)],
        pack=lambda record: record.model_dump_json().encode(),
        unpack=BatchSizeRecord.model_validate_json,
    )
    return record


def _longest(prompts: Mapping[PromptLabel, PromptSet]) -> list[str]:
    texts = {prompt.text for prompt_set in prompts.values() for prompt in prompt_set.prompts}
    return sorted(texts, key=lambda text: (-len(text), text))[: SIZES[-1]]


def _measure(chat: ChatModel, texts: list[str]) -> BatchSizeRecord:
    tried: list[BatchSizeMeasurement] = []
    best = SIZES[0]
    chat.generate(texts[:2], max_new_tokens=2)  # what a first call sets up is not measured
    for size in SIZES:
        if tried and len(texts) < size:
            break
        try:
            # Of two, as something else may have run during one of them.
            seconds = min(_seconds(chat, texts[:size]) for _ in range(2)) / len(texts[:size])
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            tried.append(BatchSizeMeasurement(batch_size=size, seconds_per_prompt=None))
            break
        tried.append(BatchSizeMeasurement(batch_size=size, seconds_per_prompt=seconds))
        if len(tried) > 1 and seconds > _WORTH * (tried[-2].seconds_per_prompt or 0.0):
            break
        best = size
    return BatchSizeRecord(batch_size=best, tried=tuple(tried))


def _seconds(chat: ChatModel, texts: list[str]) -> float:
    started = time.perf_counter()
    chat.generate(texts, max_new_tokens=_TOKENS)
    return time.perf_counter() - started
