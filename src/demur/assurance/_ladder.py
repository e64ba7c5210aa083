"""The ablation ladder: how many directions hold refusal up (after Arditi et al. section 3, made adaptive).

Each direction is extracted from the model in which the earlier ones are ablated already, so a defence that only moved
refusal to another direction is met there. A random subspace of the same rank is the control.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from demur.activations import mean_activations, stream_at
from demur.assurance._audit_study import AuditStudy
from demur.directions import difference_in_means
from demur.evaluation import kl_after, logits_after, scores_after
from demur.interventions import ActivationAddition, Combined, DirectionalAblation, Intervention
from demur.records import Ladder, LadderRung
from demur.types import PromptLabel

Place = tuple[int, int]
"""Position (negative) and layer."""
_LABELS: tuple[PromptLabel, PromptLabel] = ("harmful", "harmless")
_LAYER_FRACTION = 0.8
"""Of the layers, as in both papers."""
_KL_LIMIT = 0.5
"""Nats, on harmless validation prompts: candidates that change more are taken only if there are no others."""


def ablation_to_mean(basis: Tensor, harmless: Tensor) -> Intervention:
    """Set the coordinates in the span of a basis to those of the mean harmless prompt (ACE, arXiv 2411.09003).

    Every write is ablated, so the stream has only what is added at the input of each block: the step from the mean's
    coordinates at the layer before to those at this one.

    Args:
        basis: [k, d_model], orthonormal.
        harmless: mean block inputs of harmless prompts at one position, [layer, d_model].
    """
    coordinates = harmless.to(basis) @ basis.T @ basis
    steps = torch.diff(coordinates, dim=0, prepend=torch.zeros_like(coordinates[:1]))
    additions = [ActivationAddition(step, layer) for layer, step in enumerate(steps)]
    return Combined([DirectionalAblation(basis), *additions])


@dataclass(frozen=True)
class Chain:
    """Directions in the order in which they were found."""

    directions: Tensor
    """[k, d_model], orthonormal, float64."""
    places: tuple[Place, ...]


def extend(basis: Tensor, direction: Tensor) -> Tensor:
    """The basis with what is new in a direction as its next row; the basis itself where nothing is new."""
    new = direction.to(basis) - basis.T @ (basis @ direction.to(basis))
    new = new - basis.T @ (basis @ new)  # twice: rounding of the first leaves a trace where little is new
    norm = new.norm()
    if norm <= 1e-6 * direction.norm() or not torch.isfinite(norm):
        return basis
    return torch.cat([basis, (new / norm)[None]])


def chain_of_means(study: AuditStudy, longest: int) -> Chain:
    """r, then differences in means of the model without the earlier ones, each the best at removing refusal."""
    refusal = study.directions.refusal
    basis, places = refusal.unit[None], [(refusal.position, refusal.layer)]
    harmful, harmless = (_encoded(study, label) for label in _LABELS)
    base = logits_after(study.chat, harmless, batch_size=study.settings.batch_size, check=False)
    study.progress.start("extracting directions anew", longest - 1)
    while len(basis) < longest:
        with DirectionalAblation(basis).applied_to(study.chat):
            found = _candidates(study, basis, places[0])
            if not found:
                break
            best = _best(study, [unit for _, unit in found], harmful, harmless, base)
        place, unit = found[best]
        basis, places = torch.cat([basis, unit[None]]), [*places, place]
        study.progress.advance()
    return Chain(basis, tuple(places))


def _candidates(study: AuditStudy, basis: Tensor, first: Place) -> list[tuple[Place, Tensor]]:
    """Differences in means of the model as it is now, without what lies in a basis, as unit vectors."""
    n_positions = len(study.chat.template.post_instruction_tokens())
    means = [
        mean_activations(
            study.chat,
            study.texts(label, "train", study.settings.n_fit),
            n_positions=n_positions,
            batch_size=study.settings.batch_size,
        )
        for label in _LABELS
    ]
    differences = difference_in_means(means[0], means[1])
    # All layers at the place of r and all positions at its layer: every pair would cost a calibration at each rank.
    layers = {(first[0], layer) for layer in range(int(_LAYER_FRACTION * study.chat.n_layers))}
    places = sorted(layers | {(position, first[1]) for position in range(-n_positions, 0)})
    longer = [(place, extend(basis, differences[place])) for place in places]
    return [(place, rows[-1]) for place, rows in longer if len(rows) > len(basis)]


def _best(
    study: AuditStudy,
    units: Sequence[Tensor],
    harmful: Sequence[Sequence[int]],
    harmless: Sequence[Sequence[int]],
    base: Tensor,
) -> int:
    """The candidate that leaves the lowest refusal score when it is ablated as well, among those of small KL."""
    scores, divergences, size = [], [], study.settings.batch_size
    for unit in units:
        with DirectionalAblation(unit).applied_to(study.chat):
            scores.append(
                scores_after(study.chat, harmful, study.directions.tokens, batch_size=size, check=False).mean()
            )
            divergences.append(kl_after(study.chat, harmless, base, batch_size=size, check=False).mean())
    kl = torch.stack(divergences)
    usable = kl <= max(_KL_LIMIT, float(kl.min()))
    return int(torch.where(usable, torch.stack(scores), torch.inf).argmin())


def _encoded(study: AuditStudy, label: PromptLabel) -> list[list[int]]:
    return study.chat.encode(study.texts(label, "validation", study.settings.n_scored))


def chain_of_components(study: AuditStudy, longest: int) -> Chain:
    """r, then principal components, at its place, of harmful activations minus the harmless mean without r.

    They are not centred, so that a mean difference that came back is the first of them.
    """
    refusal, chat = study.directions.refusal, study.chat
    basis = refusal.unit[None]
    with DirectionalAblation(basis).applied_to(chat):
        streams = [
            stream_at(
                chat,
                study.texts(label, "train", study.settings.n_fit),
                layer=refusal.layer,
                position=refusal.position,
                batch_size=study.settings.batch_size,
            )
            for label in _LABELS
        ]
    _, _, components = torch.linalg.svd(streams[0] - streams[1].mean(0), full_matrices=False)
    for component in components:
        if len(basis) == longest:
            break
        basis = extend(basis, component)
    return Chain(basis, ((refusal.position, refusal.layer),) * len(basis))


def measure_ladder(study: AuditStudy) -> Ladder:
    """Rates with extracted subspaces and random ones ablated, at every rank of the settings; rank 0 is at rest."""
    settings, refusal = study.settings, study.directions.refusal
    harmful, harmless = (
        mean_activations(
            study.chat,
            study.texts(label, "train", settings.n_fit),
            n_positions=-refusal.position,
            batch_size=settings.batch_size,
        ).mean[0]
        for label in _LABELS
    )
    rungs = _rungs(study, harmless)
    study.progress.start("climbing the ablation ladder", 2 * settings.n_test * len(rungs))
    projections = [float(mean[refusal.layer] @ refusal.unit) for mean in (harmful, harmless)]
    return Ladder(
        rungs=tuple(
            rung.model_copy(update={"rates": study.measure(attack, most=settings.n_test)}) for rung, attack in rungs
        ),
        harmful_projection=projections[0],
        harmless_projection=projections[1],
        zero_refuses=abs(projections[0]) < abs(projections[1]),
        n_fit={label: len(study.texts(label, "train", settings.n_fit)) for label in _LABELS},
    )


def _rungs(study: AuditStudy, harmless: Tensor) -> list[tuple[LadderRung, Intervention]]:
    """Every rung with the attack that it stands for; its rates are those at rest until they are measured."""
    ranks = [rank for rank in study.settings.ranks if rank < study.chat.layout.d_model]
    means, components = chain_of_means(study, ranks[-1]), chain_of_components(study, ranks[-1])
    blank = LadderRung(kind="means", rank=0, reference="zero", rates=study.rest(study.settings.n_test))
    rungs: list[tuple[LadderRung, Intervention]] = []

    def add(attack: Intervention, **fields: Any) -> None:
        rungs.append((blank.model_copy(update=fields), attack))

    for rank in ranks:
        for kind, chain in (("means", means), ("components", components)):
            basis, places = chain.directions[:rank], chain.places[:rank]
            if len(basis) < rank or (kind == "components" and rank == 1):
                continue  # the first component is the first mean: r
            add(DirectionalAblation(basis), kind=kind, rank=rank, places=places)
            if kind == "means":
                attack = ablation_to_mean(basis, harmless)
                add(attack, kind=kind, rank=rank, places=places, reference="harmless mean")
        for seed in range(study.settings.random_seeds):
            drawn = torch.randn(rank, study.chat.layout.d_model, generator=study.generator(seed), dtype=torch.float64)
            add(DirectionalAblation(drawn), kind="random", rank=rank, seed=seed)
    return rungs
