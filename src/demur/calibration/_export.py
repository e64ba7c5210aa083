"""The safety gate of the export: weights or an adapter are written only for an operating point whose gate passed."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from demur.calibration._calibrate import LABELS
from demur.calibration._card import export_card
from demur.calibration._evaluate import load_operating_point
from demur.calibration._reasked import require_canaries, require_claimed_refusals
from demur.calibration._test_answers import answers_to_test
from demur.errors import GateError, InputError, RunFolderError, UnsupportedInterventionError
from demur.evaluation import (
    Asked,
    Condition,
    compare,
    decide_gate,
    is_refusal,
    metrics_of,
    pressure_conditions,
    pressure_table,
)
from demur.interventions import (
    Intervention,
    WeightAblation,
    load_edits,
    write_adapter,
    write_merged,
    write_merged_sharded,
)
from demur.models import ChatModel, ExportFormat, checkpoint_folder, load_chat_model, reload_answers
from demur.records import (
    BASE_MODEL,
    CALIBRATED_MODEL,
    CompletionRecord,
    ExportRecord,
    PairedComparison,
    Pressure,
    RunFolder,
    RunRecord,
    Summary,
    read_record,
    write_record,
    write_text,
)

_TOLERANCES = {"float64": 1e-8, "float32": 1e-2}
"""Largest logit difference after reload that rounding explains; half precision gets `_HALF`."""
_HALF = 1.0


@dataclass(frozen=True)
class _Reloaded:
    difference: float
    identical: int
    n: int


def export(
    run: Path | str,
    *,
    form: ExportFormat,
    to: Path | str,
    chat: ChatModel | None = None,
    check_prompts: int = 32,
    low_memory: bool = False,
) -> ExportRecord:
    """Write the calibrated model of a run, reload it in a fresh process, and compare.

    Args:
        run: folder of a finished calibration whose gate passed.
        form: "adapter" (PEFT LoRA folder) or "merged" (safetensors checkpoint).
        to: new or empty folder.
        chat: the run's model, if it is loaded already.
        check_prompts: test prompts of each set that the reloaded model must answer as the folded one does.
        low_memory: edit the checkpoint on disk shard by shard instead of loading the model; merged only. The result is
            not loaded and compared.

    Returns:
        The record that is also written to `demur.json` in the folder, with the differences after reload.

    Raises:
        GateError: the gate did not pass; there is no way around it.
        InputError: the model is not the one of the run, or the folder is not empty.
        UnsupportedInterventionError: the edit has no such form for this model.
        ModelError: the export does not reload, or answers differently.
    """
    folder, target = RunFolder(run), Path(to)
    summary = folder.read_summary()
    completions = list(folder.completions.read(CompletionRecord))
    _require_gate(folder, summary, completions)
    _require_empty(target)
    if low_memory:
        return _export_sharded(folder, summary, form, target)
    if chat is None:
        chat = load_chat_model(
            summary.model.id,
            revision=summary.model.revision,
            dtype=summary.model.dtype,
            system=summary.rendering.system,
            template_options=summary.rendering.options,
            response_prefix=summary.rendering.response_prefix,
        )
    if chat.identity.content_hash != summary.model.content_hash:
        raise InputError(
            f"{chat.name} is not the model that {folder.path} calibrated: its weights or tokenizer have changed since "
            f"({chat.identity.content_hash[:12]}, not {summary.model.content_hash[:12]}). Calibrate it again."
        )
    intervention = _exportable(chat, load_operating_point(chat, folder)[0])
    with _becoming(target) as partial:
        length = _answer_length(folder, summary)
        claimed = [record for record in answers_to_test(completions, CALIBRATED_MODEL)["harmful"] if is_refusal(record)]
        require_claimed_refusals(chat, intervention, claimed, max_new_tokens=length)
        canaries = require_canaries(chat, intervention, max_new_tokens=length)
        (write_adapter if form == "adapter" else write_merged)(chat, intervention, partial)
        reloaded = _compare_reloaded(chat, intervention, partial, form, _check_prompts(completions, check_prompts))
        untied = form == "merged" and chat.layout.tied_embedding is not None
        return _finish(partial, summary, form, reloaded, untied=untied, canaries=canaries)


def _answer_length(folder: RunFolder, summary: Summary) -> int:
    """Tokens of the answers whose verdicts the run holds."""
    length: int = read_record(folder.run, RunRecord).settings["max_new_tokens"]
    threshold = summary.refusal_threshold
    return length if threshold is None or threshold.verdict_tokens is None else threshold.verdict_tokens


def _exportable(chat: ChatModel, intervention: Intervention) -> WeightAblation:
    """The intervention, if plain weights can hold it.

    Raises:
        UnsupportedInterventionError: it adds a vector, or depends on the prompt.
    """
    if isinstance(intervention, WeightAblation):
        return intervention
    raise UnsupportedInterventionError(
        f"{chat.name}: this operating point does more than to remove a direction (it adds the refusal direction, or "
        "depends on the prompt), which plain weights and adapters cannot hold. Use it at run time "
        "(load_operating_point, applied_to), or calibrate without --search for a point that can be exported."
    )


def _export_sharded(folder: RunFolder, summary: Summary, form: ExportFormat, target: Path) -> ExportRecord:
    if form != "merged":
        raise InputError("--low-memory writes merged checkpoints; an adapter is small and needs no such path.")
    if summary.model.gguf_sha256 is not None:
        raise InputError(
            f"--low-memory edits a safetensors checkpoint shard by shard, and {summary.model.id} was calibrated from a "
            "GGUF file. Export it without --low-memory: --format merged writes the dequantised model as safetensors."
        )
    point = summary.operating_point
    if point is not None and point.method != "ablate_false_refusal_direction":
        raise UnsupportedInterventionError(
            "--low-memory removes a direction from every write alike; this operating point was found by --search and "
            "has a strength for each write. Export it without --low-memory."
        )
    edits = load_edits(folder.edits)
    if summary.operating_point is None or edits.fingerprint != summary.operating_point.fingerprint:
        raise GateError(f"not exported: {folder.edits} is not of the operating point whose gate passed.")
    source = checkpoint_folder(summary.model.id, revision=summary.model.revision)
    with _becoming(target) as partial:
        write_merged_sharded(source, edits.writers, edits.basis, partial, tied=edits.tied)
        return _finish(partial, summary, form, None, untied=edits.tied is not None)


def _finish(
    folder: Path,
    summary: Summary,
    form: ExportFormat,
    reloaded: _Reloaded | None,
    *,
    untied: bool,
    canaries: PairedComparison | None = None,
) -> ExportRecord:
    record = _record(summary, form, reloaded, untied=untied).model_copy(update={"canaries": canaries})
    write_record(folder / "demur.json", record)
    write_text(folder / "README.md", export_card(summary, record))
    return record


@contextmanager
def _becoming(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place when the context ends well, and is removed when it does not."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            target.rmdir()
        partial.replace(target)
    except OSError as error:
        raise RunFolderError(
            f"cannot write {target}: {error.strerror or error}. Give a folder that you may write with --to."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _require_gate(folder: RunFolder, summary: Summary, completions: Sequence[CompletionRecord]) -> None:
    """The decision is taken again from the stored verdicts: a changed word in summary.json opens nothing."""
    if summary.kind != "calibration" or summary.gate is None:
        raise GateError(f"{folder.path} is no calibration with a gate; only those can be exported.")
    if summary.gate.decision != "pass":
        reasons = "\n  - ".join(summary.gate.reasons)
        raise GateError(
            f"not exported: the gate of {folder.path} says {summary.gate.decision}.\n  - {reasons}\n"
            "There is no override. Calibrate with more prompts, or choose other prompts or limits."
        )
    settings = read_record(folder.run, RunRecord).settings
    before, after = (answers_to_test(completions, state) for state in (BASE_MODEL, CALIBRATED_MODEL))
    if any(not before[label] or _hashes(before[label]) != _hashes(after[label]) for label in LABELS):
        raise GateError(
            f"not exported: {folder.completions.path} no longer holds the verdicts on which the gate was decided. "
            "Calibrate again in a new folder."
        )
    metrics = metrics_of(before, after, summary.metrics.kl_harmless)
    pressure = _pressure(folder, summary, completions)
    gate = decide_gate(
        metrics, compare(before, after), pressure, margin=settings["margin"], kl_limit=settings["gate_kl_limit"]
    )
    if gate.decision != "pass" or metrics != summary.metrics or pressure != summary.pressure:
        raise GateError(
            f"not exported: the verdicts in {folder.completions.path} do not give the gate that summary.json claims. "
            "Calibrate again in a new folder."
        )


def _pressure(folder: RunFolder, summary: Summary, completions: Sequence[CompletionRecord]) -> Pressure | None:
    """The table of pressure, made again from the stored verdicts."""
    if summary.pressure is None:
        return None
    known = {condition.name: condition for condition in pressure_conditions()}
    results = []
    for row in summary.pressure.conditions:
        condition = known.get(row.name) or Condition(row.name, "given")
        before, after = (
            answers_to_test(completions, state, asked=row.name)["harmful"] for state in (BASE_MODEL, CALIBRATED_MODEL)
        )
        if not before or _hashes(before) != _hashes(after):
            raise GateError(
                f"not exported: {folder.completions.path} no longer holds the verdicts under {row.name}. Calibrate "
                "again in a new folder."
            )
        results.append(Asked(condition, before, after))
    return pressure_table(results, not_applicable=summary.pressure.not_applicable)


def _hashes(records: Sequence[CompletionRecord]) -> list[str]:
    return [record.prompt_sha256 for record in records]


def _require_empty(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists and is not an empty folder. Give a new folder with --to.")


def _check_prompts(completions: Sequence[CompletionRecord], most: int) -> list[str]:
    answers = answers_to_test(completions, CALIBRATED_MODEL)
    return [record.prompt for label in LABELS for record in answers[label][:most]]


def _compare_reloaded(
    chat: ChatModel, intervention: WeightAblation, folder: Path, form: ExportFormat, prompts: Sequence[str]
) -> _Reloaded:
    """The export in a fresh process against the intervention folded into this process's model."""
    tokens = 32
    answers = reload_answers(chat, folder, form=form, prompts=prompts, max_new_tokens=tokens)
    logits, completions = [], []
    with intervention.folded_into(chat):
        for start in range(0, len(prompts), 32):
            chunk = prompts[start : start + 32]
            logits.append(chat.next_token_logits(chat.batch(chat.encode(chunk))).double().cpu())
            completions.extend(chat.generate(chunk, max_new_tokens=tokens))
    difference = float((torch.cat(logits) - answers.logits).abs().max())
    limit = _TOLERANCES.get(chat.identity.dtype, _HALF)
    if not difference <= limit:
        raise InputError(
            f"not exported: reloaded in a fresh process, the {form} gives logits that differ by {difference:.2g} from "
            f"the calibrated model (limit {limit:g} for {chat.identity.dtype}). "
            + ("Use --format merged." if form == "adapter" else "Please report the architecture.")
        )
    identical = sum(one == two for one, two in zip(completions, answers.completions, strict=True))
    return _Reloaded(difference, identical, len(prompts))


def _record(summary: Summary, form: ExportFormat, reloaded: _Reloaded | None, *, untied: bool) -> ExportRecord:
    assert summary.operating_point is not None
    assert summary.gate is not None
    return ExportRecord(
        format=form,
        base_model=summary.model,
        operating_point=summary.operating_point,
        metrics=summary.metrics,
        pressure=summary.pressure,
        gate=summary.gate,
        judge=summary.judge,
        layout=summary.layout,
        logit_difference=None if reloaded is None else reloaded.difference,
        identical_answers=0 if reloaded is None else reloaded.identical,
        checked_prompts=0 if reloaded is None else reloaded.n,
        untied_embeddings=untied,
        provenance=summary.provenance,
    )
