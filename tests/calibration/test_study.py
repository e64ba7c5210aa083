"""What a calibration keeps of the unchanged model: scores of every prompt, logits of the compared ones only."""

import pytest
import torch

from demur.calibration import CalibrationSettings
from demur.calibration import _study as study_module
from demur.calibration._study import Study
from demur.evaluation import PhraseJudge, Runner, next_token_logits, refusal_scores
from demur.prompts import Prompt, PromptSet
from demur.records import RunFolder
from demur.types import SilentProgress

LABELS = ("harmful", "borderline", "harmless")
TOKENS = (5, 9)


@pytest.fixture
def study(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(study_module, "_DISCOVERY", 3)
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
    return Study(chat, sets, settings, RunFolder(tmp_path), Runner(chat, PhraseJudge()), SilentProgress())


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
    study.__dict__["token_ids"] = list(TOKENS)
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
        ("harmful", "train", 3),
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


def test_logits_of_train_prompts_go_once_their_scores_are_known(study):
    study.__dict__["token_ids"] = list(TOKENS)
    for label in LABELS:
        study.base_logits(label, "train")
        study.base_scores(label, "train")
        study.base_scores(label, "validation")
    assert sum(map(len, study._logits.values())) == 4  # the harmless validation prompts on which KL is measured


def test_the_order_of_asking_changes_no_bit(study, tmp_path):
    """A run that goes on asks in another order than one that was not cut."""
    study.__dict__["token_ids"] = list(TOKENS)
    other = Study(study.chat, study.prompts, study.settings, RunFolder(tmp_path), study.runner, study.progress)
    other.__dict__["token_ids"] = list(TOKENS)
    logits = study.base_logits("harmless", "validation")
    scores = study.base_scores("harmless", "validation")
    assert torch.equal(other.base_scores("harmless", "validation"), scores)
    assert torch.equal(other.base_logits("harmless", "validation"), logits)
