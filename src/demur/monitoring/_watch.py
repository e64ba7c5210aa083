"""Reading a live model: one product per watched layer and token, kept as the model goes; the rest when it is asked for.

Works for whoever calls the model: `generate`, a forward pass of one's own, `ChatModel`. Hooks return nothing, so the
model computes what it computes without them.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from demur.errors import InputError
from demur.models import ChatModel, end_tokens, reading_inputs
from demur.monitoring._reading import Reading

_CACHES = ("past_key_values", "cache_params")
"""What models call their cache."""
_TOKENS = 1024
"""Tokens of a row that are converted to single precision at a time: a long prompt's stream is not copied whole."""
_OPENINGS = ("List", "What", "(one)", '"')
"""Instructions that begin differently: what their renderings begin with is the template's."""

ReadRow = Callable[[list[int], int, Mapping[int, Tensor], "Located"], Reading]
"""The real tokens of a row, how many the first pass held, what was read of them by layer [token, probe]."""


class Located:
    """The template's parts and the tokens that end an answer, looked up once per watch."""

    def __init__(self, chat: ChatModel) -> None:
        self.closing = chat.template.post_instruction_tokens()
        self.opening = _common_prefix([chat.template.encode(text) for text in _OPENINGS])
        self.ends = end_tokens(chat.model, chat.tokenizer)


def _common_prefix(sequences: Sequence[Sequence[int]]) -> tuple[int, ...]:
    prefix = []
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        prefix.append(tokens[0])
    return tuple(prefix)


class Batch:
    """The rows of one conversation with the model: a prompt pass and what went on from its cache."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.ids: list[Tensor] = []
        self.mask: list[Tensor] = []
        self.values: list[dict[int, Tensor]] = []
        self.columns = 0

    def append(self, ids: Tensor, mask: Tensor, values: dict[int, Tensor]) -> None:
        """Add one pass: ids and mask [row, token], values by layer [row, token, probe]."""
        self.ids.append(ids)
        self.mask.append(mask)
        self.values.append(values)
        self.columns += ids.shape[1]

    def cut(self, columns: int) -> None:
        """Forget what the cache has dropped: tokens of a draft that were not accepted."""
        while self.columns > columns:
            spare, width = self.columns - columns, self.ids[-1].shape[1]
            ids, mask, values = self.ids.pop(), self.mask.pop(), self.values.pop()
            self.columns -= width
            if spare < width:
                kept = width - spare
                self.append(ids[:, :kept], mask[:, :kept], {layer: one[:, :kept] for layer, one in values.items()})

    def whole(self) -> tuple[list[list[int]], list[list[bool]], dict[int, Tensor]]:
        """Everything so far, on the CPU: ids and mask by row, values by layer, [row, token, probe], float64."""
        values = {
            layer: torch.cat([one[layer] for one in self.values], dim=1).to("cpu", torch.float64)
            for layer in self.values[0]
        }
        return torch.cat(self.ids, dim=1).tolist(), torch.cat(self.mask, dim=1).bool().tolist(), values


class Watch:
    """What a monitor has read while its context was open; it can be asked during generation and afterwards.

    One thread runs the model at a time. In beam search the rows of one prompt change places, so there the readings
    before the answer are right and those along it are not those of one hypothesis.
    """

    def __init__(self, chat: ChatModel, vectors: Mapping[int, Tensor], row: ReadRow, *, batches: int) -> None:
        if batches < 1:
            raise InputError(f"a watch keeps at least one batch; got batches={batches}.")
        self._located = Located(chat)
        self._device = chat.device
        self._vectors = vectors
        self._row = row
        self._batches: deque[Batch] = deque(maxlen=batches)
        self._of_cache: WeakKeyDictionary[Any, Batch] = WeakKeyDictionary()
        self._pass: dict[int, Tensor] = {}
        self._moved: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}

    @property
    def batches(self) -> tuple[list[Reading], ...]:
        """The readings of each batch that is kept, oldest first."""
        return tuple(self._readings(batch) for batch in self._batches)

    def readings(self) -> list[Reading]:
        """One for each row of the batch that the model ran last; empty before the first pass."""
        return self._readings(self._batches[-1]) if self._batches else []

    def clear(self) -> None:
        """Forget all batches."""
        self._batches.clear()
        self._of_cache.clear()

    def _readings(self, batch: Batch) -> list[Reading]:
        ids, masks, values = batch.whole()
        first = batch.mask[0].bool().sum(-1).tolist()
        found = []
        for row, (tokens, mask) in enumerate(zip(ids, masks, strict=True)):
            real = [index for index, kept in enumerate(mask) if kept]
            mine = {layer: one[row, real] for layer, one in values.items()}
            found.append(self._row([tokens[index] for index in real], first[row], mine, self._located))
        return found

    def _read(self, layer: int, stream: Tensor) -> None:
        matrix = self._matrix(layer, stream)
        if torch.is_autocast_enabled(stream.device.type):
            with torch.autocast(stream.device.type, enabled=False):
                self._pass[layer] = _product(stream.detach(), matrix)
        else:  # the usual case, at each token of a generation: a context would cost as much as the product
            self._pass[layer] = _product(stream.detach(), matrix)

    def _matrix(self, layer: int, stream: Tensor) -> Tensor:
        dtype = torch.float64 if stream.dtype == torch.float64 else torch.float32
        key = (layer, stream.device, dtype)
        if key not in self._moved:
            self._moved[key] = self._vectors[layer].to(stream.device, dtype)
        return self._moved[key]

    def _passed(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        values, self._pass = self._pass, {}
        if len(values) < len(self._vectors):
            return  # it ended before the last watched layer
        rows, width = next(iter(values.values())).shape[:2]
        ids = kwargs.get("input_ids", args[0] if args else None)
        if not isinstance(ids, Tensor) or ids.shape != (rows, width):
            ids = torch.full((rows, width), -1)  # embeddings were given: no token is known
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[1] < width:
            mask = torch.ones(rows, width)
        batch = self._batch_of(_cache(kwargs, output), rows, width)
        # Copies: a step's ids and mask are views of all tokens so far, and keeping them all would grow as the square.
        batch.append(ids.to(self._device, copy=True), mask[:, -width:].to(self._device, copy=True), values)

    def _batch_of(self, cache: Any, rows: int, width: int) -> Batch:
        """The batch that this pass goes on with, or a new one."""
        known = None if cache is None else self._of_cache.get(cache)
        length = _length(cache)
        before = None if length is None or known is None else min(length - width, known.columns)
        if known is None or known.rows != rows or before == 0:
            known = Batch(rows)
            if cache is not None:
                self._of_cache[cache] = known
        elif before is not None:
            known.cut(before)
        if known in self._batches:
            self._batches.remove(known)
        self._batches.append(known)
        return known


def _product(stream: Tensor, matrix: Tensor) -> Tensor:
    """[row, token, probe] in the matrix's dtype."""
    if stream.shape[1] <= _TOKENS:
        return stream.to(matrix.dtype) @ matrix
    return torch.cat([piece.to(matrix.dtype) @ matrix for piece in torch.split(stream, _TOKENS, dim=1)], dim=1)


@contextmanager
def watching(chat: ChatModel, vectors: Mapping[int, Tensor], row: ReadRow, *, batches: int) -> Iterator[Watch]:
    """Read with `vectors` (by layer, [d_model, probe]) at the input of their blocks while the context is open."""
    watch = Watch(chat, vectors, row, batches=batches)
    readers = {chat.layout.blocks[layer]: partial(watch._read, layer) for layer in vectors}
    with reading_inputs(chat.module, readers):
        handle = chat.module.register_forward_hook(watch._passed, with_kwargs=True)
        try:
            yield watch
        finally:
            handle.remove()


def _cache(kwargs: Mapping[str, Any], output: Any) -> Any:
    """The cache of a pass: the one that it was given, or the one that it made."""
    for name in _CACHES:
        for cache in (kwargs.get(name), getattr(output, name, None)):
            if cache is not None and not isinstance(cache, tuple):
                return cache
    return None


def _length(cache: Any) -> int | None:
    """Tokens in a cache; None where it does not count them (state-space models)."""
    try:
        return int(cache.get_seq_length()) or None
    except (AttributeError, TypeError, ValueError, NotImplementedError):
        return None
