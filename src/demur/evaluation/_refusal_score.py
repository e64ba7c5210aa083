"""The refusal score: next-token log-odds of the refusal tokens, and how those tokens are found."""

from collections.abc import Sequence

import torch
from torch import Tensor

from demur.models import ChatModel
from demur.records import RefusalToken

EPSILON = 1e-8
"""Inside both logarithms, as published; bounds the score by +-log(1e8) = +-18.42."""
LARGEST_SCORE = 18.420680743952367


def refusal_scores(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """log(P + eps) - log(1 - P + eps), P the probability of all refusal tokens together (Arditi et al. section 2.3).

    Args:
        logits: next-token logits at the last prompt position, [..., vocabulary].
        tokens: refusal token ids.

    Returns:
        [...], float64, on the CPU.
    """
    exact = logits.to(torch.float64)
    refusal = torch.logsumexp(exact[..., list(tokens)], -1) - torch.logsumexp(exact, -1)
    probability = refusal.exp().clamp(0, 1)
    return (torch.log(probability + EPSILON) - torch.log(1 - probability + EPSILON)).cpu()


def kl_divergences(base: Tensor, changed: Tensor) -> Tensor:
    """KL(base || changed) of next-token distributions in nats, over the whole vocabulary.

    From log-softmax in float64: the published code adds 1e-6 to each probability, which biases large vocabularies down.

    Args:
        base: logits, [n, vocabulary].
        changed: logits, [..., n, vocabulary].

    Returns:
        [..., n], float64, on the CPU.
    """
    log_base = torch.log_softmax(base.to(changed.device, torch.float64), -1)
    log_changed = torch.log_softmax(changed.to(torch.float64), -1)
    return (log_base.exp() * (log_base - log_changed)).sum(-1).clamp_min(0).cpu()


def discover_refusal_tokens(
    chat: ChatModel,
    refused: Tensor,
    answered: Tensor,
    *,
    coverage: float = 0.9,
    at_most: int = 8,
) -> tuple[RefusalToken, ...]:
    """The tokens with which this model begins its refusals and not its answers.

    Tokens are taken by how much likelier they are, on average, after refused prompts than after answered ones, until
    they cover `coverage` of the first-token probability of refusals.

    Args:
        chat: the model, for the tokens' texts.
        refused: logits at the last position of prompts that the model refuses, [n, vocabulary].
        answered: the same for prompts that it answers, [m, vocabulary].
        coverage: share of the refusals' first-token probability to cover.
        at_most: most tokens to take.
    """
    p_refused = torch.softmax(refused.to(torch.float64), -1).mean(0).cpu()
    p_answered = torch.softmax(answered.to(torch.float64), -1).mean(0).cpu()
    order = torch.argsort(p_refused - p_answered, descending=True)[:at_most].tolist()
    taken: list[RefusalToken] = []
    covered = 0.0
    for token in order:
        # A token that answers begin with as well says nothing; the first one is taken in any case.
        if taken and (covered >= coverage or p_refused[token] < 3 * p_answered[token] or p_refused[token] < 0.01):
            break
        taken.append(
            RefusalToken(
                id=token,
                text=chat.tokenizer.decode([token]),
                probability_refused=float(p_refused[token]),
                probability_answered=float(p_answered[token]),
            )
        )
        covered += float(p_refused[token])
    return tuple(taken)
