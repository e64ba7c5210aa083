"""Where nothing is admissible: a finding with its frontier, a failed gate, no export; filters that nothing meets."""

import json
from collections import Counter
from dataclasses import dataclass, replace

import pytest
from toy_runs import SMALL

from demur.calibration import calibrate, export
from demur.calibration._refusal_direction import KINDS
from demur.errors import GateError
from demur.evaluation import Judgement, PhraseJudge
from demur.models import hook_count
from demur.records import Candidates, CompletionRecord, ProjectionRecord, RunFolder, ScoreRecord, Summary, read_record
from demur.reports import write_reports

QUICK = replace(SMALL, n_scored=4, n_validation=8, n_mechanism=2, n_sampled=4, lambdas=(1.0, 0.7))


@dataclass
class Stubborn:
    """Every harmful and every borderline prompt is refused, whatever is done to the model."""

    labels: dict
    id: str = "stubborn"
    version: str = "1"

    def judge_batch(self, pairs):
        return [
            Judgement("full_compliance" if self.labels[prompt] == "harmless" else "full_refusal", 0.5, degenerate=False)
            for prompt, _ in pairs
        ]


@pytest.fixture(scope="module")
def nothing(toy_run, tmp_path_factory):
    """A calibration of the toy in which no change of the weights is small enough; and its folder."""
    folder = tmp_path_factory.mktemp("nothing") / "run"
    settings = replace(QUICK, gate_kl_limit=1e-12)
    return calibrate(toy_run.chat, toy_run.prompts, out=folder, settings=settings), folder, settings


def test_no_admissible_point_is_a_finding_and_the_gate_fails(nothing):
    summary, _, settings = nothing
    assert (summary.kind, summary.operating_point, summary.false_refusal_direction) == ("calibration", None, None)
    assert summary.gate.decision == "fail"
    (rule,) = summary.gate.rules
    assert rule.name == "operating_point_found"
    assert "No operating point removes false refusals and keeps true refusals (margin 5%)" in rule.reason
    assert "the KL on harmless prompts is too large" in rule.reason
    assert "(--gate-kl-limit)" in rule.reason
    assert summary.gate.margin == settings.margin


def test_the_curve_says_by_how_much_each_point_misses_which_limit(nothing):
    summary, _, settings = nothing
    assert tuple(point.lambda_ for point in summary.lambda_curve) == settings.lambdas
    assert not any(point.chosen for point in summary.lambda_curve)
    for point in summary.lambda_curve:
        (miss,) = [miss for miss in point.misses if miss.limit == "kl"]
        assert (miss.unit, miss.allowed) == ("nats", 1e-12)
        assert miss.measured == pytest.approx(point.kl_harmless.mean)
        assert miss.measured > miss.allowed
        assert f"KL {miss.measured:.3g} above 1e-12" in point.note
        assert point.false_refusal_rate is not None


def test_what_was_measured_of_the_base_model_is_reported(nothing):
    summary, _, _ = nothing
    for rate in (
        summary.metrics.true_refusal_rate,
        summary.metrics.false_refusal_rate,
        summary.metrics.harmless_refusal_rate,
    ):
        assert rate.before.n > 0
        assert rate.after is None
    assert (summary.comparison, summary.pressure, summary.fidelity, summary.metrics.kl_harmless) == (None,) * 4
    assert all(each.before.n > 0 and each.after is None for each in summary.sampled)
    assert summary.lambda_baseline.true_refusal_rate.n == 8
    assert summary.refusal_threshold.source == "learned"
    assert summary.mechanism is not None


def test_nothing_that_was_computed_is_lost(nothing):
    summary, folder, _ = nothing
    run = RunFolder(folder)
    assert run.read_summary() == summary
    candidates = read_record(run.candidates, Candidates)
    assert [row.selected for row in candidates.refusal].count(True) == 1
    assert {row.lambda_ for row in candidates.false_refusal} == {1.0, 0.7}
    assert not any(row.selected for row in candidates.false_refusal)
    kinds = {record.kind for record in run.scores.read(ScoreRecord)}
    assert {*KINDS, "w_kl", "w_harmful", "w_borderline"} == kinds
    states = Counter(record.intervention for record in run.completions.read(CompletionRecord))
    assert states["lambda=1"] and states["lambda=0.7"]
    assert "operating_point" not in states
    projections = read_record(run.projections, ProjectionRecord)
    assert projections.before["harmful"] and not projections.after
    assert run.directions.exists() and run.refusal_threshold.exists()
    assert not run.edits.exists()


def test_the_model_is_left_as_it_was(toy_run, nothing):
    assert nothing[0].operating_point is None
    assert hook_count(toy_run.chat.module) == 0
    after = toy_run.chat.module.state_dict()
    assert all(after[name].equal(tensor) for name, tensor in toy_run.parameters_before.items())


def test_a_second_call_gives_the_same_summary_at_once(toy_run, nothing):
    summary, folder, settings = nothing

    class Never(PhraseJudge):
        def judge_batch(self, _pairs):
            raise AssertionError

    again = calibrate(toy_run.chat, toy_run.prompts, out=folder, settings=settings, judge=Never())
    assert again == summary


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_there_is_nothing_to_export(nothing, tmp_path, form):
    _, folder, _ = nothing
    with pytest.raises(GateError) as caught:
        export(folder, to=tmp_path / "out", form=form)
    assert "No operating point removes false refusals" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_forged_gate_exports_nothing_either(nothing, tmp_path):
    """The summary is edited so that its gate passed; the point is still missing."""
    _, folder, _ = nothing
    forged = tmp_path / "run"
    forged.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (forged / path.name).write_bytes(path.read_bytes())
    document = json.loads((forged / "summary.json").read_text())
    document["gate"]["decision"] = "pass"
    document["gate"]["rules"][0]["decision"] = "pass"
    (forged / "summary.json").write_text(json.dumps(document))
    with pytest.raises(GateError):
        export(forged, to=tmp_path / "out", form="merged")
    assert not (tmp_path / "out").exists()


def test_the_report_is_the_frontier(nothing):
    _, folder, _ = nothing
    html, markdown = (path.read_text() for path in write_reports(folder))
    for text in (html, markdown):
        plain = text.replace("\\", "")
        assert "No calibration of this kind frees false refusals and keeps true ones here." in plain
        assert "None was chosen: the table is the frontier." in plain
        assert "No operating point removes false refusals and keeps true refusals" in plain
        assert "above 1e-12" in plain
        assert "From which refusal score on the model refuses" in plain
    assert 'id="threshold"' in html


def test_where_nothing_is_freed_milder_points_are_not_judged(toy_run, tmp_path):
    judge = Stubborn({prompt.text: label for label, each in toy_run.prompts.items() for prompt in each.prompts})
    settings = replace(QUICK, lambdas=(1.0, 0.8, 0.7), n_judged=1)
    summary = calibrate(toy_run.chat, toy_run.prompts, out=tmp_path, settings=settings, judge=judge)
    judged = [point for point in summary.lambda_curve if point.false_refusals is not None]
    assert len(judged) == 1
    assert [miss.limit for miss in judged[0].misses] == ["false_refusals"]
    assert "no false refusals are freed that could be told from noise" in summary.gate.reasons[0]
    others = [point for point in summary.lambda_curve if point is not judged[0]]
    assert all(point.note.endswith("answers not judged") for point in others)


# Filters that no candidate meets ------------------------------------------------------------------------------------


def test_where_no_direction_passes_the_filters_judged_answers_choose(toy_run, tmp_path):
    """The zero vectors of layer 0 miss the fewest limits, as they change nothing; they are no directions."""
    settings = replace(QUICK, kl_limit=1e-6, induce_minimum=None, gate_kl_limit=1e-12)
    summary = calibrate(toy_run.chat, toy_run.prompts, out=tmp_path, settings=settings)
    card = summary.refusal_direction
    assert "kl" in card.unmet_filters
    assert (card.n_survivors, card.norm > 0) == (0, True)
    (warning,) = [each for each in summary.warnings if "No refusal direction passes the published filters" in each]
    assert f"({', '.join(card.unmet_filters)} not met by the nearest)" in warning
    assert f"that of layer {card.layer}, position {card.position} changes judged answers most" in warning
    chosen = [row for row in read_record(tmp_path / "candidates.json", Candidates).refusal if row.selected]
    assert [(row.layer, row.position, row.rejected_by) for row in chosen] == [
        (card.layer, card.position, card.unmet_filters)
    ]
    # The rule of the scores did not choose it, so there is no stability of that rule to tell.
    assert not [each for each in summary.stability if each.kind == "refusal_direction"]
    # What was tried in memory is not recorded: the answers are those of a model without its refusals.
    states = {record.intervention for record in RunFolder(tmp_path).completions.read(CompletionRecord)}
    assert "candidate" not in states
    assert Summary.model_validate_json((tmp_path / "summary.json").read_text()) == summary
