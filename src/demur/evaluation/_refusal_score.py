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
    rows = logits.reshape(-1, logits.shape[-1])
    parts = []
    for part in _few_rows(rows):
        exact = part.to(torch.float64)
        refusal = torch.logsumexp(exact[:, list(tokens)], -1) - torch.logsumexp(exact, -1)
        probability = refusal.exp().clamp(0, 1)
        parts.append(torch.log(probability + EPSILON) - torch.log(1 - probability + EPSILON))
    return torch.cat(parts).view(logits.shape[:-1]).cpu()


def differentiable_refusal_scores(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """`refusal_scores` with its graph and where the logits are, [batch], float32 or wider: for gradients."""
    exact = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    log_all = torch.log_softmax(exact, -1)
    kept = torch.zeros(exact.shape[-1], dtype=torch.bool, device=exact.device)
    kept[list(tokens)] = True
    # log P - log(1 - P) without a difference of nearly equal numbers.
    return torch.logsumexp(log_all[:, kept], -1) - torch.logsumexp(log_all[:, ~kept], -1)


def kl_divergences(base: Tensor, changed: Tensor) -> Tensor:
    """KL(base || changed) of next-token distributions in nats, over the whole vocabulary.

    From log-softmax in float64: the published code adds 1e-6 to each probability, which biases large vocabularies down.

    Args:
        base: logits, [n, vocabulary].
        changed: logits, [..., n, vocabulary].

    Returns:
        [..., n], float64, on the CPU.
    """
    result = torch.empty(changed.shape[:-1], dtype=torch.float64, device=changed.device)
    rows = changed.reshape(-1, *changed.shape[-2:])
    for index, row in enumerate(base):
        log_base = torch.log_softmax(row.to(changed.device, torch.float64), -1)
        probability = log_base.exp()
        terms = [
            (log_base - torch.log_softmax(part.to(torch.float64), -1)) @ probability
            for part in _few_rows(rows[:, index])
        ]
        result.view(-1, len(base))[:, index] = torch.cat(terms)
    return result.clamp_min(0).cpu()


_NUMBERS_AT_ONCE = 2**19
"""Logits that are held in float64 at a time: 4 MiB, and a few copies of them."""


def _few_rows(rows: Tensor) -> tuple[Tensor, ...]:
    """[n, vocabulary] in parts, so that no float64 copy of a whole batch is made."""
    return torch.split(rows, max(1, _NUMBERS_AT_ONCE // rows.shape[-1]))


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
    they cover `coverage` of the first-token probability of refusals; and beyond that every token that is the likeliest
    first one of at least `_OWN_OPENING` of the refusals, so that a model with several openings gets all of them.

    Args:
        chat: the model, for the tokens' texts.
        refused: logits at the last position of prompts that the model refuses, [n, vocabulary].
        answered: the same for prompts that it answers, [m, vocabulary].
        coverage: share of the refusals' first-token probability to cover.
        at_most: most tokens to take.
    """
    every = torch.softmax(refused.to(torch.float64), -1)
    p_refused = every.mean(0).cpu()
    p_answered = torch.softmax(answered.to(torch.float64), -1).mean(0).cpu()
    firsts = torch.bincount(every.argmax(-1).cpu(), minlength=len(p_refused)) / len(every)
    order = torch.argsort(p_refused - p_answered, descending=True)[: 4 * at_most].tolist()
    # A token that answers begin with as well says nothing; where every one is such, the first must do.
    telling = [each for each in order if p_refused[each] >= 3 * p_answered[each] and p_refused[each] >= 0.01]
    taken: list[RefusalToken] = []
    covered = 0.0
    for token in telling or order[:1]:
        if len(taken) == at_most or (covered >= coverage and firsts[token] < _OWN_OPENING):
            continue
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


_OWN_OPENING = 0.05
"""Share of the refusals from which a likeliest first token is an opening of its own."""
