"""The search beyond the lambda grid: what it may choose, what it costs, that it goes on, and what it leaves behind.

How well the toy does is no matter of these tests.
"""

import builtins
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fabricated import edited, passed_run, saved_model
from scipy import stats
from toy_runs import SMALL, small_sets

import demur.calibration._search as search
from demur.calibration import CalibrationSettings, calibrate, export, load_operating_point
from demur.calibration._false_refusal_direction import find_operating_point
from demur.calibration._records import layout_summary
from demur.calibration._refusal_direction import find_refusal_direction
from demur.calibration._search_condition import discriminant
from demur.calibration._search_scores import TrialScores
from demur.calibration._search_space import SearchSpace, intervention_of
from demur.calibration._study import Study
from demur.directions import Direction, load_directions, orthogonalize, save_directions
from demur.errors import InputError, UnsupportedInterventionError
from demur.evaluation import (
    PhraseJudge,
    Runner,
    applicable_conditions,
    kl_divergences,
    next_token_logits,
    refusal_scores,
)
from demur.interventions import ActivationAddition, Combined, DirectionalAblation, GradedAblation, can_fold
from demur.models import hook_count
from demur.records import (
    SEARCH,
    SEARCH_TRIALS,
    CompletionRecord,
    JsonLines,
    OperatingPoint,
    RunFolder,
    SearchPoint,
    SearchRecord,
    SearchTrial,
    read_record,
)
from demur.testing import load_toy_chat_model
from demur.types import SilentProgress

SETTINGS = replace(SMALL, search=True, trials=8, n_mechanism=4, max_new_tokens=16, batch_size=128, lambdas=(1.0, 0.7))


def sets():
    return small_sets(test=12)


@pytest.fixture(scope="module")
def chat():
    return load_toy_chat_model()


@pytest.fixture(scope="module")
def searched(chat, tmp_path_factory):
    """One calibration with a search."""
    folder = tmp_path_factory.mktemp("search") / "run"
    summary = calibrate(chat, sets(), out=folder, settings=SETTINGS)
    trials = JsonLines(folder / SEARCH_TRIALS).read(SearchTrial)
    return SimpleNamespace(
        folder=folder, summary=summary, trials=trials, record=read_record(folder / SEARCH, SearchRecord)
    )


def study_in(chat, folder, settings=SETTINGS):
    run = RunFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    runner = Runner(chat, PhraseJudge(), run.completions, max_new_tokens=24, batch_size=64)
    return Study(chat, sets(), settings, run, runner, SilentProgress())


@pytest.fixture(scope="module")
def decided(chat, tmp_path_factory):
    """A study at which the grid has decided, in a folder that tests copy."""
    study = study_in(chat, tmp_path_factory.mktemp("decided") / "run")
    refusal = find_refusal_direction(study)
    return SimpleNamespace(study=study, refusal=refusal, grid=find_operating_point(study, refusal))


# The decision ---------------------------------------------------------------------------------------------------------


def test_the_choice_is_at_least_as_good_as_the_grids_on_validation(searched):
    record = searched.record
    grid = record.grid_false_refusal_rate
    if record.chosen is None:
        assert searched.summary.operating_point.method == "ablate_false_refusal_direction"
        assert all(row.note for row in record.judged)
        assert any(point.chosen for point in searched.summary.lambda_curve)
    else:
        judged = record.judged[-1]
        assert judged.number == record.chosen
        assert not judged.note
        assert judged.false_refusal_rate.k < grid.k
        assert judged.false_refusal_rate.n == grid.n
        assert all(row.note for row in record.judged[:-1])
        assert not any(point.chosen for point in searched.summary.lambda_curve)


def test_the_grids_points_are_the_first_trials(searched):
    curve = [point for point in searched.summary.lambda_curve if point.layer is not None]
    first = searched.trials[: len(curve)]
    found = {(trial.point.lambda_, trial.point.position, trial.point.layer) for trial in first}
    assert found == {(point.lambda_, point.position, float(point.layer)) for point in curve}
    for trial in first:
        point = trial.point
        assert (point.attention, point.mlp, point.embeddings, point.edge, point.addition) == (1, 1, 1, 1, 0)


def test_trials_are_counted_and_the_front_is_that_of_the_trials(searched):
    record, trials = searched.record, searched.trials
    assert [trial.number for trial in trials] == list(range(SETTINGS.trials))
    feasible = [trial for trial in trials if trial.rejected_by is None]
    assert (record.n_trials, record.n_feasible) == (len(trials), len(feasible))
    assert sum(record.rejected.values()) == len(trials) - len(feasible)
    assert record.prompts_read == sum(trial.prompts_read for trial in trials)
    limit = min(SETTINGS.false_refusal_kl_limit, SETTINGS.gate_kl_limit)
    for trial in trials:
        assert (trial.violation == 0) == (trial.rejected_by is None)
        assert (trial.false_refusals is None) == (trial.rejected_by is not None)
    assert all(trial.kl <= limit for trial in feasible)
    beaten = [
        one.number
        for one in feasible
        for two in feasible
        if two.false_refusals <= one.false_refusals
        and two.kl <= one.kl
        and (two.false_refusals, two.kl, two.number) < (one.false_refusals, one.kl, one.number)
    ]
    assert set(record.front) == {trial.number for trial in feasible} - set(beaten)
    values = [trials[number].false_refusals for number in record.front]
    assert values == sorted(values)


def test_few_tokens_are_generated_and_only_for_the_judged(searched):
    record = searched.record
    kept = RunFolder(searched.folder).completions.read(CompletionRecord)
    validated = [each for each in kept if each.split != "test"]
    assert record.tokens_generated + record.grid_tokens_generated == sum(
        each.n_tokens + each.ended for each in validated
    )
    mine = [each for each in validated if each.intervention.startswith(("search ", "conditional "))]
    assert record.tokens_generated == sum(each.n_tokens + each.ended for each in mine)  # no pressure in these settings
    judged = {f"search {row.number}" for row in record.judged}
    assert {each.intervention for each in mine if each.intervention.startswith("search ")} == judged
    assert len(judged) <= search.MOST_JUDGED
    assert all(each.completion is None for each in mine if each.label == "harmful")
    assert record.tokens_generated < 200_000


def test_the_operating_point_is_rebuilt_from_the_folder(searched, chat):
    intervention, point = load_operating_point(chat, RunFolder(searched.folder))
    assert point == searched.summary.operating_point
    assert intervention.fingerprint == point.fingerprint


def test_a_finished_folder_is_not_searched_again(searched, chat, monkeypatch):
    monkeypatch.setattr("demur.calibration._calibrate.search_operating_point", None)
    assert calibrate(chat, sets(), out=searched.folder, settings=SETTINGS) == searched.summary


def test_conditional_rows_are_measured_and_never_chosen(searched):
    rows = searched.record.conditional
    assert rows[0].ablated == "refusal_direction"
    assert all(row.fingerprint != searched.summary.operating_point.fingerprint for row in rows)
    for row in rows:
        assert row.harmful_changed <= 0.02
        assert row.false_refusal_rate.n == row.true_refusal_rate.n == SETTINGS.n_validation
    n = SETTINGS.n_validation
    assert rows[0].true_refusal_rate.k >= searched.record.grid_true_refusal_rate.k - math.ceil(0.1 * n)


# Resuming -------------------------------------------------------------------------------------------------------------


def finish(decided, folder, chat):
    study = study_in(chat, folder)
    search.search_operating_point(study, decided.refusal, decided.grid)
    return {name: (folder / name).read_text() for name in (SEARCH, SEARCH_TRIALS)}


def test_a_search_killed_at_any_trial_ends_with_the_same_records(decided, chat, tmp_path, monkeypatch):
    source = decided.study.folder.path
    shutil.copytree(source, tmp_path / "whole")
    expected = finish(decided, tmp_path / "whole", chat)
    with monkeypatch.context() as patched:  # a finished journal is not run again
        patched.setattr(TrialScores, "of", None)
        assert finish(decided, tmp_path / "whole", chat) == expected
    shutil.copytree(source, tmp_path / "torn")
    measure = TrialScores.of

    for at in (0, 1, 3):
        left = [at]

        def killed(self, intervention, left=left):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return measure(self, intervention)

        monkeypatch.setattr(TrialScores, "of", killed)
        with pytest.raises(KeyboardInterrupt):
            finish(decided, tmp_path / "torn", chat)
        lines = tmp_path / "torn" / SEARCH_TRIALS
        if lines.exists():  # a kill between the journal and the file
            text = lines.read_text().splitlines(keepends=True)
            lines.write_text("".join(text[:-1]))
    monkeypatch.setattr(TrialScores, "of", measure)
    assert finish(decided, tmp_path / "torn", chat) == expected
    assert hook_count(chat.module) == 0


# One trial's scores ---------------------------------------------------------------------------------------------------


def test_scores_equal_a_naive_measurement(decided, chat):
    """Against plain passes over all prompts, without order, parts or rejection."""
    settings = replace(SETTINGS, gate_kl_limit=1e9, false_refusal_kl_limit=1e9, margin=0.05, pressure=True)
    study = Study(chat, sets(), settings, decided.study.folder, decided.study.runner, SilentProgress())
    intervention = DirectionalAblation(decided.grid.direction.vector)
    scores = TrialScores(study)
    scores.prepare()
    found = scores.of(intervention)

    def logits(label, change=None, texts=None):
        texts = texts or study.texts(label, "validation")[: settings.n_scored]
        if change is None:
            return next_token_logits(chat, texts, batch_size=64)
        with change.applied_to(chat):
            return next_token_logits(chat, texts, batch_size=64)

    def refusals(rows):
        return refusal_scores(rows, study.token_ids)

    kl = float(kl_divergences(logits("harmless"), logits("harmless", intervention)).mean())
    assert found.kl == pytest.approx(kl, rel=1e-3)

    def chances(scores):
        threshold = study.threshold
        return torch.sigmoid(threshold.slope * (scores - threshold.value))

    changes = {"true_refusals": (0.05, chances(refusals(logits("harmful"))),
                                 chances(refusals(logits("harmful", intervention))))}  # fmt: skip
    for condition in applicable_conditions(chat)[0]:
        if condition.name in ("suffix-32", "system-careful", "earlier-turn"):
            texts = study.texts("harmful", "validation")[: settings.n_scored]
            batch = chat.batch([tokens for tokens, _ in condition.requests(chat, texts)])
            before = refusals(chat.next_token_logits(batch))
            with intervention.applied_to(chat):
                after = refusals(chat.next_token_logits(batch))
            changes[condition.name] = 0.05, chances(before), chances(after)

    def lost(margin, before, after):
        """A net loss beyond the margin whose interval leaves out no loss (Student's)."""
        change = (after - before).numpy()
        half = stats.t.ppf(0.975, len(change) - 1) * change.std(ddof=1) / len(change) ** 0.5
        return change.mean() <= -margin and change.mean() + half < 0

    broken = next((name for name, each in changes.items() if lost(*each)), None)
    assert found.rejected_by == broken
    if broken is None:
        likely = float(chances(refusals(logits("borderline", intervention))).mean())
        assert found.false_refusals == pytest.approx(likely, rel=1e-3)


def destroying(chat):
    generator = torch.Generator().manual_seed(0)
    return DirectionalAblation(torch.randn(24, chat.layout.d_model, generator=generator, dtype=torch.float64))


def test_a_destroyed_model_is_rejected_by_the_first_prompts(decided, chat):
    study = Study(chat, sets(), replace(SETTINGS, gate_kl_limit=1e-6), decided.study.folder,
                  decided.study.runner, SilentProgress())  # fmt: skip
    scores = TrialScores(study)
    scores.prepare()
    found = scores.of(destroying(chat))
    assert found.rejected_by == "kl"
    assert scores.prompts_read == 1  # an eighth of 8
    assert found.false_refusals is None
    assert found.violation > 0


def test_later_limits_are_smaller_violations(decided, chat):
    """So that the estimator is drawn towards trials that hold more of the limits."""
    r = DirectionalAblation(decided.refusal.direction.vector)
    wide = replace(SETTINGS, gate_kl_limit=1e9, false_refusal_kl_limit=1e9)
    found = []
    for settings, change in ((replace(SETTINGS, gate_kl_limit=1e-9), r), (wide, r)):
        study = Study(chat, sets(), settings, decided.study.folder, decided.study.runner, SilentProgress())
        scores = TrialScores(study)
        scores.prepare()
        found.append(scores.of(change))
    assert [each.rejected_by for each in found] == ["kl", "true_refusals"]
    assert found[0].violation > found[1].violation > 0


# The space ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def space():
    draw = torch.Generator().manual_seed(1)
    w, r = (torch.randn(2, 4, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    return SearchSpace(w, r, Direction(r[1, 2], -1, 2), (-2, -1), 4, 5)


def point(space, **changes):
    return SearchPoint.model_validate({**space.as_in_the_grid(0.7, -2, 2), **changes})


def test_a_point_of_the_grid_is_the_grids_ablation(space):
    intervention, described = space.operating_point(point(space))
    expected = DirectionalAblation(orthogonalize(space.w, space.r_candidates, strength=0.7)[0, 2])
    assert intervention.fingerprint == expected.fingerprint == described.fingerprint
    assert described.method == "ablate_false_refusal_direction"
    assert (described.strengths, described.addition, described.source_layer) == (None, None, None)


def test_between_two_layers_both_are_mixed(space):
    stack = orthogonalize(space.w, space.r_candidates, strength=0.7)
    assert torch.allclose(space.vector(point(space, layer=1.25)), 0.75 * stack[0, 1] + 0.25 * stack[0, 2])
    assert torch.equal(space.vector(point(space, layer=3.0)), stack[0, 3])
    assert space.operating_point(point(space, layer=1.25))[1].source_layer == 1.25


def test_strengths_and_addition_become_their_interventions(space):
    intervention, described = space.operating_point(
        point(space, attention=0.5, mlp=1.2, centre=0.0, width=2.0, edge=0.5)
    )
    assert isinstance(intervention, GradedAblation)
    assert intervention.attention == pytest.approx((0.5, 0.375, 0.25, 0.25, 0.25))
    assert intervention.mlp == pytest.approx((1.2, 0.9, 0.6, 0.6, 0.6))
    assert described.method == "graded_ablation"
    assert can_fold(intervention)
    added, described = space.operating_point(point(space, addition=0.1))
    assert isinstance(added, Combined)
    assert torch.allclose(added.parts[1].vector, 0.1 * space.r.vector)
    assert added.parts[1].layer == space.r.layer
    assert described.method == "graded_ablation_and_addition"
    assert not can_fold(added)


@pytest.mark.parametrize(
    "changes", [{}, {"mlp": 0.3, "layer": 1.5}, {"addition": 0.2}, {"edge": 0.0, "addition": 0.05}]
)
def test_a_record_gives_the_same_intervention_again(space, changes):
    intervention, described = space.operating_point(point(space, **changes))
    read = OperatingPoint.model_validate_json(described.model_dump_json(by_alias=True))
    assert intervention_of(read, space.vector(point(space, **changes)), space.r).fingerprint == intervention.fingerprint


def test_records_of_before_the_search_are_read():
    old = '{"method":"ablate_false_refusal_direction","lambda":0.7,"position":-1,"layer":3,"sites":"all_writes",'
    read = OperatingPoint.model_validate_json(old + '"fingerprint":"f"}')
    assert (read.strengths, read.addition, read.source_layer) == (None, None, None)


def test_an_addition_needs_the_refusal_direction(space):
    _, described = space.operating_point(point(space, addition=0.1))
    with pytest.raises(InputError, match="the run holds none"):
        intervention_of(described, space.vector(point(space)), None)


# The condition --------------------------------------------------------------------------------------------------------


def test_the_discriminant_is_fishers_with_a_ridge():
    draw = torch.Generator().manual_seed(2)
    one = torch.randn(20, 6, generator=draw, dtype=torch.float64) + 1
    two = torch.randn(30, 6, generator=draw, dtype=torch.float64)
    centred = torch.cat([one - one.mean(0), two - two.mean(0)])
    scatter = centred.T @ centred / 50
    ridge = 0.1 * scatter.trace() / 6
    expected = torch.linalg.solve(scatter + ridge * torch.eye(6, dtype=torch.float64), one.mean(0) - two.mean(0))
    assert torch.allclose(discriminant(one, two), expected / expected.norm(), atol=1e-10)


# Doors ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_with(tmp_path):
    """A fabricated run whose gate passed, with the operating point of a search."""

    def build(**changes):
        chat = saved_model(tmp_path / "model")
        passed_run(tmp_path / "run", chat)
        folder = RunFolder(tmp_path / "run")
        vector = load_directions(folder.directions)["false_refusal_direction"]
        r = Direction(vector.vector.flip(0), -1, 1)
        save_directions(folder.directions, {"false_refusal_direction": vector, "refusal_direction": r})
        strengths = {"attention": [0.5] * chat.n_layers, "mlp": [0.9] * chat.n_layers, "embeddings": 0.2}
        described = {**changes, "strengths": strengths, "lambda": 0.7, "position": -1, "layer": 1}
        described = {**described, "sites": "all_writes", "fingerprint": ""}
        intervention = intervention_of(OperatingPoint.model_validate(described), vector.vector, r)
        described["fingerprint"] = intervention.fingerprint
        edited(folder.summary, lambda data: data.update(operating_point=described))
        return chat, intervention

    return build


def test_a_graded_point_is_exported_as_it_was_measured(run_with, tmp_path, monkeypatch):
    monkeypatch.setattr("demur.calibration._export.require_claimed_refusals", lambda *_, **__: None)
    chat, intervention = run_with(method="graded_ablation")
    record = export(tmp_path / "run", form="adapter", to=tmp_path / "adapter", chat=chat, check_prompts=4)
    assert record.logit_difference < 1e-2
    assert record.operating_point.fingerprint == intervention.fingerprint
    assert record.identical_answers == record.checked_prompts


def test_on_disk_a_graded_point_cannot_be_folded(run_with, tmp_path):
    run_with(method="graded_ablation")
    with pytest.raises(UnsupportedInterventionError, match="Export it without --low-memory"):
        export(tmp_path / "run", form="merged", to=tmp_path / "merged", low_memory=True)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_a_point_with_an_addition_is_not_exported(form, run_with, tmp_path):
    chat, _ = run_with(method="graded_ablation_and_addition", addition=0.1)
    with pytest.raises(UnsupportedInterventionError, match="calibrate without --search"):
        export(tmp_path / "run", form=form, to=tmp_path / form, chat=chat)
    assert not (tmp_path / form).exists()


def test_without_optuna_it_is_said_what_to_install(decided, chat, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("optuna"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r'pip install "demur\[search\]"'):
        search.search_operating_point(study_in(chat, tmp_path / "run"), decided.refusal, decided.grid)


def test_trials_is_a_number_from_one_up():
    with pytest.raises(InputError, match="trials is a number of at least 1; got 0"):
        CalibrationSettings(trials=0)


def test_an_addition_is_said_to_be_possible_at_run_time_only(chat):
    vector = torch.randn(chat.layout.d_model, generator=torch.Generator().manual_seed(0))
    ablation = DirectionalAblation(vector)
    added = Combined([ablation, ActivationAddition(vector, 2)])
    assert (layout_summary(chat, added).verdict, layout_summary(chat, added).fold_difference) == ("runtime_only", 0.0)
    assert layout_summary(chat, ablation).verdict == "exact"
    assert layout_summary(chat, None).verdict == "exact"
