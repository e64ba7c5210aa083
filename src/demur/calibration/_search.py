"""A search for an operating point beyond the lambda grid: limits first, then as few false refusals as possible.

Trials are told apart by scores of next tokens; answers are generated for the few best only. The grid's operating point
is the first trial and stays where no other has fewer false refusals on the judged validation prompts.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from demur.activations import mean_activations
from demur.calibration._false_refusal_direction import Calibrated
from demur.calibration._refusal_direction import RefusalDirection
from demur.calibration._search_condition import conditional_rows, lost_at_rest, lost_under_pressure
from demur.calibration._search_scores import TrialScores
from demur.calibration._search_space import SearchSpace
from demur.calibration._search_trials import run_trials
from demur.calibration._study import Study
from demur.directions import Direction, cosine, difference_in_means
from demur.evaluation import Runner, bootstrap_mean, refusal_rate
from demur.interventions import Intervention, can_fold
from demur.records import (
    BASE_MODEL,
    SEARCH,
    CompletionRecord,
    JudgedTrial,
    OperatingPoint,
    Rate,
    SearchPoint,
    SearchRecord,
    SearchTrial,
    write_record,
)
from demur.types import PromptLabel

MOST_JUDGED = 5
"""Trials whose answers are judged at most."""
_JUDGED: tuple[PromptLabel, PromptLabel] = ("harmful", "borderline")


def search_operating_point(study: Study, refusal: RefusalDirection, grid: Calibrated) -> Calibrated:
    """Search beyond the lambda grid; write `search.jsonl` and `search.json`.

    Args:
        study: the calibration, with the grid's decision made.
        refusal: the refusal direction.
        grid: the grid's operating point.

    Returns:
        The point with the fewest judged false refusals on validation prompts that is admissible at rest and under
        pressure; `grid` itself where no trial has fewer.

    Raises:
        InputError: Optuna is not installed.
    """
    borderline = study.fitted_prompts("borderline", refused=True)
    means = mean_activations(
        study.chat, borderline, n_positions=len(study.positions), batch_size=study.settings.batch_size
    )
    space = SearchSpace(
        w=difference_in_means(means, refusal.harmless),
        r_candidates=refusal.candidates,
        r=refusal.direction,
        positions=study.positions,
        allowed_layers=len(study.allowed_layers),
        n_layers=study.chat.n_layers,
    )
    scores = TrialScores(study)
    scores.prepare()
    trials, before = run_trials(study, space, scores, _first(space, grid), tokens_before=tokens_generated(study.runner))
    front = _front(trials)
    chosen, judged = _judge(study, space, [trials[number] for number in front], grid)
    found = grid if chosen is None else _calibrated(study, space, scores, grid, chosen, trials)
    conditional = conditional_rows(study, refusal, found.intervention)
    rates = _grid_rates(grid)
    record = SearchRecord(
        n_trials=len(trials),
        n_feasible=sum(trial.rejected_by is None for trial in trials),
        rejected=_counted(trial.rejected_by for trial in trials if trial.rejected_by is not None),
        front=tuple(front),
        judged=tuple(judged),
        chosen=None if chosen is None else chosen.number,
        grid_false_refusal_rate=rates["borderline"],
        grid_true_refusal_rate=rates["harmful"],
        conditional=conditional,
        tokens_generated=tokens_generated(study.runner) - before,
        grid_tokens_generated=before,
        prompts_read=sum(trial.prompts_read for trial in trials),
    )
    write_record(study.folder.path / SEARCH, record)
    return found


def tokens_generated(runner: Runner) -> int:
    """Tokens of all answers that a runner has kept, end tokens included."""
    records = [] if runner.store is None else runner.store.read(CompletionRecord)
    return sum(record.n_tokens + record.ended for record in records)


def _first(space: SearchSpace, grid: Calibrated) -> list[dict[str, object]]:
    """The grid's choice, then its winners at the other lambdas."""
    chosen = grid.operating_point
    others = [point for point in grid.curve if point.layer is not None and point.lambda_ != chosen.lambda_]
    places = [(chosen.lambda_, chosen.position, chosen.layer)]
    places += [(point.lambda_, point.position or 0, point.layer or 0) for point in others]
    return [space.as_in_the_grid(*place) for place in places]


def _front(trials: Sequence[SearchTrial]) -> list[int]:
    """Numbers of the feasible trials that no other beats in both aims, fewest false refusals first."""
    measured = [
        (trial.false_refusals, trial.kl, trial.number)
        for trial in trials
        if trial.false_refusals is not None and trial.kl is not None
    ]
    front: list[int] = []
    least = float("inf")
    for _, kl, number in sorted(measured):
        if kl < least:
            front.append(number)
            least = kl
    return front


def _counted(reasons: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    return counts


# Judging --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Finalist:
    number: int
    point: SearchPoint
    intervention: Intervention
    operating_point: OperatingPoint


def _judge(
    study: Study, space: SearchSpace, trials: Sequence[SearchTrial], grid: Calibrated
) -> tuple[_Finalist | None, list[JudgedTrial]]:
    """Judge answers, best first, until a trial is admissible and has fewer false refusals than the grid's point."""
    before = {
        label: study.runner.complete(
            study.split(label, "validation"), condition=BASE_MODEL, split="validation", until_settled=True
        )
        for label in _JUDGED
    }
    finalists = []
    for trial in trials:
        intervention, point = space.operating_point(trial.point)
        if intervention.fingerprint != grid.operating_point.fingerprint:
            finalists.append(_Finalist(trial.number, trial.point, intervention, point))
    finalists = finalists[:MOST_JUDGED]
    study.progress.start("judging the best trials", len(finalists) * sum(map(len, before.values())))
    judged: list[JudgedTrial] = []
    for finalist in finalists:
        judged.append(_verdict(study, finalist, before, _grid_rates(grid)["borderline"]))
        if not judged[-1].note:
            return finalist, judged
    return None, judged


def _verdict(
    study: Study, finalist: _Finalist, before: Mapping[PromptLabel, Sequence[CompletionRecord]], best: Rate
) -> JudgedTrial:
    def refusals(label: PromptLabel) -> list[CompletionRecord]:
        return study.runner.complete(
            study.split(label, "validation"),
            condition=f"search {finalist.number}",
            split="validation",
            intervention=finalist.intervention,
            keep_text=False,
            until_settled=True,
        )

    false = refusal_rate(refusals("borderline"))
    row = JudgedTrial(number=finalist.number, exportable=can_fold(finalist.intervention), false_refusal_rate=false)
    if false.k >= best.k:
        note = f"{false.k} of {false.n} false refusals left; the grid's point leaves {best.k} of {best.n}"
        return row.model_copy(update={"note": note})
    after = refusals("harmful")
    note = lost_at_rest(study, before["harmful"], after) or lost_under_pressure(study, finalist.intervention)
    return row.model_copy(update={"true_refusal_rate": refusal_rate(after), "note": note})


def _grid_rates(grid: Calibrated) -> dict[PromptLabel, Rate]:
    chosen = next(point for point in grid.curve if point.chosen)
    assert chosen.true_refusal_rate is not None
    assert chosen.false_refusal_rate is not None
    return {"harmful": chosen.true_refusal_rate, "borderline": chosen.false_refusal_rate}


# The chosen point -----------------------------------------------------------------------------------------------------


def _calibrated(
    study: Study,
    space: SearchSpace,
    scores: TrialScores,
    grid: Calibrated,
    chosen: _Finalist,
    trials: Sequence[SearchTrial],
) -> Calibrated:
    point, vector = chosen.point, space.vector(chosen.point)
    measured = scores.in_full(chosen.intervention)
    w, r = space.sources(point)
    seed = study.settings.seed
    card = grid.card.model_copy(
        update={
            "position": point.position,
            "position_text": study.chat.template.post_instruction_texts()[point.position],
            "layer": round(point.layer),
            "norm": float(w.norm()),
            "scores": {
                **grid.card.scores,
                "borderline_score": bootstrap_mean(measured["borderline"], seed=seed),
                "kl_score": bootstrap_mean(measured["kl"], seed=seed),
                "refusal_probability_harmful": bootstrap_mean(
                    [study.probability(value) for value in measured["harmful"]], seed=seed
                ),
            },
            "n_candidates": len(trials),
            "n_survivors": sum(trial.rejected_by is None for trial in trials),
            "cosine_with_refusal_direction": cosine(w, r),
        }
    )
    note = "the grid's best; the search found a point with fewer false refusals"
    curve = tuple(
        each.model_copy(update={"chosen": False, "note": note}) if each.chosen else each for each in grid.curve
    )
    return replace(
        grid,
        direction=Direction(vector, point.position, round(point.layer)),
        intervention=chosen.intervention,
        card=card,
        operating_point=chosen.operating_point,
        curve=curve,
        grid=grid.operating_point,
    )
