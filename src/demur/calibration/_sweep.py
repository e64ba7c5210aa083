"""Scores of candidate directions on the same prompts: measured a few prompts at a time, kept, never measured twice.

Nothing here chooses. What is measured is per prompt, so that every later statistic can be taken from the records.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from demur.calibration._racing import Ask, first_step
from demur.calibration._score_books import Candidate, Kind, PieceBook, Place, ScoreBook
from demur.interventions import ablating_rows, adding_rows
from demur.models import (
    Beginning,
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


@dataclass
class Sweep:
    """Measures candidates on prompts; `heats` and `measure` are what a `Race` calls.

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
    _begun: "_Begun | None" = field(default=None, init=False)
    _inputs: tuple[Kind, BlockInputs] | None = field(default=None, init=False)
    """The unchanged model's, of all prompts of a kind, at the block where candidates are being added."""

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

    def heats(self, kind: Kind, candidates: Sequence[Candidate]) -> Iterator[Sequence[Candidate]]:
        """Candidates that are measured side by side: those of one layer, where they are added.

        As many as fill a pass in one step, but at most half its rows: a pass holds a beginning for every row, and what
        is kept beside it stays small against that.
        """
        scored = self.prompts[kind]
        most = max(1, self.rows // max(2, first_step(scored.n)))
        layers = sorted({layer for _, _, layer in candidates}) if scored.adds else [None]
        for layer in layers:
            here = [each for each in candidates if layer is None or each[2] == layer]
            count = -(-len(here) // most)
            for number in range(count):
                yield here[number * len(here) // count : (number + 1) * len(here) // count]

    def measure(self, asks: Sequence[Ask[Candidate] | None]) -> list[dict[Candidate, tuple[float, ...]]]:
        """For each ask its candidates with their values. Each process runs the lane of its number."""
        missing = [[] if ask is None else self._missing(ask) for ask in asks]
        if any(missing):
            work = list(zip(asks, missing, strict=True))
            for (ask, candidates), found in zip(work, tensors_in_order(self._measured, work), strict=True):
                if ask is not None and candidates:
                    self.pieces.add(ask.kind, ask.span, candidates, found)
        return [{} if ask is None else {each: self._known(ask, each) or () for each in ask.keys} for ask in asks]

    def _known(self, ask: Ask[Candidate], candidate: Candidate) -> tuple[float, ...] | None:
        scored, (strength, position, layer) = self.prompts[ask.kind], candidate
        whole = scored.unchanged if candidate in self._zero else self.book.get(ask.kind, (position, layer), strength)
        if whole is not None:
            return tuple(whole[scored.order[place]] for place in ask.span)
        return self.pieces.get(ask.kind, self._same[candidate], ask.span)

    def _missing(self, ask: Ask[Candidate]) -> list[Candidate]:
        """What must be run: also those that are known, as rounding depends on the rows of a pass."""
        if all(self._known(ask, each) is not None for each in ask.keys):
            return []
        return self._run_for(ask.keys)

    def _run_for(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        return list(dict.fromkeys(self._same[each] for each in candidates if each not in self._zero))

    @contextmanager
    def kept(self, measured: Mapping[tuple[str, Candidate], Sequence[float]]) -> Iterator[None]:
        """Put all that is measured in this context on disk.

        Pieces are written as they come, and put in order at the end, also after an error; whole scores, taken from
        `measured` (in measuring order), at the end.
        """
        try:
            yield
        finally:
            self.pieces.finish()
        whole: list[tuple[tuple[Kind, float | None, int, int], Sequence[float]]] = []
        for kind, scored in self.prompts.items():
            for candidate in self.vectors:
                values = measured.get((kind, candidate), ())
                strength, position, layer = candidate
                if len(values) == scored.n and self.book.get(kind, (position, layer), strength) is None:
                    ordered = [value for _, value in sorted(zip(scored.order, values, strict=True))]
                    whole.append(((kind, *candidate), ordered))
        self.book.add_all(whole)

    def _measured(self, work: tuple[Ask[Candidate] | None, Sequence[Candidate]]) -> Tensor:
        """[candidate, prompt] values, of this process's lane."""
        ask, candidates = work
        if ask is None or not candidates:
            return torch.empty(0, 0)
        scored = self.prompts[ask.kind]
        start = self._start(ask.kind, candidates[0][2])
        begun = self._beginnings(ask, start)
        change = self._adding(candidates[0][2]) if scored.adds else partial(ablating_rows, self.chat)

        def computed(unit: Sequence[Candidate], places: Sequence[int]) -> Tensor:
            indices = [scored.order[place] for place in places]
            logits = self._passes.logits(
                [scored.encoded[index] for index in indices],
                self._vectors(unit, adds=scored.adds),
                change,
                beginnings=[begun[each] for each in unit] if begun else None,
                start=None if start is None else start.of(places),
            )
            return scored.read(logits, indices)

        def some(unit: Sequence[Candidate]) -> Tensor:
            if len(unit) > 1:
                return computed(unit, ask.span)
            return torch.cat(self.fitting.pieces(lambda places: computed(unit, places), ask.span), dim=1)

        return torch.cat(self.fitting.pieces(some, candidates, rows=len(ask.span)))

    # Forward passes ---------------------------------------------------------------------------------------------------

    @property
    def _passes(self) -> PartialForward:
        if self._forward is None:
            everything = [tokens for scored in self.prompts.values() for tokens in scored.encoded]
            self._forward = PartialForward.of(self.chat, everything, partial(ablating_rows, self.chat))
        return self._forward

    def _start(self, kind: Kind, layer: int) -> BlockInputs | None:
        """Inputs of the unchanged model where candidates are added, if passes may start there; else none are held."""
        known, since = self._inputs or (kind, None)
        if known != kind or (since is not None and since.block > layer):
            since = self._inputs = None
        scored, layers = self.prompts[kind], {each[2] for each in self.vectors}
        if not scored.adds or layer not in self._passes.startable(sorted(layers), scored.encoded):
            return None
        ordered = [scored.encoded[index] for index in scored.order]
        inputs = self._passes.advanced(ordered, layer, since=since, rows=self.rows, fitting=self.fitting)
        self._inputs = kind, inputs
        return inputs

    def _beginnings(self, ask: Ask[Candidate], start: BlockInputs | None) -> Mapping[Candidate, Beginning]:
        """Of a whole heat, also of those that are decided already where a run goes on that was cut."""
        if self._begun is None or (self._begun.kind, self._begun.heat) != (ask.kind, ask.heat):
            self._begun = None  # not both at once
            adds = self.prompts[ask.kind].adds
            heat = self._run_for(ask.heat)
            change = self._adding(heat[0][2]) if adds else partial(ablating_rows, self.chat)

            def begin(part: Sequence[Candidate]) -> list[Beginning]:
                return self._passes.beginnings(self._vectors(part, adds=adds), change, start)

            found = [each for part in self.fitting.pieces(begin, heat) for each in part]
            self._begun = _Begun(ask.kind, ask.heat, dict(zip(heat, found, strict=True)) if found else {})
        return self._begun.beginnings

    def _vectors(self, candidates: Sequence[Candidate], *, adds: bool) -> Tensor:
        vectors = torch.stack([self.vectors[each] for each in candidates])
        return vectors if adds else _units(vectors)

    def _adding(self, layer: int) -> Callable[[Tensor], AbstractContextManager[None]]:
        return partial(adding_rows, self.chat, layer=layer)


@dataclass(frozen=True)
class _Begun:
    """What is kept for the heat that is being run."""

    kind: Kind
    heat: tuple[Candidate, ...]
    beginnings: Mapping[Candidate, Beginning]


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
