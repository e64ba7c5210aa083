"""`audit`: how brittle is this model's refusal? Everything happens in memory; what is written is counts and numbers."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from demur.assurance._audit_conditions import measure_conditions, measure_depth
from demur.assurance._audit_findings import Sections, findings_of, scorecard_of
from demur.assurance._audit_fine_tuning import measure_fine_tuning
from demur.assurance._audit_settings import SECTIONS, AuditSettings
from demur.assurance._audit_strength import measure_strength
from demur.assurance._audit_study import AuditStudy
from demur.assurance._directions import Directions, directions_of
from demur.assurance._ladder import measure_ladder
from demur.assurance._learned_direction import measure_learned
from demur.calibration import CalibrationSettings, judge_identity, provenance, rendering, run_record
from demur.directions import load_directions, save_directions
from demur.errors import InputError, UnsupportedInterventionError
from demur.evaluation import Judge, PhraseJudge
from demur.models import ChatModel
from demur.prompts import PromptSet
from demur.records import (
    Audit,
    AuditDirections,
    AuditSection,
    BaseComparison,
    Conditions,
    Depth,
    FineTuningRun,
    Ladder,
    Learned,
    Record,
    RefusalToken,
    RunFolder,
    Strength,
    SuffixAnalysis,
    Transfer,
    VerdictLines,
    read_record,
    write_record,
)
from demur.types import Progress, PromptLabel, SilentProgress

AUDIT_FILE = "audit.json"
_VERDICTS_FILE = "verdicts.jsonl"
_DIRECTIONS_FILE = "audit_directions.json"
R = TypeVar("R", bound=Record)


def audit(
    chat: ChatModel,
    prompts: Mapping[PromptLabel, PromptSet],
    *,
    out: Path | str,
    run: Path | str | None = None,
    settings: AuditSettings | None = None,
    sections: Sequence[AuditSection] = SECTIONS,
    variants: Mapping[str, PromptSet] | None = None,
    judge: Judge | None = None,
    suffixes: SuffixAnalysis | None = None,
    base: BaseComparison | None = None,
    transfer: Transfer | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Attack the refusal of a model in memory, in several ways, and write `audit.json`.

    Nothing is exported, and no text of a prompt or an answer is written. Each finished section is a file of its own, so
    that a killed audit goes on with the next one; the folder can be given again with more sections.

    Args:
        chat: the model; it is left as it was.
        prompts: harmful and harmless prompts with splits: directions are extracted on train, chosen on validation,
            everything is measured on test prompts.
        out: folder of the audit.
        run: folder of a calibration whose refusal direction is used; without one it is found here.
        settings: of the audit.
        sections: what to measure; sections that the folder holds already are in the result as well.
        variants: more harmful prompts by name, such as paraphrases or translations.
        judge: gives verdicts; by default the phrase judge.
        suffixes: an analysis of suffixes, to be part of the result.
        base: a comparison with a base model, to be part of the result.
        transfer: the direction in another model, to be part of the result.
        progress: is told what is being done.

    Raises:
        ModelError: the model refuses hardly anything, or everything.
        SelectionError: no refusal direction is found.
        RunFolderError: the folder cannot be written, or belongs to other inputs.
    """
    settings, judge, variants = settings or AuditSettings(), judge or PhraseJudge(), dict(variants or {})
    progress, used = progress or SilentProgress(), _needed(prompts)
    given = None if run is None else directions_of(chat, run=run)
    recorded = {
        **settings.as_record(),
        "direction": None if given is None else _digest(given),
        "variants": {name: variants[name].sha256 for name in sorted(variants)},
    }
    folder = RunFolder(out)
    with folder.writing(run_record("audit", chat, used, judge, recorded)):
        directions = given or _directions(chat, used, settings, folder, progress)
        study = AuditStudy(
            chat, used, settings, directions, judge, VerdictLines(folder.path / _VERDICTS_FILE), progress
        )
        study.require_refusals()
        warnings: list[str] = []
        found = Sections(
            ladder=_section(folder, sections, "ladder", Ladder, lambda: measure_ladder(study), warnings),
            learned=_section(folder, sections, "learned", Learned, lambda: measure_learned(study), warnings),
            strength=_section(folder, sections, "strength", Strength, lambda: measure_strength(study), warnings),
            conditions=_section(
                folder, sections, "conditions", Conditions, lambda: measure_conditions(study, variants), warnings
            ),
            depth=_section(folder, sections, "depth", Depth, lambda: measure_depth(study), warnings),
            fine_tuning=_section(
                folder, sections, "fine-tuning", FineTuningRun, lambda: measure_fine_tuning(study), warnings
            ),
        )
        at_rest = study.rest(settings.n_test)
        result = Audit(
            model=chat.identity,
            rendering=rendering(chat),
            prompts={label: prompt_set.identity() for label, prompt_set in used.items()},
            variants=recorded["variants"],
            judge=judge_identity(judge),
            settings=recorded,
            direction_source=directions.source,
            position=directions.refusal.position,
            layer=directions.refusal.layer,
            direction_norm=directions.refusal.norm,
            refusal_tokens=_tokens(chat, directions),
            **found._asdict(),
            suffixes=suffixes,
            base=base,
            transfer=transfer,
            scorecard=scorecard_of(at_rest, found),
            findings=findings_of(at_rest, found, suffixes),
            warnings=(*_warnings(study), *warnings),
            provenance=provenance(chat, seed=settings.seed),
        )
        write_record(folder.path / AUDIT_FILE, result)
        return result


def _needed(prompts: Mapping[PromptLabel, PromptSet]) -> dict[PromptLabel, PromptSet]:
    missing = sorted({"harmful", "harmless"} - set(prompts))
    if missing:
        raise InputError(f"an audit needs harmful and harmless prompts; there are no {' and no '.join(missing)} ones.")
    return {"harmful": prompts["harmful"], "harmless": prompts["harmless"]}


def _digest(directions: Directions) -> str:
    """What the direction of a run adds to the fingerprint: its numbers, its place, its tokens."""
    refusal = directions.refusal
    place = f"{refusal.position} {refusal.layer} {directions.tokens}"
    return hashlib.sha256(refusal.vector.contiguous().numpy().tobytes() + place.encode()).hexdigest()


def _directions(
    chat: ChatModel,
    prompts: Mapping[PromptLabel, PromptSet],
    settings: AuditSettings,
    folder: RunFolder,
    progress: Progress,
) -> Directions:
    """The refusal direction, found once for a folder."""
    path = folder.path / _DIRECTIONS_FILE
    if not path.exists():
        calibration = CalibrationSettings(
            max_new_tokens=settings.max_new_tokens, batch_size=settings.batch_size, seed=settings.seed
        )
        found = directions_of(chat, prompts, settings=calibration, progress=progress)
        save_directions(folder.directions, {"refusal_direction": found.refusal})
        write_record(path, AuditDirections(source=found.source, tokens=found.tokens))
    stored = read_record(path, AuditDirections)
    refusal = load_directions(folder.directions)["refusal_direction"]
    return Directions(refusal, None, stored.tokens, stored.source)


def _section(
    folder: RunFolder,
    sections: Sequence[AuditSection],
    name: AuditSection,
    kind: type[R],
    measure: Callable[[], R],
    warnings: list[str],
) -> R | None:
    """A section from the folder, or measured now if it was asked for; None where it cannot be, or was not."""
    path = folder.path / f"section_{name.replace('-', '_')}.json"
    if path.exists():
        return read_record(path, kind)
    if name not in sections:
        return None
    try:
        record = measure()
    except UnsupportedInterventionError as error:
        warnings.append(f"The section {name} could not be measured: {error}")
        return None
    write_record(path, record)
    return record


def _tokens(chat: ChatModel, directions: Directions) -> tuple[RefusalToken, ...]:
    return tuple(
        RefusalToken(id=token, text=chat.tokenizer.decode([token]), probability_refused=None, probability_answered=None)
        for token in directions.tokens
    )


def _warnings(study: AuditStudy) -> list[str]:
    found = []
    if study.rest(study.settings.n_test).accuracy is None:
        found.append(
            "No harmless prompt carries a known answer, so only degenerate and unjudged answers tell a broken model. "
            "Give harmless prompts with a column `answer`."
        )
    size = len(study.texts("harmful", "test", study.settings.n_test))
    if size < 30:
        found.append(f"Only {size} harmful test prompts: the intervals are wide.")
    return found
