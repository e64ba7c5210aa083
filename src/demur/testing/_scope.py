"""Which of transformers' causal language models are no decoder-only text generators, and which are not supported.

The reasons are part of docs/architectures.md; the conformance tests hold the second table against what demur says.
"""

_OUT_OF_SCOPE: dict[str, tuple[str, ...]] = {
    "the decoder of an encoder-decoder model": (
        "bart",
        "bigbird_pegasus",
        "blenderbot",
        "blenderbot-small",
        "marian",
        "mbart",
        "mvp",
        "pegasus",
        "plbart",
        "prophetnet",
    ),
    "an encoder (BERT and its kin) with a language-model head": (
        "bert",
        "bert-generation",
        "big_bird",
        "camembert",
        "data2vec-text",
        "electra",
        "ernie",
        "megatron-bert",
        "rembert",
        "roberta",
        "roberta-prelayernorm",
        "roc_bert",
        "roformer",
        "xlm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    ),
    "a permutation language model with two streams of queries": ("xlnet",),
    "reversible layers with two streams, no chat model": ("reformer",),
    "the decoder of a speech or image-to-text encoder-decoder model": ("trocr", "whisper"),
    "generates audio codes, no text": ("musicgen", "musicgen_melody"),
    "an image captioner": ("git",),
    "transcribes speech with the Qwen3 text stack, which is in the table": ("moss_transcribe_diarize",),
    "byte patches: several networks in a row, no single stream": ("blt",),
    "drafts tokens for another model from that model's hidden states": ("gemma4_assistant", "gemma4_unified_assistant"),
    "a wrapper around dots3_note_text, which is in the table": ("dots3_note",),
    "a wrapper around gemma3n_text; needs the timm package": ("gemma3n",),
    "a wrapper around gemma4_unified_text, which is in the table": ("gemma4_unified",),
    "a wrapper around qwen4_exp_text": ("qwen4_exp",),
}
OUT_OF_SCOPE: dict[str, str] = {name: reason for reason, names in _OUT_OF_SCOPE.items() for name in names}
"""Name -> why it is not in the sweep."""

_POST_NORM = "a norm stands on the residual stream itself (post-norm), so nothing that is removed stays removed"
_CHANNELS = "a learned scale per channel acts on the residual stream itself, so nothing that is removed stays removed"
_STREAMS = "several residual streams side by side"
_TABLE = "adds a computed position table to the stream; no checkpoint holds it, so no edited one can be exported"
_CONVOLUTION = "a short convolution with weights per channel stands between each write and the stream"

NOT_SUPPORTED: dict[str, tuple[str, str]] = {
    "ctrl": (_TABLE, "the buffer transformer.pos_encoding"),
    "deepseek_v4": (f"{_STREAMS} (hyper-connections)", "several residual streams"),
    "doge": (_CHANNELS, "a scale per channel acts on the residual stream"),
    "gemma3n_text": (f"{_STREAMS} (AltUp)", "several residual streams"),
    "gpt_neox_japanese": (
        "the last block adds a bias beside its modules, where no hook reaches it",
        "no module returns one of the tensors",
    ),
    "hrm_text": ("the same blocks run several times (recurrence over depth)", "recurrence over depth"),
    "hy_v4": (f"{_STREAMS} (hyper-connections)", "several residual streams"),
    "inkling2_text": ("blocks attend over the outputs of earlier blocks, and " + _CONVOLUTION, ""),
    "inkling_text": (_CONVOLUTION, "`convolution`"),
    "longcat_flash": (
        "identity experts add the normed stream to the stream",
        "a scale per channel acts on the residual stream",
    ),
    "minimax": (_POST_NORM, "a norm or a scale per channel acts on the residual stream"),
    "mllama": ("its cross-attention blocks run only when there is an image", "did not run"),
    "openai-gpt": (_POST_NORM, "a norm acts on the residual stream"),
    "qwen4_exp_text": (f"{_STREAMS} (hyper-connections)", ""),
    "rwkv": (
        "the channel mixing gates its write by another activation in every channel",
        "multiplied by another activation in every hidden dimension",
    ),
    "xglm": (_TABLE, "the buffer model.embed_positions.weights"),
    "zaya": (_CHANNELS, "a scale per channel acts on the residual stream"),
}
"""Name -> why it is not supported, and a part of what demur says about it."""
