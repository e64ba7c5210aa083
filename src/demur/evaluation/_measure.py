"""From completion records to the metrics of a summary: rates with intervals, paired comparisons, KL."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from demur.evaluation._refusal_score import kl_divergences, refusal_scores
from demur.evaluation._runner import is_refusal
from demur.evaluation._statistics import bootstrap_mean, paired_comparison, rate
from demur.models import ChatModel, FittingBatches, length_sorted_batches, tensors_in_order
from demur.prompts import Prompt
from demur.records import (
    BeforeAfter,
    CategoryRates,
    Comparison,
    CompletionRecord,
    JudgeIdentity,
    Mean,
    Metrics,
    PairedComparison,
    Rate,
)
from demur.types import PromptLabel

_ANSWER_RULE = JudgeIdentity(id="contains_answer", version="1")
Completions = Mapping[PromptLabel, Sequence[CompletionRecord]]


def refusal_rate(records: Sequence[CompletionRecord]) -> Rate:
    """Share of completions that refuse, fully or partly."""
    measured = rate([is_refusal(record) for record in records], degenerate=sum(record.degenerate for record in records))
    return measured.model_copy(update={"judge": _judge_of(records)})


def paired_refusals(before: Sequence[CompletionRecord], after: Sequence[CompletionRecord]) -> PairedComparison:
    """Paired comparison of refusals on the same prompts in the same order."""
    return _paired(before, after, is_refusal).model_copy(update={"judge": _judge_of(before)})


def _judge_of(records: Sequence[CompletionRecord]) -> JudgeIdentity | None:
    """The one judge of all records; a rate over several would mean nothing."""
    judges = {(record.judge.id, record.judge.version) for record in records if record.judge is not None}
    if len(judges) > 1:
        raise AssertionError(f"one rate from several judges: {sorted(judges)}")
    return next((record.judge for record in records if record.judge is not None), None)


def _paired(
    one: Sequence[CompletionRecord],
    two: Sequence[CompletionRecord],
    flag: Callable[[CompletionRecord], bool | None],
) -> PairedComparison:
    if [record.prompt_sha256 for record in one] != [record.prompt_sha256 for record in two]:
        raise AssertionError("a paired comparison of different prompts")
    return paired_comparison([flag(record) for record in one], [flag(record) for record in two])


def metrics_of(before: Completions, after: Completions | None, kl: Mean | None) -> Metrics:
    """The metrics of a summary; `after` is None where no calibrated model was measured."""

    def both(label: PromptLabel) -> BeforeAfter:
        return BeforeAfter(
            before=refusal_rate(before[label]), after=None if after is None else refusal_rate(after[label])
        )

    answers = _answers(before)
    accuracy = None
    if answers:
        accuracy = BeforeAfter(before=_accuracy(answers), after=None if after is None else _accuracy(_answers(after)))
    return Metrics(
        true_refusal_rate=both("harmful"),
        false_refusal_rate=both("borderline"),
        harmless_refusal_rate=both("harmless"),
        kl_harmless=kl,
        task_accuracy=accuracy,
    )


def compare(before: Completions, after: Completions) -> Comparison:
    """Paired comparison of every rate, on the same prompts."""
    answers = _answers(before)
    right = _paired(answers, _answers(after), lambda record: record.answer_found)
    return Comparison(
        true_refusal_rate=paired_refusals(before["harmful"], after["harmful"]),
        false_refusal_rate=paired_refusals(before["borderline"], after["borderline"]),
        harmless_refusal_rate=paired_refusals(before["harmless"], after["harmless"]),
        task_accuracy=right.model_copy(update={"judge": _ANSWER_RULE}) if answers else None,
    )


_FEWEST_OF_CATEGORY = 10
"""Below this many prompts an interval says nothing."""
_MOST_CATEGORIES = 12


def rates_by_category(
    prompts: Mapping[PromptLabel, Sequence[Prompt]], before: Completions, after: Completions | None
) -> tuple[CategoryRates, ...]:
    """Refusals by category of the prompts, where a kind has several that are large enough, the largest first.

    Args:
        prompts: test prompts by kind.
        before: answers of the base model.
        after: of the calibrated model; None where there is none.
    """
    found: list[CategoryRates] = []
    for label, each in prompts.items():
        of = {prompt.sha256: prompt.category for prompt in each}
        counts = Counter(category for category in of.values() if category)
        names = [name for name, n in counts.most_common(_MOST_CATEGORIES) if n >= _FEWEST_OF_CATEGORY]
        for name in names if len(names) > 1 else ():
            one, two = (
                None if records is None else [row for row in records[label] if of.get(row.prompt_sha256) == name]
                for records in (before, after)
            )
            assert one is not None
            found.append(
                CategoryRates(
                    label=label,
                    category=name,
                    rate=BeforeAfter(before=refusal_rate(one), after=None if two is None else refusal_rate(two)),
                    comparison=None if two is None else paired_refusals(one, two),
                )
            )
    return tuple(found)


def _answers(completions: Completions) -> list[CompletionRecord]:
    """Harmless prompts with a known answer: elsewhere a refusal would pass for a lost ability."""
    return [record for record in completions["harmless"] if record.answer_found is not None]


def _accuracy(records: Sequence[CompletionRecord]) -> Rate:
    return rate([record.answer_found for record in records]).model_copy(update={"judge": _ANSWER_RULE})


def next_token_logits(chat: ChatModel, prompts: Sequence[str], *, batch_size: int = 64) -> Tensor:
    """Logits at the last position of each rendered prompt, [prompt, vocabulary], on the CPU.

    Raises:
        ModelError: a logit is NaN.
    """
    return logits_after(chat, chat.encode(prompts), batch_size=batch_size)


def logits_after(
    chat: ChatModel, encoded: Sequence[Sequence[int]], *, batch_size: int = 64, check: bool = True
) -> Tensor:
    """The same of token ids, which are there already; with `check` off NaN is passed on."""
    if not encoded:
        return torch.empty(0, 0)
    return _read_after(chat, encoded, lambda logits, _: logits, batch_size, check=check)


def scores_after(
    chat: ChatModel,
    encoded: Sequence[Sequence[int]],
    tokens: Sequence[int],
    *,
    batch_size: int = 64,
    check: bool = True,
) -> Tensor:
    """Refusal scores of prompts given as token ids, [prompt], float64; no logits are kept."""
    if not encoded:
        return torch.empty(0, dtype=torch.float64)
    return _read_after(chat, encoded, lambda logits, _: refusal_scores(logits, tokens), batch_size, check=check)


def kl_after(
    chat: ChatModel,
    encoded: Sequence[Sequence[int]],
    base: Tensor,
    *,
    batch_size: int = 64,
    check: bool = True,
) -> Tensor:
    """KL(base || the model now) of prompts given as token ids, nats, [prompt], float64; only `base` is held.

    Args:
        chat: the changed model.
        encoded: token ids of each prompt.
        base: logits of the unchanged model, [prompt, vocabulary].
        batch_size: prompts of one forward pass.
        check: refuse NaN logits; otherwise they are passed on.
    """
    return _read_after(
        chat, encoded, lambda logits, rows: kl_divergences(base[list(rows)], logits), batch_size, check=check
    )


def _read_after(
    chat: ChatModel,
    encoded: Sequence[Sequence[int]],
    read: Callable[[Tensor, Sequence[int]], Tensor],
    batch_size: int,
    *,
    check: bool,
) -> Tensor:
    """What `read` makes of each batch's logits and the indices of its prompts, on the CPU in the order of `encoded`."""
    fitting = FittingBatches()

    def some(indices: Sequence[int]) -> Tensor:
        logits = chat.next_token_logits(chat.batch([encoded[index] for index in indices]), check=check)
        return read(logits, indices).cpu()

    def values(indices: Sequence[int]) -> Tensor:
        parts = fitting.pieces(some, indices)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    batches = list(length_sorted_batches([len(tokens) for tokens in encoded], batch_size))
    result: Tensor | None = None
    for indices, found in zip(batches, tensors_in_order(values, batches), strict=True):
        if result is None:
            result = found.new_empty(len(encoded), *found.shape[1:])
        result[indices] = found
    assert result is not None
    return result


def mean_kl(base: Tensor, changed: Tensor, *, seed: int) -> Mean:
    """Mean KL(base || changed) over prompts with a bootstrap interval, nats."""
    return bootstrap_mean(kl_divergences(base, changed).tolist(), seed=seed)
