"""Random-weight tiny models of real architectures, with a byte-level tokenizer and a chat template.

They answer nonsense; they are for algebra and plumbing.
"""

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from demur.models import ChatModel
from demur.testing._families import tiny_class, tiny_config

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>")


def tiny_tokenizer(*, chat_template: str = CHAT_TEMPLATE) -> Any:
    """A byte-level tokenizer of 259 tokens with a ChatML-like template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*_SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_SPECIAL[0],
        eos_token=_SPECIAL[2],
        additional_special_tokens=[_SPECIAL[1]],
    )
    wrapped.chat_template = chat_template
    return wrapped


def tiny_model(
    family: str, *, dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 0.1, **config: Any
) -> Any:
    """A random-weight causal language model of one transformers family, on the CPU.

    Args:
        family: a transformers model type, such as "llama", "gemma3_text", "gpt_neox".
        dtype: of the weights.
        seed: of the weights.
        scale: standard deviation of the noise that is added to every parameter, so that norms and biases are not at
            their trivial initial values.
        config: further values of the family's config class.
    """
    settings = tiny_config(family, **config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # noqa: TID251 (inside a fork: the caller's stream is not touched)
        drawn = tiny_class(family).from_config(settings)
        with torch.random.fork_rng(devices=[]):
            # Built anew, so that what the model computes from its config has the precision of `dtype` too.
            model = tiny_class(family).from_config(settings, dtype=dtype).eval()
        model.load_state_dict(drawn.state_dict())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * scale)
    return model


def tiny_chat_model(
    family: str = "llama", *, dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 0.1, **config: Any
) -> ChatModel:
    """A tiny random chat model with its layout proved."""
    model = tiny_model(family, dtype=dtype, seed=seed, scale=scale, **config)
    return ChatModel(model, tiny_tokenizer(), f"tiny-{family}")
