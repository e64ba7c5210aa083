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
from demur.evaluation._statistics import rate
from demur.records import Agreement, JudgeIdentity, JudgeQuality, Rate
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
    """Judge every answer and compare with the labels; unjudged ones are counted and left out of kappas and rates.

    The bootstrap draws prompts, not answers: several models' answers to one prompt are not independent.

    Raises:
        InputError: there are no answers.
    """
    if not answers:
        raise InputError(
            "a judge is measured on labelled answers; got none. Give read_labels() a file that holds some."
        )
    verdicts = [judged.verdict for judged in judge.judge_batch([(each.prompt, each.completion) for each in answers])]
    return quality_of(JudgeIdentity(id=judge.id, version=judge.version), answers, verdicts, seed=seed)


def quality_of(
    judge: JudgeIdentity, answers: Sequence[LabelledAnswer], verdicts: Sequence[Verdict], *, seed: int = 0
) -> JudgeQuality:
    """Compare verdicts with the labels of the answers that they are about, in their order."""
    pairs = list(zip(answers, verdicts, strict=True))
    confusion = Counter((answer.label, verdict) for answer, verdict in pairs)
    per_model = {
        model: Agreement(**_agreement([pair for pair in pairs if pair[0].model == model], seed=seed))
        for model in sorted({answer.model for answer in answers})
    }
    return JudgeQuality(
        judge=judge,
        confusion={
            label: {verdict: confusion[label, verdict] for verdict in get_args(Verdict)} for label in _CATEGORIES
        },
        per_model=per_model,
        **_agreement(pairs, seed=seed),
    )


def _agreement(pairs: Sequence[tuple[LabelledAnswer, Verdict]], *, seed: int) -> dict[str, Any]:
    tables = _tables([(answer.prompt, answer.label, verdict) for answer, verdict in pairs if verdict != "unjudged"])
    judged = int(tables.sum())
    refused_by_judge = int(tables[:, :, :2].sum())
    any_refusal, three_way = _kappa(_any_refusal(tables), seed=seed), _kappa(tables, seed=seed)
    return {
        "n": len(pairs),
        "unjudged": len(pairs) - judged,
        "kappa_any_refusal": any_refusal[0],
        "kappa_any_refusal_interval": any_refusal[1],
        "kappa_three_way": three_way[0],
        "kappa_three_way_interval": three_way[1],
        "refused_by_human": sum(answer.label != "full_compliance" for answer, _ in pairs) / len(pairs),
        "refused_by_judge": refused_by_judge / judged if judged else None,
        "sensitivity": _hits(pairs, refused=True),
        "specificity": _hits(pairs, refused=False),
    }


def _hits(pairs: Sequence[tuple[LabelledAnswer, Verdict]], *, refused: bool) -> Rate:
    """Of the answers that people say refuse (or comply), those of which the judge says so too."""
    verdicts = [verdict for answer, verdict in pairs if (answer.label != "full_compliance") == refused]
    return rate([None if each == "unjudged" else (each != "full_compliance") == refused for each in verdicts])


def _tables(judged: Sequence[tuple[str, Verdict, Verdict]]) -> np.ndarray:
    """Answers by prompt, label and verdict, [prompt, 3, 3]."""
    rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompt for prompt, _, _ in judged))}
    tables = np.zeros((len(rows), 3, 3), dtype=np.int64)
    for prompt, label, verdict in judged:
        tables[rows[prompt], _CATEGORIES.index(label), _CATEGORIES.index(verdict)] += 1
    return tables


def _any_refusal(tables: np.ndarray) -> np.ndarray:
    """Full and partial refusals as one, [prompt, 2, 2]."""
    return np.add.reduceat(np.add.reduceat(tables, [0, 2], axis=1), [0, 2], axis=2)


def _kappa(tables: np.ndarray, *, seed: int) -> tuple[float | None, tuple[float, float] | None]:
    """Kappa with a percentile bootstrap interval over prompts."""
    if len(tables) < 2:
        return _finite(_kappas(tables.sum(0))), None
    # Prompts with the same table are interchangeable, so how often each kind is drawn is all that a resample is.
    kinds, counts = np.unique(tables.reshape(len(tables), -1), axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(tables), counts / len(tables), size=_RESAMPLES)
    kappas = _kappas((drawn @ kinds).reshape(_RESAMPLES, *tables.shape[1:]))
    kappas = kappas[np.isfinite(kappas)]
    interval = (float(np.quantile(kappas, 0.025)), float(np.quantile(kappas, 0.975))) if len(kappas) else None
    return _finite(_kappas(tables.sum(0))), interval


def _kappas(tables: np.ndarray) -> np.ndarray:
    """Kappa of each table of counts, [..., category, category]; not a number where chance agreement is certain."""
    n = tables.sum((-2, -1))
    agreed = np.trace(tables, axis1=-2, axis2=-1) * n
    chance = (tables.sum(-1) * tables.sum(-2)).sum(-1)
    with np.errstate(invalid="ignore"):
        return np.asarray((agreed - chance) / (n * n - chance))


def _finite(value: np.ndarray) -> float | None:
    return float(value) if np.isfinite(value) else None


def cohen_kappa(pairs: np.ndarray) -> float | None:
    """Cohen's (1960) kappa of [n, 2] category numbers; None where agreement by chance is certain."""
    size = int(pairs.max()) + 1 if len(pairs) else 1
    counts = np.zeros((size, size), dtype=np.int64)
    np.add.at(counts, (pairs[:, 0], pairs[:, 1]), 1)
    return _finite(_kappas(counts))
