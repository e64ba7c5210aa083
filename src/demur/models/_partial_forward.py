"""Forward passes of a changed model that leave out what the change cannot reach, or what was computed already.

Three short cuts, none assumed: adding at block l changes nothing below it, so a pass may start there from the stream of
the unchanged model; prompts that begin alike share the keys and values of their beginning; and what the last block adds
to other tokens than the last nothing reads, so its largest part (the MLP) need not run there. All are proved on the
loaded model, by comparison with whole passes, before they are used; what is not proved is run whole.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from demur.models._chat_model import ChatModel
from demur.models._generation import forward_inputs, last_logits
from demur.models._hooks import hooked, reading_inputs
from demur.models._memory import FittingBatches

Change = Callable[[Tensor], AbstractContextManager[None]]
"""From one vector per row, [batch, d_model], to a context in which the model is changed row by row."""

TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5}
"""Largest difference of logits, relative to the largest logit, that is rounding; wider for half precision."""
_HALF = 2e-2
_SHORTEST_SHARE = 0.1
"""A shared beginning of less than this share of a prompt saves less than the cache costs."""
_UNSUPPORTED = (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, NotImplementedError)
"""How models say that they do not take a cache, or not such a one."""


@dataclass(frozen=True)
class BlockInputs:
    """The stream of the unchanged model at the input of one block, in the model's dtype: where a pass may start."""

    block: int
    """The first block to run."""
    rest: Tensor
    """[prompt, token, d_model], left-padded, after the shared beginning."""
    prefix: Tensor | None = None
    """[1, token, d_model], of the shared beginning; None where it is not shared."""

    def of(self, prompts: Sequence[int]) -> "BlockInputs":
        """Those of some of the prompts."""
        return BlockInputs(self.block, self.rest[list(prompts)], self.prefix)


@dataclass(frozen=True)
class Beginning:
    """Keys and values of the shared beginning under one change; None for blocks that were not run."""

    layers: tuple[tuple[Tensor, Tensor] | None, ...]


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
    _starts: dict[int, bool] = field(default_factory=dict, init=False)

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
        beginnings: Sequence[Beginning] | None = None,
        start: BlockInputs | None = None,
    ) -> Tensor:
        """Logits after each prompt under each change.

        Args:
            sequences: token ids of the prompts.
            vectors: [change, d_model].
            change: applies them.
            beginnings: of each change, where they are there already (see `beginnings`).
            start: of these prompts: the first block to run, and what it reads (see `advanced`).

        Returns:
            [change, prompt, vocabulary], in float32 or wider.
        """
        n, count = len(sequences), len(self.prefix)
        batch = self.chat.batch([sequence[count:] for sequence in sequences])
        tiled = {name: tensor.repeat(len(vectors), 1) for name, tensor in batch.items()}
        cache = None
        if count:
            cache = _tiled(self._base_cache, beginnings or self.beginnings(vectors, change, start), n)
        with ExitStack() as stack:
            if start is not None:
                stream = start.rest[:, -batch["input_ids"].shape[1] :].repeat(len(vectors), 1, 1)
                stack.enter_context(self._running(start.block, stream))
            stack.enter_context(change(vectors.repeat_interleave(n, dim=0)))
            stack.enter_context(self._ending())
            logits = self._run(tiled, cache)
        return logits.view(len(vectors), n, -1)

    def beginnings(self, vectors: Tensor, change: Change, start: BlockInputs | None = None) -> list[Beginning]:
        """Run the shared beginning under each change, in one pass; nothing where no beginning is shared."""
        if not self.prefix:
            return []
        with ExitStack() as stack:
            if start is not None and start.prefix is not None:
                stack.enter_context(self._running(start.block, start.prefix.expand(len(vectors), -1, -1)))
            stack.enter_context(change(vectors))
            stack.enter_context(self._ending())
            cache = self._run_prefix(len(vectors))
        return [_beginning(cache, row, 0 if start is None else start.block) for row in range(len(vectors))]

    # Starting at a block ---------------------------------------------------------------------------------------------

    def advanced(
        self,
        sequences: Sequence[Sequence[int]],
        block: int,
        *,
        since: BlockInputs | None = None,
        rows: int,
        fitting: FittingBatches | None = None,
    ) -> BlockInputs:
        """The inputs of `block` in the unchanged model, for prompts that are all padded to the longest.

        Only the blocks in between are run, so that block after block costs one pass, and one block's inputs are held.

        Args:
            sequences: token ids of the prompts.
            block: a block.
            since: inputs of an earlier block, for the same prompts; None to begin with the tokens.
            rows: prompts of one forward pass.
            fitting: halves them where memory does not suffice.
        """
        if since is not None and since.block == block:
            return since
        count, longest = len(self.prefix), max(sequences, key=len)
        fitting = fitting or FittingBatches()
        prefix = None
        if count:
            with self._reading(block, since, None if since is None else since.prefix) as read:
                self._run_prefix(1)
            (prefix,) = read

        def rest(places: Sequence[int]) -> Tensor:
            part = [sequences[place] for place in places]
            padded = self.chat.batch([sequence[count:] for sequence in (*part, longest)])
            cache = _tiled(self._base_cache, None, len(part)) if count else None
            with self._reading(block, since, None if since is None else since.rest[list(places)]) as read:
                self._run({name: tensor[:-1] for name, tensor in padded.items()}, cache)
            return read[0]

        batches = [range(len(sequences))[first : first + rows] for first in range(0, len(sequences), rows)]
        parts = [part for batch in batches for part in fitting.pieces(rest, batch)]
        return BlockInputs(block, torch.cat(parts), prefix)

    def startable(self, blocks: Sequence[int], sequences: Sequence[Sequence[int]]) -> list[int]:
        """Those of `blocks` at which passes may start: proved once for each, on the shortest and the longest prompt.

        Args:
            blocks: where vectors will be added.
            sequences: token ids of all prompts.
        """
        unknown = sorted(set(blocks) - set(self._starts))
        if unknown:
            self._starts.update(self._proved_starts(unknown, _shortest_and_longest(sequences)))
        return [block for block in blocks if self._starts[block]]

    def _proved_starts(self, blocks: Sequence[int], ends: Sequence[Sequence[int]]) -> dict[int, bool]:
        proved = dict.fromkeys(blocks, False)
        nothing = torch.zeros(1, self.chat.layout.d_model, dtype=torch.float64)
        whole = PartialForward(self.chat).logits(ends, nothing, _unchanged)
        count = len(self.prefix)
        decoy = [[*ends[1][:count], *ends[1][count:][::-1]]]
        since: tuple[BlockInputs | None, BlockInputs | None] = None, None
        for block in blocks:
            with suppress(*_UNSUPPORTED):
                inputs = self.advanced(ends, block, since=since[0], rows=len(ends))
                # A block that remembers earlier ones must not pass for one that need not: below the start, all have
                # read something else last.
                others = self.advanced(decoy, block, since=since[1], rows=1)
                short = self.logits(ends, nothing, _unchanged, start=inputs)
                proved[block] = same_logits(short, whole, _dtype(self.chat))
                since = (inputs, others) if proved[block] else since
        return proved

    @contextmanager
    def _reading(self, block: int, since: BlockInputs | None, stream: Tensor | None) -> Iterator[list[Tensor]]:
        """Read the input of `block`; blocks from there on, and those before `since`, hand on what they get."""
        read: list[Tensor] = []
        path = self.chat.layout.blocks[block]
        first = 0 if since is None else since.block
        with (
            self._running(first, stream, until=block),
            self._without_head(),
            reading_inputs(self.chat.module, {path: lambda given: read.append(given.detach().clone())}),
        ):
            yield read

    @contextmanager
    def _running(self, first: int, stream: Tensor | None, *, until: int | None = None) -> Iterator[None]:
        """Run the blocks from `first` up to `until`, the first on `stream`; others hand on what they get."""
        blocks = self.chat.layout.blocks
        idle = blocks[:first] + (() if until is None else blocks[until:])
        with ExitStack() as stack:
            for path in idle:
                stack.enter_context(_handing_on(self.chat.module.get_submodule(path), self._returns[path]))
            if stream is not None:
                stack.enter_context(hooked(self.chat.module, inputs={blocks[first]: lambda _: stream}))
            yield

    @cached_property
    def _returns(self) -> dict[str, int | None]:
        """By block: the length of the tuple that it returns, None for a tensor."""
        returns: dict[str, int | None] = {}

        def note(path: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                if type(output) not in (tuple, list) and not isinstance(output, Tensor):
                    raise NotImplementedError(f"{path} returns a {type(output).__name__}")
                returns[path] = None if isinstance(output, Tensor) else len(output)

            return hook

        with ExitStack() as stack:
            for path in self.chat.layout.blocks:
                stack.callback(self.chat.module.get_submodule(path).register_forward_hook(note(path)).remove)
            self.chat.run(self.chat.probe_inputs())
        return returns

    # Forward passes --------------------------------------------------------------------------------------------------

    @cached_property
    def _base_cache(self) -> Any:
        """The cache of the unchanged model after the shared beginning."""
        return self._run_prefix(1)

    def _run_prefix(self, rows: int) -> Any:
        batch = self.chat.batch([self.prefix] * rows)
        inputs = forward_inputs(self.chat.module, batch) | {"use_cache": True}
        with torch.no_grad(), self._without_head():
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

    def _without_head(self) -> AbstractContextManager[None]:
        """For passes whose logits nobody reads: reading a head of 128k rows costs as much as several blocks."""
        head = self.chat.model.get_output_embeddings()
        return nullcontext() if head is None else _handing_on(head, None)

    def _ending(self) -> AbstractContextManager[None]:
        """The last block runs its `tail` at the last token; where that is added up it stands for all tokens."""
        return nullcontext() if self.tail is None else hooked(self.chat.module, inputs={self.tail: _last_token})


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


def _beginning(cache: Any, row: int, first: int) -> Beginning:
    return Beginning(
        tuple(
            (layer.keys[row : row + 1].clone(), layer.values[row : row + 1].clone()) if index >= first else None
            for index, layer in enumerate(cache.layers)
        )
    )


def _tiled(template: Any, rows: Sequence[Beginning] | None, repeats: int) -> Any:
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
