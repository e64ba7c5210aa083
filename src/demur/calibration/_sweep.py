"""Scores of candidate directions on the same prompts: measured a few prompts at a time, kept, never measured twice.

Nothing here chooses. What is measured is per prompt, so that every later statistic can be taken from the records.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from demur.calibration._racing import first_step
from demur.calibration._score_books import Candidate, Kind, PieceBook, Place, ScoreBook
from demur.interventions import ablating_rows, adding_rows
from demur.models import (
    Beginnings,
    BlockInputs,
    ChatModel,
    FittingBatches,
    PartialForward,
    length_sorted_batches,
    tensors_in_order,
)

ReadLogits = Callable[[Tensor, Sequence[int]], Tensor]
"""[candidate, prompt, vocabulary] logits and the prompts' indices -> [candidate, prompt] values."""


ZERO_NORM = 1e-8
"""A difference in means this short is rounding noise (layer 0 of identical template tokens); as in the published code,
which adds 1e-8 to a norm before dividing, it counts as the zero vector, and needs no forward pass."""


@dataclass(frozen=True)
class ScoredPrompts:
    """The prompts of one kind of score, in the order in which they are measured."""

    encoded: list[list[int]]
    """Token ids, in the order of the records."""
    read: ReadLogits
    """Takes indices in the order of the records."""
    unchanged: tuple[float, ...]
    """The value of each where nothing is changed: that of a zero candidate."""
    order: tuple[int, ...]
    """Indices of the records' order, the first to be measured first."""
    adds: bool = False
    """Whether candidates are added at their layer; else they are ablated everywhere."""

    @property
    def n(self) -> int:
        """How many."""
        return len(self.encoded)


def telling_first(encoded: Sequence[Sequence[int]], telling: Sequence[float], first: int) -> tuple[int, ...]:
    """An order in which the `first` prompts with the lowest `telling` values come before the others.

    Within each part the shortest come first: batches then need little padding, and what is dropped early cost least.
    """
    by_value = sorted(range(len(encoded)), key=lambda index: (telling[index], index))
    ahead = set(by_value[:first])
    return tuple(sorted(range(len(encoded)), key=lambda index: (index not in ahead, len(encoded[index]), index)))


_STREAM_BYTES = 2**28
"""Most memory for the kept block inputs of prompts to which candidates are added."""


@dataclass
class Sweep:
    """Measures candidates on prompts; `measure` is what a `Race` calls.

    Args:
        chat: the model.
        vectors: [d_model] of each candidate.
        prompts: of each kind of score.
        book: whole scores kept so far.
        pieces: parts of scores kept so far.
        rows: rows of one forward pass.
        fitting: halves them where memory does not suffice.
    """

    chat: ChatModel
    vectors: Mapping[Candidate, Tensor]
    prompts: Mapping[Kind, ScoredPrompts]
    book: ScoreBook
    pieces: PieceBook
    rows: int
    fitting: FittingBatches = field(default_factory=FittingBatches)
    _forward: PartialForward | None = field(default=None, init=False)
    _same: dict[Candidate, Candidate] = field(default_factory=dict, init=False)
    """Candidate -> the first one with the same direction."""
    _zero: set[Candidate] = field(default_factory=set, init=False)
    _together: dict[Hashable, tuple[tuple[bool, Candidate], ...]] = field(default_factory=dict, init=False)
    """Whether added, and candidate -> those with which its passes over the shared beginning of the prompts are run."""

    def __post_init__(self) -> None:
        first: dict[bytes, Candidate] = {}
        for candidate, vector in self.vectors.items():
            norm = vector.norm()
            if norm <= ZERO_NORM:
                self._zero.add(candidate)
                continue
            # An addition depends on length and layer too; those candidates are of one lambda, so none is the same.
            unit = (vector / norm).cpu().numpy().tobytes()
            self._same[candidate] = first.setdefault(unit, candidate) if candidate[0] is not None else candidate

    def measure(self, kind: Kind, span: range, candidates: Sequence[Candidate]) -> dict[Candidate, tuple[float, ...]]:
        """Values of candidates on the prompts that come at `span` in their order."""
        scored = self.prompts[kind]
        values: dict[Candidate, tuple[float, ...]] = {}
        for candidate in candidates:
            known = scored.unchanged if candidate in self._zero else None
            strength, position, layer = candidate
            known = known or self.book.get(kind, (position, layer), strength)
            if known is not None:
                values[candidate] = tuple(known[scored.order[place]] for place in span)
        missing = list(dict.fromkeys(self._same[each] for each in candidates if each not in values))
        measured: dict[Candidate, tuple[float, ...]] = dict.fromkeys(missing, ())
        for part in self._parts(kind, span, missing):
            for candidate, row in self._measured(kind, part, missing).items():
                measured[candidate] += row
        values.update((each, measured[self._same[each]]) for each in candidates if each not in values)
        return values

    @contextmanager
    def kept(self, measured: Mapping[tuple[str, Candidate], Sequence[float]]) -> Iterator[None]:
        """Put all that is measured in this context on disk.

        Pieces are written as they come, and at the end also after an error; whole scores, taken from `measured` (in
        measuring order), at the end.
        """
        try:
            yield
        finally:
            self.pieces.write()
        whole: list[tuple[tuple[Kind, float | None, int, int], Sequence[float]]] = []
        for kind, scored in self.prompts.items():
            for candidate in self.vectors:
                values = measured.get((kind, candidate), ())
                strength, position, layer = candidate
                if len(values) == scored.n and self.book.get(kind, (position, layer), strength) is None:
                    ordered = [value for _, value in sorted(zip(scored.order, values, strict=True))]
                    whole.append(((kind, *candidate), ordered))
        self.book.add_all(whole)

    def _parts(self, kind: Kind, span: range, candidates: Sequence[Candidate]) -> Iterator[range]:
        """The span in parts whose block inputs fit into memory."""
        scored = self.prompts[kind]
        most = len(span)
        if scored.adds and candidates:
            longest = max(len(scored.encoded[scored.order[place]]) for place in span)
            layers = len({layer for _, _, layer in candidates})
            each = longest * layers * self.chat.layout.d_model * self.chat.layout.dtype.itemsize
            most = max(first_step(scored.n), _STREAM_BYTES // each)
        for start in range(span.start, span.stop, most):
            yield range(start, min(start + most, span.stop))

    def _measured(self, kind: Kind, span: range, candidates: Sequence[Candidate]) -> dict[Candidate, tuple[float, ...]]:
        scored = self.prompts[kind]
        indices = [scored.order[place] for place in span]
        sequences = [scored.encoded[index] for index in indices]
        units = list(self._units(candidates, len(span), by_layer=scored.adds))
        for unit in units:
            # Also of those that are known: a run that goes on then computes the same batches as one that was not cut.
            names = [(scored.adds, each) for each in unit]
            new = tuple(name for name in names if name not in self._together)
            self._together.update(dict.fromkeys(new, new))
        open_units = [unit for unit in units if any(self.pieces.get(kind, each, span) is None for each in unit)]
        layers = sorted({unit[0][2] for unit in open_units})
        starts = self._starts(scored, sequences, layers) if scored.adds and layers else {}

        def computed(unit: Sequence[Candidate], places: Sequence[int]) -> Tensor:
            vectors = torch.stack([self.vectors[each] for each in unit])
            prompts = [sequences[place] for place in places]
            if scored.adds:
                logits = self._added(prompts, unit, vectors, starts if len(places) == len(span) else {})
            else:
                logits = self._ablated(prompts, unit, vectors)
            return scored.read(logits, [indices[place] for place in places])

        def some(unit: Sequence[Candidate]) -> Tensor:
            if len(unit) > 1:
                return computed(unit, range(len(span)))
            return torch.cat(self.fitting.pieces(lambda places: computed(unit, places), range(len(span))), dim=1)

        def values(unit: Sequence[Candidate]) -> Tensor:
            return torch.cat(self.fitting.pieces(some, unit, rows=len(span)))

        for unit, found in zip(open_units, tensors_in_order(values, open_units), strict=True):
            self.pieces.add(kind, span, unit, found)
        known = {each: self.pieces.get(kind, each, span) for each in candidates}
        return {each: row for each, row in known.items() if row is not None}

    def _units(self, candidates: Sequence[Candidate], prompts: int, *, by_layer: bool) -> Iterator[list[Candidate]]:
        """Candidates that go into one forward pass."""
        size = max(1, self.rows // prompts)
        layers = sorted({layer for _, _, layer in candidates}) if by_layer else [None]
        for layer in layers:
            here = [each for each in candidates if layer is None or each[2] == layer]
            for start in range(0, len(here), size):
                yield here[start : start + size]

    # Forward passes ---------------------------------------------------------------------------------------------------

    @property
    def _passes(self) -> PartialForward:
        if self._forward is None:
            everything = [tokens for scored in self.prompts.values() for tokens in scored.encoded]
            self._forward = PartialForward.of(self.chat, everything, partial(ablating_rows, self.chat))
        return self._forward

    def _ablated(self, sequences: Sequence[Sequence[int]], unit: Sequence[Candidate], vectors: Tensor) -> Tensor:
        beginnings = Beginnings([(False, each) for each in unit], self._batch)
        return self._passes.logits(sequences, _units(vectors), partial(ablating_rows, self.chat), beginnings=beginnings)

    def _starts(
        self, scored: ScoredPrompts, sequences: Sequence[Sequence[int]], layers: Sequence[int]
    ) -> dict[int, BlockInputs]:
        """By layer at which passes may start: the inputs of the unchanged model."""
        startable = self._passes.startable(layers, scored.encoded)
        return dict.fromkeys(startable, self._passes.block_inputs(sequences, startable)) if startable else {}

    def _adding(self, layer: int) -> Callable[[Tensor], AbstractContextManager[None]]:
        return partial(adding_rows, self.chat, layer=layer)

    def _added(
        self,
        sequences: Sequence[Sequence[int]],
        unit: Sequence[Candidate],
        vectors: Tensor,
        starts: Mapping[int, BlockInputs],
    ) -> Tensor:
        layer = unit[0][2]
        start = (layer, starts[layer]) if layer in starts else None
        beginnings = Beginnings([(True, each) for each in unit], self._batch)
        return self._passes.logits(sequences, vectors, self._adding(layer), beginnings=beginnings, start=start)

    def _batch(self, name: Hashable) -> tuple[Sequence[Hashable], Tensor]:
        together = self._together[name]
        vectors = torch.stack([self.vectors[each] for _, each in together])
        adds, _ = together[0]
        return together, vectors if adds else _units(vectors)


def _units(vectors: Tensor) -> Tensor:
    return torch.div(vectors, vectors.norm(dim=-1, keepdim=True))


# Whole sweeps, where every candidate is measured on every prompt ----------------------------------------------------


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
    return _sweep(chat, encoded, _units(vectors), read, lambda tiled: ablating_rows(chat, tiled), rows)


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
