"""The directions that assurance works with: those of a calibration, or found for the model at hand."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from demur.calibration import CalibrationSettings, refusal_direction_of
from demur.directions import Direction, load_directions
from demur.errors import InputError
from demur.models import ChatModel
from demur.prompts import PromptSet
from demur.records import RefusalThreshold, RunFolder
from demur.types import Progress, PromptLabel


@dataclass(frozen=True)
class Directions:
    """Refusal direction, the operating point's false-refusal direction where there is one, refusal tokens."""

    refusal: Direction
    false_refusal: Direction | None
    """w' of the operating point, already orthogonalized."""
    tokens: tuple[int, ...]
    """Ids of the refusal tokens."""
    source: str
    """In words, for records: the run folder, or that it was found."""
    threshold: float = 0.0
    """Refusal score, log-odds, from which the model refuses."""


def directions_of(
    chat: ChatModel,
    prompts: Mapping[PromptLabel, PromptSet] | None = None,
    *,
    run: Path | str | None = None,
    settings: CalibrationSettings | None = None,
    progress: Progress | None = None,
) -> Directions:
    """The directions of a calibration run, or the refusal direction found from prompts.

    Args:
        chat: the model; with `run` it may be another version of the one that was calibrated, of the same width.
        prompts: harmful and harmless prompts with splits; needed without `run`.
        run: folder of a finished calibration.
        settings: of the search without `run`.
        progress: is told what is being done.

    Raises:
        InputError: neither run nor prompts are given, or the run is for a model of another shape.
        RunFolderError: the folder holds no finished calibration.
        SelectionError: no direction passes the filters.
    """
    if run is None:
        if prompts is None:
            raise InputError(
                "no directions: give --run with the folder of a calibration, or harmful and harmless prompts."
            )
        found = refusal_direction_of(chat, prompts, settings=settings, progress=progress)
        return Directions(
            found.direction,
            None,
            tuple(token.id for token in found.refusal_tokens),
            "found from prompts",
            first_token_threshold(found.threshold),
        )
    folder = RunFolder(run)
    summary = folder.read_summary()
    if summary.kind != "calibration":
        raise InputError(f"{folder.path} is an evaluation, which holds no directions; give a `demur calibrate` folder.")
    directions = load_directions(folder.directions)
    refusal = directions["refusal_direction"]
    width, layers = refusal.vector.shape[-1], chat.n_layers
    if width != chat.layout.d_model or refusal.layer >= layers:
        raise InputError(
            f"the directions of {folder.path} are for a residual stream of width {width} at block {refusal.layer}; "
            f"{chat.name} has width {chat.layout.d_model} and {layers} blocks. Give a version of the model that was "
            "calibrated."
        )
    tokens = tuple(token.id for token in summary.refusal_tokens)
    return Directions(
        refusal,
        directions.get("false_refusal_direction"),
        tokens,
        f"calibration {folder.path.name}",
        first_token_threshold(summary.refusal_threshold),
    )


def first_token_threshold(threshold: RefusalThreshold | None) -> float:
    """From which score on the first token of an answer tells a refusal; the published 0 where it does not tell."""
    if threshold is None or (threshold.reading is not None and threshold.reading.opening_tokens):
        return 0.0
    return threshold.value
