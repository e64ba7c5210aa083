"""`compare_methods`: the baselines and demur on the same test prompts, by the same judge, with paired statistics."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from demur.calibration._batch_size import with_batch_size
from demur.calibration._calibrate import LABELS, own_folder
from demur.calibration._first_look import first_look_warnings
from demur.calibration._methods import METHODS, Method, build_method
from demur.calibration._methods_choice import Ingredients
from demur.calibration._records import judge_identity, provenance, rendering, run_record
from demur.calibration._settings import CalibrationSettings
from demur.calibration._study import Study
from demur.errors import InputError, SelectionError
from demur.evaluation import (
    Judge,
    PhraseJudge,
    Runner,
    asked_logits,
    compare,
    decide_gate,
    holm,
    mean_kl,
    metrics_of,
    next_token_logits,
    rate,
)
from demur.interventions import ActivationAddition, in_shipped_form
from demur.models import ChatModel
from demur.prompts import PromptSet
from demur.records import (
    BASE_MODEL,
    Comparison,
    CompletionRecord,
    Gate,
    Mean,
    MethodName,
    MethodRow,
    MethodsTable,
    RunFolder,
    RunRecord,
    VerdictLines,
    read_record,
    write_record,
)
from demur.types import Decision, Progress, PromptLabel, SilentProgress

METHODS_FILE = "methods.json"
_VERDICTS_FILE = "verdicts.jsonl"
_UNDER_PRESSURE = "true_refusals_under_pressure"
Answers = dict[PromptLabel, list[CompletionRecord]]


def compare_methods(
    chat: ChatModel,
    prompts: Mapping[PromptLabel, PromptSet],
    *,
    out: Path | str,
    run: Path | str | None = None,
    settings: CalibrationSettings | None = None,
    judge: Judge | None = None,
    methods: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> MethodsTable:
    """Measure methods against false refusals on the same test prompts and write `methods.json`.

    Nothing of this is exported, and no text of an answer is written: `verdicts.jsonl` holds verdicts by prompt hash,
    from which a killed call continues. The folder can be given again with other `methods`.

    Args:
        chat: the model; it is left as it was.
        prompts: harmful, harmless and borderline prompts with splits assigned.
        out: folder for the records; not a calibration's own.
        run: folder of a finished calibration of this model on these prompts; without one the operating point is found
            here, as `calibrate` does.
        settings: by default those of `run`, else the published values.
        judge: gives verdicts; by default the phrase judge.
        methods: names of the rows, in any order; None measures all. "none" is always there, to compare with.
        progress: is told what is being done.

    Raises:
        InputError: no such method, or the run is of another model or other prompts.
        ModelError: the model does not refuse, or refuses everything.
        RunFolderError: a folder cannot be read or written, or belongs to other inputs.
    """
    names = method_names(methods)
    judge = judge or PhraseJudge()
    progress = progress or SilentProgress()
    calibration = None if run is None else RunFolder(run)
    point = None if calibration is None else _fitting(chat, prompts, calibration)
    settings = settings or (CalibrationSettings() if calibration is None else settings_of(calibration))
    recorded = {**settings.as_record(), "operating_point": point}
    with own_folder(out) as folder, folder.writing(run_record("methods", chat, prompts, judge, recorded)):
        table_path = folder.path / METHODS_FILE
        if table_path.exists():
            table = read_record(table_path, MethodsTable)
            if {row.method for row in table.rows} | set(table.skipped) == set(names):
                return table
        settings = with_batch_size(settings, folder, chat, prompts)
        runner = Runner(
            chat,
            judge,
            VerdictLines(folder.path / _VERDICTS_FILE),
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            progress=progress,
        )
        study = Study(chat, prompts, settings, folder, runner, progress)
        study.threshold  # noqa: B018 (first: it says how long answers must be)
        rows, skipped = _measure(study, Ingredients(study, calibration), names)
        table = MethodsTable(
            model=chat.identity,
            rendering=rendering(chat),
            prompts={label: prompts[label].identity() for label in LABELS},
            judge=judge_identity(judge),
            settings=recorded,
            rows=with_adjusted_p_values(rows),
            skipped=skipped,
            warnings=(*first_look_warnings(prompts), *study.warnings),
            provenance=provenance(chat, seed=settings.seed),
        )
        write_record(table_path, table)
        return table


def method_names(methods: Sequence[str] | None) -> tuple[MethodName, ...]:
    """The rows of the table, in its order.

    Raises:
        InputError: a name is not a method's, or none is given.
    """
    if methods is None:
        return METHODS
    unknown = sorted(set(methods) - set(METHODS))
    if unknown or not methods:
        given = f"there is no method {', '.join(map(repr, unknown))}" if unknown else "no method is named"
        raise InputError(f"{given}; give one or more of {', '.join(METHODS)}.")
    return tuple(name for name in METHODS if name in methods or name == "none")


def _fitting(chat: ChatModel, prompts: Mapping[PromptLabel, PromptSet], run: RunFolder) -> str:
    """Fingerprint of the operating point of a run that is of this model and these prompts."""
    point = run.read_summary().operating_point
    if point is None:
        raise InputError(f"{run.path} holds no operating point; give the folder of a `demur calibrate` run.")
    record = read_record(run.run, RunRecord)
    if record.model_hash != chat.identity.content_hash:
        raise InputError(
            f"{run.path} is a calibration of another model ({record.model_id}); all rows of the table must be of one. "
            "Give the model that was calibrated, or leave out --run."
        )
    for label in LABELS:
        if record.prompt_hashes[label] != prompts[label].sha256:
            raise InputError(
                f"{run.path} was calibrated on other {label} prompts, so what it was fitted on could be among the test "
                "prompts here. Give the prompts of that run, or leave out --run."
            )
    return point.fingerprint


def settings_of(run: RunFolder) -> CalibrationSettings:
    """The settings that a calibration was run with.

    Raises:
        RunFolderError: the folder holds no run.
    """
    stored = read_record(run.run, RunRecord).settings
    known = {each.name for each in fields(CalibrationSettings)}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in stored.items() if name in known
    }
    return CalibrationSettings(**values)


def _measure(
    study: Study, ingredients: Ingredients, names: Sequence[MethodName]
) -> tuple[list[MethodRow], dict[MethodName, str]]:
    base: Answers = {}
    rows: list[MethodRow] = []
    skipped: dict[MethodName, str] = {}
    for name in names:
        try:
            method = build_method(name, ingredients)
        except SelectionError as error:
            skipped[name] = str(error)
            continue
        answers = _answers(study, method)
        base = base or answers
        rows.append(_row(study, method, base, answers))
    return rows, skipped


def _answers(study: Study, method: Method) -> Answers:
    """Verdicts on all test prompts."""
    tests = {label: study.split(label, "test") for label in LABELS}
    study.progress.start(f"answering test prompts: {method.title}", sum(map(len, tests.values())))
    condition = BASE_MODEL if method.name == "none" else method.name
    return {
        label: study.runner.complete(
            each,
            condition=condition,
            split="test",
            intervention=method.intervention,
            asking=method.asking,
            folded=_foldable(method),
            keep_text=False,
        )
        for label, each in tests.items()
    }


def _foldable(method: Method) -> bool:
    return not isinstance(method.intervention, ActivationAddition)


def _row(study: Study, method: Method, base: Answers, answers: Answers) -> MethodRow:
    kl = comparison = gate = None
    if method.name != "none":
        changed = _logits(study, method)
        kl = mean_kl(study.base_logits("harmless", "test"), changed, seed=study.settings.seed)
        comparison = compare(base, answers)
        gate = _gate(study, base, answers, kl, comparison)
    metrics = metrics_of(answers, None, None)
    degenerate = rate([record.degenerate for records in answers.values() for record in records])
    return MethodRow(
        method=method.name,
        title=method.title,
        what=method.what,
        settings=method.settings,
        fingerprint=method.fingerprint,
        true_refusal_rate=metrics.true_refusal_rate.before,
        false_refusal_rate=metrics.false_refusal_rate.before,
        harmless_refusal_rate=metrics.harmless_refusal_rate.before,
        task_accuracy=None if metrics.task_accuracy is None else metrics.task_accuracy.before,
        degenerate=degenerate.model_copy(update={"judge": judge_identity(study.runner.judge)}),
        kl_harmless=kl,
        comparison=comparison,
        adjusted_p_values={},
        cost=method.cost,
        exportable=method.exportable,
        gate=gate,
    )


def _logits(study: Study, method: Method) -> Tensor:
    texts, size = study.texts("harmless", "test"), study.settings.batch_size
    if method.asking is not None:
        return asked_logits(study.chat, texts, method.asking, batch_size=size)
    assert method.intervention is not None
    folded = _foldable(method)
    with in_shipped_form(study.chat, method.intervention) if folded else method.intervention.applied_to(study.chat):
        return next_token_logits(study.chat, texts, batch_size=size)


def _gate(study: Study, base: Answers, answers: Answers, kl: Mean, comparison: Comparison) -> Gate:
    """What the gate's rules say on plain prompts; pressure is not measured here."""
    gate = decide_gate(
        metrics_of(base, answers, kl),
        comparison,
        None,
        margin=study.settings.margin,
        kl_limit=study.settings.gate_kl_limit,
    )
    rules = tuple(rule for rule in gate.rules if not rule.name.startswith(_UNDER_PRESSURE))
    decisions = {rule.decision for rule in rules}
    decision: Decision = "fail" if "fail" in decisions else "inconclusive" if "inconclusive" in decisions else "pass"
    told = tuple(rule.reason for rule in rules if decision == "pass" or rule.decision != "pass")
    return Gate(decision=decision, reasons=told, margin=gate.margin, rules=rules)


def with_adjusted_p_values(rows: Sequence[MethodRow]) -> tuple[MethodRow, ...]:
    """The rows with each rate's p-values adjusted over the methods: one family of tests per rate."""
    adjusted: dict[str, dict[str, float]] = {row.method: {} for row in rows}
    for name in Comparison.model_fields:
        pairs: dict[str, Any] = {row.method: getattr(row.comparison, name) for row in rows if row.comparison}
        for method, value in holm({key: pair.p_value for key, pair in pairs.items() if pair is not None}).items():
            adjusted[method][name] = value
    return tuple(row.model_copy(update={"adjusted_p_values": adjusted[row.method]}) for row in rows)
