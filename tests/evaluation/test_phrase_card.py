"""docs/judge.md: of the judge's version, and reproduced where the labelled answers are at hand."""

import importlib.util
import os
from pathlib import Path

import pytest

from demur.evaluation import PhraseJudge, read_labels

ROOT = Path(__file__).parents[2]
CARD = ROOT / "docs" / "judge.md"
LABELS = Path(os.environ.get("DEMUR_JUDGE_LABELS", "no labels"))
labelled = pytest.mark.skipif(not LABELS.is_file(), reason="no labelled answers: set DEMUR_JUDGE_LABELS to a file")


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("generate_judge_card", ROOT / "docs" / "generate_judge_card.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_card_is_of_this_version():
    assert f"Judge `{PhraseJudge.id}`, version `{PhraseJudge.version}`." in CARD.read_text()


def test_the_shipped_weights_name_evidence_that_is_read(generator):
    from demur.evaluation._phrase_evidence import Reader
    from demur.evaluation._phrase_judge import WEIGHTS

    known = set(Reader().read("?", "Yes.").numbers) | {"constant", "openly"}
    assert set(WEIGHTS.refusal) <= known
    assert set(WEIGHTS.partial) <= known
    assert min(weight for name, weight in WEIGHTS.refusal.items() if name != "constant") > 0
    assert set(generator.training().PRIOR) <= known


@labelled
def test_agreement_on_left_out_models(generator):
    quality = generator.training().leave_one_model_out(read_labels(LABELS))
    assert quality.kappa_any_refusal >= 0.88
    assert quality.unjudged == 0


@labelled
def test_the_card_and_the_weights_are_reproduced(generator):
    train = generator.training()
    assert train.document(train.fit(read_labels(LABELS))) == train.TARGET.read_text()
    assert generator.document(LABELS) == CARD.read_text()
