"""Greedy decoding from two renderings of each prompt at once, by a combination of their logits."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from demur.models._chat_model import ChatModel
from demur.models._generation import Completion, generate_answers


def contrasted_logits(plain: Tensor, other: Tensor, strength: float) -> Tensor:
    """L - a (l_other - l): away from what the other rendering makes likelier (Shi et al. 2024, arXiv 2401.17633).

    Args:
        plain: l, [..., vocabulary].
        other: l_other, the same shape.
        strength: a; 0 leaves l as it is.
    """
    # A token that a model masks with minus infinity stays masked; minus infinity minus itself would be NaN.
    masked = torch.isneginf(plain) | torch.isneginf(other)
    return torch.where(masked, plain, plain - strength * (other - plain))


def _contrasted_halves(logits: Tensor, strength: float) -> Tensor:
    half = len(logits) // 2
    return contrasted_logits(logits[:half], logits[half:], strength)


def contrastive_next_token_logits(
    chat: ChatModel, plain: Sequence[Sequence[int]], other: Sequence[Sequence[int]], *, strength: float
) -> Tensor:
    """The combined logits after each prompt, [prompt, vocabulary]."""
    return _contrasted_halves(chat.next_token_logits(chat.batch([*plain, *other])), strength)


def contrastive_answers(
    chat: ChatModel,
    plain: Sequence[Sequence[int]],
    other: Sequence[Sequence[int]],
    *,
    strength: float,
    max_new_tokens: int,
) -> list[Completion]:
    """Greedy answers by the combined logits: one batch of twice the rows, with the model's own cache.

    Args:
        chat: the model.
        plain: token ids of each prompt.
        other: token ids of the other rendering of the same prompts.
        strength: a of `contrasted_logits`.
        max_new_tokens: longest answer.
    """
    rows = generate_answers(
        chat.model,
        chat.tokenizer,
        [*plain, *other],
        pad=chat.pad_token,
        max_new_tokens=max_new_tokens,
        processors=[_Contrast(strength)],
    )
    return rows[: len(plain)]


class _Contrast(LogitsProcessor):  # type: ignore[misc]
    """Gives both rows of a prompt the combined logits, so that both streams go on with the same token."""

    def __init__(self, strength: float) -> None:
        self._strength = strength

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        return _contrasted_halves(scores, self._strength).repeat(2, 1)
