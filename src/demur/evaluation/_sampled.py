"""Refusal probabilities over sampled answers, beside greedy verdicts."""

from collections.abc import Mapping, Sequence

from demur.evaluation._clusters import clustered_difference, clustered_rate
from demur.evaluation._conditions import pressure_conditions
from demur.evaluation._pressure import ask_together
from demur.evaluation._runner import Runner, is_refusal
from demur.interventions import Intervention
from demur.prompts import Prompt
from demur.records import CompletionRecord, SampledRefusals
from demur.types import Progress, PromptLabel

SAMPLES = 2
"""Answers to each prompt; the samples of the conditions of pressure, so that those to harmful prompts serve both."""


def measure_sampled(
    runner: Runner,
    tests: Mapping[PromptLabel, Sequence[Prompt]],
    intervention: Intervention | None,
    *,
    progress: Progress,
) -> tuple[SampledRefusals, ...]:
    """Sample answers to test prompts before and after, with the same random numbers.

    Args:
        runner: answers and judges.
        tests: prompts by kind.
        intervention: what is compared with the base model; None measures the base model alone.
        progress: is told what is being done.
    """
    states = 1 if intervention is None else 2
    conditions = [each for each in pressure_conditions() if each.sample is not None][:SAMPLES]
    progress.start("sampling answers", states * len(conditions) * sum(map(len, tests.values())))
    everything = [prompt for each in tests.values() for prompt in each]

    def records(change: Intervention | None) -> dict[PromptLabel, list[CompletionRecord]]:
        asked = ask_together(runner, conditions, everything, change, split="test")
        return {label: [record for each in asked for record in each if record.label == label] for label in tests}

    before = records(None)
    after = None if intervention is None else records(intervention)
    return tuple(
        _sampled(label, len(prompts), len(conditions), before[label], None if after is None else after[label])
        for label, prompts in tests.items()
        if prompts
    )


def _sampled(
    label: PromptLabel,
    n_prompts: int,
    n_samples: int,
    before: Sequence[CompletionRecord],
    after: Sequence[CompletionRecord] | None,
) -> SampledRefusals:
    clusters = [record.prompt_sha256 for record in before]
    flags = [is_refusal(record) for record in before]
    found = SampledRefusals(
        label=label, n_prompts=n_prompts, n_samples=n_samples, before=clustered_rate(flags, clusters)
    )
    if after is None:
        return found
    changed = [is_refusal(record) for record in after]
    return found.model_copy(
        update={
            "after": clustered_rate(changed, clusters),
            "comparison": clustered_difference(flags, changed, clusters),
        }
    )
