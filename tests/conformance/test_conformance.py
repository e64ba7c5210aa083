"""Every decoder-only family is proved and edited exactly, or refused by name; none is half-edited."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from demur.errors import LayoutError
from demur.models import Writer, WriteSite, probe_layout
from demur.testing import (
    NOT_SUPPORTED,
    OUT_OF_SCOPE,
    WRAPPERS,
    check_family,
    families,
)

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
# Dense, fused and split projections, mixtures of experts of several shapes, state-space, hybrid, text beside vision.
EXACT = (
    "llama",
    "gpt2",
    "falcon",
    "mixtral",
    "gpt_oss",
    "dbrx",
    "deepseek_v3",
    "mamba2",
    "jamba",
    "qwen3_next",
    "qwen3_vl_moe",
)
POST_NORM = ("gemma2", "olmo2")
REFUSED = ("openai-gpt", "deepseek_v4", "ctrl", "rwkv")
TOKENS = {"input_ids": torch.arange(3, 67)[None], "use_cache": False}


def check_proved(measured):
    """What holds for every supported family, whatever its algebra."""
    tolerance = 1e-10 if measured.stream_dtype == "float64" else 1e-4
    assert measured.residual < tolerance
    assert measured.capture == 0
    assert measured.decomposition < tolerance
    assert measured.exported < 1e-6
    assert measured.change > 1e-3, "the ablation does nothing, so agreeing about it proves nothing"


@pytest.mark.parametrize("family", EXACT)
def test_hooks_folded_weights_and_the_export_are_one_model(family):
    measured = check_family(family)
    check_proved(measured)
    assert measured.exact, measured
    assert measured.tokens == 20


@pytest.mark.parametrize("family", POST_NORM)
def test_a_norm_after_the_write_leaves_the_direction_out_but_not_the_same_model(family):
    measured = check_family(family)
    check_proved(measured)
    assert measured.verdict == "removed_not_identical"
    assert 1e-6 < measured.folded < 2 * measured.change


@pytest.mark.parametrize("family", REFUSED)
def test_what_is_not_supported_is_refused_with_the_reason(family):
    with pytest.raises(LayoutError) as caught:
        check_family(family)
    assert NOT_SUPPORTED[family][1] in str(caught.value)


def test_every_name_of_transformers_is_in_the_sweep_or_has_a_reason_not_to_be():
    assert set(families()) - set(WRAPPERS) | set(OUT_OF_SCOPE) >= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(WRAPPERS)
    assert set(OUT_OF_SCOPE) <= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert not set(OUT_OF_SCOPE) & set(families())
    assert set(NOT_SUPPORTED) <= set(families())


def test_the_page_names_every_family():
    text = PAGE.read_text(encoding="utf-8")
    proved = {line.split("|")[1].strip().removesuffix("*") for line in text.splitlines() if "` |" in line}
    assert proved == set(families()) - set(NOT_SUPPORTED)
    assert f"**{len(proved)} families proved** of {len(families())} in scope" in text
    for name, (reason, _) in NOT_SUPPORTED.items():
        row = next(line for line in text.splitlines() if line.endswith(f"| {reason} |"))
        assert name in row.split("|")[1].strip().split(", ")


@pytest.mark.parametrize("family", ["gemma3", "llava", "llama4", "mistral3", "qwen2_5_vl", "qwen3_vl"])
def test_the_text_stack_is_found_beside_a_deeper_vision_tower(family, tiny):
    chat = tiny(family)
    deeper = [
        name
        for name, module in chat.module.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > chat.n_layers and "language" not in name
    ]
    assert deeper, "the vision tower is not the deeper one, so the test proves nothing"
    assert chat.n_layers == 4
    assert all("language_model" in path for path in chat.layout.blocks)
    assert not any("vision" in writer.parameter for writer in chat.layout.writers)


# --- deliberately broken layouts


@dataclass(frozen=True)
class LeavesOneOut(Writer):
    """Writes like `Writer`, but the last expert of the stack keeps the direction."""

    def without(self, tensor, directions):
        edited = super().without(tensor, directions)
        edited[-1] = tensor[-1]
        return edited


def swapped(layout, name, **changes):
    """The layout with one writer changed."""
    assert any(writer.parameter == name for writer in layout.writers)
    writers = [replace(each, **changes) if each.parameter == name else each for each in layout.writers]
    return replace(layout, writers=tuple(writers))


@pytest.fixture
def mixture(tiny):
    """Square experts: a wrong orientation is no error of shapes. Enough tokens that each expert gets one."""
    chat = tiny("mixtral", intermediate_size=32)
    assert probe_layout(chat.module, chat.layout, TOKENS).residual < 1e-12
    return chat


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss", "granitemoe", "llama4_text"])
def test_an_expert_left_out_of_a_stack_is_caught(family, tiny):
    chat = tiny(family)
    stacked = [
        writer for writer in chat.layout.writers if "experts" in writer.parameter or "output_linear" in writer.parameter
    ]
    broken = LeavesOneOut(**vars(stacked[0]))
    layout = replace(chat.layout, writers=tuple(broken if each is stacked[0] else each for each in chat.layout.writers))
    with pytest.raises(LayoutError, match=r"a parameter that writes to the residual stream was missed"):
        probe_layout(chat.module, layout, TOKENS)


@pytest.mark.parametrize(
    ("name", "axis"), [("model.layers.1.self_attn.o_proj.weight", 1), ("model.layers.1.mlp.experts.down_proj", 2)]
)
def test_a_wrong_orientation_is_caught(name, axis, mixture):
    with pytest.raises(LayoutError, match=r"first seen after block 1 \(model\.layers\.1\)"):
        probe_layout(mixture.module, swapped(mixture.layout, name, axis=axis), TOKENS)


def test_a_layout_of_the_vision_tower_is_caught(tiny):
    chat = tiny("qwen3_vl")
    tower = tuple(f"model.visual.blocks.{index}" for index in range(6))
    writers = [
        Writer(f"{path}.{leaf}.weight", 0, index, "other")
        for index, path in enumerate(tower)
        for leaf in ("attn.proj", "mlp.linear_fc2")
    ]
    sites = [WriteSite(f"{path}.{leaf}", index) for index, path in enumerate(tower) for leaf in ("attn", "mlp")]
    layout = replace(chat.layout, blocks=tower, writers=tuple(writers), sites=tuple(sites))
    with pytest.raises(LayoutError, match=r"model\.visual\.blocks\.\d did not run"):
        probe_layout(chat.module, layout, TOKENS)


# --- the whole sweep


@pytest.fixture(scope="module")
def sweep():
    """Family -> what was measured, or the exception."""
    outcomes = {}
    for family in families():
        try:
            outcomes[family] = check_family(family)
        except Exception as error:  # noqa: BLE001 (which exceptions there were is what is tested)
            outcomes[family] = error
    return outcomes


@pytest.mark.conformance
def test_only_what_is_known_not_to_be_supported_is_refused_and_by_name(sweep):
    refused = {family: error for family, error in sweep.items() if isinstance(error, Exception)}
    assert {family: error for family, error in refused.items() if not isinstance(error, LayoutError)} == {}
    assert set(refused) == set(NOT_SUPPORTED)
    for family, error in refused.items():
        assert NOT_SUPPORTED[family][1] in str(error), family


@pytest.mark.conformance
def test_the_rest_is_proved(sweep):
    proved = [each for each in sweep.values() if not isinstance(each, Exception)]
    assert len(proved) >= 90
    for measured in proved:
        check_proved(measured)


@pytest.mark.conformance
def test_most_are_exact_and_the_others_say_so(sweep):
    proved = [each for each in sweep.values() if not isinstance(each, Exception)]
    assert sum(each.exact for each in proved) >= 75
    for measured in proved:
        if measured.folded > 1e-6:
            assert measured.verdict == "removed_not_identical", measured.family
