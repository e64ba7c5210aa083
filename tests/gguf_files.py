"""Tiny models as GGUF files, written the way llama.cpp's converter writes them."""

from pathlib import Path

import gguf
import numpy as np

from demur.testing import tiny_tokenizer

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(name: str) -> str:
    path, _, leaf = name.rpartition(".")
    if path in TOP:
        return f"{TOP[path]}.{leaf}"
    _, _, block, module = path.split(".", 3)
    return f"blk.{block}.{NAMES[module]}.{leaf}"


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp rotates neighbouring pairs, transformers halves: rows of q and k of Llama are stored in its order."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def tensors_of(model) -> dict[str, np.ndarray]:
    """The model's weights under their names in a GGUF file."""
    config, found = model.config, {}
    for name, parameter in model.named_parameters():  # tied parameters once
        weight = parameter.detach().float().numpy()
        if config.model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            is_query = name.endswith("q_proj.weight")
            weight = interleaved(weight, config.num_attention_heads if is_query else config.num_key_value_heads)
        found[gguf_name(name)] = weight
    return found


def write_gguf(
    path: Path,
    model,
    *,
    architecture: str | None = None,
    chat_template: bool = True,
    kind: str | None = None,
    dtype: str | None = None,
    change=None,
    metadata: dict | None = None,
) -> Path:
    """Write a tiny Llama or Qwen 2 with the tiny tokenizer.

    Args:
        path: of the file.
        model: a transformers model.
        architecture: other than the model's own.
        chat_template: whether to write one.
        kind: general.type.
        dtype: of matrices: None (F32), a type that numpy knows, or a gguf type such as "Q8_0", "BF16".
        change: called with the tensors by name, before they are written.
        metadata: more entries.
    """
    config, tokenizer = model.config, tiny_tokenizer()
    architecture = architecture or config.model_type
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    if kind is not None:
        writer.add_type(kind)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if architecture == "llama":
        writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    for key, value in (metadata or {}).items():
        (writer.add_string if isinstance(value, str) else writer.add_float32)(key, value)
    words = [word for word, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(words)
    writer.add_token_types([3 if word.startswith("<|") else 1 for word in words])
    # In place of merges, of which a byte-level vocabulary without words has none.
    writer.add_token_scores([0.0] * len(words))
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    if chat_template:
        writer.add_chat_template(tokenizer.chat_template)
    tensors = tensors_of(model)
    if change is not None:
        change(tensors)
    for name, weight in tensors.items():
        if dtype is None or weight.ndim == 1:
            writer.add_tensor(name, weight)
        else:
            raw = gguf.GGMLQuantizationType[dtype]
            writer.add_tensor(name, gguf.quantize(weight, raw), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
