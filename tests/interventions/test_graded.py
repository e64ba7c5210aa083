"""Ablation with a strength per writer: equal to its definition, its folded weights, its adapter and checkpoint."""

import pytest
import torch

from demur.errors import InputError, UnsupportedInterventionError
from demur.interventions import (
    DirectionalAblation,
    GradedAblation,
    LayerKernel,
    site_components,
    write_adapter,
    write_merged,
)
from demur.interventions._graded import writer_strengths
from demur.models import hooked, load_chat_model, reload_answers
from demur.testing import tiny_chat_model

EXACT = ["llama", "qwen2", "gemma", "gpt2", "gpt_neox", "phi", "opt", "falcon", "cohere", "granite"]


def logits_of(chat, prompts):
    return chat.next_token_logits(chat.batch(chat.encode(prompts)))


def graded(chat, directions, seed=0):
    """Another strength at every place; some are 0, some above 1."""
    draw = torch.rand(2, chat.n_layers, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 1.4
    draw[0, 0] = 0.0
    return GradedAblation(directions, tuple(draw[0].tolist()), tuple(draw[1].tolist()), 0.6)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("family", EXACT)
def test_folded_weights_equal_the_hooks(family, count, tiny, prompts, random_directions, greedy, unchanged):
    chat = tiny(family)
    check = unchanged(chat)
    ablation = graded(chat, random_directions(count))
    with ablation.applied_to(chat):
        hooks, tokens = logits_of(chat, prompts), greedy(chat)
    with ablation.folded_into(chat):
        assert torch.allclose(logits_of(chat, prompts), hooks, atol=1e-10, rtol=0)
        assert torch.equal(greedy(chat), tokens)
    check()
    assert (hooks - logits_of(chat, prompts)).abs().max() > 0.01


@pytest.mark.parametrize("way", ["applied_to", "folded_into"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo2"])
def test_strength_one_everywhere_is_directional_ablation(family, way, tiny, prompts, random_directions):
    chat = tiny(family)
    ones = (1.0,) * chat.n_layers
    vector = random_directions()
    with getattr(DirectionalAblation(vector), way)(chat):
        expected = logits_of(chat, prompts)
    with getattr(GradedAblation(vector, ones, ones, 1.0), way)(chat):
        tolerance = 1e-4 if chat.layout.dtype == torch.float32 else 1e-10
        assert torch.allclose(logits_of(chat, prompts), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo2"])
def test_strength_zero_everywhere_is_the_base_model_bit_by_bit(family, tiny, prompts, random_directions):
    chat = tiny(family)
    zeros = (0.0,) * chat.n_layers
    plain = logits_of(chat, prompts)
    nothing = GradedAblation(random_directions(), zeros, zeros, 0.0)
    assert nothing.folded_parameters(chat) == {}
    for way in (nothing.applied_to, nothing.folded_into):
        with way(chat):
            assert torch.equal(logits_of(chat, prompts), plain)


def test_each_write_loses_its_own_share(tiny, prompts, random_directions):
    """Written from the definition: what a module writes along u, against what it writes when its input is the same."""
    chat = tiny("llama")
    vector = random_directions()
    ablation = graded(chat, vector)
    unit = vector / vector.norm()
    shares = {f"model.layers.{i}.self_attn.o_proj": s for i, s in enumerate(ablation.attention)}
    shares |= {f"model.layers.{i}.mlp.down_proj": s for i, s in enumerate(ablation.mlp)}
    shares["model.embed_tokens"] = ablation.embeddings
    folded = ablation.folded_parameters(chat)
    parameters = dict(chat.module.named_parameters())
    for path, share in shares.items():
        before = parameters[f"{path}.weight"]
        after = folded.get(f"{path}.weight", before)
        along = unit if path.endswith("_proj") else None
        one = along @ before if along is not None else before @ unit
        two = along @ after if along is not None else after @ unit
        assert torch.allclose(two, (1 - share) * one, atol=1e-10)
        if share == 0:
            assert torch.equal(after, before)


@pytest.mark.parametrize(
    ("family", "attention", "mlp"),
    [
        ("llama", "self_attn", "mlp"),
        ("gpt2", "attn", "mlp"),
        ("gpt_neox", "attention", "mlp"),
        ("gemma2", "post_attention_layernorm", "post_feedforward_layernorm"),
    ],
)
def test_components_are_told_apart_by_where_they_write(family, attention, mlp, tiny):
    chat = tiny(family)
    found = site_components(chat)
    assert len(found) == 2 * chat.n_layers
    for site, component in found.items():
        assert {"attention": attention, "mlp": mlp}[component] in site.split(".")


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2", "olmo2", "gpt_neox"])
def test_every_writer_has_the_strength_of_the_site_that_it_feeds(family, tiny, random_directions):
    """By force: nudge a writer, and see which site of its block is the first to move."""
    chat = tiny(family)
    ablation = graded(chat, random_directions())
    components = site_components(chat)
    strengths = writer_strengths(chat, ablation)
    inputs = chat.probe_inputs()

    def outputs():
        kept = {}
        keep = {path: (lambda x, path=path: kept.setdefault(path, x.clone())) for path in components}
        with hooked(chat.module, outputs=keep), torch.no_grad():
            chat.module(**inputs)
        return kept

    plain = outputs()
    for writer in chat.layout.writers:
        if writer.block is None:
            assert strengths[writer.parameter] == ablation.embeddings
            continue
        parameter = chat.module.get_parameter(writer.parameter)
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter += torch.randn(kept.shape, generator=torch.Generator().manual_seed(3)).to(kept)
            moved = outputs()
            parameter.copy_(kept)
        first = next(path for path in components if not torch.equal(plain[path], moved[path]))
        table = ablation.attention if components[first] == "attention" else ablation.mlp
        assert strengths[writer.parameter] == table[writer.block], writer.parameter


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_exports_equal_the_hooks(form, tied, tmp_path, random_directions):
    tiny = tiny_chat_model("llama", dtype=torch.float32, tie_word_embeddings=tied)
    tiny.model.save_pretrained(tmp_path / "base")
    tiny.tokenizer.save_pretrained(tmp_path / "base")
    chat = load_chat_model(str(tmp_path / "base"), device="cpu")
    assert (chat.layout.tied_embedding is not None) == tied
    ablation = graded(chat, random_directions())
    (write_adapter if form == "adapter" else write_merged)(chat, ablation, tmp_path / form)
    prompts = ["Hi", "What is the capital of France?"]
    answers = reload_answers(chat, tmp_path / form, form=form, prompts=prompts, max_new_tokens=4)
    with ablation.applied_to(chat):
        expected = logits_of(chat, prompts)
    assert torch.allclose(answers.logits.float(), expected, atol=1e-4)
    assert (logits_of(chat, prompts) - expected).abs().max() > 0.01


def test_a_kernel_is_a_tent_on_a_floor():
    assert LayerKernel(peak=1.0, centre=2.0, width=2.0, edge=0.2).over(6) == pytest.approx(
        (0.2, 0.6, 1.0, 0.6, 0.2, 0.2)
    )
    assert LayerKernel(peak=0.7, centre=1.3, width=3.0, edge=0.7).over(4) == pytest.approx((0.7,) * 4)
    assert LayerKernel(peak=1.0, centre=0.5, width=1.0, edge=0.0).over(3) == pytest.approx((0.5, 0.5, 0.0))


def test_strengths_are_part_of_the_fingerprint(random_directions):
    vector = random_directions()
    prints = {
        GradedAblation(vector, (1.0, 0.5), (1.0, 1.0), 1.0).fingerprint,
        GradedAblation(vector, (1.0, 1.0), (1.0, 0.5), 1.0).fingerprint,
        GradedAblation(vector, (1.0, 1.0), (1.0, 1.0), 0.5).fingerprint,
        GradedAblation(random_directions(seed=1), (1.0, 1.0), (1.0, 1.0), 0.5).fingerprint,
    }
    assert len(prints) == 4


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_strengths_are_numbers_from_zero_up(bad, random_directions):
    with pytest.raises(InputError, match="finite numbers from 0 up"):
        GradedAblation(random_directions(), (1.0, bad), (1.0, 1.0), 1.0)


def test_another_number_of_layers_is_said(tiny, random_directions):
    chat = tiny("llama")
    short = (0.5,) * (chat.n_layers - 1)
    with (
        pytest.raises(InputError, match=f"has {chat.n_layers} layers"),
        GradedAblation(random_directions(), short, short, 1.0).applied_to(chat),
    ):
        pass


def test_a_weight_shared_by_blocks_has_no_strength_per_layer(tiny, random_directions):
    chat = tiny_chat_model("llama")
    one, two = chat.model.model.layers[0].mlp.down_proj, chat.model.model.layers[1].mlp.down_proj
    two.weight = one.weight
    with pytest.raises(UnsupportedInterventionError, match="several blocks share"):
        graded(chat, random_directions()).folded_parameters(chat)
