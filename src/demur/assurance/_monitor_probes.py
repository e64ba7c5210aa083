"""Which probes a monitor gets: a reader of harm from the early layers, r at its own and at later layers, w'.

All of it is fitted, chosen and standardised on training prompts, so that validation prompts set thresholds only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, variance

import torch
from torch import Tensor

from demur.activations import stream_at
from demur.assurance._directions import Directions
from demur.errors import ModelError
from demur.evaluation import separation
from demur.models import ChatModel
from demur.monitoring import Probe, Reading, RefusalMonitor, discriminant
from demur.types import Progress, PromptLabel

Texts = Mapping[PromptLabel, Sequence[str]]
_LOST_SEPARATION = 0.02
"""By how much the area under the curve of r may fall at a later layer for that layer to be watched still."""


@dataclass(frozen=True)
class HarmReader:
    """The probe of harm and how it was found."""

    probe: Probe
    auroc: float
    """Harmful against other training prompts, read with the probe of the other half."""
    layers: int
    """How many were tried."""


def find_probes(
    chat: ChatModel, directions: Directions, texts: Texts, *, batch_size: int, progress: Progress
) -> tuple[tuple[Probe, ...], HarmReader]:
    """All probes of a monitor, the harm probe first, then r from its own layer to the last.

    Args:
        chat: the model.
        directions: r, and w' where there is one.
        texts: training prompts by label.
        batch_size: prompts in one pass.
        progress: is told what is being done.

    Raises:
        ModelError: activations are NaN, or r does not tell harmful from harmless prompts before the answer.
    """
    reader = _harm_reader(chat, texts, directions.refusal.layer, batch_size=batch_size, progress=progress)
    first, last = directions.refusal.layer, chat.n_layers - 1
    unit = directions.refusal.unit
    probes = [
        Probe(f"refusal@{layer}", "refusal", layer, -1, unit)
        for layer in sorted({first, (first + last + 1) // 2, last})
    ]
    w = directions.false_refusal
    if w is not None and "borderline" in texts:
        probes.append(Probe(f"false_refusal@{w.layer}", "false_refusal", w.layer, w.position, w.unit))
    readings = read_all(
        chat,
        RefusalMonitor(tuple(probes)),
        texts,
        task="reading r before the answer",
        batch_size=batch_size,
        progress=progress,
    )
    scaled = [_standardised(probe, _values(readings, probe.name)) for probe in probes]
    areas = [_area(probe.name, readings) for probe in scaled if probe.role == "refusal"]
    if scaled[0].high <= scaled[0].low:
        raise ModelError(
            f"{chat.name}: before the answer, harmful prompts lie no higher along the refusal direction than harmless "
            "ones, so there is nothing to monitor. Is the calibration that of this model?"
        )
    kept = [
        probe
        for index, probe in enumerate(scaled)
        if probe.role != "refusal" or index == 0 or areas[index] >= areas[0] - _LOST_SEPARATION
    ]
    return (reader.probe, *kept), reader


def read_all(
    chat: ChatModel, monitor: RefusalMonitor, texts: Texts, *, task: str, batch_size: int, progress: Progress
) -> dict[PromptLabel, list[Reading]]:
    """The readings of prompts by label; `task` is what the progress says.

    Raises:
        ModelError: a reading is NaN.
    """
    progress.start(task, sum(map(len, texts.values())))
    found = {label: monitor.read(chat, some, batch_size=batch_size, progress=progress) for label, some in texts.items()}
    for label, readings in found.items():
        for reading in readings:
            if any(math.isnan(value) for value in reading.prompt.values()):
                raise ModelError(
                    f"{chat.name}: a projection of a {label} prompt is not a number. Half precision overflows in some "
                    "models: load it with --dtype bfloat16 or --dtype float32. A prompt without any token of its own "
                    "reads as none, too."
                )
    return found


def _harm_reader(chat: ChatModel, texts: Texts, latest: int, *, batch_size: int, progress: Progress) -> HarmReader:
    """The early layer at which a discriminant fitted on half of the training prompts best reads the other half."""
    position = -len(chat.template.post_instruction_tokens()) - 1
    layers = range(min(1, latest), latest + 1)
    progress.start("fitting the reader of harm", len(layers))
    streams: dict[int, dict[PromptLabel, Tensor]] = {}
    for layer in layers:
        streams[layer] = {
            label: stream_at(chat, some, layer=layer, position=position, batch_size=batch_size)
            for label, some in texts.items()
        }
        progress.advance()

    def fitted(layer: int, name: str, keep: slice) -> Probe:
        rows = {label: stream[keep] for label, stream in streams[layer].items()}
        others = torch.cat([stream for label, stream in rows.items() if label != "harmful"])
        return Probe(name, "harm", layer, position, discriminant(rows["harmful"], others))

    halves = [
        fitted(layer, f"{layer}/{half}", slice(half, None, 2)) for layer in _usable(layers, streams) for half in (0, 1)
    ]
    readings = read_all(
        chat,
        RefusalMonitor(tuple(halves)),
        texts,
        task="choosing the layer of the reader of harm",
        batch_size=batch_size,
        progress=progress,
    )
    crossed = {
        layer: {
            label: [reading.prompt[f"{layer}/{1 - index % 2}"] for index, reading in enumerate(some)]
            for label, some in readings.items()
        }
        for layer in _usable(layers, streams)
    }
    best = max(crossed, key=lambda layer: _quality(crossed[layer]))
    probe = _standardised(fitted(best, f"harm@{best}", slice(None)), crossed[best])
    return HarmReader(probe, _quality(crossed[best])[0], len(layers))


def _usable(layers: Sequence[int], streams: Mapping[int, Mapping[PromptLabel, Tensor]]) -> list[int]:
    """Layers at which prompts differ at all: the first block's input is the token alone, which may be the same."""
    return [layer for layer in layers if streams[layer]["harmful"].var(0).sum() > 0] or [layers[-1]]


def _quality(values: Mapping[PromptLabel, Sequence[float]]) -> tuple[float, float]:
    """Area under the curve, and for ties the distance of the means in standard deviations."""
    harmful = values["harmful"]
    others = [value for label, some in values.items() if label != "harmful" for value in some]
    spread = ((variance(harmful) + variance(others)) / 2) ** 0.5
    return separation(harmful, others).auroc, (fmean(harmful) - fmean(others)) / spread if spread else 0.0


def _values(readings: Mapping[PromptLabel, Sequence[Reading]], name: str) -> dict[PromptLabel, list[float]]:
    return {label: [reading.prompt[name] for reading in some] for label, some in readings.items()}


def _area(name: str, readings: Mapping[PromptLabel, Sequence[Reading]]) -> float:
    values = _values(readings, name)
    return separation(values["harmful"], values["harmless"]).auroc


def _standardised(probe: Probe, values: Mapping[PromptLabel, Sequence[float]]) -> Probe:
    top: PromptLabel = "borderline" if probe.role == "false_refusal" else "harmful"
    return replace(probe, low=fmean(values["harmless"]), high=fmean(values[top]))
