"""Scores of many candidate directions on the same prompts: one direction per row of the batch, each score kept.

Nothing here chooses. What is measured is per prompt, so that every later statistic can be taken from the records.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from demur.interventions import ablating_rows, adding_rows
from demur.models import ChatModel, length_sorted_batches
from demur.records import JsonLines, ScoreRecord

Kind = Literal["bypass", "induce", "kl", "w_kl", "w_harmful", "w_borderline"]
Place = tuple[int, int]
"""(position, layer) of a candidate; positions are negative."""
ReadLogits = Callable[[Tensor, Sequence[int]], Tensor]
"""[candidate, prompt, vocabulary] logits and the prompts' indices -> [candidate, prompt] values."""


@dataclass
class ScoreBook:
    """Per-prompt scores of candidates, read from and appended to `scores.jsonl`."""

    store: JsonLines
    _known: dict[tuple[str, float | None, int, int], tuple[float, ...]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for record in self.store.read(ScoreRecord):
            self._known[self._key(record)] = _floats(record)

    @staticmethod
    def _key(record: ScoreRecord) -> tuple[str, float | None, int, int]:
        return record.kind, record.lambda_, record.position, record.layer

    def get(self, kind: Kind, place: Place, strength: float | None = None) -> tuple[float, ...] | None:
        """Values of one candidate on every prompt, or None if it was not scored yet."""
        return self._known.get((kind, strength, *place))

    def mean(self, kind: Kind, place: Place, strength: float | None = None) -> float:
        """Mean over prompts; NaN if any value is."""
        values = self._known[(kind, strength, *place)]
        return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan

    def add(self, kind: Kind, places: Sequence[Place], values: Tensor, strength: float | None = None) -> None:
        """Keep the values of several candidates, [candidate, prompt]."""
        records = [
            ScoreRecord(
                kind=kind,
                lambda_=strength,
                position=position,
                layer=layer,
                values=tuple(value if math.isfinite(value) else None for value in row),
            )
            for (position, layer), row in zip(places, values.tolist(), strict=True)
        ]
        self.store.append(records)
        self._known.update((self._key(record), _floats(record)) for record in records)


def _floats(record: ScoreRecord) -> tuple[float, ...]:
    return tuple(math.nan if value is None else value for value in record.values)


ZERO_NORM = 1e-8
"""A difference in means this short is rounding noise (layer 0 of identical template tokens); as in the published code,
which adds 1e-8 to a norm before dividing, it counts as the zero vector, and needs no forward pass."""


def score_missing(
    book: ScoreBook,
    kind: Kind,
    places: Sequence[Place],
    vectors: Tensor,
    run: Callable[[Tensor], Tensor],
    unchanged: Tensor,
    strength: float | None = None,
) -> None:
    """Score the candidates at `places` that the book does not hold yet.

    Args:
        book: where scores are kept.
        kind: which score.
        places: candidates to score.
        vectors: [position, layer, d_model], all candidates.
        run: from [candidate, d_model] to [candidate, prompt] values.
        unchanged: [prompt], the value where nothing is changed: that of a zero candidate.
        strength: lambda, for false-refusal candidates.
    """
    missing = [place for place in places if book.get(kind, place, strength) is None]
    if not missing:
        return
    chosen = torch.stack([vectors[place] for place in missing])
    alive = chosen.norm(dim=-1) > ZERO_NORM
    values = unchanged.to(torch.float64).expand(len(missing), -1).clone()
    if alive.any():
        values[alive] = run(chosen[alive])
    book.add(kind, missing, values, strength)


def sweep_ablation(
    chat: ChatModel, encoded: Sequence[Sequence[int]], vectors: Tensor, read: ReadLogits, *, rows: int
) -> Tensor:
    """Ablate each candidate everywhere and read the next-token logits: [candidate, prompt].

    Args:
        chat: the model.
        encoded: rendered, tokenized prompts.
        vectors: [candidate, d_model], of any length above zero.
        read: from logits to values.
        rows: rows of one forward pass.
    """
    units = vectors / vectors.norm(dim=-1, keepdim=True)
    return _sweep(chat, encoded, units, read, lambda tiled: ablating_rows(chat, tiled), rows)


def sweep_addition(
    chat: ChatModel, encoded: Sequence[Sequence[int]], vectors: Tensor, read: ReadLogits, *, layer: int, rows: int
) -> Tensor:
    """Add each candidate at the input of `layer` and read the next-token logits: [candidate, prompt]."""
    return _sweep(chat, encoded, vectors, read, lambda tiled: adding_rows(chat, tiled, layer=layer), rows)


def _sweep(
    chat: ChatModel,
    encoded: Sequence[Sequence[int]],
    vectors: Tensor,
    read: ReadLogits,
    intervene: Callable[[Tensor], AbstractContextManager[None]],
    rows: int,
) -> Tensor:
    result = torch.empty(len(vectors), len(encoded), dtype=torch.float64)
    for indices in length_sorted_batches([len(tokens) for tokens in encoded], rows):
        batch = chat.batch([encoded[index] for index in indices])
        for chunk_start in range(0, len(vectors), max(1, rows // len(indices))):
            chunk = vectors[chunk_start : chunk_start + max(1, rows // len(indices))]
            tiled = {name: tensor.repeat(len(chunk), 1) for name, tensor in batch.items()}
            with intervene(chunk.repeat_interleave(len(indices), dim=0)):
                logits = chat.next_token_logits(tiled, check=False)
            values = read(logits.view(len(chunk), len(indices), -1), indices)
            result[chunk_start : chunk_start + len(chunk), indices] = values.to(result)
    return result
