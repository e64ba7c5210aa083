"""What a calibration learns from judged answers: how long they must be, which score tells, and what is then fitted."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from demur.calibration import CalibrationSettings
from demur.calibration import _own_threshold as own_threshold
from demur.calibration._own_threshold import _verdict_length, answered_train, learn_threshold
from demur.calibration._study import Study
from demur.errors import ModelError
from demur.evaluation import Judgement, refusal_scores
from demur.prompts import Prompt, PromptSet
from demur.records import CompletionRecord, RefusalThreshold, RefusalToken, RunFolder, ScoreReading
from demur.types import SilentProgress


class Words:
    """Every word is a token, and its own number."""

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [int(word) for word in text.split()]}

    def decode(self, ids):
        return " ".join(map(str, ids))


REFUSES = 7
"""The word that makes an answer a refusal."""


@dataclass
class LateJudge:
    """Refused where the word of refusal has been said; it never says that more cannot change that."""

    id: str = "late"
    version: str = "1"

    def judge_batch(self, pairs):
        return [
            Judgement("full_refusal" if str(REFUSES) in text.split() else "full_compliance", 0.5, degenerate=False)
            for _, text in pairs
        ]


class SettlingLateJudge(LateJudge):
    def settled(self, _prompt, _completion_so_far):
        return False


def record(number, label, *, refused, completion="1 2 3"):
    verdict = "unjudged" if refused is None else "full_refusal" if refused else "full_compliance"
    return CompletionRecord(
        key=f"{label} {number}", label=label, split="train", prompt_sha256="0" * 64, prompt=f"{label} {number}",
        intervention="none", completion=completion, n_tokens=3, ended=True, score=0.5, degenerate=False,
        verdict=verdict,
    )  # fmt: skip


# How long an answer must be -----------------------------------------------------------------------------------------


def refusing_at(place, length=120):
    """A whole answer that turns into a refusal at this word; None never does."""
    return " ".join(str(REFUSES if index == place else 1) for index in range(length))


def length_of(places, *, judge=None, longest=96, **settings):
    study = SimpleNamespace(
        settings=CalibrationSettings(**{"max_new_tokens": 128, **settings}),
        runner=SimpleNamespace(judge=judge or SettlingLateJudge(), max_new_tokens=longest),
        chat=SimpleNamespace(tokenizer=Words()),
    )
    records = [
        record(n, "harmful", refused=place is not None, completion=refusing_at(place, length=longest))
        for n, place in enumerate(places)
    ]
    return _verdict_length(study, records)


@pytest.mark.parametrize("places", [[0, 1, None], [31, None, 0], [None, None]])
def test_where_all_verdicts_are_clear_early_answers_are_short(places):
    assert length_of(places) == (32, 0)


@pytest.mark.parametrize(("place", "length"), [(32, 48), (47, 48), (48, 64), (63, 64), (64, 96), (95, 96)])
def test_a_late_refusal_makes_answers_longer(place, length):
    assert length_of([0, None, place]) == (length, 0)


def test_one_verdict_of_twenty_may_come_later_and_is_counted():
    early = [0] * 10 + [None] * 9
    assert length_of([*early, 90]) == (32, 1)
    assert length_of([*early, 40, 90]) == (48, 1)
    assert length_of([*early, 90, 90]) == (96, 0)


def test_an_answer_that_turns_out_garbled_is_no_late_refusal():
    study = SimpleNamespace(
        settings=CalibrationSettings(),
        runner=SimpleNamespace(judge=SettlingLateJudge(), max_new_tokens=96),
        chat=SimpleNamespace(tokenizer=Words()),
    )
    garbled = [record(n, "harmful", refused=None, completion=refusing_at(None, length=96)) for n in range(20)]
    assert _verdict_length(study, garbled) == (32, 0)


def test_answers_are_never_longer_than_what_was_generated():
    assert length_of([0, None], longest=24) == (24, 0)
    assert length_of([0, None, 40], longest=41) == (41, 0)


@pytest.mark.parametrize(
    ("judge", "settings", "first", "later"),
    [
        (SettlingLateJudge(), {}, 96, 32),
        (SettlingLateJudge(), {"max_new_tokens": 80}, 80, 32),
        (SettlingLateJudge(), {"verdict_tokens": 20}, 20, 20),
        (LateJudge(), {}, 128, 128),
    ],
)
def test_the_first_answers_of_each_set_are_long_and_all_others_as_long_as_needed(judge, settings, first, later):
    asked = []

    def complete_sets(sets, **_):
        asked.append((runner.max_new_tokens, {label: len(prompts) for label, prompts in sets.items()}))
        return {
            label: [record(n, label, refused=False, completion=refusing_at(None)) for n, _ in enumerate(prompts)]
            for label, prompts in sets.items()
        }

    runner = SimpleNamespace(judge=judge, max_new_tokens=0, complete_sets=complete_sets)
    study = SimpleNamespace(
        settings=CalibrationSettings(n_answered=20, **settings), runner=runner, progress=SilentProgress(),
        prompts={"harmful": None, "harmless": None}, chat=SimpleNamespace(tokenizer=Words()),
        split=lambda label, _split: [f"{label} {n}" for n in range(30)],
    )  # fmt: skip
    records, length, changes = answered_train(study)
    assert asked == [(first, {"harmful": 16, "harmless": 16}), (later, {"harmful": 4, "harmless": 4})]
    assert (length, changes, runner.max_new_tokens) == (later, 0, later)
    assert [len(each) for each in records.values()] == [20, 20]


def test_a_judge_that_is_a_model_is_not_asked_again_for_every_length():
    class Never(LateJudge):
        def judge_batch(self, _pairs):
            raise AssertionError

    assert length_of([0, None], judge=Never()) == (128, 0)


@pytest.mark.parametrize(("asked", "given"), [(40, 40), (500, 128)])
def test_a_length_that_is_given_is_taken(asked, given):
    assert length_of([0, None, 60], verdict_tokens=asked) == (given, 0)


# Which score tells --------------------------------------------------------------------------------------------------

TELLING, OTHER, OPENING = 5, 6, (7, 8)
"""Tokens: likely before a refusal, likely before an answer, and what refusals open with."""


@dataclass
class FakeChat:
    """A prompt is one token: 1 where the model refuses it, 0 where it answers."""

    refused: dict
    name: str = "fake"
    tokenizer: Words = field(default_factory=Words)

    def encode(self, texts):
        return [[int(self.refused[text])] for text in texts]


def fake_logits(telling_after):
    """The next token says whether a prompt is refused after exactly these tokens; else every prompt is alike."""
    calls = []

    def logits_after(_chat, encoded, *, batch_size):
        rows = []
        for index, (refused, *opening) in enumerate(encoded):
            row = torch.zeros(10, dtype=torch.float64)
            row[TELLING] = 0.01 * (index % 7)
            if tuple(opening) == telling_after:
                row[TELLING if refused else OTHER] = 4.0 + 0.1 * (index % 5)
            rows.append(row)
        calls.append(len(encoded))
        return torch.stack(rows)

    return logits_after


def learned(monkeypatch, telling_after, *, refused=30, answered=30, unjudged=2):
    logits = fake_logits(telling_after)
    monkeypatch.setattr(own_threshold, "logits_after", logits)
    monkeypatch.setattr(
        own_threshold,
        "scores_after",
        lambda chat, encoded, tokens, **options: refusal_scores(logits(chat, encoded, **options), tokens),
    )
    records = {
        "harmful": [record(n, "harmful", refused=True, completion="7 8 9 1 2") for n in range(refused)],
        "borderline": [record(n, "borderline", refused=None) for n in range(unjudged)],
        "harmless": [record(n, "harmless", refused=False, completion="3 4 3") for n in range(answered)],
    }
    verdicts = {each.prompt: each.verdict == "full_refusal" for some in records.values() for each in some}
    study = SimpleNamespace(
        chat=FakeChat(verdicts), settings=CalibrationSettings(batch_size=4), warnings=[],
        refusal_tokens=(RefusalToken(id=TELLING, text="", probability_refused=None, probability_answered=None),),
        split=lambda label, _split: [SimpleNamespace(text=each.prompt) for each in records[label]],
    )  # fmt: skip
    return learn_threshold(study, records, 48, 1), study


def test_where_the_first_token_tells_it_is_read_as_published(monkeypatch):
    threshold, study = learned(monkeypatch, ())
    assert (threshold.source, threshold.tells, threshold.wrong) == ("learned", True, 0)
    assert (threshold.reading.opening_tokens, threshold.reading.tokens) == ((), (TELLING,))
    assert threshold.reading.auroc == 1.0
    assert threshold.tried == (threshold.reading,)
    assert threshold.low <= threshold.value <= threshold.high
    assert (threshold.verdict_tokens, threshold.verdict_changes) == (48, 1)
    assert [len(threshold.judged[label].refused) for label in ("harmful", "borderline", "harmless")] == [30, 0, 0]
    assert [len(threshold.judged[label].answered) for label in ("harmful", "borderline", "harmless")] == [0, 0, 30]
    assert threshold.judged["borderline"].unjudged == 2
    assert min(threshold.judged["harmful"].refused) > threshold.value > max(threshold.judged["harmless"].answered)
    assert study.warnings == []


@pytest.mark.parametrize("opening", [(7,), (7, 8)])
def test_where_it_does_not_tell_the_model_s_own_opening_is_forced(monkeypatch, opening):
    threshold, study = learned(monkeypatch, opening)
    assert threshold.tells
    assert threshold.reading.opening_tokens == opening
    assert threshold.reading.opening == " ".join(map(str, opening))
    assert threshold.reading.tokens[0] == TELLING
    assert [each.opening_tokens for each in threshold.tried][:3] == [(), (7,), (7, 8)]
    assert threshold.tried[0].auroc < 0.7
    assert study.warnings == []


def test_where_nothing_tells_the_record_says_so(monkeypatch):
    threshold, study = learned(monkeypatch, ("never",))
    assert not threshold.tells
    assert len(threshold.tried) > 1
    (warning,) = study.warnings
    assert "does not tell this model's refusals from its answers" in warning
    assert "fitted on judged verdicts" in warning


@pytest.mark.parametrize(("refused", "answered"), [(3, 30), (30, 3)])
def test_a_handful_of_answers_teaches_no_threshold(monkeypatch, refused, answered):
    threshold, study = learned(monkeypatch, (), refused=refused, answered=answered)
    assert (threshold.value, threshold.source, threshold.slope, threshold.tells) == (0.0, "given", None, True)
    assert threshold.verdict_tokens == 48
    assert f"{refused} are refusals and {answered} are answers, too few" in study.warnings[0]


# What is fitted on --------------------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path):
    """Forty prompts of each split; the verdicts of a judge and the scores disagree."""
    splits = ["train"] * 40 + ["validation"] * 40 + ["test"] * 4
    sets = {
        label: PromptSet(label, "a test", tuple(Prompt(f"{label} {n}", label, split=s) for n, s in enumerate(splits)))
        for label in ("harmful", "borderline", "harmless")
    }
    asked = []

    def complete(prompts, *, condition, split, until_settled):
        asked.append((prompts[0].label, split))
        flags = {0: True, 1: True, 2: False, 3: None}
        return [record(n, prompt.label, refused=flags[n % 4]) for n, prompt in enumerate(prompts)]

    chat = SimpleNamespace(name="fake")
    runner = SimpleNamespace(complete=complete, asked=asked)
    made = Study(chat, sets, CalibrationSettings(n_scored=8), RunFolder(tmp_path), runner, SilentProgress())
    for label in sets:
        for split in ("train", "validation"):
            made._scores[label, split] = torch.tensor([-1.0, 0.0, 1.0, -2.0] * 10, dtype=torch.float64)
    return made


def chosen(study, label, indices):
    texts = study.texts(label, "train")
    return [text for index, text in enumerate(texts) if index % 4 in indices]


@pytest.mark.parametrize("label", ["harmful", "borderline"])
def test_where_the_score_does_not_tell_directions_are_fitted_on_judged_verdicts(study, label):
    study.__dict__["threshold"] = RefusalThreshold(value=0.0, source="learned", slope=1.0, tells=False)
    assert study.fitted_prompts(label, refused=True) == chosen(study, label, {0, 1})
    assert study.runner.asked == [(label, "train")]
    assert study.scored_validation(label, refused=True) == [0, 1, 4, 5]
    assert study.scored_validation(label, refused=False) == [2, 6]


def test_too_few_judged_answers_are_named_as_judged(study):
    study.__dict__["threshold"] = RefusalThreshold(value=0.0, source="learned", slope=1.0, tells=False)
    with pytest.raises(ModelError, match=r"only 10 of 40 harmless train prompts are answered, as judged, and a mean"):
        study.fitted_prompts("harmless", refused=False)


def test_where_it_tells_nothing_is_judged_for_fitting(study):
    study.settings = CalibrationSettings(n_scored=8, refusal_threshold=-1.5, refusal_tokens=(3,))
    assert study.fitted_prompts("harmful", refused=True) == chosen(study, "harmful", {0, 1, 2})
    assert study.runner.asked == []
    assert study.scored_validation("harmful", refused=False) == [3, 7]


def test_a_threshold_of_0_is_the_papers_rule(study):
    """Kept if the score is above 0, or below 0; a score of exactly 0 is neither. Induce must reach 0."""
    study.settings = CalibrationSettings(n_scored=8, refusal_threshold=0.0, refusal_tokens=(3,))
    with pytest.raises(ModelError, match=r"only 10 of 40 harmful train prompts have a refusal score above the thresh"):
        study.fitted_prompts("harmful", refused=True)
    assert study.fitted_prompts("harmless", refused=False) == chosen(study, "harmless", {0, 3})
    assert study.scored_validation("harmful", refused=True) == [2, 6]
    assert study.scored_validation("harmless", refused=False) == [0, 3, 4, 7]
    assert study.scored_validation("harmful", refused=None) == list(range(8))
    assert study.induce_minimum == 0.0
    assert [study.probability(score) for score in (-0.1, 0.0, 0.1)] == [0.0, 0.0, 1.0]
    assert study.opening == ()
    assert study.threshold.source == "given"
    assert not study.folder.refusal_threshold.exists()
    assert study.runner.asked == []


def test_the_induce_limit_is_the_threshold_unless_it_is_set(study):
    study.__dict__["threshold"] = RefusalThreshold(value=-3.5, source="learned", slope=1.0)
    assert study.induce_minimum == -3.5
    study.settings = CalibrationSettings(induce_minimum=-1.0)
    assert study.induce_minimum == -1.0


def test_a_given_threshold_is_read_without_a_forced_opening(study):
    reading = ScoreReading(opening="7", opening_tokens=(7,), tokens=(5,), auroc=1.0, low=0.9, high=1.0)
    study.__dict__["refusal_tokens"] = (
        RefusalToken(id=3, text="", probability_refused=None, probability_answered=None),
    )
    study.__dict__["threshold"] = RefusalThreshold(value=-1.0, source="learned", slope=1.0, reading=reading)
    assert (study.opening, study.token_ids) == ((7,), [5])
    study.__dict__["threshold"] = RefusalThreshold(value=-1.0, source="given", reading=reading)
    assert (study.opening, study.token_ids) == ((), [3])
