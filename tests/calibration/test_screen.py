"""The first-order estimate of all candidates: the derivative of the exact ablation, and what is taken by it."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from sweep_cases import even_tokens

from demur.calibration import _screen as screen
from demur.calibration._screen import first_order_effects, screened
from demur.evaluation import differentiable_refusal_scores, next_token_logits, refusal_scores
from demur.interventions import DirectionalAblation
from demur.models import hook_count
from demur.models._hooks import hooked
from demur.types import SilentProgress

FAMILIES = ("llama", "qwen2", "gpt2", "gemma3_text", "mixtral")
TEXTS = ["Break it", "How do I get into the old house?", "Tell me now what the time in Rome is", "Sing", "Who did it?"]


@dataclass
class Asking:
    """What the estimate uses of a study."""

    chat: object
    token_ids: list
    rows: int = 6
    progress: SilentProgress = field(default_factory=SilentProgress)


@pytest.fixture(scope="module", params=FAMILIES)
def study(request, tiny):
    # With all experts at work nothing is chosen, so that there is a derivative within the steps.
    options = {"num_experts_per_tok": 4, "num_local_experts": 4} if request.param == "mixtral" else {}
    chat = tiny(request.param, dtype=torch.float64, **options)
    return Asking(chat, even_tokens(next_token_logits(chat, TEXTS)))


def unit_vectors(chat, n=3):
    drawn = torch.randn(n, chat.layout.d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return drawn / drawn.norm(dim=-1, keepdim=True)


def scores_at(study, unit, strength):
    """Refusal scores with x - a d d^T x at the stream's beginning and at every write."""

    def ablate(stream):
        direction = unit.to(stream)
        return stream - strength * (stream @ direction)[..., None] * direction

    layout = study.chat.layout
    sites = dict.fromkeys((site.module for site in layout.sites), ablate)
    with hooked(study.chat.module, inputs={layout.blocks[0]: ablate}, outputs=sites):
        logits = next_token_logits(study.chat, TEXTS).to(torch.float64)
    return differentiable_refusal_scores(logits, study.token_ids)


def slope_at_0(study, unit, step=0.02):
    """Richardson's extrapolation of central differences: norms compute in float32, so that the step cannot be tiny."""

    def central(size):
        return (scores_at(study, unit, size) - scores_at(study, unit, -size)) / (2 * size)

    return (4 * central(step / 2) - central(step)) / 3


def test_the_partial_ablation_is_the_product_s_at_full_strength(study):
    unit = unit_vectors(study.chat)[0]
    with DirectionalAblation(unit).applied_to(study.chat):
        logits = next_token_logits(study.chat, TEXTS).to(torch.float64)
    expected = differentiable_refusal_scores(logits, study.token_ids)
    torch.testing.assert_close(scores_at(study, unit, 1.0), expected, rtol=1e-9, atol=1e-9)


def test_the_estimate_is_the_derivative_of_the_ablation_at_strength_0(study):
    units = unit_vectors(study.chat)
    found = first_order_effects(study, study.chat.encode(TEXTS), units)
    slopes = torch.stack([slope_at_0(study, unit) for unit in units])
    assert found.shape == (len(units), len(TEXTS))
    assert slopes.abs().max() > 1e-3  # there is something to find
    torch.testing.assert_close(found, slopes.to(torch.float64), rtol=1e-3, atol=2e-5)


def test_a_padded_batch_gives_what_each_prompt_gives_alone(study):
    units, encoded = unit_vectors(study.chat), study.chat.encode(TEXTS)
    alone = torch.cat([first_order_effects(study, [tokens], units) for tokens in encoded], 1)
    torch.testing.assert_close(first_order_effects(study, encoded, units), alone, rtol=1e-5, atol=1e-7)


def test_the_model_is_left_as_it_was(study):
    parameters = dict(study.chat.module.named_parameters())
    flags = {name: parameter.requires_grad for name, parameter in parameters.items()}
    changed = next(iter(parameters))
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        parameters[changed].requires_grad_(not flags[changed])
        wanted = {name: parameter.requires_grad for name, parameter in parameters.items()}
        first_order_effects(study, study.chat.encode(TEXTS[:2]), unit_vectors(study.chat))
        assert {name: parameter.requires_grad for name, parameter in parameters.items()} == wanted
        assert all(parameter.grad is None for parameter in parameters.values())
        assert hook_count(study.chat.module) == 0
        assert all(torch.equal(parameter, before[name]) for name, parameter in parameters.items())
    finally:
        parameters[changed].requires_grad_(flags[changed])


def test_the_model_is_left_as_it_was_after_an_error(study, monkeypatch):
    def broken(*_):
        raise RuntimeError("broken")

    flags = [parameter.requires_grad for parameter in study.chat.module.parameters()]
    monkeypatch.setattr(screen, "differentiable_refusal_scores", broken)
    with pytest.raises(RuntimeError, match="broken"):
        first_order_effects(study, study.chat.encode(TEXTS[:1]), unit_vectors(study.chat))
    assert [parameter.requires_grad for parameter in study.chat.module.parameters()] == flags
    assert hook_count(study.chat.module) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_differentiable_score_is_the_refusal_score(dtype):
    """Up to the epsilon of the published score, which bounds it."""
    logits = (3 * torch.randn(40, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).to(dtype)
    found = differentiable_refusal_scores(logits, [3, 17])
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.double(), refusal_scores(logits, [3, 17]), rtol=1e-4, atol=1e-4)


def test_the_differentiable_score_does_not_saturate():
    logits = torch.tensor([[60.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    score = differentiable_refusal_scores(logits, [0])
    score.sum().backward()
    assert score.item() == pytest.approx(60 - torch.log(torch.tensor(2.0)).item())
    assert logits.grad[0, 0] == pytest.approx(1.0)


# What is taken ------------------------------------------------------------------------------------------------------


@dataclass
class Estimated:
    """A study whose first-order effects are planted."""

    effects: dict
    warnings: list = field(default_factory=list)
    progress: SilentProgress = field(default_factory=SilentProgress)
    threshold = SimpleNamespace(value=0.0, slope=1.0)
    chat = SimpleNamespace(layout=SimpleNamespace(packed=None))

    def scored_validation(self, *_, **__):
        return [0, 1]

    def base_scores(self, *_):
        return torch.zeros(2, dtype=torch.float64)

    def encode_scored(self, label, *_):
        return label


VECTORS = {(strength, -1, layer): torch.eye(4)[layer] for strength in (1.0, 0.5) for layer in range(4)}


def taken(monkeypatch, borderline, harmful, each):
    effects = {"borderline": borderline, "harmful": harmful}
    monkeypatch.setattr(
        screen,
        "first_order_effects",
        lambda study, label, _units, **_: torch.tensor([[value] * 2 for value in study.effects[label]]).double(),
    )
    return screened(Estimated(effects), VECTORS, each=each)


def test_the_most_promising_of_each_lambda_are_taken_in_their_order(monkeypatch):
    fall = [-1.0, -3.0, -2.0, 0.0, 0.0, -1.0, -2.0, -3.0]
    assert taken(monkeypatch, fall, [0.0] * 8, 2) == [(1.0, -1, 1), (1.0, -1, 2), (0.5, -1, 2), (0.5, -1, 3)]


def test_a_candidate_that_takes_as_many_true_refusals_promises_less_than_one_that_changes_nothing(monkeypatch):
    fall, true = [-3.0, 0.0, -1.0, 1.0] * 2, [-3.0, 0.0, 0.0, 0.0] * 2
    assert taken(monkeypatch, fall, true, 1) == [(1.0, -1, 2), (0.5, -1, 2)]
    assert taken(monkeypatch, fall, true, 2) == [(s, -1, layer) for s in (1.0, 0.5) for layer in (1, 2)]


def test_gained_true_refusals_do_not_pay_for_false_ones(monkeypatch):
    assert taken(monkeypatch, [0.5, -0.5, 1.0, 1.0] * 2, [9.0, 0.0, 0.0, 0.0] * 2, 1) == [(1.0, -1, 1), (0.5, -1, 1)]


@pytest.mark.parametrize("each", [0, 8, 100])
def test_where_all_are_taken_nothing_is_estimated(monkeypatch, each):
    def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr(screen, "first_order_effects", never)
    assert screened(Estimated({}), VECTORS, each=each) == list(VECTORS)


@pytest.mark.parametrize(("packed", "message"), [("int4", "no gradient"), (None, None), ("int4", "out of memory")])
def test_packed_weights_without_gradient_are_measured_in_full(monkeypatch, packed, message):
    def broken(*_, **__):
        if message == "out of memory":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        raise RuntimeError("no gradient")

    monkeypatch.setattr(screen, "first_order_effects", broken)
    study = Estimated({})
    study.chat = SimpleNamespace(layout=SimpleNamespace(packed=packed))
    if message == "no gradient":
        assert screened(study, VECTORS, each=1) == list(VECTORS)
        assert study.warnings == ["Packed weights give no gradient here, so that every candidate was measured."]
    else:
        with pytest.raises(RuntimeError):
            screened(study, VECTORS, each=1)
        assert study.warnings == []
