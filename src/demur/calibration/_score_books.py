"""What is kept of the scores of candidates: whole ones, and pieces from which a run that was killed goes on."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from demur.records import JsonLines, ScoreKind, ScorePiece, ScoreRecord

Kind = ScoreKind
Place = tuple[int, int]
"""(position, layer) of a candidate; positions are negative."""
Candidate = tuple[float | None, int, int]
"""(lambda, position, layer); lambda is None for the refusal direction."""


@dataclass
class ScoreBook:
    """Per-prompt scores of candidates, read from and appended to `scores.jsonl`; whole ones only."""

    store: JsonLines
    _known: dict[tuple[str, float | None, int, int], tuple[float, ...]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for record in self.store.read(ScoreRecord):
            self._known[self._key(record)] = _floats(record.values)

    @staticmethod
    def _key(record: ScoreRecord) -> tuple[str, float | None, int, int]:
        return record.kind, record.lambda_, record.position, record.layer

    def get(self, kind: Kind, place: Place, strength: float | None = None) -> tuple[float, ...] | None:
        """Values of one candidate on every prompt, or None if it was not scored yet, or not on all."""
        return self._known.get((kind, strength, *place))

    def mean(self, kind: Kind, place: Place, strength: float | None = None) -> float:
        """Mean over prompts; NaN if any value is."""
        values = self._known[(kind, strength, *place)]
        return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan

    def add(self, kind: Kind, places: Sequence[Place], values: Tensor, strength: float | None = None) -> None:
        """Keep the values of several candidates, [candidate, prompt]."""
        self.add_all([((kind, strength, *place), row) for place, row in zip(places, values.tolist(), strict=True)])

    def add_all(self, rows: Sequence[tuple[tuple[Kind, float | None, int, int], Sequence[float]]]) -> None:
        """Keep several rows, each under its kind, lambda, position and layer, in one write."""
        records = [
            ScoreRecord(kind=kind, lambda_=strength, position=position, layer=layer, values=_numbers(values))
            for (kind, strength, position, layer), values in rows
        ]
        if records:
            self.store.append(records)
        self._known.update((self._key(record), _floats(record.values)) for record in records)


def _floats(values: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(math.nan if value is None else value for value in values)


def _numbers(values: Sequence[float]) -> tuple[float | None, ...]:
    return tuple(value if math.isfinite(value) else None for value in values)


@dataclass
class PieceBook:
    """Measured pieces of scores, of candidates that were dropped too, read from and appended to a file."""

    store: JsonLines
    _known: dict[tuple[Kind, Candidate, int, int], tuple[float, ...]] = field(default_factory=dict, init=False)
    _waiting: list[ScorePiece] = field(default_factory=list, init=False)
    _written: float = field(default=-math.inf, init=False)

    def __post_init__(self) -> None:
        for record in self.store.read(ScorePiece):
            self._remember(record)

    def _remember(self, record: ScorePiece) -> None:
        key = (record.kind, (record.lambda_, record.position, record.layer), record.first, len(record.values))
        self._known[key] = _floats(record.values)

    def get(self, kind: Kind, candidate: Candidate, span: range) -> tuple[float, ...] | None:
        """The values of a candidate on a span of prompts, if they were measured together."""
        return self._known.get((kind, candidate, span.start, len(span)))

    def add(self, kind: Kind, span: range, candidates: Sequence[Candidate], values: Tensor) -> None:
        """Keep [candidate, prompt] values of one batch; those that are there already stay as they are."""
        for candidate, row in zip(candidates, values.tolist(), strict=True):
            if self.get(kind, candidate, span) is None:
                strength, position, layer = candidate
                record = ScorePiece(
                    kind=kind,
                    lambda_=strength,
                    position=position,
                    layer=layer,
                    first=span.start,
                    values=_numbers(row),
                )
                self._remember(record)
                self._waiting.append(record)
        if time.monotonic() - self._written > 1:  # a write waits for the disk: not for every batch of a small model
            self.write()

    def write(self) -> None:
        """Put everything on disk."""
        if self._waiting:
            self.store.append(self._waiting)
            self._waiting.clear()
        self._written = time.monotonic()

    def finish(self) -> None:
        """Put everything on disk, in an order that does not depend on what was measured when, and on which process."""
        self.write()
        records = self.store.read(ScorePiece)
        if (ordered := sorted(records, key=_order)) != records:
            self.store.replace(ordered)


def _order(record: ScorePiece) -> tuple[str, float, int, int, int, int]:
    strength = -1.0 if record.lambda_ is None else record.lambda_
    return record.kind, strength, record.position, record.layer, record.first, len(record.values)
