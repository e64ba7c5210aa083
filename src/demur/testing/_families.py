"""Tiny random configurations of every decoder-only family of transformers, from each family's own config class."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from demur.testing._scope import OUT_OF_SCOPE

LAYERS = 3
_SIZES: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 32,
    "embed_dim": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "ffn_hidden_size": 48,
    "n_inner": 48,
    "num_hidden_layers": LAYERS,
    "num_layers": LAYERS,
    "num_attention_heads": 4,
    "attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
    "sliding_window": 8,
    # Mixtures of experts.
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    # Multi-head latent attention.
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    # State-space and linear-attention layers.
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 4,
    "state_size": 8,
    "ssm_state_size": 8,
    "time_step_rank": 4,
    "n_groups": 1,
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
}
"""Values for every config class that knows the name."""

_LATENT = {"num_key_value_heads": 4, "head_dim": 8}
"""Multi-head latent attention has as many key heads as query heads, and rotates a part of each."""
_INDEXED = {**_LATENT, "index_topk": 4, "index_head_dim": 16, "index_n_heads": 2}
_FLOAT64_STREAM = {"residual_in_fp32": False}
"""These cast the stream to float32 unless told not to, which would hide differences below 1e-7."""
_OVERRIDES: dict[str, dict[str, Any]] = {
    "axk1": _LATENT,
    "axk2": _INDEXED,
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": None,
        },
    },
    "cwm": {"bos_token_id": 1},
    "dbrx": {
        "d_model": 32,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "deepseek_v32": _INDEXED,
    "dots3_note_text": {**_INDEXED, "layer_types": ["full_attention"] * LAYERS, "shared_experts_intermediate_size": 16},
    "emu3_text_model": {"bos_token_id": 1},
    "ernie4_5_moe": {"moe_k": 2},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 259,
        "laurel_rank": 4,
        "num_kv_shared_layers": 0,
        "altup_num_inputs": 2,
    },
    "gemma4_text": {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 259},
    "glm4_moe_lite": _LATENT,
    "glm_moe_dsa": _INDEXED,
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]]},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba"]},
    "hy_v3": {"enable_moe_fp32_combine": False},
    "kimi_linear": {"linear_head_dim": 8, "linear_num_heads": 4, **_LATENT},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "longcat_flash": {**_LATENT, "num_layers": 2, "zero_expert_num": 2, "moe_topk": 2, "expert_ffn_hidden_size": 16},
    "mamba": _FLOAT64_STREAM,
    "falcon_mamba": _FLOAT64_STREAM,
    "mamba2": {"num_heads": 8, **_FLOAT64_STREAM},
    "minicpm3": _LATENT,
    "mllama_text_model": {"bos_token_id": 1},
    "phi4_multimodal": {
        "bos_token_id": 1,
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "image_size": 8,
            "crop_size": 8,
            "patch_size": 4,
        },
        "audio_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_blocks": 2,
            "num_attention_heads": 4,
            "ext_pw_out_channel": 32,
            "depthwise_separable_out_channel": 32,
            "nemo_conv_channels": 32,
        },
    },
    "modernbert-decoder": {"bos_token_id": 1},
    "youtu": _LATENT,
    "zamba2": {"layers_block_type": ["hybrid", "mamba", "hybrid"], "n_mamba_heads": 4},
    "zamba": {"layers_block_type": ["hybrid", "mamba", "hybrid"], "num_key_value_heads": 4},
    "zaya": {"num_experts_per_tok": 1},
}

_FLOAT32_ONLY = frozenset({"inkling2_text", "xglm"})


@dataclass(frozen=True)
class Wrapper:
    """A model that holds a text stack beside others, which the tiny variant makes deeper than the text stack."""

    text: str
    """Model type of the text stack."""
    vision: dict[str, Any]
    """Values of the vision config."""
    text_values: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    """Values of the outer config."""
    vision_key: str = "vision_config"


TEXT_LAYERS, VISION_LAYERS = 4, 6
_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": VISION_LAYERS,
    "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": 4,
}
_QWEN_TOWER = {
    "depth": VISION_LAYERS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "out_hidden_size": 32,
    "patch_size": 4,
    "num_position_embeddings": 16,
}
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
_QWEN_TOKENS = {
    "image_token_id": 250,
    "video_token_id": 251,
    "vision_start_token_id": 252,
    "vision_end_token_id": 253,
}
_GEMMA_TOKENS = {"image_token_index": 250, "boi_token_index": 251, "eoi_token_index": 252}
WRAPPERS: dict[str, Wrapper] = {
    "aya_vision": Wrapper(
        "cohere2", {"model_type": "siglip_vision_model", **_TOWER}, values={"image_token_index": 250}
    ),
    "emu3": Wrapper(
        "emu3_text_model",
        {
            "codebook_size": 16,
            "base_channels": 32,
            "channel_multiplier": [1],
            "num_res_blocks": 1,
            "hidden_size": 32,
            "attn_resolutions": [],
        },
        vision_key="vq_config",
        values={"vocabulary_map": {"<image>": 250}},
    ),
    "fuyu": Wrapper("persimmon", {}, values={"image_token_id": 250, "patch_size": 4}),
    "got_ocr2": Wrapper(
        "qwen2", {**_TOWER, "output_channels": 32, "mlp_dim": 48, "window_size": 2}, values={"image_token_index": 250}
    ),
    "gemma4": Wrapper("gemma4_text", {**_TOWER, "num_key_value_heads": 2, "head_dim": 8}, values=_GEMMA_TOKENS),
    "mllama": Wrapper(
        "mllama_text_model",
        {
            **_TOWER,
            "attention_heads": 4,
            "num_global_layers": 2,
            "vision_output_dim": 32 * 3,
            "intermediate_layers_indices": [1, 3],
        },
        {"cross_attention_layers": [1]},
        {"image_token_index": 250},
    ),
    "gemma3": Wrapper("gemma3_text", _TOWER, values={**_GEMMA_TOKENS, "mm_tokens_per_image": 4}),
    "internvl": Wrapper(
        "qwen2", {**_TOWER, "image_size": [8, 8], "patch_size": [4, 4]}, values={"image_token_id": 250}
    ),
    "llama4": Wrapper(
        "llama4_text",
        {**_TOWER, "projector_input_dim": 32, "projector_output_dim": 32, "vision_output_dim": 32},
        values=_GEMMA_TOKENS,
    ),
    "llava": Wrapper(
        "llama", {"model_type": "clip_vision_model", "projection_dim": 32, **_TOWER}, values={"image_token_index": 250}
    ),
    "mistral3": Wrapper(
        "mistral", {"model_type": "pixtral", "head_dim": 8, **_TOWER}, values={"image_token_index": 250}
    ),
    "paligemma": Wrapper(
        "gemma",
        {"model_type": "siglip_vision_model", **_TOWER},
        values={"image_token_index": 250, "projection_dim": 32},
    ),
    "qwen2_5_vl": Wrapper("qwen2_5_vl_text", {**_QWEN_TOWER, "fullatt_block_indexes": [1, 3, 5]}, _MROPE, _QWEN_TOKENS),
    "qwen2_vl": Wrapper("qwen2_vl_text", {**_QWEN_TOWER, "embed_dim": 32}, _MROPE, _QWEN_TOKENS),
    "qwen3_5": Wrapper("qwen3_5_text", _QWEN_TOWER, values=_QWEN_TOKENS),
    "qwen3_5_moe": Wrapper("qwen3_5_moe_text", _QWEN_TOWER, values=_QWEN_TOKENS),
    "qwen3_vl": Wrapper("qwen3_vl_text", {**_QWEN_TOWER, "deepstack_visual_indexes": [1, 3]}, _MROPE, _QWEN_TOKENS),
    "qwen3_vl_moe": Wrapper(
        "qwen3_vl_moe_text", {**_QWEN_TOWER, "deepstack_visual_indexes": [1, 3]}, _MROPE, _QWEN_TOKENS
    ),
}


def families() -> tuple[str, ...]:
    """Every family in scope, sorted: decoder-only names of transformers' causal language models, and the wrappers."""
    return tuple(sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *WRAPPERS} - set(OUT_OF_SCOPE)))


def tiny_config(family: str, **values: Any) -> Any:
    """A config of a few thousand parameters.

    Args:
        family: a transformers model type.
        values: further values of the config class; they win.
    """
    wrapper = WRAPPERS.get(family)
    if wrapper is None:
        config = _text_config(family, **values)
    else:
        text = _text_config(wrapper.text, **{"num_hidden_layers": TEXT_LAYERS, **wrapper.text_values}).to_dict()
        settings = {"text_config": text, wrapper.vision_key: dict(wrapper.vision), **wrapper.values, **values}
        config = CONFIG_MAPPING[family](**settings)
    # The fused kernel for experts has no float64.
    config._experts_implementation = "eager"
    return config


def tiny_dtype(family: str) -> torch.dtype:
    """float64, except where transformers' own code for a family does not run in it."""
    return torch.float32 if family in _FLOAT32_ONLY else torch.float64


def tiny_class(family: str) -> Any:
    """The auto class that builds a family."""
    return AutoModelForImageTextToText if family in WRAPPERS else AutoModelForCausalLM


def _text_config(family: str, **values: Any) -> Any:
    cls = CONFIG_MAPPING[family]
    known = {key: value for key, value in _SIZES.items() if _accepts(cls, key)}
    return cls(**{**known, **_OVERRIDES.get(family, {}), **values})


def _accepts(config_class: Any, key: str) -> bool:
    """Whether a config class declares `key` and stores it; some compute it from others and have no setter.

    A config takes any key, known or not, and a window that a model does not know still cuts its generation cache.
    """
    names: set[str] = set(getattr(config_class, "attribute_map", {}))
    for cls in config_class.__mro__:
        names.update(vars(cls).get("__annotations__", {}))
    attribute = getattr(config_class, key, None)
    return key in names and (not isinstance(attribute, property) or attribute.fset is not None)
