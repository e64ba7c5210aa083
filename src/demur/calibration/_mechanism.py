"""Is the refusal direction causal? Ablating and adding it on test prompts, in memory: only the rates are kept."""

import torch

from demur.calibration._study import Study
from demur.directions import Direction
from demur.evaluation import refusal_rate
from demur.interventions import ActivationAddition, DirectionalAblation, Intervention
from demur.records import Mechanism, Rate, read_record, write_record
from demur.types import PromptLabel


def measure_mechanism(study: Study, refusal: Direction) -> Mechanism:
    """Refusal removed by ablating r, refusal induced by adding r, and the same for a random direction."""
    path = study.folder.mechanism
    if path.exists():
        return read_record(path, Mechanism)
    generator = torch.Generator().manual_seed(study.settings.seed)
    random = torch.randn(refusal.vector.shape, generator=generator, dtype=torch.float64)
    random = random / random.norm() * refusal.norm
    study.progress.start("testing what the refusal direction does", 4 * study.settings.n_mechanism)
    mechanism = Mechanism(
        true_refusal_rate_r_ablated=_rate(study, "harmful", DirectionalAblation(refusal.vector)),
        harmless_refusal_rate_r_added=_rate(study, "harmless", ActivationAddition(refusal.vector, refusal.layer)),
        true_refusal_rate_random_ablated=_rate(study, "harmful", DirectionalAblation(random)),
        harmless_refusal_rate_random_added=_rate(study, "harmless", ActivationAddition(random, refusal.layer)),
    )
    write_record(path, mechanism)
    return mechanism


def _rate(study: Study, label: PromptLabel, intervention: Intervention) -> Rate:
    prompts = study.split(label, "test")[: study.settings.n_mechanism]
    # Hooks, not folded weights, and nothing recorded: this is a measurement of an attack, not an operating point.
    records = study.runner.complete(
        prompts, condition="mechanism", split="test", intervention=intervention, folded=False, record=False
    )
    return refusal_rate(records)
