"""Models, prompts and settings with which a calibration cannot work: the message says what was measured."""

import re
from collections import Counter
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

QUICK = replace(SMALL, n_scored=2, n_validation=8, n_mechanism=2, n_answered=32, n_sampled=2)


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
        "refused 0 of 32 harmful train prompts (95 % interval 0% to 11%; 0 unjudged). Use a chat model that refuses, "
        "check the chat template, or set --refusal-tokens."
    )


def test_a_model_that_refuses_everything(toy_run, tmp_path):
    message = failing(toy_run, tmp_path, ModelError, judge=FakeJudge(otherwise="full_refusal"))
    assert "this model refuses (or garbles) everything, so no direction separates the two." in message
    assert "It refused 32 of 32 harmless train prompts (95 % interval 89% to 100%; 0 unjudged)." in message


def test_a_model_whose_answers_cannot_be_judged(toy_run, tmp_path):
    message = failing(toy_run, tmp_path, ModelError, judge=FakeJudge(otherwise="unjudged"))
    assert "refused 0 of 0 harmful train prompts (95 % interval 0% to 100%; 32 unjudged)" in message


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
        r" of 64 borderline train prompts have a refusal score above the threshold -?[\d.]+, and a mean needs at least "
        r"16\. ",
        message,
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


def test_where_no_direction_changes_an_answer_the_error_lists_the_nearest(toy_run, tmp_path):
    judge = by_label(toy_run, harmful="full_refusal", borderline="full_refusal")
    message = failing(toy_run, tmp_path, SelectionError, judge=judge, settings=replace(QUICK, induce_minimum=100.0))
    assert "candidate directions passed the filters (removed by:" in message
    assert "--induce-minimum" in message


# Interruptions ------------------------------------------------------------------------------------------------------


@dataclass
class Sighted(FakeJudge):
    """Counts how often the answer to each prompt was judged, and is interrupted at the second to a validation prompt.

    That is inside the lambda grid: an intervention is folded into the weights at this moment.
    """

    validation: frozenset = frozenset()
    seen: Counter = field(default_factory=Counter)
    interrupts: bool = True

    def judge_batch(self, pairs):
        self.seen.update(prompt for prompt, _ in pairs)
        if self.interrupts and any(self.seen[prompt] > 1 and prompt in self.validation for prompt, _ in pairs):
            raise KeyboardInterrupt
        return super().judge_batch(pairs)


def test_an_interruption_leaves_the_model_and_the_folder_usable(toy_run, tmp_path):
    known = by_label(toy_run, harmful="full_refusal", borderline="full_refusal")
    validation = {prompt.text for prompts in toy_run.prompts.values() for prompt in prompts.split("validation")}
    judge = Sighted(known.verdicts, known.labels, validation=frozenset(validation))
    failing(toy_run, tmp_path, KeyboardInterrupt, judge=judge)
    after = toy_run.chat.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in toy_run.parameters_before.items())
    with pytest.raises(RunFolderError, match="holds an unfinished run"):
        RunFolder(tmp_path).read_summary()
    kept = RunFolder(tmp_path).completions.read(CompletionRecord)
    assert {record.split for record in kept} == {"train", "validation"}
    judge.interrupts = False
    judge.seen.clear()
    summary = calibrate(toy_run.chat, toy_run.prompts, out=tmp_path, settings=QUICK, judge=judge)
    assert summary.operating_point is None
    assert RunFolder(tmp_path).completions.read(CompletionRecord)[: len(kept)] == kept
    answered = {record.prompt for record in kept if record.split == "train"}
    assert not answered & set(judge.seen)  # what was judged is not judged again


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
    assert (settings.kl_limit, settings.layer_fraction) == (0.1, 0.8)
    # Both papers use 0; by default the model's own threshold takes its place in both.
    assert (settings.refusal_threshold, settings.induce_minimum) == (None, None)
    assert settings.false_refusal_kl_limit == 0.2
    assert settings.lambdas[0] == 1.0


def test_tokens_that_the_user_sets_are_taken(toy_run, tmp_path):
    """They are recorded without probabilities; with a threshold, the model answers nothing to find either."""
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
