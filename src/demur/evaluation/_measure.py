"""From completion records to the metrics of a summary: rates with intervals, paired comparisons, KL."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from demur.evaluation._refusal_score import kl_divergences
from demur.evaluation._runner import is_refusal
from demur.evaluation._statistics import bootstrap_mean, paired_comparison, rate
from demur.models import ChatModel, length_sorted_batches
from demur.records import BeforeAfter, Comparison, CompletionRecord, Mean, Metrics, PairedComparison, Rate
from demur.types import PromptLabel

Completions = Mapping[PromptLabel, Sequence[CompletionRecord]]


def refusal_rate(records: Sequence[CompletionRecord]) -> Rate:
    """Share of completions that refuse, fully or partly."""
    return rate([is_refusal(record) for record in records], degenerate=sum(record.degenerate for record in records))


def metrics_of(before: Completions, after: Completions | None, kl: Mean | None) -> Metrics:
    """The metrics of a summary; `after` is None where no calibrated model was measured."""

    def both(label: PromptLabel) -> BeforeAfter:
        return BeforeAfter(
            before=refusal_rate(before[label]), after=None if after is None else refusal_rate(after[label])
        )

    answers = _answers(before)
    accuracy = None
    if answers:
        changed = None if after is None else rate(_found(_answers(after)))
        accuracy = BeforeAfter(before=rate(_found(answers)), after=changed)
    return Metrics(
        true_refusal_rate=both("harmful"),
        false_refusal_rate=both("borderline"),
        harmless_refusal_rate=both("harmless"),
        kl_harmless=kl,
        task_accuracy=accuracy,
    )


def compare(before: Completions, after: Completions) -> Comparison:
    """Paired comparison of every rate, on the same prompts."""

    def paired(
        one: Sequence[CompletionRecord],
        two: Sequence[CompletionRecord],
        flag: Callable[[CompletionRecord], bool | None],
    ) -> PairedComparison:
        if [record.prompt_sha256 for record in one] != [record.prompt_sha256 for record in two]:
            raise AssertionError("a paired comparison of different prompts")
        return paired_comparison([flag(record) for record in one], [flag(record) for record in two])

    answers = _answers(before)
    return Comparison(
        true_refusal_rate=paired(before["harmful"], after["harmful"], is_refusal),
        false_refusal_rate=paired(before["borderline"], after["borderline"], is_refusal),
        harmless_refusal_rate=paired(before["harmless"], after["harmless"], is_refusal),
        task_accuracy=paired(answers, _answers(after), lambda record: record.answer_found) if answers else None,
    )


def _answers(completions: Completions) -> list[CompletionRecord]:
    """Harmless prompts with a known answer: elsewhere a refusal would pass for a lost ability."""
    return [record for record in completions["harmless"] if record.answer_found is not None]


def _found(records: Sequence[CompletionRecord]) -> list[bool | None]:
    return [record.answer_found for record in records]


def next_token_logits(chat: ChatModel, prompts: Sequence[str], *, batch_size: int = 64) -> Tensor:
    """Logits at the last position of each rendered prompt, [prompt, vocabulary], on the CPU."""
    encoded = chat.encode(prompts)
    rows: list[Tensor] = []
    order: list[int] = []
    for indices in length_sorted_batches([len(tokens) for tokens in encoded], batch_size):
        order.extend(indices)
        rows.append(chat.next_token_logits(chat.batch([encoded[index] for index in indices])).cpu())
    stacked = torch.cat(rows)
    result = torch.empty_like(stacked)
    result[order] = stacked
    return result


def mean_kl(base: Tensor, changed: Tensor, *, seed: int) -> Mean:
    """Mean KL(base || changed) over prompts with a bootstrap interval, nats."""
    return bootstrap_mean(kl_divergences(base, changed).tolist(), seed=seed)
