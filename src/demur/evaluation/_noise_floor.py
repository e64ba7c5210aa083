"""A/A test: the same model twice on the same prompts, in other batches and with other padding.

Greedy answers are not bit-stable over batch sizes and kernels. What flips here flips without any change to the model,
so an effect that is no larger than this noise is none.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from demur.errors import InputError
from demur.evaluation._measure import next_token_logits
from demur.evaluation._refusal_score import refusal_scores
from demur.evaluation._runner import Runner, is_refusal
from demur.evaluation._statistics import rate
from demur.models import ChatModel, Completion, length_sorted_batches
from demur.prompts import Prompt
from demur.records import BASE_MODEL, NoiseFloor
from demur.types import Split

_PADDING = 13
"""Additional padding of the second run, in tokens: no multiple of any kernel's tile."""


def noise_floor(
    runner: Runner,
    prompts: Sequence[Prompt],
    *,
    token_ids: Sequence[int] = (),
    other_batch_size: int = 7,
    most: int = 64,
    split: Split = "test",
) -> NoiseFloor:
    """Ask the unchanged model a second time, in batches of another size, each prompt with more padding.

    The first run is the runner's own: answers that it holds already are not computed again, so after the base model was
    measured only the second run costs. Nothing of the second run is kept.

    Args:
        runner: model, judge, longest answer and batch size of the first run.
        prompts: of one split, of any labels.
        token_ids: refusal tokens, for the refusal score; without them it is left out.
        other_batch_size: of the second run. A small prime, so that hardly any prompt keeps its neighbours; 1 is the
            strictest, and slow.
        most: most prompts of each label; those with the smallest hashes.
        split: the split that the prompts belong to, for the records.

    Raises:
        InputError: no prompts, or a batch size below 1.
    """
    if other_batch_size < 1 or most < 1:
        raise InputError(f"batches and sets hold at least 1 prompt; got {other_batch_size} and {most}.")
    chosen = _first_by_hash(prompts, most)
    if not chosen:
        raise InputError("the noise of a model is measured on prompts; got none.")
    runner.progress.start("asking the base model twice", 2 * len(chosen))
    first = runner.complete(chosen, condition=BASE_MODEL, split=split)
    other = Runner(
        runner.chat,
        runner.judge,
        max_new_tokens=runner.max_new_tokens,
        batch_size=other_batch_size,
        progress=runner.progress,
    )
    second = other.complete(chosen, condition=BASE_MODEL, split=split, asking=_Padded())
    pairs = list(zip(first, second, strict=True))
    flags = [(is_refusal(one), is_refusal(two)) for one, two in pairs]
    texts = [prompt.text for prompt in chosen]
    logits = next_token_logits(runner.chat, texts, batch_size=runner.batch_size)
    again = _padded_logits(runner.chat, texts, batch_size=other_batch_size)
    return NoiseFloor(
        n=len(chosen),
        flips=rate([None if one is None or two is None else one != two for one, two in flags]).model_copy(
            update={"judge": first[0].judge}
        ),
        verdict_changes=sum(one.verdict != two.verdict for one, two in pairs),
        different_texts=sum(one.completion != two.completion for one, two in pairs),
        max_logit_difference=_largest(logits, again),
        max_score_difference=(
            _largest(refusal_scores(logits, token_ids), refusal_scores(again, token_ids)) if token_ids else None
        ),
        batch_size=runner.batch_size,
        other_batch_size=other_batch_size,
    )


def _first_by_hash(prompts: Sequence[Prompt], most: int) -> list[Prompt]:
    ordered = sorted(prompts, key=lambda prompt: prompt.sha256)
    labels = sorted({prompt.label for prompt in prompts})
    return [prompt for label in labels for prompt in [each for each in ordered if each.label == label][:most]]


class _Padded:
    """Asks plainly beside a longer sequence, which makes every prompt of the batch carry padding."""

    name = "padded"
    fingerprint = f"padded:{_PADDING}"

    def answers(self, chat: ChatModel, prompts: Sequence[str], *, max_new_tokens: int) -> list[Completion]:
        """Answers to the prompts; that to the longer sequence is dropped."""
        return chat.answers(_with_longer(chat.encode(prompts)), max_new_tokens=max_new_tokens)[:-1]


def _with_longer(encoded: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    longest = max(encoded, key=len)
    opening = [longest[index % len(longest)] for index in range(_PADDING)]
    return [*encoded, [*opening, *longest]]


def _padded_logits(chat: ChatModel, texts: Sequence[str], *, batch_size: int) -> Tensor:
    """Logits at the last position of each prompt, [prompt, vocabulary], on the CPU, each with padding."""
    encoded = chat.encode(texts)
    rows: dict[int, Tensor] = {}
    for indices in length_sorted_batches([len(tokens) for tokens in encoded], batch_size):
        batch = chat.batch(_with_longer([encoded[index] for index in indices]))
        rows.update(zip(indices, chat.next_token_logits(batch)[:-1].cpu(), strict=True))
    return torch.stack([rows[index] for index in range(len(texts))])


def _largest(one: Tensor, two: Tensor) -> float | None:
    """Largest difference; equal infinities, by which some models mask tokens, differ by nothing."""
    one, two = one.to(torch.float64), two.to(torch.float64)
    difference = float(torch.where(one == two, 0.0, (one - two).abs()).max())
    return difference if math.isfinite(difference) else None
