"""The verdicts of a run as a baseline: made from its completions, written small and sorted, read back, compared."""

import hashlib
from collections.abc import Iterable
from pathlib import Path, PurePath, PureWindowsPath

from demur.errors import RunFolderError
from demur.evaluation import rate
from demur.records import (
    BASE_MODEL,
    CALIBRATED_MODEL,
    HASH_DIGITS,
    PLAIN,
    Baseline,
    BaselineIdentity,
    CompletionRecord,
    JudgeIdentity,
    MeasuredModel,
    ModelIdentity,
    Rate,
    RunFolder,
    RunRecord,
    Side,
    Summary,
    read_record,
    write_record,
)
from demur.types import PromptLabel

LABELS: tuple[PromptLabel, ...] = ("harmful", "borderline", "harmless")
RATES: dict[str, PromptLabel] = {
    "true_refusal_rate": "harmful",
    "false_refusal_rate": "borderline",
    "harmless_refusal_rate": "harmless",
}
ACCURACY = "task_accuracy"
_LETTERS = {"full_refusal": "F", "partial_refusal": "P", "full_compliance": "C", "unjudged": "U"}
_REFUSED: dict[str, bool | None] = {"F": True, "P": True, "C": False, "U": None}
_NOT_ASKED = "-"
_ANSWER_RULE = JudgeIdentity(id="contains_answer", version="1")
_SHOWN = 12


def make_baseline(run: Path | str, *, side: Side | None = None) -> Baseline:
    """The verdicts of a finished run's test prompts, by hash and without text.

    Args:
        run: folder of `demur calibrate` or `demur evaluate`.
        side: the base model (before) or the calibrated one (after); by default the calibrated one where there is one.

    Raises:
        RunFolderError: the run is unfinished or broken, holds no answers to test prompts, or has no such side.
    """
    folder = RunFolder(run)
    return verdicts_of(folder, folder.read_summary(), side)


def verdicts_of(folder: RunFolder, summary: Summary, side: Side | None) -> Baseline:
    """`make_baseline` of a summary that was read already."""
    side = side or ("before" if summary.operating_point is None else "after")
    if side == "after" and summary.operating_point is None:
        raise RunFolderError(
            f"{folder.path} holds no calibrated model, so it has no side after. Leave out --side, or check a run of "
            "demur calibrate or demur evaluate --run."
        )
    run = read_record(folder.run, RunRecord)
    records = _test_answers(folder, CALIBRATED_MODEL if side == "after" else BASE_MODEL)
    conditions = sorted({record.condition for record in records} - {PLAIN})
    if not records:
        raise RunFolderError(
            f"{folder.completions.path} holds no answers to test prompts. Give the whole run folder, as it was written."
        )
    order = (PLAIN, *conditions)
    table: dict[PromptLabel, dict[str, list[str]]] = {label: {} for label in LABELS}
    answers: dict[str, bool] = {}
    for record in records:
        key = record.prompt_sha256[:HASH_DIGITS]
        row = table[record.label].setdefault(key, [_NOT_ASKED] * len(order))
        letter = _LETTERS[record.verdict]
        row[order.index(record.condition)] = letter.lower() if record.degenerate else letter
        if record.label == "harmless" and record.condition == PLAIN and record.answer_found is not None:
            answers[key] = record.answer_found
    verdicts = {
        label: {key: "".join(rows[key]).rstrip(_NOT_ASKED) for key in sorted(rows)} for label, rows in table.items()
    }
    point = summary.operating_point if side == "after" else None
    baseline = Baseline(
        demur=summary.provenance.demur,
        model=MeasuredModel(
            name=model_name(summary.model),
            content_hash=summary.model.content_hash,
            operating_point=None if point is None else point.fingerprint,
            dtype=summary.model.dtype,
        ),
        side=side,
        judge=summary.judge,
        rendering=summary.rendering,
        chat_template_sha256=summary.model.chat_template_sha256,
        max_new_tokens=int(run.settings["max_new_tokens"]),
        rates={},
        conditions=order,
        families=_families(summary, conditions),
        verdicts=verdicts,
        answers=dict(sorted(answers.items())),
    )
    return baseline.model_copy(update={"rates": _rates(baseline)})


def write_baseline(path: Path | str, baseline: Baseline) -> None:
    """Write the file that is committed: the same verdicts always give the same bytes."""
    write_record(Path(path), baseline)


def read_baseline(path: Path | str) -> tuple[Baseline, BaselineIdentity]:
    """Read a baseline; its identity says nothing about differences yet.

    Raises:
        RunFolderError: the file cannot be read, is no baseline, or its rates do not follow from its verdicts.
    """
    path = Path(path)
    baseline = read_record(path, Baseline)
    broken = _broken(baseline)
    if broken:
        raise RunFolderError(
            f"{path} was changed by hand or damaged: {broken}. Take the committed version back, or write it again with "
            "demur check RUN --policy POLICY --write-baseline."
        )
    identity = BaselineIdentity(
        file=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        demur=baseline.demur,
        model=baseline.model,
        differences=(),
    )
    return baseline, identity


def differences(baseline: Baseline, now: Baseline) -> tuple[str, ...]:
    """Why the verdicts of two runs cannot be compared, each in words; empty where they can."""
    found = []
    for what, old, new in (
        ("the judge", f"{baseline.judge.id} {baseline.judge.version}", f"{now.judge.id} {now.judge.version}"),
        ("the chat template", baseline.chat_template_sha256[:_SHOWN], now.chat_template_sha256[:_SHOWN]),
        ("the system prompt", _quoted(baseline.rendering.system), _quoted(now.rendering.system)),
        ("the template options", baseline.rendering.options, now.rendering.options),
        ("the response prefix", _quoted(baseline.rendering.response_prefix), _quoted(now.rendering.response_prefix)),
        ("the longest answer (tokens)", baseline.max_new_tokens, now.max_new_tokens),
    ):
        if old != new:
            found.append(f"{what} was {old} and is {new}")
    for label in LABELS:
        old_prompts, new_prompts = asked_plainly(baseline, label), asked_plainly(now, label)
        if old_prompts != new_prompts:
            found.append(
                f"the {label} test prompts are others ({len(old_prompts - new_prompts)} gone, "
                f"{len(new_prompts - old_prompts)} new, {len(old_prompts & new_prompts)} the same)"
            )
    return tuple(found)


def asked_plainly(verdicts: Baseline, label: PromptLabel) -> set[str]:
    """Hashes of the prompts of a label that were asked as they are."""
    return set(flags_of(verdicts, label, PLAIN))


def flags_of(verdicts: Baseline, label: PromptLabel, condition: str) -> dict[str, bool | None]:
    """By hash: whether the prompt was refused under a condition, None where that was not judged; asked prompts only."""
    return {key: _REFUSED[letter.upper()] for key, letter in _letters(verdicts, label, condition).items()}


def rate_of(verdicts: Baseline, label: PromptLabel, condition: str) -> Rate:
    """Refusals of the prompts of a label under a condition; degenerate completions are counted."""
    letters = _letters(verdicts, label, condition).values()
    flags = [_REFUSED[letter.upper()] for letter in letters]
    return rate(flags, degenerate=sum(letter.islower() for letter in letters)).model_copy(
        update={"judge": verdicts.judge}
    )


def _letters(verdicts: Baseline, label: PromptLabel, condition: str) -> dict[str, str]:
    """By hash; of prompts that were asked under the condition only."""
    if condition not in verdicts.conditions:
        return {}
    place = verdicts.conditions.index(condition)
    rows = verdicts.verdicts.get(label, {}).items()
    return {key: row[place] for key, row in rows if len(row) > place and row[place] != _NOT_ASKED}


def model_name(model: ModelIdentity) -> str:
    """The hub id, or the name of a local folder: where it lies is nobody's business but this machine's."""
    path = PureWindowsPath(model.id) if "\\" in model.id else PurePath(model.id)
    local = model.revision is None and (path.is_absolute() or model.id.startswith((".", "~")) or "\\" in model.id)
    return path.name if local else model.id


def _test_answers(folder: RunFolder, state: str) -> Iterable[CompletionRecord]:
    """Of a prompt that was answered twice under one condition the last answer counts, as in the run's own numbers."""
    last = {
        (record.label, record.condition, record.prompt_sha256): record
        for record in folder.completions.read(CompletionRecord)
        if record.split == "test" and record.intervention == state
    }
    return list(last.values())


def _families(summary: Summary, conditions: Iterable[str]) -> dict[str, str]:
    asked = set(conditions)
    measured = () if summary.pressure is None else summary.pressure.conditions
    return {each.name: each.family for each in sorted(measured, key=lambda one: one.name)
            if each.gated and each.name in asked}  # fmt: skip


def _rates(verdicts: Baseline) -> dict[str, Rate]:
    rates = {name: rate_of(verdicts, label, PLAIN) for name, label in RATES.items()}
    if verdicts.answers:
        right = rate(list(verdicts.answers.values()))
        rates[ACCURACY] = right.model_copy(update={"judge": _ANSWER_RULE})
    return rates


def _broken(baseline: Baseline) -> str:
    """What is wrong inside a baseline, in words."""
    if not baseline.conditions or baseline.conditions[0] != PLAIN:
        return "its conditions do not begin with plain"
    rows = [row for rows in baseline.verdicts.values() for row in rows.values()]
    if any(len(row) > len(baseline.conditions) or set(row.upper()) - {*_REFUSED, _NOT_ASKED} for row in rows):
        return "a row of verdicts holds other letters, or more of them than there are conditions"
    counted = _rates(baseline)
    kept = {name: (one.k, one.n, one.unjudged, one.degenerate) for name, one in baseline.rates.items()}
    if kept != {name: (one.k, one.n, one.unjudged, one.degenerate) for name, one in counted.items()}:
        return "its rates do not follow from its verdicts"
    return ""


def _quoted(text: str | None) -> str:
    """A text that may be long or absent, for a sentence."""
    if text is None or text == "":
        return "none"
    return repr(text) if len(text) <= 40 else f"{text[:37]!r}..."
