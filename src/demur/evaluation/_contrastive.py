"""Ways of asking that change no weights: a system prompt, and decoding away from a safety-raising one (Self-CD)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from demur.evaluation._runner import Asking
from demur.models import (
    ChatModel,
    Completion,
    contrastive_answers,
    contrastive_next_token_logits,
    length_sorted_batches,
)
from demur.records import canonical_json


class MeasuredAsking(Asking, Protocol):
    """An `Asking` whose next-token distribution can be measured too."""

    def next_token_logits(self, chat: ChatModel, prompts: Sequence[str]) -> Tensor:
        """Logits of the first token of each answer, [prompt, vocabulary], of one batch."""


@dataclass(frozen=True)
class SystemPrompt:
    """Put an instruction before every prompt: as system message, or before the user text where there is no such role.

    A system prompt that the model was loaded with stays, and comes first.
    """

    name: str
    text: str

    @property
    def fingerprint(self) -> str:
        """sha256 of the text."""
        return _digest("system_prompt", self.text)

    def encode(self, chat: ChatModel, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of the prompts with the instruction."""
        if not chat.template.takes_system_role():
            return chat.encode([f"{self.text}\n\n{prompt}" for prompt in prompts])
        own = chat.template.system
        template = replace(chat.template, system=self.text if own is None else f"{own}\n\n{self.text}")
        return [template.encode(prompt) for prompt in prompts]

    def answers(self, chat: ChatModel, prompts: Sequence[str], *, max_new_tokens: int) -> list[Completion]:
        """Greedy answers under the instruction."""
        return chat.answers(self.encode(chat, prompts), max_new_tokens=max_new_tokens)

    def next_token_logits(self, chat: ChatModel, prompts: Sequence[str]) -> Tensor:
        """Logits under the instruction."""
        return chat.next_token_logits(chat.batch(self.encode(chat, prompts)))


@dataclass(frozen=True)
class SelfContrast:
    """Self-CD: greedy by l - a (l_safe - l), l_safe under a safety-raising system prompt (arXiv 2401.17633).

    Two forward passes per token, as one batch of twice the rows.
    """

    name: str
    safety: SystemPrompt
    strength: float
    """a; 0 is the plain greedy answer."""

    @property
    def fingerprint(self) -> str:
        """sha256 of the safety prompt and a."""
        return _digest("self_contrast", self.safety.text, self.strength)

    def answers(self, chat: ChatModel, prompts: Sequence[str], *, max_new_tokens: int) -> list[Completion]:
        """Greedy answers by the combined logits, never more rows at once than there are prompts."""
        answers: list[Completion] = []
        half = (len(prompts) + 1) // 2
        for some in (prompts[:half], prompts[half:]):
            if some:
                answers += contrastive_answers(
                    chat,
                    chat.encode(some),
                    self.safety.encode(chat, some),
                    strength=self.strength,
                    max_new_tokens=max_new_tokens,
                )
        return answers

    def next_token_logits(self, chat: ChatModel, prompts: Sequence[str]) -> Tensor:
        """The combined logits."""
        return contrastive_next_token_logits(
            chat, chat.encode(prompts), self.safety.encode(chat, prompts), strength=self.strength
        )


def _digest(*parts: object) -> str:
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def asked_logits(chat: ChatModel, prompts: Sequence[str], asking: MeasuredAsking, *, batch_size: int = 64) -> Tensor:
    """Logits of the first token of each answer, [prompt, vocabulary], on the CPU, in the order of the prompts."""
    rows: list[Tensor] = []
    order: list[int] = []
    for indices in length_sorted_batches([len(tokens) for tokens in chat.encode(prompts)], batch_size):
        order.extend(indices)
        rows.append(asking.next_token_logits(chat, [prompts[index] for index in indices]).cpu())
    stacked = torch.cat(rows)
    result = torch.empty_like(stacked)
    result[order] = stacked
    return result
