"""The refusal direction alone, for tools that watch or test a model and choose no operating point."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from demur.calibration._refusal_direction import find_refusal_direction
from demur.calibration._settings import CalibrationSettings
from demur.calibration._study import Study
from demur.directions import Direction
from demur.evaluation import Judge, PhraseJudge, Runner
from demur.models import ChatModel
from demur.prompts import PromptSet
from demur.records import RefusalThreshold, RefusalToken, RunFolder
from demur.types import Progress, PromptLabel, SilentProgress

BATCH_SIZE = 64
"""Where the settings leave it open: one that was measured would differ from run to run, and so would last digits."""


@dataclass(frozen=True)
class FoundDirection:
    """What the first half of a calibration finds."""

    direction: Direction
    candidates: Tensor
    """Difference in means at every place, [position, layer, d_model], float64; positions count from the earliest."""
    refusal_tokens: tuple[RefusalToken, ...]
    threshold: RefusalThreshold
    """From which refusal score on the model refuses."""


def refusal_direction_of(
    chat: ChatModel,
    prompts: Mapping[PromptLabel, PromptSet],
    *,
    settings: CalibrationSettings | None = None,
    judge: Judge | None = None,
    progress: Progress | None = None,
) -> FoundDirection:
    """Find the refusal direction of a model (Arditi et al. section 2.3): fitted on train, chosen on validation prompts.

    Nothing is kept on disk. Under an intervention (inside its context) this finds the direction of the changed model.

    Args:
        chat: the model.
        prompts: at least harmful and harmless prompts, with splits.
        settings: as of a calibration.
        judge: of the answers by which refusal tokens are found; by default the phrase judge.
        progress: is told what is being done.

    Raises:
        SelectionError: no candidate passes the filters.
        ModelError: the model does not refuse, refuses everything, or has non-finite activations.
    """
    settings = settings or CalibrationSettings()
    settings = replace(settings, batch_size=settings.batch_size or BATCH_SIZE)
    progress = progress or SilentProgress()
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(scratch)
        runner = Runner(
            chat,
            judge or PhraseJudge(),
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            progress=progress,
        )
        study = Study(chat, prompts, settings, folder, runner, progress)
        found = find_refusal_direction(study)
        return FoundDirection(found.direction, found.candidates, study.refusal_tokens, study.threshold)
