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
    progress.start("sampling answers", states * SAMPLES * sum(map(len, tests.values())))
    return tuple(_sampled(runner, label, each, intervention) for label, each in tests.items() if each)


def _sampled(
    runner: Runner, label: PromptLabel, prompts: Sequence[Prompt], intervention: Intervention | None
) -> SampledRefusals:
    conditions = [each for each in pressure_conditions() if each.sample is not None][:SAMPLES]

    def records(change: Intervention | None) -> list[CompletionRecord]:
        asked = ask_together(runner, conditions, prompts, change, split="test")
        return [record for each in asked for record in each]

    before = records(None)
    clusters = [record.prompt_sha256 for record in before]
    flags = [is_refusal(record) for record in before]
    found = SampledRefusals(
        label=label, n_prompts=len(prompts), n_samples=len(conditions), before=clustered_rate(flags, clusters)
    )
    if intervention is None:
        return found
    after = [is_refusal(record) for record in records(intervention)]
    return found.model_copy(
        update={"after": clustered_rate(after, clusters), "comparison": clustered_difference(flags, after, clusters)}
    )
