"""The selection is that of the naive sweep: the same choice, the same value of every score that is reported."""

import math
import weakref
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from naive_sweep import NaiveSweep
from sweep_cases import CASES, TEXTS, PlainStudy, between, directions, plain_study, tolerance

from demur.calibration._racing import first_step
from demur.calibration._refusal_direction import _score as score_refusal
from demur.calibration._selection import ScoreRow, select_refusal_direction
from demur.calibration._sweep import telling_first
from demur.errors import SelectionError
from demur.evaluation import kl_divergences, refusal_scores
from demur.models import PartialForward
from demur.records import RunFolder, ScorePiece, ScoreRecord


@dataclass
class Case:
    study: PlainStudy
    candidates: torch.Tensor
    naive: list[ScoreRow]
    ours: list[ScoreRow]
    """Of a sweep whose records are in the study's folder."""


def naive_rows(study, candidates, naive):
    rows = []
    for position in study.positions:
        for layer in study.allowed_layers:
            vector = candidates[position, layer]
            if vector.norm() == 0:
                bypass, kl = naive.refusal_scores(naive.logits(naive.harmful)), [0.0]
            else:
                bypass, kl = naive.bypass(vector), naive.kl(vector)
            induce = naive.induce(vector, layer)
            rows.append(ScoreRow(position, layer, *(math.fsum(each) / len(each) for each in (bypass, induce, kl))))
    return rows


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request, tmp_path_factory):
    study = plain_study(*request.param, tmp_path_factory.mktemp("sweep"))
    chat = study.chat
    candidates = directions(chat)
    blocks = [chat.module.get_submodule(path) for path in chat.layout.blocks]
    harmful = study.encode("harmful", "validation", study.scored_validation("harmful", refused=True))
    naive = NaiveSweep(chat.model, blocks, harmful, chat.encode(TEXTS["harmless"]), study.token_ids)
    rows = naive_rows(study, candidates, naive)
    # Limits at quantiles, so that every filter removes some.
    induce, kl = between((row.induce for row in rows), 0.25), between((row.kl for row in rows), 0.7)
    study.settings = replace(study.settings, induce_minimum=induce, kl_limit=kl)
    return Case(study, candidates, rows, score_refusal(study, candidates))


def limits(case):
    return {
        "n_layers": case.study.chat.n_layers,
        "kl_limit": case.study.settings.kl_limit,
        "induce_minimum": case.study.settings.induce_minimum,
        "layer_fraction": 1.0,
    }


def test_the_choice_and_every_reported_score_are_the_naive_ones(case):
    rows = case.ours
    ours = select_refusal_direction(rows, **limits(case))
    naive = select_refusal_direction(case.naive, **limits(case))
    assert (ours.selected.position, ours.selected.layer) == (naive.selected.position, naive.selected.layer)
    assert ours.survivors == naive.survivors
    measured = 0
    for one, two in zip(ours.candidates, naive.candidates, strict=True):
        assert (one.position, one.layer) == (two.position, two.layer)
        assert bool(one.rejected_by) == bool(two.rejected_by)
        assert set(one.rejected_by) <= set(two.rejected_by)
        for name in ("bypass_score", "induce_score", "kl_score"):
            if getattr(one, name) is not None:
                assert getattr(one, name) == pytest.approx(getattr(two, name), abs=tolerance(case.study))
                measured += 1
    assert None not in (ours.selected.bypass_score, ours.selected.induce_score, ours.selected.kl_score)
    assert measured < 3 * len(rows)


def test_zero_candidates_and_those_of_other_layers_are_not_run(case):
    pieces = case.study.folder.score_pieces.read(ScorePiece)
    assert pieces
    assert all((piece.position, piece.layer) != (-3, 0) for piece in pieces)
    assert {piece.kind for piece in pieces} == {"bypass", "induce", "kl"}
    whole = case.study.folder.scores.read(ScoreRecord)
    assert {(-3, 0)} <= {(record.position, record.layer) for record in whole}
    rejected = {(row.position, row.layer) for row in case.naive if row.induce < case.study.settings.induce_minimum}
    assert not rejected & {(piece.position, piece.layer) for piece in pieces if piece.kind != "induce"}


@pytest.mark.parametrize("share", [0.0, 0.2, 0.55, 0.9, 1.0])
def test_a_killed_sweep_goes_on_and_ends_with_the_same_bytes(case, tmp_path, share):
    whole = case.study.folder
    torn = RunFolder(tmp_path)
    data = whole.score_pieces.path.read_bytes()
    torn.score_pieces.path.write_bytes(data[: int(share * len(data))])
    if share == 1.0:
        scores = whole.scores.path.read_bytes()
        torn.scores.path.write_bytes(scores[: len(scores) // 2])
    score_refusal(replace(case.study, folder=torn), case.candidates)
    assert torn.score_pieces.path.read_bytes() == data
    assert torn.scores.path.read_bytes() == whole.scores.path.read_bytes()


def test_what_is_stored_is_not_measured_again(case):
    calls = []
    handle = case.study.chat.module.register_forward_pre_hook(lambda *_: calls.append(1))
    study = replace(case.study)
    calls.clear()
    score_refusal(study, case.candidates)
    handle.remove()
    assert calls == []


def test_where_nothing_passes_the_error_says_how_far_off_all_are(case, tmp_path):
    settings = replace(case.study.settings, kl_limit=0.0, induce_minimum=18.0)
    study = replace(case.study, folder=RunFolder(tmp_path), settings=settings)
    rows = score_refusal(study, case.candidates)
    for one, two in zip(rows, case.naive, strict=True):
        assert one.induce == pytest.approx(two.induce, abs=tolerance(case.study))
        assert one.kl == pytest.approx(two.kl, abs=tolerance(case.study))
    with pytest.raises(SelectionError, match=r"none of the \d+ candidate directions passed") as ours:
        select_refusal_direction(rows, **limits(case) | {"kl_limit": 0.0, "induce_minimum": 18.0})
    assert "the first of them passes" in str(ours.value)


def test_a_model_that_overflows_somewhere_is_rejected_there(case, tmp_path):
    candidates = case.candidates.clone()
    candidates[1, 1] = math.nan
    rows = score_refusal(replace(case.study, folder=RunFolder(tmp_path)), candidates)
    broken = next(row for row in rows if (row.position, row.layer) == (-2, 1))
    assert broken.rejected_by == ("nan",) or math.isnan(broken.induce)
    ours = select_refusal_direction(rows, **limits(case))
    others = [row for row in case.naive if (row.position, row.layer) != (-2, 1)]
    naive = select_refusal_direction(others, **limits(case))
    assert (ours.selected.position, ours.selected.layer) == (naive.selected.position, naive.selected.layer)
    assert next(row for row in ours.candidates if (row.position, row.layer) == (-2, 1)).rejected_by == ("nan",)


def test_where_memory_does_not_suffice_the_passes_are_halved_and_the_choice_is_the_same(case, tmp_path, monkeypatch):
    notes = []

    def small(passes, sequences, vectors, change, **others):
        if len(vectors) * len(sequences) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(passes, sequences, vectors, change, **others)

    real = PartialForward.logits
    monkeypatch.setattr(PartialForward, "logits", small)
    study = replace(case.study, folder=RunFolder(tmp_path))
    study.progress = SimpleNamespace(start=lambda *_: None, advance=lambda *_: None, note=notes.append)
    ours = select_refusal_direction(score_refusal(study, case.candidates), **limits(case))
    naive = select_refusal_direction(case.naive, **limits(case))
    assert (ours.selected.position, ours.selected.layer) == (naive.selected.position, naive.selected.layer)
    assert ours.selected.bypass_score == pytest.approx(naive.selected.bypass_score, abs=tolerance(case.study))
    assert any("out of memory" in note for note in notes)


def test_how_many_heats_run_at_a_time_changes_no_byte(case, tmp_path, monkeypatch):
    monkeypatch.setattr("demur.calibration._contest.world", lambda: SimpleNamespace(size=3))
    study = replace(case.study, folder=RunFolder(tmp_path))
    score_refusal(study, case.candidates)
    for name in ("score_pieces", "scores"):
        whole, other = (getattr(each.folder, name).path.read_bytes() for each in (case.study, study))
        assert whole == other, name


def test_what_is_kept_beside_a_batch_does_not_grow_with_candidates_or_layers(case, tmp_path, monkeypatch):
    """Beginnings of half as many candidates as a pass has rows, and one block's inputs."""
    made, held = {"beginnings": [], "advanced": []}, []

    def noting(name, real):
        def noted(self, *arguments, **named):
            found = real(self, *arguments, **named)
            made[name] += map(weakref.ref, found if isinstance(found, list) else [found])
            return found

        return noted

    def counting(self, *arguments, **named):
        held.append({name: len({id(each()) for each in refs if each()}) for name, refs in made.items()})
        return logits(self, *arguments, **named)

    logits = PartialForward.logits
    for name in made:
        monkeypatch.setattr(PartialForward, name, noting(name, getattr(PartialForward, name)))
    monkeypatch.setattr(PartialForward, "logits", counting)
    score_refusal(replace(case.study, folder=RunFolder(tmp_path)), case.candidates)
    assert case.study.rows // 2 < len(case.ours)
    assert 0 < max(each["beginnings"] for each in held) <= case.study.rows // 2
    assert 0 < max(each["advanced"] for each in held) <= 4  # two of a proof at one block, and at the block before
    assert held[-1]["advanced"] == 0


def test_the_telling_prompts_come_first_and_the_short_ones_before_the_long():
    encoded = [[0] * length for length in (9, 3, 7, 5, 1)]
    order = telling_first(encoded, [5.0, 4.0, 1.0, 2.0, 3.0], 2)
    assert order == (3, 2, 4, 1, 0)
    assert telling_first(encoded, [0.0] * 5, 0) == (4, 1, 3, 2, 0)
    assert first_step(5) == 1


def test_scores_of_many_rows_do_not_depend_on_how_they_are_cut(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    changed, base = torch.randn(3, 4, 50, generator=generator), torch.randn(4, 50, generator=generator)
    whole = refusal_scores(changed, [3, 5]), kl_divergences(base, changed)
    monkeypatch.setattr("demur.evaluation._refusal_score._NUMBERS_AT_ONCE", 60)
    torch.testing.assert_close(refusal_scores(changed, [3, 5]), whole[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(kl_divergences(base, changed), whole[1], rtol=0, atol=1e-12)
    assert kl_divergences(base, changed).shape == (3, 4)
