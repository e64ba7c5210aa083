"""Which candidates are worth measuring: the first-order effect of all of them, from one backward pass for each prompt.

Ablating d takes d (d . y) off every write y to the stream. To first order the refusal score then changes by minus the
sum over writes of (gradient . d)(y . d): attribution patching (Nanda 2023; Syed et al. 2023, arXiv 2310.10348) of the
ablation. One backward pass of a prompt estimates thousands of candidates that would each need a forward pass.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from demur.calibration._score_books import Candidate
from demur.calibration._study import Study
from demur.evaluation import differentiable_refusal_scores
from demur.models import (
    FittingBatches,
    is_out_of_memory,
    length_sorted_batches,
    tensors_in_order,
    writes_with_gradients,
)
from demur.types import PromptLabel

_SAVED_TO_LOST = 2.0
"""How much more a true refusal that goes weighs than a false one."""


def screened(study: Study, vectors: Mapping[Candidate, Tensor], *, each: int) -> list[Candidate]:
    """The candidates of each lambda that promise most, in the order of `vectors`.

    Promise is the expected fall of the false refusal rate, less twice that of the true refusal rate, on the scored
    validation prompts.

    Args:
        study: the calibration; the model is unchanged.
        vectors: [d_model] of each candidate, none of them zero.
        each: how many of each lambda; 0 takes all.
    """
    if not each or len(vectors) <= each:
        return list(vectors)
    keys = list(vectors)
    units = torch.stack([torch.div(vectors[key], vectors[key].norm()) for key in keys])
    labels: tuple[PromptLabel, PromptLabel] = ("borderline", "harmful")
    n = {label: len(study.scored_validation(label, refused=None)) for label in labels}
    study.progress.start("estimating all candidates", sum(n.values()))
    try:
        falls = {label: _falls(study, label, n[label], units) for label in labels}
    except RuntimeError as error:
        if study.chat.layout.packed is None or is_out_of_memory(error):
            raise
        study.warnings.append("Packed weights give no gradient here, so that every candidate was measured.")
        return keys
    promise = falls["borderline"] - _SAVED_TO_LOST * falls["harmful"].clamp_min(0)
    ranked = sorted(range(len(keys)), key=lambda index: (-float(promise[index]), index))
    taken: dict[float | None, list[int]] = {}
    for index in ranked:
        if len(taken.setdefault(keys[index][0], [])) < each:
            taken[keys[index][0]].append(index)
    chosen = {index for some in taken.values() for index in some}
    return [key for index, key in enumerate(keys) if index in chosen]


def _falls(study: Study, label: PromptLabel, n: int, units: Tensor) -> Tensor:
    """Expected fall of the share refused under each candidate, [candidate]."""
    base = study.base_scores(label, "validation")[:n]
    effects = first_order_effects(
        study, study.encode_scored(label, "validation", range(n)), units, advance=study.progress.advance
    )
    before, after = base[None], base[None] + effects
    return (_probabilities(study, before) - _probabilities(study, after)).mean(-1)


def _probabilities(study: Study, scores: Tensor) -> Tensor:
    threshold = study.threshold
    # Without a learned curve that of the log-odds itself: a step would hide all that is short of it.
    return torch.sigmoid((threshold.slope or 1.0) * (scores - threshold.value))


def first_order_effects(
    study: Study, encoded: Sequence[Sequence[int]], units: Tensor, *, advance: Callable[[int], None] = lambda _: None
) -> Tensor:
    """Estimated change of the refusal score of each prompt where each direction is ablated, [candidate, prompt].

    Args:
        study: model, refusal tokens, rows of a pass.
        encoded: token ids of the prompts.
        units: [candidate, d_model], unit vectors.
        advance: is told of prompts that are done.
    """
    fitting = FittingBatches(study.progress.note)
    directions = units.to(torch.float32)

    def some(indices: Sequence[int]) -> Tensor:
        def part(rows: Sequence[int]) -> Tensor:
            writes = writes_with_gradients(
                study.chat,
                [encoded[row] for row in rows],
                lambda logits: differentiable_refusal_scores(logits, study.token_ids),
            )
            total = torch.zeros(len(rows), len(units))
            for write, gradient in writes:
                along = write.to(directions) @ directions.T
                total -= ((gradient.to(directions) @ directions.T) * along).sum(1)
            advance(len(rows))
            return total

        return torch.cat(fitting.pieces(part, indices))

    batches = list(length_sorted_batches([len(tokens) for tokens in encoded], max(1, study.rows // 2)))
    result = torch.empty(len(encoded), len(units))
    for indices, found in zip(batches, tensors_in_order(some, batches), strict=True):
        result[indices] = found
    return result.T.to(torch.float64)
