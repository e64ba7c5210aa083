"""What a calibration keeps of the unchanged model: scores of every prompt, logits of the compared ones only."""

import pytest
import torch

from demur.calibration import CalibrationSettings
from demur.calibration._study import Study
from demur.evaluation import PhraseJudge, Runner, next_token_logits, refusal_scores
from demur.prompts import Prompt, PromptSet
from demur.records import RefusalThreshold, RefusalToken, RunFolder
from demur.types import SilentProgress

LABELS = ("harmful", "borderline", "harmless")
TOKENS = (5, 9)


@pytest.fixture
def study(tiny, tmp_path):
    chat = tiny("llama")
    splits = ["train"] * 7 + ["validation"] * 6 + ["test"] * 5
    sets = {
        label: PromptSet(
            label,
            "a test",
            tuple(Prompt(f"{label} {'x' * n}", label, split=split) for n, split in enumerate(splits)),
        )
        for label in LABELS
    }
    settings = CalibrationSettings(n_scored=4, batch_size=2)
    return told(Study(chat, sets, settings, RunFolder(tmp_path), Runner(chat, PhraseJudge()), SilentProgress()))


def told(study):
    """A study that need not learn the refusal tokens and the threshold from answers."""
    study.__dict__["refusal_tokens"] = tuple(
        RefusalToken(id=token, text="", probability_refused=None, probability_answered=None) for token in TOKENS
    )
    study.__dict__["threshold"] = RefusalThreshold(value=0, source="given")
    return study


@pytest.fixture
def passed(study):
    """Rows of all forward passes."""
    rows = []
    handle = study.chat.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    yield rows
    handle.remove()


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_scores_are_those_of_all_logits_and_every_prompt_is_read_once(study, passed, label, split):
    expected = refusal_scores(next_token_logits(study.chat, study.texts(label, split)), TOKENS)
    passed.clear()
    study.base_logits(label, split)
    found = study.base_scores(label, split)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert study.base_scores(label, split) is found
    assert sum(passed) == len(expected)


@pytest.mark.parametrize(
    ("label", "split", "kept"),
    [
        ("harmful", "train", 0),
        ("borderline", "train", 0),
        ("harmful", "validation", 0),
        ("harmless", "validation", 4),
        ("harmless", "test", 5),
    ],
)
def test_logits_are_kept_of_compared_prompts_only(study, label, split, kept):
    found = study.base_logits(label, split)
    assert len(found) == kept
    expected = next_token_logits(study.chat, study.texts(label, split)[:kept])
    torch.testing.assert_close(found, expected.view_as(found), rtol=1e-9, atol=1e-9)


def test_logits_of_train_prompts_are_not_kept(study):
    for label in LABELS:
        study.base_logits(label, "train")
        study.base_scores(label, "train")
        study.base_scores(label, "validation")
    assert sum(map(len, study._logits.values())) == 4  # the harmless validation prompts on which KL is measured


def test_the_order_of_asking_changes_no_bit(study, tmp_path):
    """A run that goes on asks in another order than one that was not cut."""
    other = told(Study(study.chat, study.prompts, study.settings, RunFolder(tmp_path), study.runner, study.progress))
    logits = study.base_logits("harmless", "validation")
    scores = study.base_scores("harmless", "validation")
    assert torch.equal(other.base_scores("harmless", "validation"), scores)
    assert torch.equal(other.base_logits("harmless", "validation"), logits)
