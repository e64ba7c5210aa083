"""The selection is that of the naive sweep: the same choice, the same value of every score that is reported."""

import math
import weakref
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch
from naive_sweep import NaiveSweep

from demur.calibration import CalibrationSettings
from demur.calibration._false_refusal_direction import _score as score_false_refusal
from demur.calibration._racing import first_step
from demur.calibration._refusal_direction import _score as score_refusal
from demur.calibration._score_books import ScoreBook
from demur.calibration._selection import ScoreRow, select_refusal_direction
from demur.calibration._sweep import telling_first
from demur.directions import orthogonalize
from demur.errors import SelectionError
from demur.evaluation import applicable_conditions, kl_divergences, next_token_logits, refusal_scores
from demur.models import PartialForward
from demur.records import RunFolder, ScorePiece, ScoreRecord
from demur.testing import tiny_chat_model
from demur.types import SilentProgress

TEXTS = {
    "harmful": ["Break it", "How do I get into the old house?", "Tell me now", "Open this", "Who did it and why?"] * 2,
    "harmless": ["Bake a cake", "What is the time in Rome?", "Sing", "Name three rivers of the north", "Hi there"] * 2,
    "borderline": ["Kill the process", "How do I shoot a portrait?", "Blow out", "Cut the budget in half now"] * 2,
}
TEXTS = {label: [f"{text} {index}" for index, text in enumerate(texts)] for label, texts in TEXTS.items()}


def even_tokens(logits):
    """As many tokens as have half of the probability, so that a random model's scores lie around 0."""
    likely = torch.softmax(logits.double(), -1)
    order = torch.randperm(logits.shape[-1], generator=torch.Generator().manual_seed(0))
    medians = likely[:, order].cumsum(-1).median(0).values
    return order[: int((medians - 0.5).abs().argmin()) + 1].tolist()


@dataclass
class PlainStudy:
    """What the sweeps use of a study; all prompts are scored."""

    chat: object
    settings: CalibrationSettings
    folder: RunFolder
    rows: int = 12
    progress: SilentProgress = field(default_factory=SilentProgress)
    positions = (-3, -2, -1)

    def __post_init__(self):
        self.scores = ScoreBook(self.folder.scores)
        self.allowed_layers = range(int(self.settings.layer_fraction * self.chat.n_layers))
        self.logits = {label: next_token_logits(self.chat, texts) for label, texts in TEXTS.items()}
        self.token_ids = even_tokens(self.logits["harmful"])

    def scored_validation(self, label, *, refused):
        scores = self.base_scores(label, "validation")
        return [index for index, score in enumerate(scores) if label != "harmful" or not refused or score > 0]

    def texts(self, label, _split):
        return TEXTS[label]

    def encode(self, label, _split, indices):
        return self.chat.encode([TEXTS[label][index] for index in indices])

    def base_logits(self, label, _split):
        return self.logits[label]

    def base_scores(self, label, _split):
        return refusal_scores(self.logits[label], self.token_ids)


def directions(chat, seed=0, positions=3, size=1.0):
    shape = (positions, chat.n_layers, chat.layout.d_model)
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * size
    drawn[0, 0] = 0.0  # as at layer 0 of identical template tokens
    return drawn


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


def between(values, share):
    """A limit between two values, so that rounding decides nothing."""
    ordered = sorted(set(values))
    index = max(1, int(share * len(ordered)))
    return (ordered[index - 1] + ordered[index]) / 2


CASES = [("llama", torch.float64), ("qwen2", torch.float64), ("gpt2", torch.float64), ("llama", torch.float32)]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request, tmp_path_factory):
    family, dtype = request.param
    chat = tiny_chat_model(family, dtype=dtype, **({"n_layer": 5} if family == "gpt2" else {"num_hidden_layers": 5}))
    settings = CalibrationSettings(layer_fraction=1.0, pressure=False)
    study = PlainStudy(chat, settings, RunFolder(tmp_path_factory.mktemp("sweep")))
    candidates = directions(chat)
    blocks = [chat.module.get_submodule(path) for path in chat.layout.blocks]
    harmful = study.encode("harmful", "validation", study.scored_validation("harmful", refused=True))
    naive = NaiveSweep(chat.model, blocks, harmful, chat.encode(TEXTS["harmless"]), study.token_ids)
    rows = naive_rows(study, candidates, naive)
    # Limits at quantiles, so that every filter removes some.
    induce, kl = between((row.induce for row in rows), 0.25), between((row.kl for row in rows), 0.7)
    study.settings = replace(settings, induce_minimum=induce, kl_limit=kl)
    return Case(study, candidates, rows, score_refusal(study, candidates))


def limits(case):
    return {
        "n_layers": case.study.chat.n_layers,
        "kl_limit": case.study.settings.kl_limit,
        "induce_minimum": case.study.settings.induce_minimum,
        "layer_fraction": 1.0,
    }


def tolerance(case):
    return 1e-9 if case.study.chat.layout.dtype == torch.float64 else 1e-4


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
                assert getattr(one, name) == pytest.approx(getattr(two, name), abs=tolerance(case))
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
        assert one.induce == pytest.approx(two.induce, abs=tolerance(case))
        assert one.kl == pytest.approx(two.kl, abs=tolerance(case))
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


def check_reported(rows, table, limit, share, near):
    for row in rows:
        expected = table.get((row.lambda_, row.position, row.layer))
        if expected is None:  # a zero vector
            continue
        for value, naive in zip((row.kl_score, row.harmful_kept, row.borderline_score), expected, strict=True):
            assert value is None or value == pytest.approx(naive, abs=near)
        assert row.rejected_by != ("kl",) or expected[0] > limit
        assert row.rejected_by != ("true_refusals",) or expected[1] < share


def naive_false_refusal_table(study, w, r):
    """(lambda, position, layer) -> KL, share of true refusals kept, mean refusal score on borderline prompts."""
    chat = study.chat
    harmful = study.encode("harmful", "validation", study.scored_validation("harmful", refused=True))
    blocks = [chat.module.get_submodule(path) for path in chat.layout.blocks]
    encoded = {label: chat.encode(texts) for label, texts in TEXTS.items()}
    first = NaiveSweep(chat.model, blocks, harmful, encoded["harmless"], study.token_ids)
    second = NaiveSweep(chat.model, blocks, encoded["borderline"], encoded["harmless"][:1], study.token_ids)
    table = {}
    for strength in study.settings.lambdas:
        vectors = orthogonalize(w, r, strength=strength)
        for layer in study.allowed_layers:
            for position in study.positions:
                vector = vectors[position, layer]
                if vector.norm() > 0:
                    scores = first.kl(vector), first.bypass(vector), second.bypass(vector)
                    table[strength, position, layer] = (
                        math.fsum(scores[0]) / len(scores[0]),
                        sum(score > 0 for score in scores[1]) / len(scores[1]),
                        math.fsum(scores[2]) / len(scores[2]),
                    )
    return table


def test_the_best_of_each_lambda_is_that_of_scoring_everything(case, tmp_path):
    lambdas = (1.0, 0.5, 0.0)
    w, r = (directions(case.study.chat, seed) for seed in (1, 2))
    r[1, 2] = 0.0  # nothing to take out: the same direction at every lambda
    study = replace(case.study, folder=RunFolder(tmp_path))
    study.settings = replace(study.settings, lambdas=lambdas)
    table = naive_false_refusal_table(study, w, r)
    limit, share = between((row[0] for row in table.values()), 0.6), between((row[1] for row in table.values()), 0.2)
    study.settings = replace(study.settings, false_refusal_kl_limit=limit)
    object.__setattr__(study.settings, "margin", 1 - share)
    rows, best, _ = score_false_refusal(study, w, r)
    for strength in lambdas:
        passing = [
            key
            for key, (kl, kept, _) in table.items()
            if key[0] == strength and kl <= limit and kept >= 1 - study.settings.margin
        ]
        expected = min(passing, key=lambda key: table[key][2]) if passing else None
        found = best[strength]
        assert (None if found is None else (strength, found.scores.position, found.scores.layer)) == expected
        if found is not None:
            vector = orthogonalize(w, r, strength=strength)[found.scores.position, found.scores.layer]
            torch.testing.assert_close(found.vector, vector, rtol=0, atol=0)
            assert None not in (found.scores.kl_score, found.scores.harmful_kept, found.scores.borderline_score)
    assert any(best.values())
    check_reported(rows, table, limit, share, tolerance(case))
    same = [piece for piece in study.folder.score_pieces.read(ScorePiece) if (piece.position, piece.layer) == (-2, 2)]
    assert {piece.lambda_ for piece in same} == {1.0}


def naive_pressure_table(study, w, r):
    """(lambda, position, layer) -> greatest loss under pressure, mean refusal score on borderline prompts.

    The loss of sampled answers is that of the mean refusal probability; of every other condition the share of all
    harmful prompts that are among the `n_scored` that the base model refuses by the least there, by the next token, and
    that the changed model does not refuse.
    """
    chat, conditions = study.chat, {each.name: each for each in applicable_conditions(study.chat)[0]}
    pressed = [
        [tokens for tokens, _ in conditions[name].requests(chat, TEXTS["harmful"])]
        for name in ("suffix-32", "system-careful", "earlier-turn")
        if name in conditions
    ]
    assert len(pressed) >= 2
    blocks = [chat.module.get_submodule(path) for path in chat.layout.blocks]
    harmless = chat.encode(TEXTS["harmless"])[:1]
    at_rest = study.encode("harmful", "validation", study.scored_validation("harmful", refused=True))
    rest, borderline, *sweeps = (
        NaiveSweep(chat.model, blocks, prompts, harmless, study.token_ids)
        for prompts in (at_rest, chat.encode(TEXTS["borderline"]), *pressed)
    )

    def probability(scores):
        return sum(1 / (1 + math.exp(-score)) for score in scores) / len(scores)

    bases = [sweep.refusal_scores(sweep.logits(sweep.harmful)) for sweep in sweeps]
    base = probability(rest.refusal_scores(rest.logits(rest.harmful)))
    table = {}
    for strength in study.settings.lambdas:
        vectors = orthogonalize(w, r, strength=strength)
        for layer in study.allowed_layers:
            for position in study.positions:
                vector = vectors[position, layer]
                if vector.norm() == 0:
                    continue
                losses = [base - probability(rest.bypass(vector))]
                for sweep, before in zip(sweeps, bases, strict=True):
                    pairs = sorted(pair for pair in zip(before, sweep.bypass(vector), strict=True) if pair[0] > 0)
                    losses.append(sum(after <= 0 for _, after in pairs[: study.settings.n_scored]) / len(before))
                scores = borderline.bypass(vector)
                table[strength, position, layer] = max(losses), math.fsum(scores) / len(scores)
    return table


def test_a_candidate_that_loses_refusals_under_pressure_is_not_chosen(case, tmp_path, monkeypatch):
    w, r = (directions(case.study.chat, seed) for seed in (3, 4))
    study = replace(case.study, folder=RunFolder(tmp_path))
    study.settings = replace(
        study.settings, lambdas=(1.0, 0.3), pressure=True, false_refusal_kl_limit=math.inf, n_scored=4
    )
    object.__setattr__(study.settings, "margin", 1.0)
    table = naive_pressure_table(study, w, r)
    limit = between((loss for loss, _ in table.values()), 0.3)
    monkeypatch.setattr("demur.calibration._pressed_choice.PRESSURE_MARGIN", limit)
    rows, best, _ = score_false_refusal(study, w, r)
    for strength in study.settings.lambdas:
        passing = [key for key, (loss, _) in table.items() if key[0] == strength and loss <= limit]
        expected = min(passing, key=lambda key: table[key][1]) if passing else None
        found = best[strength]
        assert (None if found is None else (strength, found.scores.position, found.scores.layer)) == expected
    assert any(best.values())
    removed = {row.rejected_by for row in rows} & {("sampling",), ("suffix",), ("system",), ("template",)}
    assert removed
    for row in rows:
        key = row.lambda_, row.position, row.layer
        assert row.rejected_by not in removed or table[key][0] > limit


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
    assert ours.selected.bypass_score == pytest.approx(naive.selected.bypass_score, abs=tolerance(case))
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
