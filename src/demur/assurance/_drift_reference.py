"""What all checkpoints of a drift are measured with: a frozen direction, frozen refusal tokens, frozen prompts."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from demur.assurance._directions import Directions
from demur.calibration import rendering
from demur.directions import Direction, cosine, load_directions, save_directions
from demur.errors import InputError, RunFolderError
from demur.evaluation import refusal_scores
from demur.models import ChatModel, FittingBatches, length_sorted_batches, reading_inputs
from demur.prompts import Prompt, PromptSet
from demur.records import (
    DriftCheckpoint,
    DriftReference,
    JsonLines,
    Place,
    canonical_json,
    other_files,
    read_record,
    write_record,
)
from demur.types import PromptLabel

LABELS: tuple[PromptLabel, ...] = ("harmful", "harmless", "borderline")
_FEWEST_FALSELY_REFUSED = 16
"""Behind a mean, as in a calibration."""
_FROZEN, _OWN, _OWN_FALSE = "refusal_direction", "own_refusal_direction", "own_false_refusal_direction"


@dataclass(frozen=True)
class Reading:
    """What one pass over the probe prompts reads."""

    streams: Mapping[PromptLabel, Tensor]
    """[prompt, d_model], float64, at the reference's place."""
    scores: Mapping[PromptLabel, Tensor]
    """Refusal scores, [prompt], float64."""


@dataclass(frozen=True)
class Reference:
    """The record with the vectors that it names."""

    record: DriftReference
    direction: Direction
    """Frozen refusal direction."""
    own: Direction
    """Difference in means of the first checkpoint's probe prompts, with which those of later ones are compared."""
    own_false: Direction | None

    def checkpoint(self, reading: Reading, *, name: str, step: int | None, model: str) -> DriftCheckpoint:
        """The numbers of one reading; what else is known of the checkpoint is added by whoever reads it."""
        own, own_false = _own_directions(reading, self.record)
        return DriftCheckpoint(
            name=name,
            step=step,
            source="model",
            reference=self.record.fingerprint,
            model_id=model,
            model_hash=None,
            cosine=cosine(own, self.own.vector),
            norm=float(own.norm()),
            false_refusal_cosine=None if self.own_false is None else cosine(own_false, self.own_false.vector),
            false_refusal_norm=None if self.own_false is None else float(own_false.norm()),
            projections={
                label: tuple((stream @ self.direction.unit).tolist()) for label, stream in reading.streams.items()
            },
            scores={label: tuple(scores.tolist()) for label, scores in reading.scores.items()},
        )


def _own_directions(reading: Reading, record: DriftReference) -> tuple[Tensor, Tensor]:
    """Difference in means of the probe prompts: harmful, and falsely refused borderline, minus harmless."""
    harmless = reading.streams["harmless"].mean(0)
    refused = set(record.falsely_refused)
    rows = [index for index, each in enumerate(record.probes.get("borderline", ())) if each in refused]
    own_false = reading.streams["borderline"][rows].mean(0) - harmless if rows else torch.zeros_like(harmless)
    return reading.streams["harmful"].mean(0) - harmless, own_false


class Probe:
    """Reads the probe prompts of one model, again and again: one forward pass gives projections and scores.

    Args:
        chat: the model; what is read is its state at the time of the call.
        prompts: probe prompts of each kind.
        place: where the stream is read.
        tokens: ids of the refusal tokens.
        batch_size: prompts in one pass.
    """

    def __init__(
        self,
        chat: ChatModel,
        prompts: Mapping[PromptLabel, tuple[Prompt, ...]],
        place: Place,
        tokens: tuple[int, ...],
        *,
        batch_size: int,
    ) -> None:
        self._chat, self._place, self._tokens = chat, place, tokens
        self._counts = {label: len(each) for label, each in prompts.items()}
        self._encoded = [chat.template.encode(prompt.text) for each in prompts.values() for prompt in each]
        self._batches = list(length_sorted_batches([len(tokens) for tokens in self._encoded], batch_size))
        self._fitting = FittingBatches()

    def read(self) -> Reading:
        """One pass over all probe prompts.

        Raises:
            ModelError: a logit is NaN.
        """
        streams = torch.empty(len(self._encoded), self._chat.layout.d_model, dtype=torch.float64)
        scores = torch.empty(len(self._encoded), dtype=torch.float64)
        for indices in self._batches:
            pieces = self._fitting.pieces(self._some, indices)
            streams[indices] = torch.cat([stream for stream, _ in pieces])
            scores[indices] = torch.cat([score for _, score in pieces])
        counts = list(self._counts.values())
        return Reading(
            dict(zip(self._counts, torch.split(streams, counts), strict=True)),
            dict(zip(self._counts, torch.split(scores, counts), strict=True)),
        )

    def _some(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        rows: list[Tensor] = []

        def keep(stream: Tensor) -> None:
            rows.append(stream[:, self._place.position].detach().to("cpu", torch.float64))

        with reading_inputs(self._chat.module, {self._chat.layout.blocks[self._place.layer]: keep}):
            logits = self._chat.next_token_logits(self._chat.batch([self._encoded[index] for index in indices]))
        return torch.cat(rows), refusal_scores(logits, self._tokens)


def fix_reference(
    chat: ChatModel,
    prompts: Mapping[PromptLabel, PromptSet],
    directions: Directions,
    *,
    n_probes: int,
    batch_size: int,
) -> tuple[Reference, Probe, Reading]:
    """Fix what later checkpoints are measured with, on the first one, and read it.

    Args:
        chat: the first checkpoint.
        prompts: harmful and harmless, if wanted borderline prompts, with splits; test prompts become the probes.
        directions: its refusal direction and tokens.
        n_probes: most probe prompts of each kind; the first by hash.
        batch_size: prompts in one pass.
    """
    chosen = {
        label: tuple(sorted(prompts[label].split("test"), key=lambda prompt: prompt.sha256)[:n_probes])
        for label in LABELS
        if label in prompts
    }
    place = Place(position=directions.refusal.position, layer=directions.refusal.layer)
    probe = Probe(chat, chosen, place, directions.tokens, batch_size=batch_size)
    reading = probe.read()
    refused = [
        prompt.sha256
        for prompt, score in zip(
            chosen.get("borderline", ()), reading.scores.get("borderline", torch.zeros(0)).tolist(), strict=True
        )
        if score > directions.threshold
    ]
    if len(refused) < _FEWEST_FALSELY_REFUSED:
        refused = []
    content = {
        "direction": hashlib.sha256(directions.refusal.vector.to(torch.float64).numpy().tobytes()).hexdigest(),
        "place": [place.position, place.layer],
        "tokens": list(directions.tokens),
        **({"threshold": directions.threshold} if directions.threshold else {}),
        "probes": {label: [prompt.sha256 for prompt in each] for label, each in chosen.items()},
        "falsely_refused": refused,
        "rendering": rendering(chat).model_dump(),
    }
    record = DriftReference(
        fingerprint=hashlib.sha256(canonical_json(content).encode()).hexdigest(),
        model=chat.identity,
        rendering=rendering(chat),
        source=directions.source,
        place=place,
        norm=directions.refusal.norm,
        tokens=directions.tokens,
        threshold=directions.threshold,
        probes={label: tuple(prompt.sha256 for prompt in each) for label, each in chosen.items()},
        falsely_refused=tuple(refused),
    )
    own, own_false = (Direction(each, place.position, place.layer) for each in _own_directions(reading, record))
    return Reference(record, directions.refusal, own, own_false if refused else None), probe, reading


def probe_of(
    chat: ChatModel, prompts: Mapping[PromptLabel, PromptSet], reference: Reference, *, batch_size: int
) -> Probe:
    """The probe of another checkpoint.

    Raises:
        InputError: the model is of another shape, is rendered otherwise, or prompts of the reference are missing.
    """
    record, place = reference.record, reference.record.place
    if chat.layout.d_model != record.model.d_model or place.layer >= chat.n_layers:
        raise InputError(
            f"{chat.name} has width {chat.layout.d_model} and {chat.n_layers} blocks; the first checkpoint has "
            f"{record.model.d_model} and {record.model.n_layers}. Drift compares versions of one model."
        )
    if rendering(chat) != record.rendering:
        raise InputError(
            f"{chat.name} is asked with other rendering options than the first checkpoint (system prompt, template "
            "options or response prefix). Give the same ones."
        )
    found: dict[PromptLabel, tuple[Prompt, ...]] = {}
    for label, hashes in record.probes.items():
        known = {prompt.sha256: prompt for prompt in prompts[label].prompts} if label in prompts else {}
        missing = sum(each not in known for each in hashes)
        if missing:
            raise InputError(
                f"{missing} of the {len(hashes)} {label} prompts that the first checkpoint was measured on are not "
                f"among the prompts given. Give the same --{label}."
            )
        found[label] = tuple(known[each] for each in hashes)
    return Probe(chat, found, place, record.tokens, batch_size=batch_size)


class DriftFolder:
    """Files of a drift: the reference with its vectors, and one line for each checkpoint measured."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.reference = self.path / "reference.json"
        self.vectors = self.path / "reference.safetensors"
        self.checkpoints = JsonLines(self.path / "checkpoints.jsonl")
        self.result = self.path / "drift.json"
        self.verdicts = self.path / "verdicts.jsonl"

    def is_one(self) -> bool:
        """Whether a drift was written here."""
        return self.reference.is_file()

    def read_reference(self) -> Reference:
        """The reference of the checkpoints here.

        Raises:
            RunFolderError: a file is missing or broken.
        """
        record = read_record(self.reference, DriftReference)
        vectors = load_directions(self.vectors)
        if _FROZEN not in vectors or _OWN not in vectors:
            raise RunFolderError(f"{self.vectors} does not hold the directions of a drift. Measure the model again.")
        return Reference(record, vectors[_FROZEN], vectors[_OWN], vectors.get(_OWN_FALSE))

    def claim(self, reference: Reference) -> None:
        """Write the reference, or check that the folder belongs to it.

        Raises:
            RunFolderError: the folder holds something else.
        """
        if self.is_one():
            if read_record(self.reference, DriftReference).fingerprint != reference.record.fingerprint:
                raise RunFolderError(
                    f"{self.path} belongs to a drift with another reference (other model, prompts, direction or "
                    "rendering). Give another folder with --out."
                )
            return
        if other_files(self.path):
            raise RunFolderError(
                f"{self.path} is not empty and holds no drift. Give an empty or new folder with --out."
            )
        vectors = {_FROZEN: reference.direction, _OWN: reference.own}
        if reference.own_false is not None:
            vectors[_OWN_FALSE] = reference.own_false
        save_directions(self.vectors, vectors)
        write_record(self.reference, reference.record)
