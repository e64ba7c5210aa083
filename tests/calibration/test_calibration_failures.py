"""Models, prompts and settings with which a calibration cannot work: the message says what was measured."""

import re
from dataclasses import dataclass, field, replace

import pytest
import torch
from toy_runs import SMALL

from demur.calibration import CalibrationSettings, calibrate
from demur.directions import load_directions
from demur.errors import InputError, ModelError, RunFolderError, SelectionError
from demur.evaluation import Judgement, PhraseJudge
from demur.interventions import DirectionalAblation
from demur.models import hook_count
from demur.records import CompletionRecord, RunFolder
from demur.testing import load_toy_chat_model

QUICK = replace(SMALL, n_scored=2, n_validation=8, n_mechanism=2)


@dataclass
class FakeJudge:
    """The same verdict for every answer to a prompt of one label, whatever the model says."""

    verdicts: dict = field(default_factory=dict)
    labels: dict = field(default_factory=dict)
    otherwise: str = "full_compliance"
    id: str = "fake"
    version: str = "1"
    fails_in: int | None = None
    calls: int = 0

    def judge_batch(self, pairs):
        self.calls += 1
        if self.calls == self.fails_in:
            raise KeyboardInterrupt
        verdicts = [self.verdicts.get(self.labels.get(prompt), self.otherwise) for prompt, _ in pairs]
        return [Judgement(verdict, 0.5, degenerate=False) for verdict in verdicts]


def by_label(toy_run, **verdicts):
    labels = {prompt.text: label for label, prompts in toy_run.prompts.items() for prompt in prompts.prompts}
    return FakeJudge(verdicts, labels)


def failing(toy_run, tmp_path, error, *, chat=None, prompts=None, settings=QUICK, judge=None):
    with pytest.raises(error) as caught:
        calibrate(chat or toy_run.chat, prompts or toy_run.prompts, out=tmp_path, settings=settings, judge=judge)
    assert type(caught.value) is error
    assert not (tmp_path / "summary.json").exists()
    assert hook_count(toy_run.chat.module) == 0
    return str(caught.value)


# The model ----------------------------------------------------------------------------------------------------------


def test_a_model_that_refuses_nothing(toy_run, tmp_path):
    message = failing(toy_run, tmp_path, ModelError, judge=FakeJudge())
    assert message == (
        f"{toy_run.chat.name}: this model does not refuse: is it a base model, or one whose refusals were removed? It "
        "refused 0 of 64 harmful train prompts (95 % interval 0% to 6%; 0 unjudged). Use a chat model that refuses, "
        "check the chat template, or set --refusal-tokens."
    )


def test_a_model_that_refuses_everything(toy_run, tmp_path):
    message = failing(toy_run, tmp_path, ModelError, judge=FakeJudge(otherwise="full_refusal"))
    assert "this model refuses (or garbles) everything, so no direction separates the two." in message
    assert "It refused 64 of 64 harmless train prompts (95 % interval 94% to 100%; 0 unjudged)." in message


def test_a_model_whose_answers_cannot_be_judged(toy_run, tmp_path):
    message = failing(toy_run, tmp_path, ModelError, judge=FakeJudge(otherwise="unjudged"))
    assert "refused 0 of 0 harmful train prompts (95 % interval 0% to 100%; 64 unjudged)" in message


def test_a_model_whose_refusals_were_removed(toy_run, tmp_path):
    """The real thing: the toy with its own refusal direction ablated."""
    r = load_directions(toy_run.folder / "directions.safetensors")["refusal_direction"].vector
    chat = load_toy_chat_model()
    for name, tensor in DirectionalAblation(r).folded_parameters(chat).items():
        chat.module.get_parameter(name).data.copy_(tensor)
    message = failing(toy_run, tmp_path, ModelError, chat=chat)
    assert "does not refuse" in message or "hardly refuses these harmful prompts" in message


def test_borderline_prompts_that_are_hardly_refused(toy_run, tmp_path):
    harmless = toy_run.prompts["harmless"]
    relabelled = tuple(replace(prompt, label="borderline", answer=None) for prompt in harmless.prompts)
    prompts = {**toy_run.prompts, "borderline": replace(harmless, label="borderline", prompts=relabelled)}
    message = failing(toy_run, tmp_path, ModelError, prompts=prompts)
    assert re.search(
        r" of 64 borderline train prompts have a refusal score above the threshold \S+, and a mean needs at", message
    )
    assert "The model hardly refuses these borderline prompts, so there is little to remove: give more of" in message


@pytest.mark.parametrize("tokens", [None, (40,)])
def test_damaged_output_weights(toy_run, tmp_path, tokens):
    chat = load_toy_chat_model()
    chat.model.get_output_embeddings().weight.data[7, 3] = float("nan")
    message = failing(toy_run, tmp_path, ModelError, chat=chat, settings=replace(QUICK, refusal_tokens=tokens))
    assert "the model's logits are NaN." in message
    assert "--dtype bfloat16 or --dtype float32; if that does not help, the weights are damaged." in message


def test_damaged_weights_of_a_block(toy_run, tmp_path):
    chat = load_toy_chat_model()
    chat.module.get_parameter(chat.layout.writers[-1].parameter).data[0] = float("nan")
    assert "NaN" in failing(toy_run, tmp_path, ModelError, chat=chat)


# The choice ---------------------------------------------------------------------------------------------------------


def nothing_found(toy_run, tmp_path, *, settings=QUICK, judge=None):
    """A calibration without an operating point: a finding with a whole summary, not an error."""
    summary = calibrate(toy_run.chat, toy_run.prompts, out=tmp_path, settings=settings, judge=judge)
    assert summary.operating_point is None
    assert summary.gate.decision == "fail"
    assert [rule.name for rule in summary.gate.rules] == ["operating_point_found"]
    assert RunFolder(tmp_path).read_summary() == summary
    assert "refusal_direction" in load_directions(tmp_path / "directions.safetensors")
    assert hook_count(toy_run.chat.module) == 0
    return summary


def test_where_nothing_is_freed_the_frontier_says_so(toy_run, tmp_path):
    judge = by_label(toy_run, harmful="full_refusal", borderline="full_refusal")
    summary = nothing_found(toy_run, tmp_path, judge=judge)
    assert "No operating point removes false refusals and keeps true refusals (margin 5%)" in summary.gate.reasons[0]
    assert "no false refusals are freed that could be told from noise" in summary.gate.reasons[0]
    assert [point.lambda_ for point in summary.lambda_curve] == list(QUICK.lambdas)
    for point in summary.lambda_curve:
        (miss,) = (miss for miss in point.misses if miss.limit == "false_refusals")
        assert (miss.measured, miss.allowed) == (0.0, 0.0)
        assert "false refusals not shown to fall" in point.note
        assert point.false_refusals_by_score is not None
    assert summary.lambda_baseline.false_refusal_rate.k == 8


def test_true_refusals_that_are_lost_and_the_kl_are_named(toy_run, tmp_path):
    """A judge that forgets all refusals once it has seen the base model's answers."""

    class Forgetful(FakeJudge):
        def judge_batch(self, pairs):
            found = super().judge_batch(pairs)
            # Four calls learn how the model refuses, one holds the base model's answers to the validation prompts.
            return found if self.calls <= 5 else [replace(each, verdict="full_compliance") for each in found]

    known = by_label(toy_run, harmful="full_refusal", borderline="full_refusal")
    judge = Forgetful(known.verdicts, known.labels)
    settings = replace(QUICK, lambdas=(1.0,), gate_kl_limit=1e-12)
    (point,) = nothing_found(toy_run, tmp_path, judge=judge, settings=settings).lambda_curve
    assert {miss.limit for miss in point.misses} == {"true_refusals", "kl"}
    lost = next(miss for miss in point.misses if miss.limit == "true_refusals")
    assert (lost.measured, lost.allowed, lost.unit) == (-1.0, -0.05, "share")
    assert point.true_refusals.lost == 8
    assert "true refusals lost (-100.0 points" in point.note
    assert "above 1e-12" in point.note


def test_a_candidate_beyond_a_limit_of_scores_stands_in_the_frontier(toy_run, tmp_path):
    judge = by_label(toy_run, harmful="full_refusal", borderline="full_refusal")
    summary = nothing_found(toy_run, tmp_path, settings=replace(QUICK, false_refusal_kl_limit=0.0), judge=judge)
    assert all(point.position is not None for point in summary.lambda_curve)


def test_where_no_direction_passes_the_published_filters_judged_answers_decide(toy_run, tmp_path):
    summary = calibrate(toy_run.chat, toy_run.prompts, out=tmp_path, settings=replace(QUICK, induce_minimum=100.0))
    assert summary.refusal_direction.unmet_filters == ("induce",)
    assert summary.refusal_direction.n_survivors == 0
    assert any("No refusal direction passes the published filters (induce" in each for each in summary.warnings)


def test_a_direction_that_changes_no_answer_is_none(toy_run, tmp_path):
    judge = by_label(toy_run, harmful="full_refusal", borderline="full_refusal")
    message = failing(toy_run, tmp_path, SelectionError, settings=replace(QUICK, induce_minimum=100.0), judge=judge)
    assert "candidate directions passed the filters (removed by:" in message
    assert "--induce-minimum" in message


# Interruptions ------------------------------------------------------------------------------------------------------


def test_an_interruption_leaves_the_model_and_the_folder_usable(toy_run, tmp_path):
    judge = by_label(toy_run, harmful="full_refusal", borderline="full_refusal")
    judge.fails_in = 7  # inside the lambda grid: an intervention is folded into the weights at this moment
    failing(toy_run, tmp_path, KeyboardInterrupt, judge=judge)
    after = toy_run.chat.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in toy_run.parameters_before.items())
    kept = RunFolder(tmp_path).completions.read(CompletionRecord)
    assert any(record.intervention.startswith("lambda=") for record in kept)
    judge.fails_in = None
    nothing_found(toy_run, tmp_path, judge=judge)
    assert RunFolder(tmp_path).completions.read(CompletionRecord)[: len(kept)] == kept


def test_a_folder_in_the_way_is_refused_before_anything_is_measured(toy_run, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    assert "is not empty and is no run folder (it holds thesis.tex)" in failing(toy_run, tmp_path, RunFolderError)


# Settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        *(
            ({name: 0}, f"{name} is a number of at least 1; got 0.")
            for name in ("n_train", "n_scored", "n_validation", "n_mechanism", "n_answered", "max_new_tokens")
        ),
        ({"batch_size": -1}, "batch_size is a number of prompts, or 0 for one that suits the machine; got -1."),
        ({"lambdas": ()}, "lambdas are numbers from 0 to 1; got ()."),
        ({"lambdas": (0.5, 1.1)}, "lambdas are numbers from 0 to 1; got (0.5, 1.1)."),
        ({"lambdas": (float("nan"),)}, "lambdas are numbers from 0 to 1; got (nan,)."),
        ({"margin": 2}, "margin is a share of at most 0.05, such as 0.02 for 2 points; got 2."),
        ({"layer_fraction": 80.0}, "layer_fraction is a share above 0 and up to 1, such as 0.8; got 80.0."),
        ({"layer_fraction": 0.0}, "layer_fraction is a share above 0 and up to 1, such as 0.8; got 0.0."),
        ({"kl_limit": -1.0}, "kl_limit is a number of nats from 0 up, such as 0.1; got -1.0."),
        (
            {"false_refusal_kl_limit": float("nan")},
            "false_refusal_kl_limit is a number of nats from 0 up, such as 0.2; got nan.",
        ),
        ({"gate_kl_limit": 0.0}, "gate_kl_limit is a number of nats above 0, such as 0.1; got 0.0."),
        ({"induce_minimum": float("nan")}, "induce_minimum is a refusal score in log-odds, such as 0; got nan."),
        *(
            ({name: -1}, f"{name} is a number from 0 up; got -1.")
            for name in ("n_screened", "n_judged", "n_pressed", "n_pressure", "n_sampled")
        ),
        ({"refusal_threshold": float("inf")}, "refusal_threshold is a refusal score in log-odds, such as 0; got inf."),
        ({"verdict_tokens": -1}, "verdict_tokens is a number of tokens, or 0 to learn it; got -1."),
        ({"refusal_tokens": ()}, "refusal_tokens are one or more token ids, each given once; got ()."),
        ({"refusal_tokens": (4, 4)}, "refusal_tokens are one or more token ids, each given once; got (4, 4)."),
        ({"refusal_tokens": (-1,)}, "refusal_tokens are one or more token ids, each given once; got (-1,)."),
        ({"margin": 0}, "margin is a share of at most 0.05, such as 0.02 for 2 points; got 0."),
    ],
)
def test_settings_out_of_range_are_refused(values, message):
    with pytest.raises(InputError) as caught:
        CalibrationSettings(**values)
    assert str(caught.value) == message


def test_the_defaults_are_the_published_values():
    settings = CalibrationSettings()
    assert (settings.n_train, settings.n_scored) == (128, 32)
    assert (settings.kl_limit, settings.induce_minimum, settings.layer_fraction) == (0.1, None, 0.8)
    assert settings.false_refusal_kl_limit == 0.2
    assert settings.lambdas[0] == 1.0


def test_tokens_that_the_user_sets_are_taken(toy_run, tmp_path):
    """They are recorded without probabilities; with the papers' threshold the model answers nothing to find either."""
    tokens = tuple(token.id for token in toy_run.summary.refusal_tokens)
    judge = FakeJudge(fails_in=1)
    settings = replace(QUICK, refusal_tokens=tokens, refusal_threshold=0.0)
    failing(toy_run, tmp_path, KeyboardInterrupt, settings=settings, judge=judge)
    assert (tmp_path / "candidates.json").exists()  # the whole first stage needed no answer


def test_tokens_that_the_model_does_not_have(toy_run, tmp_path):
    size = toy_run.chat.model.config.vocab_size
    message = failing(toy_run, tmp_path, InputError, settings=replace(QUICK, refusal_tokens=(4, size)))
    assert f"--refusal-tokens names the token {size}; the ids of this model go from 0 to {size - 1}." in message


def test_the_phrase_judge_is_the_default(toy_run):
    assert toy_run.summary.judge.id == PhraseJudge.id
