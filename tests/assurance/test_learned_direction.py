"""Gradient-trained directions: the objective against an independent computation, its gradient, the training."""

import math
from dataclasses import replace

import pytest
import torch

from demur.assurance import _learned_direction
from demur.assurance._audit_settings import AuditSettings
from demur.assurance._audit_study import AuditStudy
from demur.assurance._directions import Directions
from demur.assurance._learned_direction import (
    RETENTION,
    Prompts,
    Start,
    _checked,
    attacked,
    loss_of,
    measure_learned,
    mixtures,
    own_answers,
    train_start,
)
from demur.directions import Direction
from demur.evaluation import PhraseJudge
from demur.interventions import DirectionalAblation
from demur.prompts import Prompt, PromptSet
from demur.testing import load_toy_chat_model, toy_prompt_sets, toy_settings

TOKENS = (40, 41)


def tiny_study(chat, **settings):
    width = chat.layout.d_model
    direction = Direction(torch.ones(width, dtype=torch.float64), -1, 1)
    words = ["red", "green", "blue", "a longer one"]
    prompts = {
        label: PromptSet(label, "here", tuple(Prompt(f"{label} {word}", label, "train") for word in words))
        for label in ("harmful", "harmless")
    }
    settings = AuditSettings.quick(max_new_tokens=6, **settings)
    return AuditStudy(chat, prompts, settings, Directions(direction, None, TOKENS, "a test"), PhraseJudge())


def prompts_of(study):
    texts = study.texts("harmless", "train", 4)
    return Prompts(study.chat.encode(study.texts("harmful", "train", 4)), own_answers(study, texts))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_the_objective_is_the_one_written_down(tiny, family, monkeypatch):
    """Row by row, without padding, under the public intervention: max(R, floor) + retention * cross-entropy."""
    chat = tiny(family)
    study = tiny_study(chat)
    prompts = prompts_of(study)
    basis = (
        torch.linalg.qr(torch.randn(chat.layout.d_model, 2, generator=torch.Generator().manual_seed(0)))[0].double().T
    )
    scores, nats = [], []
    with DirectionalAblation(basis).applied_to(chat), torch.no_grad():
        for tokens in prompts.harmful:
            p = float(chat.module(torch.tensor([tokens])).logits[0, -1].double().softmax(-1)[list(TOKENS)].sum())
            scores.append(math.log(p + 1e-8) - math.log(1 - p + 1e-8))
        for tokens, length in prompts.harmless:
            logs = chat.module(torch.tensor([tokens])).logits[0].double().log_softmax(-1)
            first = len(tokens) - length
            nats += [-float(logs[at - 1, tokens[at]]) for at in range(first, len(tokens))]
    for floor in (min(scores) - 1, sum(scores) / len(scores)):  # below all of them, and between them
        monkeypatch.setattr(_learned_direction, "FLOOR", floor)
        wanted = sum(max(floor, score) for score in scores) / len(scores) + RETENTION * sum(nats) / len(nats)
        loss = loss_of(study, attacked(study, basis, "subspace"), prompts)
        assert loss.item() == pytest.approx(wanted, abs=1e-5)  # cross-entropy is in float32


@pytest.mark.parametrize("kind", ["subspace", "cone"])
def test_gradients_flow_into_the_basis(tiny, kind):
    chat = tiny("llama")
    study = tiny_study(chat)
    prompts = prompts_of(study)
    rows = torch.linalg.qr(torch.randn(chat.layout.d_model, 2, generator=torch.Generator().manual_seed(5)).double()).Q.T

    def loss(at):
        return loss_of(study, attacked(study, at, kind, torch.Generator().manual_seed(9)), prompts)

    at = rows.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(at), [at])
    step = torch.randn(rows.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    size = 1e-4
    with torch.no_grad():
        slope = float(loss(rows + size * step) - loss(rows - size * step)) / (2 * size)
    assert float((gradient * step).sum()) == pytest.approx(slope, rel=2e-2, abs=1e-3)
    assert all(parameter.grad is None for parameter in chat.module.parameters())


@pytest.mark.parametrize("least", [0.0, 2.0])
def test_what_a_start_says_is_true_of_the_basis_that_it_gives(tiny, least):
    study = tiny_study(tiny("llama"), learning_steps=7)
    prompts = replace(prompts_of(study), least=least)
    first = torch.randn(2, study.chat.layout.d_model, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for kind in ("subspace", "cone"):
        best = train_start(study, first, kind, 3, prompts, prompts)
        again = _checked(study, best.basis, kind, 3, prompts)
        assert (best.score, best.agreement) == (again.score, again.agreement)
        assert torch.allclose(best.basis @ best.basis.T, torch.eye(2, dtype=torch.float64), atol=1e-9)


def test_a_start_that_keeps_the_answers_beats_a_lower_score():
    basis = torch.eye(1, 4, dtype=torch.float64)
    keeps, breaks, broken = Start(basis, 2.0, 0.99, 0), Start(basis, -9.0, 0.5, 1), Start(basis, -20.0, 0.1, 2)
    assert min((broken, breaks, keeps), key=lambda start: start.rank) is keeps
    assert min((broken, breaks), key=lambda start: start.rank) is breaks
    better = Start(basis, -3.0, 0.985, 3)
    assert min((keeps, better), key=lambda start: start.rank) is better
    lenient = Start(basis, -9.0, 0.5, 1, least=0.4)
    assert min((keeps, lenient), key=lambda start: start.rank) is lenient


def test_mixtures_of_a_cone_are_unit_vectors_between_its_corners():
    basis = torch.linalg.qr(torch.randn(8, 2, generator=torch.Generator().manual_seed(2)).double()).Q.T
    found = dict(mixtures(basis))
    assert torch.allclose(found[0], basis[0])
    assert torch.allclose(found[90], basis[1])
    assert all(float(each.norm()) == pytest.approx(1) for each in found.values())
    assert float(found[45] @ basis[0]) == pytest.approx(float(found[45] @ basis[1]))


@pytest.fixture(scope="module")
def toy_study():
    from demur.assurance import directions_of

    chat, prompts = load_toy_chat_model(), toy_prompt_sets()
    found = directions_of(chat, prompts, settings=toy_settings())
    settings = AuditSettings.quick(
        n_test=12, n_curve=8, n_fit=48, n_scored=12, learning_steps=15, restarts=1, max_new_tokens=16
    )
    return AuditStudy(chat, prompts, settings, found, PhraseJudge())


def test_training_from_a_random_start_removes_refusal_and_keeps_answers(toy_study):
    study = study_with(toy_study, learning_steps=10)
    harmless = [own_answers(study, study.texts("harmless", split, 32)) for split in ("train", "validation")]
    train = Prompts(study.chat.encode(study.texts("harmful", "train", 64)), harmless[0])
    check = Prompts(study.chat.encode(study.texts("harmful", "validation", 12)), harmless[1])
    first = torch.randn(1, study.chat.layout.d_model, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    before = train_start(study_with(study, learning_steps=1), first, "direction", 1, train, check)
    again = train_start(study_with(study, learning_steps=1), first, "direction", 1, train, check)
    assert torch.equal(before.basis, again.basis)
    after = train_start(study, first, "direction", 1, train, check)
    assert after.score < before.score - 4
    assert after.score < 0
    assert after.agreement > 0.9
    assert float(after.basis.norm()) == pytest.approx(1)
    assert float((after.basis @ study.directions.refusal.unit).abs()) > 0.5


def study_with(study, **changes):
    return AuditStudy(study.chat, study.prompts, replace(study.settings, **changes), study.directions, study.judge)


def test_the_section_measures_direction_subspace_and_cone_on_test_prompts(toy_study):
    learned = measure_learned(study_with(toy_study, learning_steps=2))
    assert [attack.kind for attack in learned.attacks] == ["direction", "subspace", "cone", "cone", "cone"]
    assert [attack.rank for attack in learned.attacks] == [1, 2, 1, 1, 1]
    direction = learned.attacks[0]
    assert 0.5 < direction.cosine <= 1
    assert direction.rates.true_refusals.n + direction.rates.true_refusals.unjudged == 12
    assert direction.rates.true_refusals.rate < 0.3
    assert direction.validation_agreement > 0.9
    assert learned.n_fit == {"harmful": 48, "harmless": 48}
