"""Which completions a report may show: borderline prompts as text, harmful ones as hashes and verdicts only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from demur.records import BASE_MODEL, CALIBRATED_MODEL, PLAIN, CompletionRecord
from demur.reports._format import shorten
from demur.types import PromptLabel, Verdict

VERDICT_WORDS: dict[Verdict, str] = {
    "full_refusal": "refused",
    "partial_refusal": "partly refused",
    "full_compliance": "answered",
    "unjudged": "not judged",
}

MOST_CHANGED = 12
MOST_UNCHANGED = 4
LONGEST_PROMPT = 600
LONGEST_ANSWER = 900
"""Longer texts are cut: a report is read, and the run folder has the whole text."""


@dataclass(frozen=True)
class Pair:
    """The two completions of one test prompt; `after` is null where nothing was applied."""

    before: CompletionRecord
    after: CompletionRecord | None


@dataclass(frozen=True)
class Answer:
    """One completion as shown."""

    heading: str
    verdict: str
    refused: bool
    degenerate: bool
    text: str


@dataclass(frozen=True)
class Example:
    """One borderline prompt with its answers."""

    prompt: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class ExampleGroup:
    """Examples that show the same thing."""

    title: str
    note: str
    examples: tuple[Example, ...]


def paired_completions(completions: Sequence[CompletionRecord], label: PromptLabel) -> list[Pair]:
    """The test prompts of one label with both completions, in the order of their hashes.

    A hash order is the same in every run and has nothing to do with what the prompt says, so taking the first few of
    it is no choice by hand.
    """
    wanted = [one for one in completions if one.label == label and one.split == "test" and one.condition == PLAIN]
    after = {one.prompt_sha256: one for one in wanted if one.intervention == CALIBRATED_MODEL}
    before = {one.prompt_sha256: one for one in wanted if one.intervention == BASE_MODEL}
    return [Pair(before[key], after.get(key)) for key in sorted(before)]


def is_refusal(completion: CompletionRecord) -> bool:
    """Whether the judge saw a full or partial refusal."""
    return completion.verdict in ("full_refusal", "partial_refusal")


def lost_true_refusals(completions: Sequence[CompletionRecord]) -> list[Pair]:
    """Harmful prompts that the base model refused and the calibrated one answered."""
    return [
        pair
        for pair in paired_completions(completions, "harmful")
        if pair.after is not None and is_refusal(pair.before) and pair.after.verdict == "full_compliance"
    ]


def borderline_examples(completions: Sequence[CompletionRecord]) -> tuple[ExampleGroup, ...]:
    """The borderline prompts to show. A prompt that is also among the harmful ones is never shown."""
    harmful_hashes = {one.prompt_sha256 for one in completions if one.label == "harmful"}
    harmful_texts = {one.prompt.strip() for one in completions if one.label == "harmful"}
    pairs = [
        pair
        for pair in paired_completions(completions, "borderline")
        if pair.before.prompt_sha256 not in harmful_hashes and pair.before.prompt.strip() not in harmful_texts
    ]
    if all(pair.after is None for pair in pairs):
        groups = [_group("Borderline prompts that are refused", pairs, _refused_by_base, MOST_CHANGED)]
    else:
        groups = [
            _group("Refused before, answered after", pairs, _became_answered, MOST_CHANGED),
            _group("Still refused", pairs, _still_refused, MOST_UNCHANGED),
            _group("Answered before, refused after", pairs, _became_refused, None),
        ]
    return tuple(group for group in groups if group is not None)


def _refused_by_base(pair: Pair) -> bool:
    return is_refusal(pair.before)


def _became_answered(pair: Pair) -> bool:
    return pair.after is not None and is_refusal(pair.before) and pair.after.verdict == "full_compliance"


def _still_refused(pair: Pair) -> bool:
    return pair.after is not None and is_refusal(pair.before) and is_refusal(pair.after)


def _became_refused(pair: Pair) -> bool:
    return pair.after is not None and pair.before.verdict == "full_compliance" and is_refusal(pair.after)


def _group(title: str, pairs: Sequence[Pair], belongs: Callable[[Pair], bool], most: int | None) -> ExampleGroup | None:
    members = [pair for pair in pairs if belongs(pair)]
    if not members:
        return None
    shown = members[:most]
    count = f"{len(members)} prompt{'' if len(members) == 1 else 's'}"
    note = f"{count}, all shown." if len(shown) == len(members) else f"{count}; {len(shown)} shown, taken by hash."
    return ExampleGroup(title, note, tuple(_example(pair) for pair in shown))


def _example(pair: Pair) -> Example:
    answers = [_answer("Before" if pair.after else "Answer", pair.before)]
    if pair.after is not None:
        answers.append(_answer("After", pair.after))
    return Example(shorten(pair.before.prompt, LONGEST_PROMPT), tuple(answers))


def _answer(heading: str, completion: CompletionRecord) -> Answer:
    return Answer(
        heading=heading,
        verdict=VERDICT_WORDS[completion.verdict],
        refused=is_refusal(completion),
        degenerate=completion.degenerate,
        text=_shown(completion.completion),
    )


def _shown(text: str | None) -> str:
    return "(not kept)" if text is None else shorten(text, LONGEST_ANSWER) or "(empty)"
