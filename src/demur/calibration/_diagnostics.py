"""What a reader needs beside the rates: fidelity, the noise of the model itself, stability of the choice, leakage."""

from collections.abc import Iterable, Mapping
from typing import Any

from demur.calibration._false_refusal_direction import Calibrated
from demur.calibration._refusal_direction import RefusalDirection
from demur.calibration._settings import CalibrationSettings
from demur.calibration._stability import false_refusal_stability, refusal_stability
from demur.calibration._study import Study
from demur.evaluation import Runner, measure_fidelity, noise_floor
from demur.interventions import Intervention
from demur.prompts import NEAR_DUPLICATE, PromptSet, find_leakage
from demur.records import LeakageReport, OperatingPoint, ScoreRecord, Stability
from demur.types import PromptLabel

_FIDELITY_PROMPTS = 128
_FIDELITY_TOKENS = 32
_NOISE_PROMPTS = 32
"""Of each label."""


def measured_twice(
    runner: Runner,
    prompts: Mapping[PromptLabel, PromptSet],
    intervention: Intervention | None,
    settings: CalibrationSettings,
    token_ids: Iterable[int] = (),
) -> dict[str, Any]:
    """The fields of a summary about fidelity, noise and leakage."""
    harmless = sorted(prompts["harmless"].split("test"), key=lambda prompt: prompt.sha256)[:_FIDELITY_PROMPTS]
    fidelity = None
    if intervention is not None:
        fidelity = measure_fidelity(
            runner.chat,
            intervention,
            [prompt.text for prompt in harmless],
            n_tokens=min(settings.max_new_tokens, _FIDELITY_TOKENS),
            folded=runner.chat.layout.packed is None,
            seed=settings.seed,
            progress=runner.progress,
        )
    tests = [prompt for prompt_set in prompts.values() for prompt in prompt_set.split("test")]
    return {
        "fidelity": fidelity,
        "noise_floor": noise_floor(runner, tests, token_ids=list(token_ids), most=_NOISE_PROMPTS),
        "leakage": find_leakage(prompts.values(), threshold=NEAR_DUPLICATE),
    }


def stability(study: Study, refusal: RefusalDirection, calibrated: Calibrated | None) -> tuple[Stability, ...]:
    """How often the chosen candidates win again, where the rule of the scores chose them; from stored scores alone."""
    scores, settings = study.folder.scores.read(ScoreRecord), study.settings
    found: list[Stability] = []
    if not refusal.card.unmet_filters:
        found.append(
            refusal_stability(
                scores,
                n_layers=study.chat.n_layers,
                kl_limit=settings.kl_limit,
                induce_minimum=study.induce_minimum,
                layer_fraction=settings.layer_fraction,
                seed=settings.seed,
            )
        )
    if calibrated is None:
        return tuple(found)
    point = calibrated.grid or calibrated.operating_point
    chosen = [row for row in calibrated.candidates if (row.lambda_, row.position, row.layer) == _place(point)]
    if any(row.rejected_by for row in chosen):  # judged answers chose it against a limit of scores
        return tuple(found)
    indices = study.scored_validation("harmful", refused=None)
    base = study.base_scores("harmful", "validation")[indices].tolist()
    found.append(
        false_refusal_stability(
            scores,
            strength=point.lambda_,
            kl_limit=settings.false_refusal_kl_limit,
            margin=settings.margin,
            before=[study.probability(score) for score in base] if study.threshold.tells else None,
            probability=study.probability,
            seed=settings.seed,
        )
    )
    return tuple(found)


def _place(point: OperatingPoint) -> tuple[float, int, int]:
    return point.lambda_, point.position, point.layer


def leakage_warnings(leakage: LeakageReport) -> list[str]:
    """One sentence for each set whose splits share prompts."""
    leaks: dict[str, list[str]] = {}
    for pair in leakage.pairs:
        if pair.kind == "splits" and (pair.exact or pair.near):
            copies = f"{pair.exact} copies and " if pair.exact else ""
            found = f"{copies}{pair.near or 0} near copies of {pair.left_split} prompts in {pair.right_split}"
            leaks.setdefault(pair.right, []).append(found)
    return [f"The splits of the {label} prompts are not apart: {', '.join(found)}." for label, found in leaks.items()]
