"""The candidates of one study as a race: what is measured on which of its prompts, and what is told of it."""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from demur.calibration._racing import Race, Watched
from demur.calibration._score_books import Candidate, Kind, PieceBook
from demur.calibration._study import Study
from demur.calibration._sweep import ReadLogits, ScoredPrompts, Sweep, telling_first
from demur.evaluation import LARGEST_SCORE, kl_divergences, refusal_scores
from demur.models import FittingBatches, world
from demur.types import PromptLabel

GREATEST = LARGEST_SCORE + 1e-6
"""No refusal score is further from 0: epsilon bounds it, up to rounding."""


def prompts_for_scores(
    study: Study,
    label: PromptLabel,
    indices: Sequence[int],
    *,
    telling: Literal["high", "low"],
    adds: bool = False,
) -> ScoredPrompts:
    """Validation prompts on which refusal scores are measured.

    Args:
        study: the study.
        label: which set.
        indices: which prompts of its validation split.
        telling: whose base scores say most, so that they are measured first: the half with the highest or the lowest.
        adds: whether candidates are added, not ablated.
    """
    encoded = study.encode_scored(label, "validation", indices)
    base = study.base_scores(label, "validation")[list(indices)].tolist()
    order = telling_first(encoded, [-score if telling == "high" else score for score in base], len(base) // 2)
    return ScoredPrompts(encoded, _refusal_scores_of(study), tuple(base), order, adds)


def _refusal_scores_of(study: Study) -> ReadLogits:
    return lambda logits, _: refusal_scores(logits, study.token_ids)


def prompts_for_kl(study: Study, indices: Sequence[int]) -> ScoredPrompts:
    """Harmless validation prompts on which the change of the next token is measured."""
    encoded = study.encode("harmless", "validation", indices)
    base = study.base_logits("harmless", "validation")

    def read(logits: Tensor, rows: Sequence[int]) -> Tensor:
        return kl_divergences(base[[indices[row] for row in rows]], logits)

    return ScoredPrompts(encoded, read, (0.0,) * len(encoded), telling_first(encoded, [0.0] * len(encoded), 0))


def race_of(
    study: Study, task: str, vectors: Mapping[Candidate, Tensor], prompts: Mapping[Kind, ScoredPrompts]
) -> tuple[Race[Candidate], Sweep]:
    """A race between candidates, and the sweep that measures them."""
    pieces, fitting = PieceBook(study.folder.score_pieces), FittingBatches(study.progress.note)
    sweep = Sweep(study.chat, vectors, prompts, study.scores, pieces, study.rows, fitting)
    watched = Watched(study.progress, task, len(vectors))
    race: Race[Candidate] = Race(
        sweep.measure,
        study.rows,
        heats=sweep.heats,
        lanes=world().size,
        watch=lambda: watched.tell(race.rejected, race.outscored),
    )
    watched.start()
    return race, sweep
