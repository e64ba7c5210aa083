"""Fidelity: how far a changed model is from its base model where nothing should change.

KL divergence and cross-entropy along the base model's own answers to harmless prompts, and cross-entropy of plain text
(Arditi et al. section 4.3 measures the latter; both models read the same tokens, so differences are paired).

The two models are compared batch by batch, because the logits of all prompts would be tokens x vocabulary numbers each
(0.5 MB a token for a large vocabulary). Entering the change is cheap: the weights are folded once and then exchanged by
pointer.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from demur.errors import InputError
from demur.evaluation._refusal_score import kl_divergences
from demur.evaluation._statistics import bootstrap_mean
from demur.interventions import Intervention, can_fold
from demur.models import ChatModel, length_sorted_batches, swapped_parameters
from demur.records import CrossEntropy, Fidelity, InterventionForm
from demur.types import Progress, SilentProgress

_EXACT_NUMBERS = 2**23
"""Numbers that are held in float64 at a time: 64 MB for each of the few copies."""
_LOGITS = 2**28
"""Logits of a batch of plain text: 0.5 GB in half precision."""
_WINDOW = 1024
"""Tokens of plain text that are read at a time."""

Changed = Callable[[], AbstractContextManager[None]]


def measure_fidelity(
    chat: ChatModel,
    intervention: Intervention,
    prompts: Sequence[str],
    *,
    completions: Sequence[Sequence[int]] | None = None,
    texts: Sequence[str] = (),
    n_tokens: int = 32,
    batch_size: int = 16,
    folded: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Fidelity:
    """Compare the changed model with the base model on harmless prompts and plain text.

    Args:
        chat: the base model.
        intervention: the change; folded into the weights where they can be edited, as an export ships it.
        prompts: harmless prompts.
        completions: token ids of the base model's greedy answer to each prompt; by default they are generated.
        texts: plain documents. Long ones are read in windows of 1024 tokens.
        n_tokens: how much of each answer is used, in tokens.
        batch_size: prompts in one forward pass.
        folded: False measures the run-time form (hooks) instead.
        seed: of the bootstrap intervals.
        progress: is told what is being done.

    Raises:
        InputError: no prompts, an empty answer or text, or numbers of tokens or prompts below 1.
        ModelError: the logits are NaN.
    """
    _check(prompts, completions, n_tokens, batch_size)
    progress = progress or SilentProgress()
    changed, form = often(chat, intervention, folded=folded)
    encoded = chat.encode(prompts)
    if completions is None:
        progress.start("answering harmless prompts", len(prompts))
        completions = _greedy(chat, encoded, n_tokens, batch_size, progress)
    answers = [_Scored(start, list(tokens[:n_tokens])) for start, tokens in zip(encoded, completions, strict=True)]
    progress.start("comparing with the base model", len(answers))
    for batch in _batches(answers, lambda _: batch_size):
        _score(chat, batch, changed, with_kl=True)
        progress.advance(len(batch))
    documents = [_windows(chat, number, text) for number, text in enumerate(texts)]
    windows = [window for document in documents for window in document]
    vocabulary = int(chat.model.get_input_embeddings().num_embeddings)
    if windows:
        progress.start("reading plain text", len(windows))
    for batch in _batches(windows, lambda longest: max(1, min(batch_size, _LOGITS // (longest * vocabulary)))):
        _score(chat, batch, changed, with_kl=False)
        progress.advance(len(batch))
    return Fidelity(
        fingerprint=intervention.fingerprint,
        form=form,
        kl_first_token=bootstrap_mean([answer.kl[0] for answer in answers], seed=seed),
        kl_generated=bootstrap_mean([math.fsum(answer.kl) / len(answer.kl) for answer in answers], seed=seed),
        n_tokens=n_tokens,
        cross_entropy_own=_cross_entropy([[answer] for answer in answers], seed),
        cross_entropy_text=_cross_entropy(documents, seed) if documents else None,
    )


@dataclass
class _Scored:
    """Tokens to predict after a start; the numbers are filled in by `_score`, one per token, nats."""

    start: list[int]
    tokens: list[int]
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)

    @property
    def read(self) -> list[int]:
        """What the model reads: the last token only has to be predicted."""
        return self.start + self.tokens[:-1]


def _check(prompts: Sequence[str], completions: Sequence[Sequence[int]] | None, n_tokens: int, batch_size: int) -> None:
    if not prompts:
        raise InputError("fidelity is measured on harmless prompts; got none.")
    if n_tokens < 1 or batch_size < 1:
        raise InputError(f"n_tokens and batch_size are at least 1; got {n_tokens} and {batch_size}.")
    if completions is None:
        return
    if len(completions) != len(prompts):
        raise InputError(f"one completion per prompt: got {len(completions)} for {len(prompts)} prompts.")
    if not all(completions):
        raise InputError("a completion holds no token; an answer has at least its end token. Leave `completions` out.")


def often(chat: ChatModel, intervention: Intervention, *, folded: bool = True) -> tuple[Changed, InterventionForm]:
    """A context that changes the model and is cheap to enter many times, and the form that it takes.

    Args:
        chat: the base model.
        intervention: the change.
        folded: fold it into the weights, where they can be edited; they are folded here, once.
    """
    if not folded or chat.layout.packed is not None or not can_fold(intervention):
        return lambda: intervention.applied_to(chat), "applied"
    before = dict(chat.module.named_parameters(remove_duplicate=False))
    with intervention.folded_into(chat):
        after = dict(chat.module.named_parameters(remove_duplicate=False))
    edited = {name: tensor for name, tensor in after.items() if tensor is not before[name]}
    return lambda: swapped_parameters(chat.module, edited), "folded"


def _greedy(
    chat: ChatModel, encoded: Sequence[list[int]], n_tokens: int, batch_size: int, progress: Progress
) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [()] * len(encoded)
    for indices in length_sorted_batches([len(tokens) for tokens in encoded], batch_size):
        answers = chat.answers([encoded[index] for index in indices], max_new_tokens=n_tokens)
        for index, answer in zip(indices, answers, strict=True):
            found[index] = answer.tokens
        progress.advance(len(indices))
    return found


def _windows(chat: ChatModel, number: int, text: str) -> list[_Scored]:
    """A document in windows; each begins with the model's beginning-of-sequence token, or else with a token of its own.

    Raises:
        InputError: the document holds nothing to predict.
    """
    tokens = list(chat.tokenizer(text, add_special_tokens=False)["input_ids"])
    bos = chat.tokenizer.bos_token_id
    first = [] if bos is None else [int(bos)]
    pieces = [first + tokens[start : start + _WINDOW] for start in range(0, len(tokens), _WINDOW)]
    windows = [_Scored(piece[:1], piece[1:]) for piece in pieces if len(piece) > 1]
    if not windows:
        raise InputError(
            f"text {number + 1} holds no token to predict: {text[:40]!r}. Give documents of some sentences."
        )
    return windows


def _batches(items: Sequence[_Scored], size: Callable[[int], int]) -> Iterator[list[_Scored]]:
    """Batches of similar length, longest first; `size` says how many items of a length fit in one."""
    order = sorted(items, key=lambda item: -len(item.read))
    while order:
        count = size(len(order[0].read))
        yield order[:count]
        order = order[count:]


def _score(chat: ChatModel, items: Sequence[_Scored], changed: Changed, *, with_kl: bool) -> None:
    """Fill in the numbers of one batch: one forward pass of each model."""
    batch = chat.batch([item.read for item in items])
    count = max(len(item.tokens) for item in items)
    base = chat.logits_at_end(batch, count=count)
    for row, item in enumerate(items):
        item.before = _surprise(base[row, -len(item.tokens) :], item.tokens)
    kept = base if with_kl else None
    del base  # two states of a batch of plain text need not fit in memory
    with changed():
        logits = chat.logits_at_end(batch, count=count)
    for row, item in enumerate(items):
        length = len(item.tokens)
        item.after = _surprise(logits[row, -length:], item.tokens)
        if kept is not None:
            item.kl = _kl(kept[row, -length:], logits[row, -length:])


def _surprise(logits: Tensor, tokens: Sequence[int]) -> list[float]:
    """-log p of each token, nats; logits are [token, vocabulary]."""
    values: list[float] = []
    targets = torch.tensor(tokens, device=logits.device)
    for part in _parts(logits):
        exact = logits[part].to(torch.float64)
        chosen = exact.gather(-1, targets[part, None])[:, 0]
        values += (torch.logsumexp(exact, -1) - chosen).tolist()
    return values


def _kl(base: Tensor, changed: Tensor) -> list[float]:
    return [value for part in _parts(base) for value in kl_divergences(base[part], changed[part]).tolist()]


def _parts(logits: Tensor) -> Iterator[slice]:
    """Rows of [token, vocabulary] that may be held in float64 together."""
    rows = max(1, _EXACT_NUMBERS // logits.shape[-1])
    for start in range(0, len(logits), rows):
        yield slice(start, start + rows)


def _cross_entropy(documents: Sequence[Sequence[_Scored]], seed: int) -> CrossEntropy:
    lengths = [sum(len(part.tokens) for part in document) for document in documents]
    before = [math.fsum(value for part in document for value in part.before) for document in documents]
    after = [math.fsum(value for part in document for value in part.after) for document in documents]
    means = [([total / length for total, length in zip(totals, lengths, strict=True)]) for totals in (before, after)]
    n_tokens = sum(lengths)
    return CrossEntropy(
        before=bootstrap_mean(means[0], seed=seed),
        after=bootstrap_mean(means[1], seed=seed),
        difference=bootstrap_mean([two - one for one, two in zip(*means, strict=True)], seed=seed),
        n_tokens=n_tokens,
        perplexity_before=math.exp(math.fsum(before) / n_tokens),
        perplexity_after=math.exp(math.fsum(after) / n_tokens),
    )
