"""Decoding over a model's own cache, with rows that leave the batch once they are done and prompts computed once.

transformers' `generate` computes every row until the longest answer of the batch ends. Here the cost follows the sum of
the lengths. The tokens are those of `generate`; `_decoding_proof.py` says of which models.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from demur.models._hooks import model_device

_CACHES = ("past_key_values", "cache_params")
"""What models call their cache."""
_COMPACTED = 8
"""Rows leave when a share of one in so many is done: taking them out copies the cache, as every step does anyway."""
_LOOKED_AT = 4
"""Every so many tokens it is asked whether an answer is settled; to ask costs more than a step of a tiny model."""


@dataclass(frozen=True)
class Continuation:
    """One way to go on from a prompt."""

    opening: tuple[int, ...] = ()
    """Tokens that the answer is made to open with; they are no part of it."""
    seed: int | None = None
    """Sample at temperature 1 with this seed; None takes the likeliest token."""


@dataclass
class Row:
    """One answer in the making."""

    prompt: int
    """Index of its prompt in the batch."""
    continuation: Continuation
    tokens: list[int] = field(default_factory=list)
    """Generated so far, with the end token where there was one."""
    ended: bool = False
    settled: bool = False
    opened: int = 0
    """Tokens of the opening that were fed."""


Settles = Callable[[int, Sequence[int]], bool]
"""Index of a row, its generated tokens -> whether the rest does not matter."""
Process = Callable[[Any, Tensor], Tensor]
"""Changes the scores of the rows that are left, in their order; its first argument is not to be read."""


class GumbelNoise:
    """Gumbel noise from one seed: the likeliest token is then a sample at temperature 1 (Gumbel 1954).

    Unlike `do_sample`, it leaves the process-wide random numbers alone, and padding and batching change nothing.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, size: int) -> Tensor:
        """Noise for the scores of one step, [size], float32, on the CPU."""
        uniform = torch.rand(size, generator=self._generator)
        return -torch.log(-torch.log(uniform.clamp_min(torch.finfo(uniform.dtype).tiny)))


class Stream:
    """Rows of tokens that are read by one model, and its cache of them."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._accepted = inspect.signature(model.forward).parameters
        self._cache_name = next((name for name in _CACHES if name in self._accepted), _CACHES[0])
        self._cache: Any = None
        self._mask = torch.empty(0)

    def start(self, batch: dict[str, Tensor], *, shared: int = 0) -> Tensor:
        """Read a left-padded batch; the first `shared` tokens, the same in all rows, once.

        Returns:
            Logits at the last position, [batch, vocabulary].
        """
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if shared:
            longest = int(mask.sum(-1).argmax())
            self._mask = mask.new_ones(1, shared)
            self._read(ids[longest : longest + 1, :shared], self._mask.cumsum(-1) - 1)
            self.select(torch.zeros(len(ids), dtype=torch.long, device=ids.device))
            # The padding of a row now stands between what is shared and the rest of it.
            mask = torch.cat([mask.new_ones(len(ids), shared), (mask.cumsum(-1) > shared)[:, shared:].to(mask)], dim=1)
            ids = ids[:, shared:]
        self._mask = mask
        return self._read(ids, (mask.cumsum(-1) - 1).clamp_min(0)[:, shared:])

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Read one more token in every row; logits of the next, [batch, vocabulary]."""
        ids = torch.tensor(tokens, device=self._mask.device)[:, None]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        return self._read(ids, self._mask.sum(-1, keepdim=True) - 1)

    def select(self, rows: Tensor) -> None:
        """Go on with these rows, in this order; a row may come several times."""
        self._cache.reorder_cache(rows)
        self._mask = self._mask[rows]

    def _read(self, ids: Tensor, positions: Tensor) -> Tensor:
        inputs = {"input_ids": ids, "attention_mask": self._mask, "use_cache": True, "return_dict": True}
        if "position_ids" in self._accepted:
            inputs["position_ids"] = positions
        if "logits_to_keep" in self._accepted:
            inputs["logits_to_keep"] = 1
        if self._cache is not None:
            inputs[self._cache_name] = self._cache
        output = self._model(**inputs)
        self._cache = output[self._cache_name]
        # As in `generate`: the tokens are chosen in single precision, so that ties fall alike.
        logits: Tensor = output.logits[:, -1].to(torch.float32)
        return logits


def common_prefix(batch: dict[str, Tensor]) -> int:
    """How many tokens all rows of a left-padded batch begin with, and each goes on after."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    if len(ids) == 1:
        return 0
    lengths: list[int] = mask.sum(-1).tolist()
    shortest = min(lengths)
    starts = torch.stack([row[len(row) - length :][:shortest] for row, length in zip(ids, lengths, strict=True)])
    same = (starts == starts[0]).all(0).int().cumprod(0)
    return min(int(same.sum()), shortest - 1)


def decode(
    model: Any,
    batch: dict[str, Tensor],
    rows: Sequence[Row],
    *,
    ends: set[int],
    max_new_tokens: int,
    process: Sequence[Process] = (),
    settles: Settles | None = None,
    share_prefix: bool = False,
) -> None:
    """Fill in the tokens of all rows.

    Args:
        model: a transformers causal language model whose decoding is proved.
        batch: the prompts, left-padded.
        rows: what is asked for; several rows may go on from one prompt.
        ends: tokens that end an answer.
        max_new_tokens: longest answer, the opening not counted.
        process: changes the scores of each step, before any noise.
        settles: whether an answer may stop, for all that is wanted of it.
        share_prefix: read what all prompts begin with once.
    """
    stream = Stream(model)
    noise = {index: GumbelNoise(row.continuation.seed) for index, row in _seeded(rows)}
    logits = stream.start(batch, shared=common_prefix(batch) if share_prefix else 0)
    prompts = [row.prompt for row in rows]
    if prompts != list(range(len(logits))):
        chosen = torch.tensor(prompts, device=model_device(model))
        stream.select(chosen)
        logits = logits[chosen.to(logits.device)]
    here = list(range(len(rows)))
    while True:
        best = _best(logits, here, rows, noise, process)
        following = [
            _advance(rows[index], token, ends, max_new_tokens) for index, token in zip(here, best, strict=True)
        ]
        if settles is not None:
            for index in here:
                settle(index, rows[index], settles)
        left = [place for place, index in enumerate(here) if not _done(rows[index], max_new_tokens)]
        if not left:
            return
        if _COMPACTED * (len(here) - len(left)) >= len(here):
            stream.select(torch.tensor(left, device=model_device(model)))
            here, following = [here[place] for place in left], [following[place] for place in left]
        logits = stream.step(following)


def _seeded(rows: Sequence[Row]) -> list[tuple[int, Any]]:
    return [(index, row) for index, row in enumerate(rows) if row.continuation.seed is not None]


def _best(
    logits: Tensor, here: Sequence[int], rows: Sequence[Row], noise: dict[int, GumbelNoise], process: Sequence[Process]
) -> list[int]:
    for each in process:
        logits = each(None, logits)
    # A row that is still being opened draws nothing, so a sample does not depend on what is asked beside it.
    drawing = [
        place
        for place, index in enumerate(here)
        if index in noise and rows[index].opened == len(rows[index].continuation.opening)
    ]
    if drawing:
        drawn = torch.stack([noise[here[place]].draw(logits.shape[-1]) for place in drawing])
        logits = logits.index_add(0, torch.tensor(drawing, device=logits.device), drawn.to(logits))
    best: list[int] = logits.argmax(-1).tolist()
    return best


def _advance(row: Row, token: int, ends: set[int], max_new_tokens: int) -> int:
    """Take the next token of a row, and return what it reads next."""
    opening = row.continuation.opening
    if row.opened < len(opening):
        row.opened += 1
        return opening[row.opened - 1]
    if not _done(row, max_new_tokens):
        row.tokens.append(token)
        row.ended = token in ends
    return token


def _done(row: Row, max_new_tokens: int) -> bool:
    return row.ended or row.settled or len(row.tokens) >= max_new_tokens


def settle(index: int, row: Row, settles: Settles) -> None:
    """Ask at every few tokens whether an answer may stop."""
    if row.tokens and not row.ended and len(row.tokens) % _LOOKED_AT == 0 and not row.settled:
        row.settled = settles(index, row.tokens)
