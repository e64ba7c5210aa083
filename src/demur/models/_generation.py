"""Batched generation and last-position logits. Knows nothing about refusal."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from demur.models._decoding import Continuation, GumbelNoise, Row, Settles, decode, settle
from demur.models._decoding_proof import proved_decoding
from demur.models._hooks import model_device

Settled = Callable[[str], bool]
"""The answer so far -> whether the rest does not matter."""


@dataclass(frozen=True)
class Completion:
    """What a model answered to one prompt."""

    text: str
    n_tokens: int
    """Generated tokens, the end token not counted."""
    ended: bool
    """Whether the model ended the answer itself, within the limit."""
    settled: bool = False
    """Whether it was stopped because nothing that could follow mattered."""
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
    settled: Sequence[Settled] | None = None,
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
        processors: change the logits of each step, before any noise. They are given the rows that are not done, in
            their order, and must not read the tokens before them.
        settled: one per prompt: whether the answer so far is all that is wanted of it.
    """
    ways = [[Continuation(seed=None if seeds is None else seeds[index])] for index in range(len(sequences))]
    answers = answers_to(
        model,
        tokenizer,
        sequences,
        ways,
        pad=pad,
        max_new_tokens=max_new_tokens,
        processors=processors,
        settled=None if settled is None else [[each] for each in settled],
    )
    return [answer for (answer,) in answers]


def answers_to(
    model: Any,
    tokenizer: Any,
    sequences: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Continuation]],
    *,
    pad: int,
    max_new_tokens: int,
    processors: Sequence[LogitsProcessor] = (),
    settled: Sequence[Sequence[Settled]] | None = None,
) -> list[list[Completion]]:
    """Several answers to each prompt, which is read once where the model's cache is proved to allow it.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        sequences: token ids of each prompt.
        continuations: how the answers to each prompt go on; all of the batch are computed at once.
        pad: the padding token.
        max_new_tokens: longest answer, its opening not counted.
        processors: see `generate_answers`; then there is one continuation to each prompt.
        settled: one for each continuation: whether the answer so far is all that is wanted of it.
    """
    rows = [Row(prompt, way) for prompt, ways in enumerate(continuations) for way in ways]
    checks = None if settled is None else [each for some in settled for each in some]

    def settles(index: int, tokens: Sequence[int]) -> bool:
        return checks is not None and checks[index](_text(tokenizer, tokens))

    ends = end_tokens(model, tokenizer)
    decoding = proved_decoding(model, max(sequences, key=len))
    with torch.no_grad():
        if decoding.own:
            decode(
                model,
                pad_batch(sequences, pad=pad, side="left", device=model_device(model)),
                rows,
                ends=ends,
                max_new_tokens=max_new_tokens,
                process=processors,
                settles=None if checks is None else settles,
                share_prefix=decoding.shared_prefix,
            )
        else:
            _generate(
                model,
                [[*sequences[row.prompt], *row.continuation.opening] for row in rows],
                rows,
                pad=pad,
                ends=ends,
                max_new_tokens=max_new_tokens,
                processors=processors,
                settles=None if checks is None else settles,
            )
    answers: list[list[Completion]] = [[] for _ in sequences]
    for row in rows:
        answers[row.prompt].append(completion_of(row.tokens, tokenizer, ends, settled=row.settled))
    return answers


def _generate(
    model: Any,
    sequences: Sequence[Sequence[int]],
    rows: Sequence[Row],
    *,
    pad: int,
    ends: set[int],
    max_new_tokens: int,
    processors: Sequence[LogitsProcessor],
    settles: Settles | None,
) -> None:
    """Fill in the tokens of all rows by transformers' own loop: each row has its prompt, and stays to the end."""
    batch = pad_batch(sequences, pad=pad, side="left", device=model_device(model))
    config = type(model.generation_config)(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, pad_token_id=pad, eos_token_id=sorted(ends) or None
    )
    width = batch["input_ids"].shape[1]
    changed = LogitsProcessorList([*processors, _GumbelNoise([row.continuation.seed for row in rows])])
    stops = StoppingCriteriaList([] if settles is None else [_Settled(rows, settles, width, ends)])
    with _without_defaults(model):
        output = model.generate(**batch, generation_config=config, logits_processor=changed, stopping_criteria=stops)
    for row, tokens in zip(rows, output[:, width:].tolist(), strict=True):
        if not row.settled:
            row.tokens = tokens


class _GumbelNoise(LogitsProcessor):  # type: ignore[misc]
    """Adds seeded noise to the rows that have a seed."""

    def __init__(self, seeds: Sequence[int | None]) -> None:
        self._noise = [None if seed is None else GumbelNoise(seed) for seed in seeds]

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        size = scores.shape[-1]
        drawn = [torch.zeros(size) if noise is None else noise.draw(size) for noise in self._noise]
        return scores.float() + torch.stack(drawn).to(scores.device)


class _Settled(StoppingCriteria):  # type: ignore[misc]
    """Stops rows whose answer is settled; their tokens are kept here, as `generate` pads them afterwards."""

    def __init__(self, rows: Sequence[Row], settles: Settles, width: int, ends: set[int]) -> None:
        self._rows, self._settles, self._width, self._ends = rows, settles, width, ends

    def __call__(self, input_ids: Tensor, _scores: Any, **_more: Any) -> Tensor:
        for index, (row, tokens) in enumerate(zip(self._rows, input_ids[:, self._width :].tolist(), strict=True)):
            if not row.settled and not self._ends.intersection(tokens):
                row.tokens = tokens
                settle(index, row, self._settles)
        return torch.tensor([row.settled for row in self._rows], device=input_ids.device)


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


def completion_of(row: Sequence[int], tokenizer: Any, ends: set[int], *, settled: bool = False) -> Completion:
    """The text of generated tokens up to the first end token."""
    length = next((index for index, token in enumerate(row) if token in ends), None)
    kept = list(row if length is None else row[:length])
    tokens = tuple(row if length is None else row[: length + 1])
    return Completion(_text(tokenizer, kept), len(kept), length is not None, settled, tokens)


def _text(tokenizer: Any, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()
