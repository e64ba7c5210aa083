"""How well a judge agrees with human labels: confusion matrix, Cohen's kappa with intervals, rates per model."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from demur.errors import InputError
from demur.evaluation._judge import Judge
from demur.records import Agreement, JudgeIdentity, JudgeQuality
from demur.types import Verdict

_RESAMPLES = 2000
_CATEGORIES: tuple[Verdict, Verdict, Verdict] = ("full_refusal", "partial_refusal", "full_compliance")
_COLUMNS = ("prompt", "completion", "human_label")


@dataclass(frozen=True)
class LabelledAnswer:
    """One completion with the label that people gave it."""

    prompt: str
    completion: str
    label: Verdict
    model: str


def read_labels(path: Path) -> list[LabelledAnswer]:
    """Read a JSON Lines file with the columns prompt, completion, human_label and, if there, model.

    Raises:
        InputError: the file cannot be read, or a line lacks a column or has an unknown label.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the labels {path}: {error}.") from error
    answers = [_labelled(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not answers:
        raise InputError(f"{path} holds no labelled answer; each line is a JSON object with {', '.join(_COLUMNS)}.")
    return answers


def _labelled(line: str, where: str) -> LabelledAnswer:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is no JSON: {error.msg}.") from error
    missing = [name for name in _COLUMNS if not isinstance(row, dict) or not isinstance(row.get(name), str)]
    if missing:
        raise InputError(f"{where} has no text in {', '.join(missing)}; the columns are {', '.join(_COLUMNS)}, model.")
    if row["human_label"] not in _CATEGORIES:
        known = ", ".join(_CATEGORIES)
        raise InputError(f"{where} has the human_label {row['human_label']!r}; the labels are {known}.")
    return LabelledAnswer(row["prompt"], row["completion"], row["human_label"], str(row.get("model", "all")))


def measure_judge(judge: Judge, answers: Sequence[LabelledAnswer], *, seed: int = 0) -> JudgeQuality:
    """Judge every answer and compare with the labels; unjudged ones are counted and left out of the kappas."""
    judgements = judge.judge_batch([(answer.prompt, answer.completion) for answer in answers])
    pairs = [(answer, judged.verdict) for answer, judged in zip(answers, judgements, strict=True)]
    confusion = Counter((answer.label, verdict) for answer, verdict in pairs)
    per_model = {
        model: Agreement(**_agreement([pair for pair in pairs if pair[0].model == model], seed=seed))
        for model in sorted({answer.model for answer in answers})
    }
    return JudgeQuality(
        judge=JudgeIdentity(id=judge.id, version=judge.version),
        confusion={
            label: {verdict: confusion[label, verdict] for verdict in get_args(Verdict)} for label in _CATEGORIES
        },
        per_model=per_model,
        **_agreement(pairs, seed=seed),
    )


def _agreement(pairs: Sequence[tuple[LabelledAnswer, Verdict]], *, seed: int) -> dict[str, Any]:
    judged = [(answer.label, verdict) for answer, verdict in pairs if verdict != "unjudged"]
    table = np.array([[_CATEGORIES.index(label) for label in pair] for pair in judged], dtype=np.int64).reshape(-1, 2)
    complied = table == _CATEGORIES.index("full_compliance")
    any_refusal, three_way = _kappa(complied.astype(np.int64), seed=seed), _kappa(table, seed=seed)
    return {
        "n": len(pairs),
        "unjudged": len(pairs) - len(judged),
        "kappa_any_refusal": any_refusal[0],
        "kappa_any_refusal_interval": any_refusal[1],
        "kappa_three_way": three_way[0],
        "kappa_three_way_interval": three_way[1],
        "refused_by_human": sum(answer.label != "full_compliance" for answer, _ in pairs) / len(pairs),
        "refused_by_judge": float(1 - complied[:, 1].mean()) if len(judged) else None,
    }


def _kappa(table: np.ndarray, *, seed: int) -> tuple[float | None, tuple[float, float] | None]:
    """Kappa with a percentile bootstrap interval over answers."""
    generator = np.random.default_rng(seed)
    drawn = [
        cohen_kappa(table[generator.integers(len(table), size=len(table))]) for _ in range(_RESAMPLES) if len(table)
    ]
    finite = [value for value in drawn if value is not None]
    interval = (float(np.quantile(finite, 0.025)), float(np.quantile(finite, 0.975))) if finite else None
    return cohen_kappa(table), interval


def cohen_kappa(pairs: np.ndarray) -> float | None:
    """Cohen's (1960) kappa of [n, 2] category numbers; None where agreement by chance is certain."""
    if not len(pairs):
        return None
    size = int(pairs.max()) + 1
    counts = np.zeros((size, size))
    np.add.at(counts, (pairs[:, 0], pairs[:, 1]), 1)
    shares = counts / len(pairs)
    chance = float(shares.sum(0) @ shares.sum(1))
    return None if chance >= 1 else float((np.trace(shares) - chance) / (1 - chance))
