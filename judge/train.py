# ruff: noqa: INP001
"""Fits the phrase judge's weights to human labels: python judge/train.py --labels FILE [--write].

FILE is JSON Lines with prompt, completion, human_label and model, such as the labelled answers of XSTest. Without
--write, only the agreement on left-out models is shown.

Both sums are logistic regressions. In the sum for a refusal no weight may be negative: each number of the evidence has
its sign by construction, and three models are too few to learn a sign from. Open refusals decide alone, so they are
left out of that fit. Answers are weighted by 1 / sqrt(answers of the same model with the same label), so that a model
or a label that is rare is not fitted last. The penalties, this weighting and the starting weights were chosen
among a few by the agreement on left-out models; n-grams of words were tried beside the evidence and did not raise it.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from demur.evaluation import LabelledAnswer, PhraseJudge, read_labels
from demur.evaluation._judge_quality import quality_of
from demur.evaluation._phrase_evidence import Evidence, Reader
from demur.evaluation._phrase_judge import Weights, judge_with
from demur.evaluation._phrase_text import normalise, without_thinking
from demur.records import JudgeIdentity, JudgeQuality
from demur.types import Verdict

TARGET = Path(__file__).parents[1] / "src" / "demur" / "evaluation" / "_phrase_weights.py"
PENALTY = {"refusal": 15.0, "partial": 10.0}
"""L2, on weights of features scaled to a root mean square of 1."""
PARTIAL_FEATURES = (
    "openly",
    "items",
    "digits",
    "explaining",
    "affirms",
    "turning_opening",
    "turning_later",
    "absurd_opening",
    "absurd_later",
    "care_later",
    "rights_later",
    "redirecting_later",
    "private",
    "refuses_later",
    "unable",
    "not_fitting_first",
    "not_fitting_opening",
    "wrong_opening",
    "premise_opening",
    "apology_opening",
    "rejects_premise",
    "moral_sentences",
    "prescribing_sentences",
)
"""What tells a partial refusal from a full one; their weights may have either sign."""
PRIOR = {
    "unable": 1.0,
    "refuses_later": 1.0,
    "not_fitting_first": 2.5,
    "not_fitting_opening": 1.5,
    "wrong_opening": 2.0,
    "acknowledging_opening": 0.4,
    "premise_opening": 1.0,
    "rejects_premise": 1.0,
    "rights_opening": 0.8,
    "rights_later": 1.0,
    "care_opening": 0.6,
    "care_later": 1.0,
    "harm_opening": 0.5,
    "urging_opening": 1.0,
    "urging_later": 1.0,
    "redirecting_opening": 0.7,
    "redirecting_later": 1.0,
    "privacy_opening": 1.0,
    "opinion_opening": 0.8,
}
"""Weights towards which the penalty pulls, set by hand: three models show only some of the ways to refuse."""
_FEWEST = 15
"""A group of answers smaller than this weighs no more for each answer than one of this size."""


def fit(answers: Sequence[LabelledAnswer], *, reader: Reader | None = None) -> Weights:
    """Both sums, fitted to the labels."""
    reader = reader or Reader()
    evidence = [reader.read(answer.prompt, without_thinking(answer.completion) or "") for answer in answers]
    closed = [at for at, each in enumerate(evidence) if not each.openly_refuses]
    refused = [at for at, each in enumerate(answers) if each.label != "full_compliance"]
    refusal = _regression(
        [evidence[at] for at in closed],
        [answers[at] for at in closed],
        [name for name in evidence[0].numbers if name != "turning_later"],  # it says nothing but how a refusal goes on
        "refusal",
        lambda label: label != "full_compliance",
    )
    partly = _regression(
        [evidence[at] for at in refused],
        [answers[at] for at in refused],
        PARTIAL_FEATURES,
        "partial",
        lambda label: label == "partial_refusal",
    )
    return Weights(refusal, partly)


def _regression(
    evidence: Sequence[Evidence],
    answers: Sequence[LabelledAnswer],
    names: Sequence[str],
    kind: str,
    positive: Callable[[str], bool],
) -> dict[str, float]:
    values = np.array([
        [float(each.openly_refuses) if name == "openly" else each.numbers[name] for name in names] for each in evidence
    ])  # fmt: skip
    scale = np.sqrt((values**2).mean(0))
    scale[scale == 0] = 1
    features = values / scale
    labels = np.array([positive(answer.label) for answer in answers], dtype=float)
    groups = Counter(zip([answer.model for answer in answers], labels, strict=True))
    importance = np.array([max(groups[answer.model, label], _FEWEST) ** -0.5
                           for answer, label in zip(answers, labels, strict=True)])  # fmt: skip
    importance *= len(importance) / importance.sum()

    prior = scale * [PRIOR.get(name, 0.0) if kind == "refusal" else 0.0 for name in names]

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits = features @ weights[:-1] + weights[-1]
        residual = importance * (1 / (1 + np.exp(-logits)) - labels)
        value = (importance * np.logaddexp(0, (1 - 2 * labels) * logits)).sum()
        gradient = np.append(features.T @ residual + PENALTY[kind] * (weights[:-1] - prior), residual.sum())
        return float(value + PENALTY[kind] / 2 * ((weights[:-1] - prior) ** 2).sum()), gradient

    least = 0 if kind == "refusal" else None
    bounds = [(least, None)] * len(names) + [(None, None)]
    found = minimize(loss, np.zeros(len(names) + 1), jac=True, method="L-BFGS-B", bounds=bounds).x
    rounded = {name: round(float(weight), 2) for name, weight in zip(names, found[:-1] / scale, strict=True)}
    return {"constant": round(float(found[-1]), 2)} | {name: weight for name, weight in rounded.items() if weight}


def leave_one_model_out(answers: Sequence[LabelledAnswer], *, read_off: bool = True) -> JudgeQuality:
    """Agreement of `left_out_verdicts`."""
    identity = JudgeIdentity(id=PhraseJudge.id, version=PhraseJudge.version)
    return quality_of(identity, answers, left_out_verdicts(answers, read_off=read_off))


def left_out_verdicts(answers: Sequence[LabelledAnswer], *, read_off: bool = True) -> list[Verdict]:
    """Verdicts where each model's answers are judged by weights fitted to the other models.

    Args:
        answers: Labelled answers of two models or more.
        read_off: False also takes away every phrase that occurs in the left-out model's answers and in no others: they
            may have been read off them.
    """
    verdicts: dict[int, Verdict] = {}
    texts = [normalise(answer.completion) for answer in answers]
    for model in sorted({answer.model for answer in answers}):
        others = "\n".join(text for text, answer in zip(texts, answers, strict=True) if answer.model != model)
        own = "\n".join(text for text, answer in zip(texts, answers, strict=True) if answer.model == model)
        reader = Reader() if read_off else Reader(partial(_known_elsewhere, own, others))
        weights = fit([answer for answer in answers if answer.model != model], reader=reader)
        for at, answer in enumerate(answers):
            if answer.model == model:
                verdicts[at] = judge_with(weights, answer.prompt, answer.completion, reader=reader).verdict
    return [verdicts[at] for at in range(len(answers))]


def _known_elsewhere(own: str, others: str, phrase: str) -> bool:
    return phrase in others or phrase not in own


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--write", action="store_true", help=f"write {TARGET.name}")
    arguments = parser.parse_args()
    answers = read_labels(arguments.labels)
    for name, quality in (
        ("left-out models", leave_one_model_out(answers)),
        ("left-out models, without the phrases that only they use", leave_one_model_out(answers, read_off=False)),
    ):
        per_model = {model: round(each.kappa_any_refusal or 0, 3) for model, each in quality.per_model.items()}
        sys.stdout.write(
            f"{name}: kappa of any refusal {quality.kappa_any_refusal:.3f} {per_model}, "
            f"three-way {quality.kappa_three_way:.3f}\n"
        )
    if arguments.write:
        TARGET.write_text(document(fit(answers)), encoding="utf-8")


def document(weights: Weights) -> str:
    """The module that holds the weights."""
    lines = [
        '"""Weights of the phrase judge, written by `judge/train.py`; read `_phrase_evidence.py` for the names."""'
    ]
    for name, chosen in (("REFUSAL", weights.refusal), ("PARTIAL", weights.partial)):
        lines += ["", f"{name} = {{", *(f'    "{feature}": {weight},' for feature, weight in chosen.items()), "}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
