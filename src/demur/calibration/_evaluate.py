"""The same measurements as a calibration's, without choosing anything."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from demur.calibration._batch_size import with_batch_size
from demur.calibration._calibrate import (
    LABELS,
    complete_test,
    own_folder,
    press,
    runner_of,
    sample,
    variant_hashes,
    wavering_warnings,
)
from demur.calibration._diagnostics import leakage_warnings, measured_twice
from demur.calibration._first_look import first_look_warnings
from demur.calibration._records import judge_identity, layout_summary, provenance, rendering, run_record
from demur.calibration._search_space import intervention_of
from demur.calibration._settings import CalibrationSettings
from demur.directions import load_directions
from demur.errors import InputError
from demur.evaluation import (
    Judge,
    PhraseJudge,
    bootstrap_mean,
    compare,
    decide_gate,
    kl_after,
    logits_after,
    metrics_of,
    rates_by_category,
)
from demur.interventions import Intervention, in_shipped_form
from demur.models import ChatModel
from demur.prompts import PromptSet
from demur.records import OperatingPoint, RunFolder, Summary, write_record
from demur.types import Progress, PromptLabel, SilentProgress

_USED = (
    "max_new_tokens",
    "verdict_tokens",
    "batch_size",
    "margin",
    "gate_kl_limit",
    "pressure",
    "n_pressure",
    "n_sampled",
    "seed",
)
"""The settings that an evaluation depends on."""


def evaluate(
    chat: ChatModel,
    prompts: Mapping[PromptLabel, PromptSet],
    *,
    out: Path | str,
    run: Path | str | None = None,
    variants: Mapping[str, PromptSet] | None = None,
    settings: CalibrationSettings | None = None,
    judge: Judge | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Measure a model on test prompts; with `run`, before and after that run's operating point, and decide its gate.

    Args:
        chat: the model.
        prompts: harmful, harmless and borderline prompts with splits assigned; only test prompts are used.
        out: folder for the records; not the calibration's own.
        run: folder of a calibration whose operating point is applied.
        variants: more harmful prompts by name, as in `calibrate`.
        settings: of them those of measuring and of the gate are used. With `run`, answers are as long as in that run.
        judge: gives verdicts; by default the phrase judge.
        progress: is told what is being done.

    Raises:
        InputError: the operating point does not fit the model.
        RunFolderError: a folder cannot be read or written.
    """
    settings = settings or CalibrationSettings()
    judge = judge or PhraseJudge()
    progress = progress or SilentProgress()
    intervention, point = (None, None) if run is None else load_operating_point(chat, RunFolder(run))
    used = {name: getattr(settings, name) for name in _USED}
    used["variants"] = variant_hashes(variants)
    used["operating_point"] = None if point is None else point.fingerprint
    with own_folder(out) as folder, folder.writing(run_record("evaluation", chat, prompts, judge, used)):
        if folder.summary.exists():
            return folder.read_summary()
        settings = with_batch_size(settings, folder, chat, prompts)
        if length := settings.verdict_tokens or _verdict_tokens(run):
            settings = replace(settings, max_new_tokens=min(length, settings.max_new_tokens))
        runner = runner_of(chat, judge, folder, settings, progress)
        before = complete_test(runner, prompts, None, progress=progress)
        after = kl = comparison = gate = None
        if intervention is not None:
            after = complete_test(runner, prompts, intervention, progress=progress)
            # In the order of a calibration, so that the bootstrap draws the same prompts.
            harmless = sorted(prompts["harmless"].split("test"), key=lambda prompt: prompt.sha256)
            encoded = chat.encode(prompt.text for prompt in harmless)
            base = logits_after(chat, encoded, batch_size=settings.batch_size)
            with in_shipped_form(chat, intervention):
                divergences = kl_after(chat, encoded, base, batch_size=settings.batch_size)
            kl, comparison = bootstrap_mean(divergences.tolist(), seed=settings.seed), compare(before, after)
        metrics = metrics_of(before, after, kl)
        pressure = press(runner, prompts, intervention, variants or {}, settings)
        if comparison is not None:
            gate = decide_gate(metrics, comparison, pressure, margin=settings.margin, kl_limit=settings.gate_kl_limit)
        sampled = sample(runner, prompts, intervention, settings)
        more = measured_twice(runner, prompts, intervention, settings)
        summary = Summary(
            kind="evaluation",
            model=chat.identity,
            layout=layout_summary(chat, intervention),
            rendering=rendering(chat),
            prompts={label: prompts[label].identity() for label in LABELS},
            judge=judge_identity(judge),
            operating_point=point,
            metrics=metrics,
            comparison=comparison,
            pressure=pressure,
            categories=rates_by_category({label: prompts[label].split("test") for label in LABELS}, before, after),
            sampled=sampled,
            gate=gate,
            **more,
            warnings=(*first_look_warnings(prompts), *leakage_warnings(more["leakage"]), *wavering_warnings(metrics)),
            provenance=provenance(chat, seed=settings.seed),
        )
        write_record(folder.summary, summary)
        return summary


def _verdict_tokens(run: Path | str | None) -> int | None:
    """Tokens of an answer that a calibration found to be enough for a verdict."""
    threshold = None if run is None else RunFolder(run).read_summary().refusal_threshold
    return None if threshold is None else threshold.verdict_tokens


def load_operating_point(chat: ChatModel, run: RunFolder) -> tuple[Intervention, OperatingPoint]:
    """The intervention of a finished calibration, checked against its record and the model.

    Raises:
        InputError: the run has no operating point, its direction is not the recorded one, or it is for another width.
    """
    point = run.read_summary().operating_point
    if point is None:
        raise InputError(
            f"{run.path} holds no operating point; give the folder of a `demur calibrate` run that found one."
        )
    directions = load_directions(run.directions)
    vector = directions["false_refusal_direction"].vector
    intervention = intervention_of(point, vector, directions.get("refusal_direction"))
    if intervention.fingerprint != point.fingerprint:
        raise InputError(
            f"{run.directions} is not the direction that {run.summary} records. Run the calibration again in a new "
            "folder."
        )
    width = vector.shape[-1]
    if width != chat.layout.d_model:
        raise InputError(
            f"the operating point of {run.path} is for a residual stream of width {width}; {chat.name} has "
            f"{chat.layout.d_model}. Give the model that was calibrated, or a version of it."
        )
    return intervention, point
