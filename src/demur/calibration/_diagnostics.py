"""What a reader needs beside the rates: fidelity, the noise of the model itself, stability of the choice, leakage."""

from collections.abc import Iterable, Mapping
from typing import Any

from demur.calibration._settings import CalibrationSettings
from demur.calibration._stability import false_refusal_stability, refusal_stability
from demur.evaluation import PRESSURE_MARGIN, Runner, measure_fidelity, noise_floor
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


def stability(
    scores: list[ScoreRecord],
    settings: CalibrationSettings,
    point: OperatingPoint,
    *,
    n_layers: int,
    n_harmful: int,
) -> tuple[Stability, ...]:
    """How often both chosen candidates win again; from stored scores alone."""
    return (
        refusal_stability(
            scores,
            n_layers=n_layers,
            kl_limit=settings.kl_limit,
            induce_minimum=settings.induce_minimum,
            layer_fraction=settings.layer_fraction,
            seed=settings.seed,
        ),
        false_refusal_stability(
            scores,
            strength=point.lambda_,
            kl_limit=settings.false_refusal_kl_limit,
            margin=settings.margin,
            pressure_margin=PRESSURE_MARGIN,
            n_harmful=n_harmful,
            seed=settings.seed,
        ),
    )


def leakage_warnings(leakage: LeakageReport) -> list[str]:
    """One sentence for each set whose splits share prompts."""
    leaks: dict[str, list[str]] = {}
    for pair in leakage.pairs:
        if pair.kind == "splits" and (pair.exact or pair.near):
            copies = f"{pair.exact} copies and " if pair.exact else ""
            found = f"{copies}{pair.near or 0} near copies of {pair.left_split} prompts in {pair.right_split}"
            leaks.setdefault(pair.right, []).append(found)
    return [f"The splits of the {label} prompts are not apart: {', '.join(found)}." for label, found in leaks.items()]
