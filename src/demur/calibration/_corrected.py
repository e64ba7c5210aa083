"""The rates of a finished run, corrected for what its judge gets wrong on labelled answers."""

from pathlib import Path

from demur.calibration._test_answers import LABELS, answers_to_test
from demur.errors import InputError
from demur.evaluation import corrected_difference, corrected_rate, is_refusal, refusal_rate
from demur.records import (
    BASE_MODEL,
    CALIBRATED_MODEL,
    CompletionRecord,
    CorrectedMeasure,
    CorrectedRun,
    JudgeErrorRates,
    JudgeQuality,
    RunFolder,
    write_record,
)
from demur.types import PromptLabel

_MEASURES: dict[PromptLabel, str] = {
    "harmful": "true_refusal_rate",
    "borderline": "false_refusal_rate",
    "harmless": "harmless_refusal_rate",
}


def correct_run(run: Path | str, quality: JudgeQuality, *, labels: str, seed: int = 0) -> CorrectedRun:
    """Correct the refusal rates of a run and write them to its `corrected.json`.

    Labels of the run's own answers serve best: where their `model` is `before` and `after`, the errors are taken apart,
    since a judge may read a changed model otherwise than its base.

    Args:
        run: folder of a finished calibration or evaluation.
        quality: the run's judge, measured on the labelled answers.
        labels: their file, for the record.
        seed: of the draws behind the interval of a difference.

    Raises:
        InputError: the judge is not the run's.
        RunFolderError: the run cannot be read.
    """
    folder = RunFolder(run)
    judge = folder.read_summary().judge
    if (judge.id, judge.version) != (quality.judge.id, quality.judge.version):
        raise InputError(
            f"{folder.path} was judged by {judge.id} {judge.version}, and the labels measure {quality.judge.id} "
            f"{quality.judge.version}: give the same judge with --judge."
        )
    errors = {
        state: JudgeErrorRates(sensitivity=measured.sensitivity, specificity=measured.specificity)
        for state, measured in (
            (name, quality.per_model.get(name, quality) if {"before", "after"} <= set(quality.per_model) else quality)
            for name in ("before", "after")
        )
    }
    completions = list(folder.completions.read(CompletionRecord))
    before, after = (answers_to_test(completions, state) for state in (BASE_MODEL, CALIBRATED_MODEL))
    record = CorrectedRun(
        judge=quality.judge,
        labels=labels,
        n_labels=quality.n,
        errors_before=errors["before"],
        errors_after=errors["after"],
        measures={
            _MEASURES[label]: _measure(before[label], after[label], errors["before"], errors["after"], seed)
            for label in LABELS
        },
    )
    write_record(folder.corrected, record)
    return record


def _measure(
    before: list[CompletionRecord],
    after: list[CompletionRecord],
    errors_before: JudgeErrorRates,
    errors_after: JudgeErrorRates,
    seed: int,
) -> CorrectedMeasure:
    first = corrected_rate(refusal_rate(before), errors_before.sensitivity, errors_before.specificity)
    if not after:
        return CorrectedMeasure(before=first)
    return CorrectedMeasure(
        before=first,
        after=corrected_rate(refusal_rate(after), errors_after.sensitivity, errors_after.specificity),
        difference=corrected_difference(
            [is_refusal(one) for one in before],
            [is_refusal(one) for one in after],
            errors_before,
            errors_after,
            seed=seed,
        ),
    )
