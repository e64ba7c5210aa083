"""Batched generation and last-position logits. Knows nothing about refusal."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from demur.models._hooks import model_device


@dataclass(frozen=True)
class Completion:
    """What a model answered to one prompt."""

    text: str
    n_tokens: int
    """Generated tokens, the end token not counted."""
    ended: bool
    """Whether the model ended the answer itself, within the limit."""
    tokens: tuple[int, ...] = field(default=(), compare=False)
    """The generated token ids, with the end token where there was one."""


def pad_batch(sequences: Sequence[Sequence[int]], *, pad: int, side: str, device: torch.device) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, [batch, longest], padded on one side ("left" or "right")."""
    width = max(len(sequence) for sequence in sequences)
    ids, mask = [], []
    for sequence in sequences:
        gap = width - len(sequence)
        left, right = (gap, 0) if side == "left" else (0, gap)
        ids.append([pad] * left + list(sequence) + [pad] * right)
        mask.append([0] * left + [1] * len(sequence) + [0] * right)
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


def forward_inputs(model: nn.Module, batch: dict[str, Tensor], *, last_logits_only: bool = True) -> dict[str, Any]:
    """Arguments of a plain forward pass: positions counted from each row's first real token, no cache.

    transformers derives positions from the mask only inside `generate`; without them, left padding shifts the
    positions of models with absolute position embeddings.
    """
    accepted = inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = dict(batch)
    if "position_ids" in accepted:
        positions = batch["attention_mask"].cumsum(-1) - 1
        inputs["position_ids"] = positions.clamp_min(0)
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    if last_logits_only and "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = 1
    return inputs


def logits_at_end(model: nn.Module, batch: dict[str, Tensor], *, count: int) -> Tensor:
    """Logits at the last `count` positions of a left-padded batch, [batch, count, vocabulary], as the model gives them.

    Where the model can, no others are computed.
    """
    inputs = forward_inputs(model, batch)
    if "logits_to_keep" in inputs:
        inputs["logits_to_keep"] = count
    with torch.no_grad():
        logits: Tensor = model(**inputs).logits[:, -count:]
    return logits


def last_logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Logits of the token after each row of a left-padded batch, [batch, vocabulary], in float32 or wider."""
    logits = logits_at_end(model, batch, count=1)[:, -1]
    return logits if logits.dtype == torch.float64 else logits.float()


def generate_answers(
    model: Any,
    tokenizer: Any,
    sequences: Sequence[Sequence[int]],
    *,
    pad: int,
    max_new_tokens: int,
    seeds: Sequence[int] | None = None,
    processors: Sequence[LogitsProcessor] = (),
) -> list[Completion]:
    """Answers to one batch of rendered prompts, left-padded, with the model's own end tokens.

    The checkpoint's sampling defaults (temperature, penalties) are not used, so an answer depends on the model alone.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        sequences: token ids of each prompt.
        pad: the padding token.
        max_new_tokens: longest answer.
        seeds: one per prompt: sample at temperature 1 instead of taking the likeliest token. An answer then depends on
            its prompt and seed, not on the batch it is in.
        processors: change the logits of each step, before any noise.
    """
    batch = pad_batch(sequences, pad=pad, side="left", device=model_device(model))
    ends = end_tokens(model, tokenizer)
    config = type(model.generation_config)(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, pad_token_id=pad, eos_token_id=sorted(ends) or None
    )
    noise = [] if seeds is None else [_GumbelNoise(seeds)]
    changed = LogitsProcessorList([*processors, *noise])
    with torch.no_grad(), _without_defaults(model):
        output = model.generate(**batch, generation_config=config, logits_processor=changed)
    width = batch["input_ids"].shape[1]
    return [completion_of(row, tokenizer, ends) for row in output[:, width:].tolist()]


class _GumbelNoise(LogitsProcessor):  # type: ignore[misc]
    """Adds seeded Gumbel noise, row by row: the likeliest token is then a sample at temperature 1 (Gumbel 1954).

    Unlike `do_sample`, it leaves the process-wide random numbers alone, and padding and batching change nothing.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = torch.stack([torch.rand(scores.shape[-1], generator=each) for each in self._generators])
        tiny = torch.finfo(noise.dtype).tiny
        return scores.float() - torch.log(-torch.log(noise.clamp_min(tiny))).to(scores.device)


@contextmanager
def _without_defaults(model: Any) -> Iterator[None]:
    """Hide the checkpoint's generation config: `generate` fills every value that is not given from it."""
    defaults = model.generation_config
    model.generation_config = type(defaults)()
    try:
        yield
    finally:
        model.generation_config = defaults


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer: the generation config's and the tokenizer's."""
    ends: set[int] = set()
    for value in (model.generation_config.eos_token_id, tokenizer.eos_token_id):
        if value is not None:
            ends.update(value if isinstance(value, (list, tuple)) else [value])
    return ends


def completion_of(row: Sequence[int], tokenizer: Any, ends: set[int]) -> Completion:
    """The text of generated tokens up to the first end token."""
    length = next((index for index, token in enumerate(row) if token in ends), None)
    kept = list(row if length is None else row[:length])
    text = tokenizer.decode(kept, skip_special_tokens=True).strip()
    return Completion(text, len(kept), length is not None, tuple(row if length is None else row[: length + 1]))
