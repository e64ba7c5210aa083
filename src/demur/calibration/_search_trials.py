"""The trials of a search: points drawn by a tree-structured Parzen estimator, scored, and kept in a journal.

Optuna's multivariate estimator (Watanabe 2023, arXiv 2304.11127) with one constraint. Each trial is drawn with a seed
of its own, so that a search that was killed goes on with the trials that it would have had.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from demur.calibration._search_scores import TrialScores
from demur.calibration._search_space import SearchSpace
from demur.calibration._study import Study
from demur.calibration._sweep import ZERO_NORM
from demur.errors import InputError
from demur.records import SEARCH_JOURNAL, SEARCH_TRIALS, JsonLines, SearchPoint, SearchTrial

_AT_RANDOM = 5
"""One trial in so many is drawn at random, before the estimator begins."""
_WORST = 1.0
"""Objective of a trial that was rejected before its false refusals were measured."""
_RECORD = "record"
BEFORE = "tokens_before"
"""What the journal remembers of the run before the search began."""


def run_trials(
    study: Study, space: SearchSpace, scores: TrialScores, first: Sequence[dict[str, Any]], *, tokens_before: int
) -> tuple[list[SearchTrial], int]:
    """All trials, those of the journal not run again.

    Args:
        study: the calibration.
        space: what can be tried.
        scores: measures a trial.
        first: points to try first, as values of Optuna's names.
        tokens_before: tokens that were generated before the search; kept from its first call.

    Returns:
        The trials in their order, and the tokens that were generated before the search first began.

    Raises:
        InputError: Optuna is not installed.
    """
    try:
        import optuna  # noqa: PLC0415 (an extra)
        from optuna.storages.journal import JournalFileBackend  # noqa: PLC0415
        from optuna.trial import TrialState  # noqa: PLC0415
    except ImportError as error:
        raise InputError('a search needs Optuna: pip install "demur[search]"') from error
    path = study.folder.path / SEARCH_JOURNAL
    total = max(study.settings.trials, len(first))
    with _quiet(optuna):
        backend = JournalFileBackend(str(path))
        found = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name="search",
            load_if_exists=True,
            direction="minimize",
        )
        if BEFORE not in found.user_attrs:
            found.set_user_attr(BEFORE, tokens_before)
        for trial in found.get_trials(states=(TrialState.RUNNING, TrialState.WAITING)):
            found.tell(trial.number, state=TrialState.FAIL)  # killed half way: it is drawn again
        done = [_recorded(trial) for trial in found.get_trials(states=(TrialState.COMPLETE,))]
        lines = JsonLines(study.folder.path / SEARCH_TRIALS)
        lines.append(done[len(lines.read(SearchTrial)) :])
        study.progress.start("searching operating points", total)
        study.progress.advance(len(done))
        for number in range(len(done), total):
            found.sampler = optuna.samplers.TPESampler(
                multivariate=True,
                constant_liar=False,
                n_startup_trials=max(len(first), total // _AT_RANDOM),
                seed=1_000_003 * study.settings.seed + number,
            )
            if number < len(first):
                found.enqueue_trial(first[number])
            asked = found.ask(space.distributions)
            record = _scored(number, SearchPoint.model_validate(asked.params), space, scores)
            asked.set_constraint("limits", record.violation)
            asked.set_user_attr(_RECORD, record.model_dump(mode="json", by_alias=True))
            found.tell(asked, _WORST if record.false_refusals is None else record.false_refusals)
            lines.append([record])
            done.append(record)
            study.progress.advance()
            study.progress.note(_note(done))
        return done, int(found.user_attrs[BEFORE])


def _recorded(trial: Any) -> SearchTrial:
    return SearchTrial.model_validate(trial.user_attrs[_RECORD])


def _scored(number: int, point: SearchPoint, space: SearchSpace, scores: TrialScores) -> SearchTrial:
    before = scores.prompts_read
    if space.vector(point).norm() <= ZERO_NORM:
        return SearchTrial(number=number, point=point, rejected_by="zero", violation=10.0, prompts_read=0)
    intervention, _ = space.operating_point(point)
    found = scores.of(intervention)
    kl = None if found.rejected_by == "kl" else found.kl
    return SearchTrial(
        number=number,
        point=point,
        rejected_by=found.rejected_by,
        kl=kl,
        false_refusals=found.false_refusals,
        violation=found.violation,
        prompts_read=scores.prompts_read - before,
    )


def _note(done: Sequence[SearchTrial]) -> str:
    best = min((trial.false_refusals for trial in done if trial.false_refusals is not None), default=None)
    rejected = sum(trial.rejected_by is not None for trial in done)
    return f"{rejected} rejected" + ("" if best is None else f", false refusals {best:.1%} at best")


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Optuna writes a line per trial to stderr."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
