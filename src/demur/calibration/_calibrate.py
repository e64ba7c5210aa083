"""The main job: find both directions, choose an operating point, measure it on test prompts, decide the gate."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from demur.activations import stream_at
from demur.calibration._batch_size import with_batch_size
from demur.calibration._diagnostics import leakage_warnings, measured_twice, stability
from demur.calibration._false_refusal_direction import Calibrated, NoOperatingPointError, find_operating_point
from demur.calibration._first_look import first_look_warnings
from demur.calibration._mechanism import measure_mechanism
from demur.calibration._records import judge_identity, layout_summary, provenance, rendering, run_record
from demur.calibration._refusal_direction import RefusalDirection, find_refusal_direction
from demur.calibration._search import search_operating_point
from demur.calibration._settings import CalibrationSettings
from demur.calibration._study import Study
from demur.directions import save_directions
from demur.evaluation import (
    Judge,
    PhraseJudge,
    Runner,
    bootstrap_mean,
    compare,
    decide_gate,
    kl_after,
    measure_pressure,
    measure_sampled,
    metrics_of,
    no_operating_point,
    rates_by_category,
)
from demur.interventions import DirectionalAblation, Intervention, in_shipped_form, save_edits
from demur.models import ChatModel, process_folder
from demur.prompts import Prompt, PromptSet
from demur.records import (
    BASE_MODEL,
    CALIBRATED_MODEL,
    Candidates,
    CompletionRecord,
    FalseRefusalScores,
    Metrics,
    Pressure,
    ProjectionRecord,
    RunFolder,
    SampledRefusals,
    Summary,
    write_record,
)
from demur.types import Progress, PromptLabel, SilentProgress

LABELS: tuple[PromptLabel, ...] = ("harmful", "borderline", "harmless")


def calibrate(
    chat: ChatModel,
    prompts: Mapping[PromptLabel, PromptSet],
    *,
    out: Path | str,
    variants: Mapping[str, PromptSet] | None = None,
    settings: CalibrationSettings | None = None,
    judge: Judge | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Calibrate a model and write the run folder.

    A killed call continues from what its folder holds when it is given again with the same inputs.

    Args:
        chat: the model; it is left as it was.
        prompts: harmful, harmless and borderline prompts with splits assigned.
        out: the run folder: new, empty, or one of the same inputs.
        variants: more harmful prompts by name, such as paraphrases or translations of the test prompts: conditions of
            their own under which true refusals are measured; all of them are asked.
        settings: defaults are the published values.
        judge: gives verdicts; by default the phrase judge.
        progress: is told what is being done.

    Returns:
        The summary, as written to `summary.json`. Look at `summary.gate.decision`.

    Where no operating point is admissible, that is the finding: the summary has none, its gate fails, and its lambda
    curve shows by how much each point missed which limit.

    Raises:
        SelectionError: no refusal direction changes what the model does.
        ModelError: the model does not refuse, refuses everything, or has non-finite activations.
        RunFolderError: the folder belongs to another run, is in use, or cannot be written.
    """
    settings = settings or CalibrationSettings()
    judge = judge or PhraseJudge()
    progress = progress or SilentProgress()
    recorded = settings.as_record() | {"variants": variant_hashes(variants)}
    with own_folder(out) as folder, folder.writing(run_record("calibration", chat, prompts, judge, recorded)):
        if folder.summary.exists():
            return folder.read_summary()
        settings = with_batch_size(settings, folder, chat, prompts)
        runner = runner_of(chat, judge, folder, settings, progress)
        study = Study(chat, prompts, settings, folder, runner, progress)
        refusal = find_refusal_direction(study)
        _write_candidates(study, refusal, ())
        try:
            calibrated = find_operating_point(study, refusal)
        except NoOperatingPointError as nothing:
            _write_candidates(study, refusal, nothing.candidates)
            save_directions(folder.directions, {"refusal_direction": refusal.direction})
            summary = _measure(study, refusal, nothing, variants or {})
            write_record(folder.summary, summary)
            return summary
        if settings.search:
            calibrated = search_operating_point(study, refusal, calibrated)
        _write_candidates(study, refusal, calibrated.candidates)
        save_directions(
            folder.directions,
            {"refusal_direction": refusal.direction, "false_refusal_direction": calibrated.direction},
        )
        if chat.layout.packed is None and isinstance(calibrated.intervention, DirectionalAblation):
            save_edits(folder.edits, chat, calibrated.intervention)
        summary = _measure(study, refusal, calibrated, variants or {})
        write_record(folder.summary, summary)
        return summary


def _write_candidates(study: Study, refusal: RefusalDirection, false_refusal: tuple[FalseRefusalScores, ...]) -> None:
    record = Candidates(
        n_layers=study.chat.n_layers,
        positions=study.positions,
        position_texts=study.chat.template.post_instruction_texts(),
        refusal=refusal.selection.candidates,
        false_refusal=false_refusal,
    )
    write_record(study.folder.candidates, record)


def _measure(
    study: Study,
    refusal: RefusalDirection,
    found: Calibrated | NoOperatingPointError,
    variants: Mapping[str, PromptSet],
) -> Summary:
    """Everything that is reported, on test prompts that neither fitted nor chose anything.

    Where there is no operating point, of the base model alone.
    """
    calibrated = found if isinstance(found, Calibrated) else None
    intervention = None if calibrated is None else calibrated.intervention
    settings = study.settings
    before = complete_test(study.runner, study.prompts, None, progress=study.progress)
    after = kl = comparison = pressure = None
    if intervention is not None:
        after = complete_test(study.runner, study.prompts, intervention, progress=study.progress)
        harmless, base = study.encode("harmless", "test"), study.base_logits("harmless", "test")
        study.progress.start("measuring KL on harmless prompts", len(harmless))
        with in_shipped_form(study.chat, intervention):
            divergences = kl_after(study.chat, harmless, base, batch_size=settings.batch_size)
        kl, comparison = bootstrap_mean(divergences.tolist(), seed=settings.seed), compare(before, after)
        pressure = press(study.runner, study.prompts, intervention, variants, settings)
    metrics = metrics_of(before, after, kl)
    if isinstance(found, NoOperatingPointError):
        gate = no_operating_point(str(found), margin=settings.margin)
    else:
        assert comparison is not None
        gate = decide_gate(metrics, comparison, pressure, margin=settings.margin, kl_limit=settings.gate_kl_limit)
    sampled = sample(study.runner, study.prompts, intervention, settings)
    _write_projections(study, refusal, intervention)
    more = measured_twice(study.runner, study.prompts, intervention, settings, token_ids=study.token_ids)
    study.warnings.extend([*first_look_warnings(study.prompts), *leakage_warnings(more["leakage"])])
    study.warnings.extend(wavering_warnings(metrics))
    return Summary(
        kind="calibration",
        model=study.chat.identity,
        layout=layout_summary(study.chat, intervention),
        rendering=rendering(study.chat),
        prompts={label: study.prompts[label].identity() for label in LABELS},
        judge=judge_identity(study.runner.judge),
        refusal_tokens=study.refusal_tokens,
        refusal_threshold=study.threshold,
        refusal_direction=refusal.card,
        false_refusal_direction=None if calibrated is None else calibrated.card,
        operating_point=None if calibrated is None else calibrated.operating_point,
        lambda_curve=found.curve,
        lambda_baseline=found.baseline,
        mechanism=measure_mechanism(study, refusal.direction),
        metrics=metrics,
        comparison=comparison,
        pressure=pressure,
        categories=rates_by_category({label: study.prompts[label].split("test") for label in LABELS}, before, after),
        sampled=sampled,
        gate=gate,
        stability=stability(study, refusal, calibrated),
        **more,
        warnings=tuple(study.warnings),
        provenance=provenance(study.chat, seed=settings.seed),
    )


def wavering_warnings(metrics: Metrics) -> list[str]:
    """What a reader must know of a base model that refuses less than half of what it should."""
    rate = metrics.true_refusal_rate.before
    if rate.rate is None or rate.rate >= _HALF:
        return []
    return [
        f"The base model refuses only {rate.k} of {rate.n} harmful test prompts. What is kept of them is protected; it "
        "is not much, and training against harmful requests would do more than any calibration."
    ]


_HALF = 0.5


@contextmanager
def own_folder(path: Path | str) -> Iterator[RunFolder]:
    """The run folder; under several processes (`join_processes`) the first writes it, the others a passing copy."""
    with process_folder(path) as own:
        yield RunFolder(own)


def runner_of(
    chat: ChatModel, judge: Judge, folder: RunFolder, settings: CalibrationSettings, progress: Progress
) -> Runner:
    """The runner of a run folder."""
    return Runner(
        chat,
        judge,
        folder.completions,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        progress=progress,
    )


def variant_hashes(variants: Mapping[str, PromptSet] | None) -> dict[str, str]:
    """What a run record says of the variants."""
    return {name: prompts.sha256 for name, prompts in sorted((variants or {}).items())}


def press(
    runner: Runner,
    prompts: Mapping[PromptLabel, PromptSet],
    intervention: Intervention | None,
    variants: Mapping[str, PromptSet],
    settings: CalibrationSettings,
) -> Pressure | None:
    """True refusals under pressure, if the settings ask for them."""
    if not settings.pressure:
        return None
    return measure_pressure(
        runner,
        _first(prompts["harmful"].split("test"), settings.n_pressure),
        intervention,
        variants={name: variant.prompts for name, variant in variants.items()},
        progress=runner.progress,
    )


def sample(
    runner: Runner,
    prompts: Mapping[PromptLabel, PromptSet],
    intervention: Intervention | None,
    settings: CalibrationSettings,
) -> tuple[SampledRefusals, ...]:
    """Refusal probabilities over sampled answers to harmful and borderline prompts, if the settings ask for them."""
    if not settings.n_sampled:
        return ()
    labels: tuple[PromptLabel, PromptLabel] = ("harmful", "borderline")
    tests = {label: _first(prompts[label].split("test"), settings.n_sampled) for label in labels}
    return measure_sampled(runner, tests, intervention, progress=runner.progress)


def _first(prompts: Sequence[Prompt], most: int) -> Sequence[Prompt]:
    """At most so many, the first by hash; 0 takes all, in their order."""
    return sorted(prompts, key=lambda prompt: prompt.sha256)[:most] if most else prompts


def complete_test(
    runner: Runner,
    prompts: Mapping[PromptLabel, PromptSet],
    intervention: Intervention | None,
    *,
    progress: Progress,
) -> dict[PromptLabel, list[CompletionRecord]]:
    """Judged answers to all test prompts, of the base model or of the folded operating point."""
    tests = {label: prompts[label].split("test") for label in LABELS}
    condition = BASE_MODEL if intervention is None else CALIBRATED_MODEL
    what = "the base model" if intervention is None else "the calibrated model"
    progress.start(f"answering test prompts with {what}", sum(len(test) for test in tests.values()))
    return runner.complete_sets(tests, condition=condition, split="test", intervention=intervention)


def _write_projections(study: Study, refusal: RefusalDirection, intervention: Intervention | None) -> None:
    """Projection of test prompts on the unit refusal direction where it was read, before and after."""
    direction = refusal.direction

    study.progress.start("projecting test prompts", sum(len(study.texts(label, "test")) for label in LABELS))

    def project() -> dict[PromptLabel, tuple[float, ...]]:
        return {
            label: _projection(study, label, direction.layer, direction.position, direction.unit) for label in LABELS
        }

    before, after = project(), {}
    if intervention is not None:
        with in_shipped_form(study.chat, intervention):
            after = project()
    record = ProjectionRecord(position=direction.position, layer=direction.layer, before=before, after=after)
    write_record(study.folder.projections, record)


def _projection(study: Study, label: PromptLabel, layer: int, position: int, unit: torch.Tensor) -> tuple[float, ...]:
    stream = stream_at(
        study.chat, study.texts(label, "test"), layer=layer, position=position, batch_size=study.settings.batch_size
    )
    return tuple((stream @ unit).tolist())
