"""Drift: what becomes of refusal over the checkpoints of a fine-tune or the versions of a model."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from demur.assurance._directions import directions_of
from demur.assurance._drift_reference import LABELS, DriftFolder, Reference, fix_reference, probe_of
from demur.assurance._drift_rows import drift_record
from demur.assurance._drift_statistics import DEFAULT_RULE, check_rule, probed
from demur.calibration import CalibrationSettings, judge_identity, provenance, refusal_direction_of
from demur.directions import Direction, cosine, load_directions
from demur.errors import InputError, ModelError, SelectionError
from demur.evaluation import Judge, PhraseJudge, Runner, is_refusal
from demur.models import ChatModel, load_chat_model
from demur.prompts import PromptSet
from demur.records import (
    BASE_MODEL,
    PLAIN,
    CompletionRecord,
    DriftCheckpoint,
    DriftRecord,
    DriftReference,
    DriftRule,
    Place,
    RunFolder,
    Summary,
    VerdictLines,
    write_record,
)
from demur.types import Progress, PromptLabel, SilentProgress

_STEP = re.compile(r"(?:checkpoint|step|iter|epoch)[-_]?(\d+)$", re.IGNORECASE)
Item = ChatModel | Path | str
"""A loaded model, a model folder or hub id, the folder of a drift or of a calibration."""


@dataclass(frozen=True)
class DriftSettings:
    """Settings of a drift."""

    n_probes: int = 128
    """Most test prompts of each kind whose projections and scores are read; a reference that is there keeps its own."""
    batch_size: int = 64
    max_new_tokens: int = 128
    """Longest answer that is generated and judged."""
    behaviour: bool = True
    """Generate and judge answers to the test prompts; no alarm needs it."""
    reselect: bool = True
    """Find anew where each checkpoint's refusal direction would be read; no alarm needs it."""
    rule: DriftRule = field(default=DEFAULT_RULE)

    def __post_init__(self) -> None:
        for name in ("n_probes", "batch_size", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is a number of at least 1; got {getattr(self, name)}.")
        check_rule(self.rule)


def drift(
    items: Sequence[Item],
    prompts: Mapping[PromptLabel, PromptSet] | None = None,
    *,
    out: Path | str,
    reference: Path | str | None = None,
    run: Path | str | None = None,
    settings: DriftSettings | None = None,
    judge: Judge | None = None,
    load: Callable[[str], ChatModel] = load_chat_model,
    progress: Progress | None = None,
) -> DriftRecord:
    """Measure checkpoints against the first one, and say which of them lost refusal.

    Models are loaded one after the other. A folder that `drift` or a `DriftMonitor` wrote, or a calibration, is read
    without loading a model; folders may come from different machines. A call that was killed continues with what it
    has. Nothing that a model said is written.

    Args:
        items: checkpoints in the order of training; the first one is what the others are compared with.
        prompts: harmful and harmless, if wanted borderline prompts, with splits; needed where a model is loaded.
        out: folder of the result.
        reference: folder of a drift whose reference and first checkpoint are taken, so that checkpoints measured on
            several machines fit together; by default the first item's.
        run: calibration of the first model, whose refusal direction and tokens are taken; by default they are found.
        settings: sizes, rule, what is measured.
        judge: gives verdicts; by default the phrase judge.
        load: makes a model of a name.
        progress: is told what is being done.

    Raises:
        InputError: nothing to compare, prompts are missing, or checkpoints do not belong together.
        RunFolderError: a folder cannot be read or written, or belongs to another drift.
        SelectionError: the first checkpoint has no refusal direction.
    """
    if not items:
        raise InputError("drift needs checkpoints: model folders, or folders of a drift or a calibration.")
    job = _Job(
        prompts or {},
        DriftFolder(out),
        settings or DriftSettings(),
        judge or PhraseJudge(),
        load,
        progress or SilentProgress(),
    )
    names = _names(items)
    start = DriftFolder(reference) if reference is not None else None
    found, checkpoints = job.start(items[0], names[0], start, run)
    job.keep(checkpoints)
    for item, name in zip(items, names, strict=True):
        checkpoints += job.read(item, name, found)
        job.keep(checkpoints)
        _check_first(checkpoints[0], found.record)
    record = drift_record(found.record, _once(checkpoints), job.settings.rule, provenance(job.last, seed=0))
    write_record(job.folder.result, record)
    return record


@dataclass
class _Job:
    prompts: Mapping[PromptLabel, PromptSet]
    folder: DriftFolder
    settings: DriftSettings
    judge: Judge
    load: Callable[[str], ChatModel]
    progress: Progress
    last: ChatModel | None = field(default=None, init=False)
    """The model that was loaded last."""
    _selected: dict[str, Place] = field(default_factory=dict, init=False)
    """Hash of a model -> the place of the direction that was just selected for it."""

    def start(
        self, item: Item, name: str, given: DriftFolder | None, run: Path | str | None
    ) -> tuple[Reference, list[DriftCheckpoint]]:
        """The reference, and the checkpoints that come before the items."""
        if given is None and _kind(item) == "drift":
            given = DriftFolder(_path(item))
        if given is not None:
            reference = given.read_reference()
            self.folder.claim(reference)
            return reference, given.checkpoints.read(DriftCheckpoint)[:1]
        if _kind(item) == "calibration":
            reference = _calibrated_reference(RunFolder(_path(item)))
        elif self.folder.is_one():  # the call was killed, or another checkpoint is added
            return self.folder.read_reference(), []
        else:
            chat = self._loaded(item)
            directions = directions_of(
                chat, self._needed(), run=run, settings=self._calibration_settings(), progress=self.progress
            )
            if run is None:
                place = Place(position=directions.refusal.position, layer=directions.refusal.layer)
                self._selected[chat.identity.content_hash] = place
            reference, _, reading = fix_reference(
                chat,
                self._needed(),
                directions,
                n_probes=self.settings.n_probes,
                batch_size=self.settings.batch_size,
            )
            first = reference.checkpoint(reading, name=name, step=None, model=chat.name)
            probed(first.projections, first.scores)  # too few prompts are told before hours are spent
        self.folder.claim(reference)
        return reference, []

    def read(self, item: Item, name: str, reference: Reference) -> list[DriftCheckpoint]:
        """The checkpoints of one item."""
        kind = _kind(item)
        if kind == "calibration":
            return [_calibrated_checkpoint(RunFolder(_path(item)), name, reference)]
        if kind == "drift":
            checkpoints = DriftFolder(_path(item)).checkpoints.read(DriftCheckpoint)
            if any(each.reference != reference.record.fingerprint for each in checkpoints):
                raise InputError(
                    f"{item} was measured with another reference than the first item, so its numbers cannot be "
                    "compared. Measure it again with --reference and the first one's folder."
                )
            return checkpoints
        return [self._measured(self._loaded(item), item, name, reference)]

    def _measured(self, chat: ChatModel, item: Item, name: str, reference: Reference) -> DriftCheckpoint:
        self.progress.start(f"reading {name}", 1)
        probe = probe_of(chat, self._needed(), reference, batch_size=self.settings.batch_size)
        step = _STEP.search("" if isinstance(item, ChatModel) else str(item).rstrip("/"))
        checkpoint = reference.checkpoint(
            probe.read(), name=name, step=int(step.group(1)) if step else None, model=chat.name
        )
        self.progress.advance()
        more = self._selection(chat) if self.settings.reselect else {}
        if self.settings.behaviour:
            more |= {"verdicts": self._verdicts(chat, name), "judge": judge_identity(self.judge)}
        return checkpoint.model_copy(update={"model_hash": chat.identity.content_hash, **more})

    def keep(self, checkpoints: Sequence[DriftCheckpoint]) -> None:
        """Write those that are not there, so that the folder can be merged with others as it is."""
        known = self.folder.checkpoints.read(DriftCheckpoint)
        self.folder.checkpoints.append([each for each in checkpoints if each not in known])

    def _selection(self, chat: ChatModel) -> dict[str, object]:
        model_hash = chat.identity.content_hash
        if model_hash in self._selected:
            return {"selected": self._selected[model_hash]}
        for known in self.folder.checkpoints.read(DriftCheckpoint):
            if known.model_hash == model_hash and (known.selected or known.selection_failed):
                return {"selected": known.selected, "selection_failed": known.selection_failed}
        try:
            found = refusal_direction_of(
                chat, self._needed(), settings=self._calibration_settings(), progress=self.progress
            ).direction
        except (SelectionError, ModelError) as error:
            return {"selection_failed": str(error).splitlines()[0]}
        return {"selected": Place(position=found.position, layer=found.layer)}

    def _verdicts(self, chat: ChatModel, name: str) -> dict[PromptLabel, dict[str, bool | None]]:
        runner = Runner(
            chat,
            self.judge,
            VerdictLines(self.folder.verdicts),
            max_new_tokens=self.settings.max_new_tokens,
            batch_size=self.settings.batch_size,
            progress=self.progress,
        )
        tests = {label: self.prompts[label].split("test") for label in LABELS if label in self.prompts}
        self.progress.start(f"answers of {name}", sum(map(len, tests.values())))
        return {
            label: {
                record.prompt_sha256: is_refusal(record)
                for record in runner.complete(each, condition=BASE_MODEL, split="test", keep_text=False)
            }
            for label, each in tests.items()
        }

    def _loaded(self, item: Item) -> ChatModel:
        if not isinstance(item, ChatModel):
            if self.last is not None and self.last.name == str(item):
                return self.last
            self.last = None  # two models need not fit into memory
            item = self.load(str(item))
        self.last = item
        return item

    def _needed(self) -> Mapping[PromptLabel, PromptSet]:
        missing = [label for label in ("harmful", "harmless") if label not in self.prompts]
        if missing:
            raise InputError(
                f"a model is measured with harmful and harmless prompts: give --{' and --'.join(missing)}."
            )
        return self.prompts

    def _calibration_settings(self) -> CalibrationSettings:
        return replace(
            CalibrationSettings(), batch_size=self.settings.batch_size, max_new_tokens=self.settings.max_new_tokens
        )


def _kind(item: Item) -> str:
    if isinstance(item, ChatModel):
        return "model"
    if DriftFolder(item).is_one():
        return "drift"
    return "calibration" if RunFolder(item).run.is_file() else "model"


def _path(item: Item) -> Path:
    assert not isinstance(item, ChatModel)
    return Path(item)


def _names(items: Sequence[Item]) -> list[str]:
    """The last part of each path, with a number where it is not the only one."""
    names = [item.name if isinstance(item, ChatModel) else str(item).rstrip("/").rpartition("/")[2] for item in items]
    return [
        f"{name} ({names[: place + 1].count(name)})" if names.count(name) > 1 else name
        for place, name in enumerate(names)
    ]


def _once(checkpoints: Sequence[DriftCheckpoint]) -> list[DriftCheckpoint]:
    """Each checkpoint once, at its first place: several folders may hold the first one, one of them with verdicts."""
    kept: dict[object, DriftCheckpoint] = {}
    for each in checkpoints:
        key = each.source, each.model_hash or (each.name, each.step)
        if key not in kept or (each.verdicts and not kept[key].verdicts):
            kept[key] = each
    return list(kept.values())


def _check_first(first: DriftCheckpoint, reference: DriftReference) -> None:
    if first.model_hash is not None and first.model_hash != reference.model.content_hash:
        raise InputError(
            f"the reference was fixed on {reference.model.id} ({reference.model.content_hash[:12]}), but the first "
            f"checkpoint is {first.name} ({first.model_hash[:12]}). Give that model first, or another folder."
        )


def _calibrated(run: RunFolder) -> tuple[Summary, Direction]:
    summary = run.read_summary()
    if summary.kind != "calibration":
        raise InputError(f"{run.path} is an evaluation, which holds no directions; give a `demur calibrate` folder.")
    return summary, load_directions(run.directions)["refusal_direction"]


def _calibrated_reference(run: RunFolder) -> Reference:
    """The first of several calibrations: nothing but its direction is known, so no later one can be tested."""
    summary, direction = _calibrated(run)
    record = DriftReference(
        fingerprint=f"calibration {summary.model.content_hash}",
        model=summary.model,
        rendering=summary.rendering,
        source=f"calibration {run.path.name}",
        place=Place(position=direction.position, layer=direction.layer),
        norm=direction.norm,
        tokens=tuple(token.id for token in summary.refusal_tokens),
        probes={},
        falsely_refused=(),
    )
    return Reference(record, direction, direction, None)


def _calibrated_checkpoint(run: RunFolder, name: str, reference: Reference) -> DriftCheckpoint:
    """What the records of a calibration say of its model: its own direction and place, and verdicts."""
    summary, direction = _calibrated(run)
    if direction.vector.shape != reference.direction.vector.shape:
        raise InputError(
            f"{run.path} is a calibration of a model of width {direction.vector.shape[-1]}; the first checkpoint has "
            f"{reference.direction.vector.shape[-1]}. Drift compares versions of one model."
        )
    verdicts: dict[PromptLabel, dict[str, bool | None]] = {}
    for record in run.completions.read(CompletionRecord):
        if (record.intervention, record.condition, record.split) == (BASE_MODEL, PLAIN, "test"):
            verdicts.setdefault(record.label, {})[record.prompt_sha256] = is_refusal(record)
    return DriftCheckpoint(
        name=name,
        step=None,
        source="calibration",
        reference=reference.record.fingerprint,
        model_id=summary.model.id,
        model_hash=summary.model.content_hash,
        cosine=cosine(direction.vector, reference.direction.vector),
        norm=direction.norm,
        selected=Place(position=direction.position, layer=direction.layer),
        verdicts=verdicts,
        judge=summary.judge,
    )
