"""A monitor of refusal: directions, where they are read, what is usual, and when to say so."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from demur.errors import InputError, RunFolderError
from demur.models import ChatModel, FittingBatches, length_sorted_batches
from demur.monitoring._probe import Probe
from demur.monitoring._reading import Flag, Reading, locate, peak, value_at
from demur.monitoring._watch import Located, Watch, watching
from demur.records import (
    ModelIdentity,
    MonitorEvidence,
    MonitorRecord,
    MonitorScore,
    MonitorThreshold,
    ProbeRole,
    Rendering,
    read_record,
    write_bytes,
    write_record,
)
from demur.types import Progress, SilentProgress

RECORD, TENSORS = "monitor.json", "monitor.safetensors"
_HALF_WAY = 0.5
"""Between the means of harmless and harmful prompts."""


@dataclass(frozen=True)
class RefusalMonitor:
    """Reads a chat model's refusal while it runs, and never changes it.

    Scores of a prompt, each 0 at the mean of harmless prompts and 1 at the mean of harmful ones:

    - `harm`: how harmful the instruction looks early in the layers, at the token where it looks worst. In a causal
      model nothing that is appended can lower it.
    - `refusal`: projection on the refusal direction before the answer, at the watched layer where it is lowest.
    - `suppression` = `harm` - `refusal`: near 0 of ordinary prompts of both kinds, near 1 where a prompt looks harmful
      and the refusal that belongs to it is gone (the belief-refusal gap, arXiv 2507.11878).
    - `false_refusal`: projection on w', 1 at the mean of borderline prompts.
    """

    probes: tuple[Probe, ...]
    thresholds: tuple[MonitorThreshold, ...] = ()
    model: ModelIdentity | None = None
    """The model that the thresholds are for; None: any model of this width."""
    rendering: Rendering = field(default_factory=Rendering)

    def __post_init__(self) -> None:
        names = [probe.name for probe in self.probes]
        if not names or len(set(names)) < len(names):
            raise InputError(f"a monitor needs probes with different names; got {', '.join(names) or 'none'}.")
        for probe in self.probes:
            probe.check(self.width)
        scores = self.scores(dict.fromkeys(names, 0.0))
        unknown = [threshold.flag for threshold in self.thresholds if threshold.score not in scores]
        if unknown:
            raise InputError(
                f"no probe gives the score that {', '.join(unknown)} needs; there are the scores {', '.join(scores)}."
            )

    @property
    def width(self) -> int:
        """d_model of the stream that it reads."""
        return self.probes[0].vector.shape[-1]

    @property
    def layers(self) -> tuple[int, ...]:
        """The watched layers, ascending."""
        return tuple(sorted({probe.layer for probe in self.probes}))

    def check(self, chat: ChatModel) -> None:
        """Refuse a model that this monitor cannot read.

        Another version of the same model (a fine-tune) is read; whether the thresholds still hold for it is to be
        measured.

        Raises:
            InputError: another width, too few layers, another architecture, depth or chat template.
        """
        width, layers = chat.layout.d_model, chat.n_layers
        if width != self.width:
            raise InputError(
                f"this monitor reads a residual stream of width {self.width}; {chat.name} has width {width}. "
                "Fit one on this model with: demur monitor MODEL ..."
            )
        if self.layers[-1] >= layers:
            raise InputError(
                f"this monitor reads at the input of block {self.layers[-1]}; {chat.name} has the blocks 0 to "
                f"{layers - 1}. Fit one on this model with: demur monitor MODEL ..."
            )
        if self.model is None:
            return
        here = {
            "architecture": (self.model.architecture, type(chat.model).__name__),
            "number of layers": (str(self.model.n_layers), str(layers)),
            "chat template (sha256)": (self.model.chat_template_sha256[:12], _template_hash(chat)[:12]),
        }
        for what, (wanted, found) in here.items():
            if wanted != found:
                raise InputError(
                    f"this monitor was fitted on {self.model.id}: its {what} is {wanted}, that of {chat.name} is "
                    f"{found}. Fit one on this model with: demur monitor MODEL ..."
                )

    def watching(self, chat: ChatModel, *, batches: int = 1) -> AbstractContextManager[Watch]:
        """Read whatever runs `chat.model` while the context is open, by read-only hooks that are always removed.

        A layer's input is read as it stands when the context is opened: hooks that are added later and change it come
        after the reading.

        Args:
            chat: the model.
            batches: how many batches are kept, the latest ones.

        Raises:
            InputError: the model is not one that this monitor can read.
        """
        self.check(chat)
        vectors = {
            layer: torch.stack([probe.vector.to(torch.float64) for probe in self._at(layer)], dim=1)
            for layer in self.layers
        }
        return watching(chat, vectors, self._reading, batches=batches)

    def read(
        self,
        chat: ChatModel,
        prompts: Sequence[str],
        *,
        batch_size: int = 32,
        max_new_tokens: int = 0,
        progress: Progress | None = None,
    ) -> list[Reading]:
        """The readings of prompts, in their order, from forward passes of our own.

        Args:
            chat: the model.
            prompts: user messages; rendered with the chat template.
            batch_size: prompts in one pass; fewer where memory does not suffice.
            max_new_tokens: also read along greedy answers of at most this length; 0 reads prompts only.
            progress: is told how many prompts are read.

        Raises:
            InputError: the model is not one that this monitor can read.
        """
        progress = progress or SilentProgress()
        encoded = chat.encode(prompts)
        fitting = FittingBatches(progress.note)
        found: dict[int, Reading] = {}
        with self.watching(chat) as watch:

            def run(indices: Sequence[int]) -> list[Reading]:
                rows = [encoded[index] for index in indices]
                if max_new_tokens:
                    chat.answers(rows, max_new_tokens=max_new_tokens)
                else:
                    chat.run(chat.batch(rows))
                return watch.readings()

            for indices in length_sorted_batches([len(tokens) for tokens in encoded], batch_size):
                read = [each for piece in fitting.pieces(run, indices) for each in piece]
                found.update(zip(indices, read, strict=True))
                progress.advance(len(indices))
        return [found[index] for index in range(len(encoded))]

    def scores(self, prompt: Mapping[str, float]) -> dict[MonitorScore, float]:
        """The scores that the probes allow, from readings by probe; NaN where a reading is."""
        values: dict[ProbeRole, list[float]] = {}
        for probe in self.probes:
            values.setdefault(probe.role, []).append(probe.standardised(prompt[probe.name]))
        scores: dict[MonitorScore, float] = {}
        if "harm" in values:
            scores["harm"] = _worst(values["harm"], max)
        if "refusal" in values:
            scores["refusal"] = _worst(values["refusal"], min)
        if "harm" in scores and "refusal" in scores:
            scores["suppression"] = scores["harm"] - scores["refusal"]
        if "false_refusal" in values:
            scores["false_refusal"] = _worst(values["false_refusal"], max)
        return scores

    def flags(self, scores: Mapping[MonitorScore, float]) -> tuple[Flag, ...]:
        """Which thresholds these scores lie beyond.

        `refusal_low` is said of prompts flagged `harmful` only; `suppressed` where harm, and `false_refusal` where
        refusal lies nearer to the mean of harmful prompts than to that of harmless ones.
        """
        if any(math.isnan(score) for score in scores.values()):
            return (Flag("unreadable", math.nan, math.nan),)
        raised = [
            Flag(each.flag, scores[each.score], each.value)
            for each in self.thresholds
            if (scores[each.score] > each.value if each.side == "above" else scores[each.score] < each.value)
        ]
        names = {flag.name for flag in raised}
        needed = {
            "refusal_low": "harmful" in names,
            "suppressed": scores.get("harm", 0.0) > _HALF_WAY,
            "false_refusal": scores.get("refusal", 0.0) > _HALF_WAY,
        }
        return tuple(flag for flag in raised if needed.get(flag.name, True))

    def save(self, folder: Path | str, *, evidence: MonitorEvidence | None = None) -> None:
        """Write `monitor.safetensors` and `monitor.json` into a folder, each atomically, the record last.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        tensors = save_tensors(
            {probe.name: probe.vector.to(torch.float64).contiguous().clone() for probe in self.probes}
        )
        write_bytes(Path(folder) / TENSORS, tensors)
        record = MonitorRecord(
            model=self.model,
            rendering=self.rendering,
            probes=tuple(probe.record() for probe in self.probes),
            thresholds=self.thresholds,
            tensors_sha256=hashlib.sha256(tensors).hexdigest(),
            evidence=evidence,
        )
        write_record(Path(folder) / RECORD, record)

    @classmethod
    def load(cls, folder: Path | str) -> "RefusalMonitor":
        """Read what `save` wrote.

        Raises:
            RunFolderError: a file is missing or damaged, or the two do not belong together.
        """
        record = read_record(Path(folder) / RECORD, MonitorRecord)
        path = Path(folder) / TENSORS
        try:
            data = path.read_bytes()
            tensors = load_tensors(data)
        except (OSError, SafetensorError) as error:
            raise RunFolderError(f"cannot read {path}: {error}. Run demur monitor again.") from error
        names = {probe.name for probe in record.probes}
        if hashlib.sha256(data).hexdigest() != record.tensors_sha256 or names != set(tensors):
            raise RunFolderError(f"{path} is not the file that {RECORD} beside it names. Run demur monitor again.")
        probes = tuple(Probe(vector=tensors[probe.name], **probe.model_dump()) for probe in record.probes)
        return cls(probes, record.thresholds, record.model, record.rendering)

    def _at(self, layer: int) -> list[Probe]:
        return [probe for probe in self.probes if probe.layer == layer]

    def _reading(self, tokens: list[int], first: int, values: Mapping[int, Tensor], located: Located) -> Reading:
        """From the tokens of one row and what was read of it, by layer [token, probe]."""
        place = locate(tokens, located.opening, located.closing, first=first)
        answer = tokens[place.end :]
        length = next((index + 1 for index, token in enumerate(answer) if token in located.ends), len(answer))
        prompt, along = {}, {}
        for layer in self.layers:
            for column, probe in enumerate(self._at(layer)):
                mine = values[layer][:, column]
                read = peak if probe.role == "harm" else value_at
                prompt[probe.name] = read(mine, place, probe.position)
                along[probe.name] = mine[place.end : place.end + length]
        scores = self.scores(prompt)
        if not place.rendered:
            scores = dict.fromkeys(scores, math.nan)
        return Reading(prompt, along, tuple(answer[:length]), place.rendered, scores, self.flags(scores))


def _worst(values: Sequence[float], pick: Callable[[Sequence[float]], float]) -> float:
    """The largest or smallest value; NaN if any is, which min and max do not promise."""
    return math.nan if any(math.isnan(value) for value in values) else pick(values)


def _template_hash(chat: ChatModel) -> str:
    return hashlib.sha256(str(chat.tokenizer.chat_template).encode()).hexdigest()
