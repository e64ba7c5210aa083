"""Forward passes of a changed model that leave out what the change cannot reach, or what was computed already.

Three short cuts, none assumed: adding at block l changes nothing below it, so a pass may start there from the stream of
the unchanged model; prompts that begin alike share the keys and values of their beginning; and what the last block adds
to other tokens than the last nothing reads, so its largest part (the MLP) need not run there. All are proved on the
loaded model, by comparison with whole passes, before they are used; what is not proved is run whole.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from demur.models._chat_model import ChatModel
from demur.models._generation import forward_inputs, last_logits
from demur.models._hooks import hooked, reading_inputs

Change = Callable[[Tensor], AbstractContextManager[None]]
"""From one vector per row, [batch, d_model], to a context in which the model is changed row by row."""

TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5}
"""Largest difference of logits, relative to the largest logit, that is rounding; wider for half precision."""
_HALF = 2e-2
_SHORTEST_SHARE = 0.1
"""A shared beginning of less than this share of a prompt saves less than the cache costs."""
_KEPT_BYTES = 2**29
"""Most memory for kept keys and values of beginnings."""
_PROOF_BYTES = 2**28
"""Most memory for block inputs while starts are proved."""
_UNSUPPORTED = (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, NotImplementedError)
"""How models say that they do not take a cache, or not such a one."""


@dataclass(frozen=True)
class BlockInputs:
    """The stream of the unchanged model at the input of some blocks, for one batch of prompts, in the model's dtype."""

    rest: dict[int, Tensor]
    """Block -> [prompt, token, d_model], after the shared beginning."""
    prefix: dict[int, Tensor]
    """Block -> [1, token, d_model], of the shared beginning; empty where it is not shared."""


Start = tuple[int, BlockInputs]
"""The first block to run, with the inputs of the unchanged model there."""


@dataclass(frozen=True)
class Beginnings:
    """Names of changes, under which the keys and values of the shared beginning are kept between calls."""

    keys: Sequence[Hashable]
    """One for each vector of the call."""
    batch: Callable[[Hashable], tuple[Sequence[Hashable], Tensor]]
    """From a name to the names and vectors, [k, d_model], with which it is computed in one pass: always the same ones,
    whatever is kept at the moment, as rounding depends on the rows of a pass."""


@dataclass(frozen=True)
class _Kept:
    """Keys and values of the shared beginning under one change; None for blocks that were not run."""

    layers: tuple[tuple[Tensor, Tensor] | None, ...]

    @property
    def size(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for pair in self.layers if pair for tensor in pair)


@dataclass
class PartialForward:
    """Next-token logits of many changes of one model on prompts that begin alike.

    Args:
        chat: the model.
        prefix: tokens with which all prompts begin; empty to share nothing.
        tail: path of the part of the last block that is run at the last token only; None to run it whole.
    """

    chat: ChatModel
    prefix: tuple[int, ...] = ()
    tail: str | None = None
    _base_cache: Any = field(default=None, init=False)
    _kept: "OrderedDict[Hashable, _Kept]" = field(default_factory=OrderedDict, init=False)
    _kept_bytes: int = field(default=0, init=False)
    _starts: dict[int, bool] = field(default_factory=dict, init=False)
    _returns: dict[str, int | None] = field(default_factory=dict, init=False)

    @classmethod
    def of(cls, chat: ChatModel, sequences: Sequence[Sequence[int]], change: Change) -> "PartialForward":
        """Find what the prompts share, and prove what may be left out under such a change."""
        prefix = shared_prefix(sequences)
        if len(prefix) * len(sequences) < _SHORTEST_SHARE * sum(map(len, sequences)):
            prefix = ()
        ends, vector, plain = _shortest_and_longest(sequences), _probe_vector(chat), cls(chat)
        whole = plain.logits(ends, vector, change)

        def proved(shorter: "PartialForward") -> bool:
            try:
                short = shorter.logits(ends, vector, change)
            except _UNSUPPORTED:
                return False
            shorter._forget()
            return same_logits(short, whole, _dtype(chat))

        tail = next((each for each in _tails(chat) if proved(cls(chat, (), each))), None)
        tries = [cls(chat, prefix, tail), cls(chat, prefix)] if prefix else []
        return next((each for each in tries if proved(each)), cls(chat, (), tail))

    def logits(
        self,
        sequences: Sequence[Sequence[int]],
        vectors: Tensor,
        change: Change,
        *,
        beginnings: Beginnings | None = None,
        start: Start | None = None,
    ) -> Tensor:
        """Logits after each prompt under each change.

        Args:
            sequences: token ids of the prompts.
            vectors: [change, d_model].
            change: applies them.
            beginnings: under which names what is computed for the shared beginning is kept; without, it is not.
            start: the first block to run, with the inputs of the unchanged model there (see `block_inputs`).

        Returns:
            [change, prompt, vocabulary], in float32 or wider.
        """
        n, count = len(sequences), len(self.prefix)
        batch = self.chat.batch([sequence[count:] for sequence in sequences])
        tiled = {name: tensor.repeat(len(vectors), 1) for name, tensor in batch.items()}
        with ExitStack() as stack:
            if start is not None:
                block, inputs = start
                stream = inputs.rest[block].repeat(len(vectors), 1, 1)
                stack.enter_context(self._starting_at(block, stream))
            cache = None
            if count:
                cache = self._cache(vectors, change, beginnings, start, repeats=n)
            stack.enter_context(change(vectors.repeat_interleave(n, dim=0)))
            stack.enter_context(self._ending())
            logits = self._run(tiled, cache)
        return logits.view(len(vectors), n, -1)

    def block_inputs(self, sequences: Sequence[Sequence[int]], blocks: Sequence[int]) -> BlockInputs:
        """Run the unchanged model once and keep the inputs of `blocks`."""
        rest: dict[int, Tensor] = {}
        prefix: dict[int, Tensor] = {}
        paths = {block: self.chat.layout.blocks[block] for block in blocks}
        with self._noting_returns():
            if self.prefix:
                with reading_inputs(self.chat.module, {path: _keeper(prefix, b) for b, path in paths.items()}):
                    self._base_cache = self._run_prefix(1)
            batch = self.chat.batch([sequence[len(self.prefix) :] for sequence in sequences])
            with reading_inputs(self.chat.module, {path: _keeper(rest, block) for block, path in paths.items()}):
                cache = None if not self.prefix else _tiled(self._base_cache, None, len(sequences))
                self._run(batch, cache)
        return BlockInputs(rest, prefix)

    def startable(self, blocks: Sequence[int], sequences: Sequence[Sequence[int]]) -> list[int]:
        """Those of `blocks` at which passes may start: proved once for each, on the shortest and the longest prompt.

        Args:
            blocks: where vectors will be added.
            sequences: token ids of all prompts.
        """
        ends = _shortest_and_longest(sequences)
        unknown = sorted(set(blocks) - set(self._starts))
        at_once = max(1, _PROOF_BYTES // (2 * len(ends[1]) * self.chat.layout.d_model * _dtype(self.chat).itemsize))
        for first in range(0, len(unknown), at_once):
            self._starts.update(self._proved_starts(unknown[first : first + at_once], ends))
        return [block for block in blocks if self._starts[block]]

    def _proved_starts(self, blocks: Sequence[int], ends: Sequence[Sequence[int]]) -> dict[int, bool]:
        proved = dict.fromkeys(blocks, False)
        nothing = torch.zeros(1, self.chat.layout.d_model, dtype=torch.float64)
        try:
            inputs = self.block_inputs(ends, blocks)
        except _UNSUPPORTED:
            return proved
        whole = PartialForward(self.chat).logits(ends, nothing, _unchanged)
        # A block that remembers earlier ones must not pass for one that need not, so all have read something else, and
        # the highest start comes first: no block below a start has run again.
        self.chat.run(self.chat.batch([ends[0][::-1]]))
        for block in sorted(blocks, reverse=True):
            with suppress(*_UNSUPPORTED):
                short = self.logits(ends, nothing, _unchanged, start=(block, inputs))
                proved[block] = same_logits(short, whole, _dtype(self.chat))
        return proved

    # The shared beginning --------------------------------------------------------------------------------------------

    def _cache(
        self, vectors: Tensor, change: Change, beginnings: Beginnings | None, start: Start | None, *, repeats: int
    ) -> Any:
        if beginnings is None:
            rows = self._beginnings(vectors, change, start)
        else:
            rows = [self._beginning(key, beginnings, change, start) for key in beginnings.keys]
        if self._base_cache is None:
            self._base_cache = self._run_prefix(1)
        return _tiled(self._base_cache, rows, repeats)

    def _beginning(self, key: Hashable, beginnings: Beginnings, change: Change, start: Start | None) -> _Kept:
        if key not in self._kept:
            together, vectors = beginnings.batch(key)
            found = dict(zip(together, self._beginnings(vectors, change, start), strict=True))
            for name, kept in found.items():
                self._keep(name, kept)
            return found[key]  # it may be too large to be kept
        return self._kept[key]

    def _beginnings(self, vectors: Tensor, change: Change, start: Start | None) -> list[_Kept]:
        with ExitStack() as stack:
            if start is not None:
                block, inputs = start
                stream = inputs.prefix[block].expand(len(vectors), -1, -1)
                stack.enter_context(self._starting_at(block, stream))
            stack.enter_context(change(vectors))
            stack.enter_context(self._ending())
            cache = self._run_prefix(len(vectors))
        return [_kept_row(cache, row, 0 if start is None else start[0]) for row in range(len(vectors))]

    def _keep(self, key: Hashable, kept: _Kept) -> None:
        if key in self._kept:
            return
        self._kept[key] = kept
        self._kept_bytes += kept.size
        while self._kept_bytes > _KEPT_BYTES and self._kept:
            self._kept_bytes -= self._kept.popitem(last=False)[1].size

    def _forget(self) -> None:
        self._kept.clear()
        self._kept_bytes = 0

    def _run_prefix(self, rows: int) -> Any:
        batch = self.chat.batch([self.prefix] * rows)
        inputs = forward_inputs(self.chat.module, batch) | {"use_cache": True}
        with torch.no_grad():
            cache = self.chat.model(**inputs).past_key_values
        if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
            raise NotImplementedError("its cache holds more than keys and values")
        return cache

    def _run(self, batch: dict[str, Tensor], cache: Any) -> Tensor:
        if cache is None:
            return last_logits(self.chat.module, batch)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        whole = torch.cat([mask.new_ones(len(mask), len(self.prefix)), mask], dim=1)
        inputs = forward_inputs(self.chat.module, {"input_ids": ids, "attention_mask": whole})
        if "position_ids" in inputs:
            inputs["position_ids"] = inputs["position_ids"][:, -ids.shape[1] :]
        with torch.no_grad():
            logits: Tensor = self.chat.model(**inputs | {"use_cache": True, "past_key_values": cache}).logits[:, -1]
        return logits if logits.dtype == torch.float64 else logits.float()

    def _ending(self) -> AbstractContextManager[None]:
        """The last block runs its `tail` at the last token; where that is added up it stands for all tokens."""
        return nullcontext() if self.tail is None else hooked(self.chat.module, inputs={self.tail: _last_token})

    # Starting at a block ---------------------------------------------------------------------------------------------

    @contextmanager
    def _starting_at(self, block: int, stream: Tensor) -> Iterator[None]:
        """Blocks before `block` hand on what they get; `block` reads `stream`."""
        blocks = self.chat.layout.blocks
        with ExitStack() as stack:
            for path in blocks[:block]:
                stack.enter_context(_handing_on(self.chat.module.get_submodule(path), self._returns[path]))
            stack.enter_context(hooked(self.chat.module, inputs={blocks[block]: lambda _: stream}))
            yield

    @contextmanager
    def _noting_returns(self) -> Iterator[None]:
        def note(path: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                if type(output) not in (tuple, list) and not isinstance(output, Tensor):
                    raise NotImplementedError(f"{path} returns a {type(output).__name__}")
                self._returns[path] = None if isinstance(output, Tensor) else len(output)

            return hook

        with ExitStack() as stack:
            for path in self.chat.layout.blocks:
                stack.callback(self.chat.module.get_submodule(path).register_forward_hook(note(path)).remove)
            yield


def shared_prefix(sequences: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The tokens with which all sequences begin; at least one token of each is left over."""
    first, last = min(map(tuple, sequences)), max(map(tuple, sequences))
    most = min(map(len, sequences)) - 1
    length = next((index for index in range(most) if first[index] != last[index]), most)
    return first[: max(0, length)]


def same_logits(one: Tensor, two: Tensor, dtype: torch.dtype) -> bool:
    """Whether two results are the same up to rounding; infinite logits must be the same ones, and NaN is no proof."""
    finite = torch.isfinite(two)
    if torch.isnan(two).any() or not torch.equal(torch.isfinite(one), finite):
        return False
    scale = two[finite].abs().max().clamp_min(1e-3) if finite.any() else 1.0
    return bool(((one - two)[finite].abs() <= TOLERANCES.get(dtype, _HALF) * scale).all())


def _tails(chat: ChatModel) -> list[str]:
    """Parts of the last block that may be its MLP: the largest first, two at most."""
    block = chat.layout.blocks[-1]
    sizes = {
        f"{block}.{name}": sum(parameter.numel() for parameter in part.parameters())
        for name, part in chat.module.get_submodule(block).named_children()
    }
    return sorted((path for path, size in sizes.items() if size), key=lambda path: -sizes[path])[:2]


def _last_token(stream: Tensor) -> Tensor:
    if stream.dim() != 3:
        raise NotImplementedError("the tokens of all rows lie in one dimension")
    return stream[:, -1:]


def _unchanged(_vectors: Tensor) -> AbstractContextManager[None]:
    return nullcontext()


def _dtype(chat: ChatModel) -> torch.dtype:
    return chat.layout.dtype


def _probe_vector(chat: ChatModel) -> Tensor:
    vector = torch.randn(1, chat.layout.d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.nn.functional.normalize(vector, dim=-1)


def _shortest_and_longest(sequences: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Two rows that need the most padding."""
    ordered = sorted(sequences, key=len)
    return [ordered[0], ordered[-1]]


def _keeper(kept: dict[int, Tensor], block: int) -> Callable[[Tensor], None]:
    def keep(stream: Tensor) -> None:
        kept[block] = stream.detach().clone()

    return keep


@contextmanager
def _handing_on(module: nn.Module, returned: int | None) -> Iterator[None]:
    """Let a block return its input; `returned` is the length of the tuple that it returns, None for a tensor."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        stream = args[0] if args else kwargs["hidden_states"]
        return stream if returned is None else (stream, *[None] * (returned - 1))

    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def _kept_row(cache: Any, row: int, first: int) -> _Kept:
    return _Kept(
        tuple(
            (layer.keys[row : row + 1].clone(), layer.values[row : row + 1].clone()) if index >= first else None
            for index, layer in enumerate(cache.layers)
        )
    )


def _tiled(template: Any, rows: Sequence[_Kept] | None, repeats: int) -> Any:
    """A fresh cache: each of `rows` (None: the template's own row) repeated for every prompt.

    Blocks that are not run keep the template's keys, as views: only their length is read.
    """
    cache = copy.copy(template)
    cache.layers = [copy.copy(layer) for layer in template.layers]
    for index, layer in enumerate(cache.layers):
        pairs = None if rows is None else [row.layers[index] for row in rows]
        if pairs is None or pairs[0] is None:
            size = repeats * (1 if rows is None else len(rows))
            layer.keys = layer.keys.expand(size, *layer.keys.shape[1:])
            layer.values = layer.values.expand(size, *layer.values.shape[1:])
        else:
            layer.keys = torch.cat([pair[0] for pair in pairs if pair]).repeat_interleave(repeats, dim=0)
            layer.values = torch.cat([pair[1] for pair in pairs if pair]).repeat_interleave(repeats, dim=0)
    return cache
