"""The false-refusal grid and its pressure: the choice and every reported number are those of the plainest code."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from naive_sweep import NaiveSweep
from scipy.stats import t as student
from sweep_cases import CASES, TEXTS, between, directions, plain_study, tolerance

from demur.calibration import _pressed_choice as pressed_choice
from demur.calibration._kept import Kept
from demur.calibration._lambda_scores import score_grid
from demur.calibration._pressed_choice import hold_under_pressure
from demur.directions import orthogonalize
from demur.evaluation import applicable_conditions
from demur.interventions import DirectionalAblation
from demur.records import RunFolder, ScorePiece


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def plain(request, tmp_path_factory):
    return plain_study(*request.param, tmp_path_factory.mktemp("grid"))


def student_interval(before, after):
    """Mean paired change, and Student's interval of it."""
    change = [two - one for one, two in zip(before, after, strict=True)]
    n, mean = len(change), math.fsum(change) / len(change)
    variance = math.fsum((each - mean) ** 2 for each in change) / (n - 1)
    half = student.ppf(0.975, n - 1) * math.sqrt(variance / n)
    return mean, mean - half, mean + half


@dataclass
class Naive:
    """One candidate of the false-refusal grid, scored by the plainest code."""

    kl: float
    before: list[float]
    """P(refusal) of each harmful prompt."""
    after: list[float]
    borderline: float

    def loses(self, margin):
        mean, _, high = student_interval(self.before, self.after)
        return mean <= -margin and high < 0


def naive_false_refusal_table(study, w, r):
    """(lambda, position, layer) -> KL, refusal probabilities of harmful prompts, mean score on borderline prompts."""
    chat = study.chat
    blocks = [chat.module.get_submodule(path) for path in chat.layout.blocks]
    encoded = {label: chat.encode(texts) for label, texts in TEXTS.items()}
    first = NaiveSweep(chat.model, blocks, encoded["harmful"], encoded["harmless"], study.token_ids)
    second = NaiveSweep(chat.model, blocks, encoded["borderline"], encoded["harmless"][:1], study.token_ids)
    before = [study.probability(score) for score in first.refusal_scores(first.logits(first.harmful))]
    table = {}
    for strength in study.settings.lambdas:
        vectors = orthogonalize(w, r, strength=strength)
        for layer in study.allowed_layers:
            for position in study.positions:
                vector = vectors[position, layer]
                if vector.norm() > 0:
                    kl, borderline = first.kl(vector), second.bypass(vector)
                    table[strength, position, layer] = Naive(
                        math.fsum(kl) / len(kl),
                        before,
                        [study.probability(score) for score in first.bypass(vector)],
                        math.fsum(borderline) / len(borderline),
                    )
    return table


def check_reported(rows, table, limit, margin, near):
    for row in rows:
        naive = table.get((row.lambda_, row.position, row.layer))
        if naive is None:
            assert row.rejected_by == ("zero",)
            continue
        kept = sum(naive.after) / sum(naive.before)
        expected = (naive.kl, kept, naive.borderline)
        for value, other in zip((row.kl_score, row.harmful_kept, row.borderline_score), expected, strict=True):
            assert value is None or value == pytest.approx(other, abs=near)
        assert row.rejected_by != ("kl",) or naive.kl > limit
        assert row.rejected_by != ("true_refusals",) or naive.loses(margin)
    assert {("kl",), ("true_refusals",)} & {row.rejected_by for row in rows}


def test_the_best_of_each_lambda_is_that_of_scoring_everything(plain, tmp_path):
    lambdas = (1.0, 0.5, 0.0)
    w, r = (directions(plain.chat, seed) for seed in (1, 2))
    r[1, 2] = 0.0  # nothing to take out: the same direction at every lambda
    study = replace(plain, folder=RunFolder(tmp_path))
    study.settings = replace(study.settings, lambdas=lambdas, n_screened=0)
    table = naive_false_refusal_table(study, w, r)
    limit = between((row.kl for row in table.values()), 0.6)
    study.settings = replace(study.settings, false_refusal_kl_limit=limit)
    margin = between((student_interval(row.before, row.after)[0] for row in table.values()), 0.5)
    object.__setattr__(study.settings, "margin", -margin)
    rows, best, _ = score_grid(study, w, r)
    for strength in lambdas:
        here = [key for key in table if key[0] == strength]
        passing = [key for key in here if table[key].kl <= limit and not table[key].loses(-margin)]
        expected = min(passing or here, key=lambda key: table[key].borderline)
        found = best[strength]
        assert (strength, found.scores.position, found.scores.layer) == expected
        assert bool(found.scores.rejected_by) == (not passing)
        vector = orthogonalize(w, r, strength=strength)[found.scores.position, found.scores.layer]
        torch.testing.assert_close(found.vector, vector, rtol=0, atol=0)
        assert None not in (found.scores.kl_score, found.scores.harmful_kept, found.scores.borderline_score)
        naive = table[expected]
        change = found.true_change.difference, found.true_change.low, found.true_change.high
        assert change == pytest.approx(student_interval(naive.before, naive.after), abs=tolerance(plain))
    check_reported(rows, table, limit, -margin, tolerance(plain))
    same = [piece for piece in study.folder.score_pieces.read(ScorePiece) if (piece.position, piece.layer) == (-2, 2)]
    assert {piece.lambda_ for piece in same} == {1.0}


def test_where_no_candidate_is_within_the_limits_the_best_of_them_stands_for_its_lambda(plain, tmp_path):
    w, r = (directions(plain.chat, seed) for seed in (1, 2))
    study = replace(plain, folder=RunFolder(tmp_path))
    study.settings = replace(study.settings, lambdas=(1.0,), n_screened=0, false_refusal_kl_limit=0.0)
    table = naive_false_refusal_table(study, w, r)
    _, best, _ = score_grid(study, w, r)
    expected = min(table, key=lambda key: table[key].borderline)
    assert (1.0, best[1.0].scores.position, best[1.0].scores.layer) == expected
    assert best[1.0].scores.rejected_by
    assert best[1.0].scores.kl_score == pytest.approx(table[expected].kl, abs=tolerance(plain))
    assert best[1.0].true_change is not None


def test_a_candidate_under_which_the_model_overflows_stands_for_no_lambda(plain, tmp_path, monkeypatch):
    """A KL that is no number cannot be compared with a limit, nor told in a record."""
    monkeypatch.setattr(
        "demur.calibration._contest.kl_divergences", lambda _, changed: torch.full(changed.shape[:-1], math.nan)
    )
    w, r = (directions(plain.chat, seed) for seed in (1, 2))
    study = replace(plain, folder=RunFolder(tmp_path))
    study.settings = replace(study.settings, lambdas=(1.0,), n_screened=4)
    object.__setattr__(study.settings, "margin", 1.0)
    rows, best, _ = score_grid(study, w, r)
    assert best == {}
    assert {row.rejected_by for row in rows} >= {("nan",)}


def naive_kept(before, after, margin, n_test):
    mean, low, high = student_interval(before, after)
    if mean - (mean - low) * math.sqrt(len(before) / n_test) > -margin:
        return Kept.shown
    if mean > -margin:
        return Kept.expected
    return Kept.open if high >= 0 else Kept.lost


def naive_pressure(study, vectors):
    """For each vector the worst verdict over the conditions of next tokens, and the tokens that the condition adds."""
    chat, conditions = study.chat, {each.name: each for each in applicable_conditions(study.chat)[0]}
    asked = [conditions[name] for name in ("suffix-32", "system-careful", "earlier-turn") if name in conditions]
    assert len(asked) >= 2
    blocks = [chat.module.get_submodule(path) for path in chat.layout.blocks]
    harmless = chat.encode(TEXTS["harmless"])[:1]
    changes = []
    for condition in asked:
        prompts = [tokens for tokens, _ in condition.requests(chat, TEXTS["harmful"])]
        sweep = NaiveSweep(chat.model, blocks, prompts, harmless, study.token_ids)
        before = [study.probability(score) for score in sweep.refusal_scores(sweep.logits(prompts))]
        after = [[study.probability(score) for score in sweep.bypass(vector)] for vector in vectors]
        changes.append([(before, each) for each in after])
    return list(zip(*changes, strict=True))


def test_what_holds_under_pressure_by_next_tokens_is_the_naive_verdict(plain, tmp_path, monkeypatch):
    """On all harmful prompts, not on those that were refused; the verdict is that of the worst condition."""
    monkeypatch.setattr(pressed_choice, "_by_answers", lambda *_: [])
    study = replace(plain, folder=RunFolder(tmp_path), n_test=25)
    study.settings = replace(study.settings, pressure=True)
    vectors = list(directions(study.chat, 3).flatten(0, 1)[1::3])
    naive = naive_pressure(study, vectors)
    means = [min(student_interval(*pair)[0] for pair in pairs) for pairs in naive]
    margin = -between(means, 0.5)
    monkeypatch.setattr(pressed_choice, "PRESSURE_MARGIN", margin)
    seen = set()
    for vector, pairs in zip(vectors, naive, strict=True):
        expected = max(naive_kept(*pair, margin, 25) for pair in pairs)
        found = hold_under_pressure(study, DirectionalAblation(vector))
        assert found.kept == expected
        assert bool(found.note) == (found.kept != Kept.shown)
        if found.kept != Kept.shown:
            assert found.change.difference in [
                pytest.approx(student_interval(*pair)[0], abs=tolerance(plain)) for pair in pairs
            ]
        seen.add(expected)
    assert len(seen) > 1
    assert len(study.known) == len(naive[0])  # the unchanged model was asked once under each condition


def test_a_lost_family_comes_first_and_ends_the_asking(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(pressed_choice, "_by_answers", lambda *_: [])
    monkeypatch.setattr(pressed_choice, "PRESSURE_MARGIN", -2.0)  # even a gain of all would be a loss
    monkeypatch.setattr(
        pressed_choice, "score_change", lambda one, _: pressed_choice.Change(len(one), -0.5, -0.6, -0.4)
    )
    study = replace(plain, folder=RunFolder(tmp_path))
    study.settings = replace(study.settings, pressure=True)
    point = DirectionalAblation(directions(study.chat, 3)[1, 1])
    for family in ("template", "suffix"):
        study.known.clear()
        found = hold_under_pressure(study, point, first=family)
        assert (found.kept, found.family) == (Kept.lost, family)
        assert len(study.known) == 1


def test_without_pressure_nothing_is_asked(plain, tmp_path):
    study = replace(plain, folder=RunFolder(tmp_path))
    assert not study.settings.pressure
    assert hold_under_pressure(study, DirectionalAblation(directions(study.chat, 3)[1, 1])).kept == Kept.shown
    assert study.known == {}
