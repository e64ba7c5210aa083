"""The judged answers to test prompts that a finished run holds."""

from collections.abc import Sequence

from demur.records import PLAIN, CompletionRecord
from demur.types import PromptLabel

LABELS: tuple[PromptLabel, ...] = ("harmful", "borderline", "harmless")


def answers_to_test(
    completions: Sequence[CompletionRecord], state: str, *, asked: str = PLAIN
) -> dict[PromptLabel, list[CompletionRecord]]:
    """By label, in the order of the prompts' hashes.

    Of a prompt that was answered twice (a run continued on other hardware may end at a direction that differs in its
    last digits) the last answer counts: it is the one that was measured.

    Args:
        completions: all of the run.
        state: `records.BASE_MODEL` or `records.CALIBRATED_MODEL`.
        asked: the condition of pressure.
    """
    found: dict[PromptLabel, dict[str, CompletionRecord]] = {label: {} for label in LABELS}
    for record in completions:
        if record.split == "test" and record.intervention == state and record.condition == asked:
            found[record.label][record.prompt_sha256] = record
    return {label: [records[key] for key in sorted(records)] for label, records in found.items()}
