"""The ladder's algebra on tiny random models of several architectures, and its choice of directions on the toy."""

import pytest
import torch

from demur.assurance._audit_settings import AuditSettings
from demur.assurance._audit_study import AuditStudy
from demur.assurance._directions import Directions
from demur.assurance._ladder import ablation_to_mean, chain_of_components, chain_of_means, extend, measure_ladder
from demur.directions import Direction
from demur.evaluation import PhraseJudge
from demur.interventions import DirectionalAblation
from demur.models import reading_inputs
from demur.testing import load_toy_chat_model, toy_prompt_sets

SMALL = AuditSettings.quick(n_test=8, n_curve=8, n_fit=32, n_scored=6, ranks=(1, 3), random_seeds=1, max_new_tokens=12)


def random_basis(k, width, seed=0):
    rows = torch.randn(k, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(rows.T).Q.T


def streams(chat, change):
    """The input of every block, [layer, token, d_model], of one prompt."""
    kept = {}
    readers = {path: (lambda stream, at=path: kept.__setitem__(at, stream[0].double())) for path in chat.layout.blocks}
    batch = chat.batch(chat.encode(["Name a colour."]))
    with change.applied_to(chat), reading_inputs(chat.module, readers):
        chat.run(batch)
    return torch.stack([kept[path] for path in chat.layout.blocks])


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2", "qwen3_moe"])
def test_coordinates_are_those_of_the_mean_at_every_block_and_token(tiny, family):
    chat = tiny(family)
    width = chat.layout.d_model
    basis = random_basis(2, width)
    mean = torch.randn(chat.n_layers, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    seen = streams(chat, ablation_to_mean(basis, mean)) @ basis.T
    wanted = (mean @ basis.T)[:, None].expand_as(seen)
    assert torch.allclose(seen, wanted, atol=1e-9)
    plain = streams(chat, DirectionalAblation(basis)) @ basis.T
    assert plain.abs().max() < 1e-9


def test_extending_keeps_a_basis_orthonormal_and_refuses_what_it_holds():
    basis = random_basis(3, 16)
    longer = extend(basis, 5 * torch.ones(16, dtype=torch.float64))
    assert torch.allclose(longer @ longer.T, torch.eye(4, dtype=torch.float64), atol=1e-12)
    assert torch.equal(longer[:3], basis)
    inside = basis.T @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    assert extend(basis, inside) is basis
    assert extend(basis, torch.full((16,), float("nan"), dtype=torch.float64)) is basis
    # Almost inside: what is left is rounding unless it is orthogonalized twice.
    nearly = extend(basis, inside + 1e-4 * torch.ones(16, dtype=torch.float64))
    assert torch.allclose(nearly @ nearly.T, torch.eye(4, dtype=torch.float64), atol=1e-12)


@pytest.fixture(scope="module")
def toy_study():
    from demur.assurance import directions_of
    from demur.testing import toy_settings

    chat, prompts = load_toy_chat_model(), toy_prompt_sets()
    found = directions_of(chat, prompts, settings=toy_settings())
    return AuditStudy(chat, prompts, SMALL, found, PhraseJudge())


def test_both_chains_start_at_r_and_are_orthonormal(toy_study):
    unit = toy_study.directions.refusal.unit
    for chain in (chain_of_means(toy_study, 3), chain_of_components(toy_study, 3)):
        assert torch.allclose(chain.directions[0], unit)
        assert torch.allclose(chain.directions @ chain.directions.T, torch.eye(3, dtype=torch.float64), atol=1e-9)
        assert len(chain.places) == 3
        assert chain.places[0] == (toy_study.directions.refusal.position, toy_study.directions.refusal.layer)


def test_the_chain_goes_on_from_a_useless_first_direction(toy_study):
    """Adaptive: with a random first direction refusal is intact, and the second must be the one that carries it."""
    refusal = toy_study.directions.refusal
    random = torch.randn(refusal.vector.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    useless = Directions(
        Direction(random * refusal.norm / random.norm(), refusal.position, refusal.layer),
        None,
        toy_study.directions.tokens,
        "a test",
    )
    study = AuditStudy(toy_study.chat, toy_study.prompts, SMALL, useless, PhraseJudge())
    chain = chain_of_means(study, 2)
    assert float((chain.directions[1] @ refusal.unit).abs()) > 0.6
    first = study.measure(DirectionalAblation(chain.directions[:1]), most=8)
    second = study.measure(DirectionalAblation(chain.directions), most=8)
    assert first.true_refusals.rate > 0.8
    assert second.true_refusals.rate < 0.2


def test_rungs_carry_both_references_components_and_controls(toy_study):
    ladder = measure_ladder(toy_study)
    seen = [(rung.kind, rung.rank, rung.reference) for rung in ladder.rungs]
    assert seen == [
        ("means", 1, "zero"),
        ("means", 1, "harmless mean"),
        ("random", 1, "zero"),
        ("means", 3, "zero"),
        ("means", 3, "harmless mean"),
        ("components", 3, "zero"),
        ("random", 3, "zero"),
    ]
    by_place = {key: rung.rates for key, rung in zip(seen, ladder.rungs, strict=True)}
    assert by_place["means", 1, "zero"].true_refusals.rate < 0.3
    assert by_place["random", 3, "zero"].true_refusals.rate > 0.8
    assert ladder.harmful_projection > ladder.harmless_projection
    assert ladder.zero_refuses is False
    assert ladder.n_fit == {"harmful": 32, "harmless": 32}
