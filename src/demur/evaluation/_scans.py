"""SCANS: steer away from refusal, prompt by prompt, only where a prompt does not look harmful (arXiv 2408.11491).

Written from the published formulas. A prompt looks harmful where the change of its hidden states, from the last token
of the instruction to an affirmative first token of an answer, points as it does on average for harmful prompts.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from demur.interventions import adding_rows
from demur.models import ChatModel, Completion, length_sorted_batches, reading_inputs

AFFIRMATIVE = "Sure"
"""Its first token is what is appended."""
PUBLISHED_STRENGTH = 3.5
"""Length of what is subtracted at each layer, for models of 7 billion parameters."""


def steered_layers(n_layers: int) -> range:
    """Layers 10 to 20 of 32, as published, scaled to the depth of the model."""
    return range(10 * n_layers // 32, 20 * n_layers // 32 + 1)


def transitions(chat: ChatModel, prompts: Sequence[str], *, layers: range, batch_size: int = 64) -> Tensor:
    """h(last token of the instruction) - h(appended affirmative token) at block inputs: [prompt, layer, d_model].

    Float64, on the CPU. The last token of the instruction is the one before the post-instruction tokens.
    """
    yes = list(chat.tokenizer(AFFIRMATIVE, add_special_tokens=False)["input_ids"])[:1]
    n_post = len(chat.template.post_instruction_tokens())
    encoded = [[*tokens, *yes] for tokens in chat.encode(prompts)]
    result = torch.empty(len(prompts), len(layers), chat.layout.d_model, dtype=torch.float64)
    for indices in length_sorted_batches([len(tokens) for tokens in encoded], batch_size):
        read: dict[int, Tensor] = {}

        def keep(layer: int, stream: Tensor, into: dict[int, Tensor] = read) -> None:
            into[layer] = (stream[:, -n_post - 2] - stream[:, -1]).to("cpu", torch.float64)

        with reading_inputs(chat.module, {chat.layout.blocks[layer]: partial(keep, layer) for layer in layers}):
            chat.run(chat.batch([encoded[index] for index in indices]))
        result[indices] = torch.stack([read[layer] for layer in layers], dim=1)
    return result


def harm_similarity(transition: Tensor, harmful: Tensor) -> Tensor:
    """Mean over layers of the cosine with the mean transition of harmful prompts, [prompt].

    Args:
        transition: [prompt, layer, d_model].
        harmful: [layer, d_model].
    """
    return torch.cosine_similarity(transition, harmful, dim=-1).mean(-1)


def release_threshold(harmful: Tensor, *, released: float) -> float:
    """The threshold below which at most a share `released` of these similarities of harmful prompts lies."""
    ordered = harmful.sort().values
    return float(ordered[int(released * len(ordered))])


@dataclass(frozen=True)
class SimilaritySteering:
    """Subtract the refusal direction of each steered layer from prompts that do not look harmful, at every token."""

    name: str
    vectors: Tensor
    """[layer, d_model]: what is subtracted at each of `layers`."""
    harmful: Tensor
    """[layer, d_model]: mean transition of harmful prompts at each of `layers`."""
    layers: range
    threshold: float
    """Steer where the similarity is below."""

    @property
    def fingerprint(self) -> str:
        """sha256 of all numbers."""
        digest = hashlib.sha256(f"similarity_steering {self.layers} {self.threshold!r} {AFFIRMATIVE}".encode())
        for tensor in (self.vectors, self.harmful):
            digest.update(tensor.to("cpu", torch.float64).contiguous().numpy().tobytes())
        return digest.hexdigest()

    def looks_harmful(self, chat: ChatModel, prompts: Sequence[str]) -> Tensor:
        """Whether each prompt is left alone, [prompt], bool; one forward pass."""
        found = transitions(chat, prompts, layers=self.layers, batch_size=len(prompts))
        return harm_similarity(found, self.harmful) >= self.threshold

    def answers(self, chat: ChatModel, prompts: Sequence[str], *, max_new_tokens: int) -> list[Completion]:
        """Greedy answers of the steered model."""
        with self._steering(chat, prompts):
            return chat.generate(prompts, max_new_tokens=max_new_tokens)

    def next_token_logits(self, chat: ChatModel, prompts: Sequence[str]) -> Tensor:
        """Logits of the steered model."""
        with self._steering(chat, prompts):
            return chat.next_token_logits(chat.batch(chat.encode(prompts)))

    @contextmanager
    def _steering(self, chat: ChatModel, prompts: Sequence[str]) -> Iterator[None]:
        steered = (~self.looks_harmful(chat, prompts)).to(self.vectors)
        with ExitStack() as stack:
            for layer, vector in zip(self.layers, self.vectors, strict=True):
                stack.enter_context(adding_rows(chat, -steered[:, None] * vector, layer=layer))
            yield
