"""The refusal tokens and the refusal threshold of a model, learned from its own judged answers to train prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from demur.calibration._settings import CalibrationSettings
from demur.errors import InputError, ModelError
from demur.evaluation import (
    Judgement,
    Runner,
    SettlingJudge,
    discover_refusal_tokens,
    fit_threshold,
    is_refusal,
    logits_after,
    refusal_rate,
    refusal_scores,
    scores_after,
    separation,
)
from demur.models import ChatModel
from demur.prompts import Prompt, PromptSet
from demur.records import (
    BASE_MODEL,
    CompletionRecord,
    JudgedScores,
    RefusalThreshold,
    RefusalToken,
    ScoreReading,
)
from demur.types import Progress, PromptLabel, Split

LABELS: tuple[PromptLabel, ...] = ("harmful", "borderline", "harmless")
_WHOLE = 16
"""Train prompts of each set whose answers are generated in full, to learn how much of an answer a verdict needs."""
_LENGTHS = (32, 48, 64)
"""Lengths of a judged answer that are tried."""
_LONGEST = 96
"""Tokens of these answers at most. On labelled answers of other models the phrase judge agrees with people as well
after 96 tokens as at the end (kappa 0.93), and nearly so after 48 (0.92)."""
_ALLOWED = 0.05
"""Share of these answers whose verdict may come later than that: fewer than the judge and people disagree on."""
_DISCOVERY = 48
"""Most refusals, and most answers, whose first tokens are compared: each row is the whole vocabulary."""
_READ = 4
"""Prompts whose logits are read before a model is said not to refuse."""
_FEWEST = 4
"""Fewest refusals, and fewest answers, from which a threshold is learned."""
_TELLS = 0.9
"""AUROC from which a score tells refusals from answers; or the lower end of its interval reaches `_SURELY`."""
_SURELY = 0.8
_OPENINGS = (1, 2, 3, 4)
"""Tokens of the model's own refusal that are forced where its first token does not tell."""


class Learning(Protocol):
    """What is used of a study here."""

    chat: ChatModel
    prompts: Mapping[PromptLabel, PromptSet]
    settings: CalibrationSettings
    runner: Runner
    progress: Progress
    warnings: list[str]

    def split(self, label: PromptLabel, split: Split) -> tuple[Prompt, ...]:
        """Prompts of one set and split."""

    def encode(self, label: PromptLabel, split: Split, indices: Sequence[int] | None = None) -> list[list[int]]:
        """Their token ids."""

    @property
    def refusal_tokens(self) -> tuple[RefusalToken, ...]:
        """The first tokens of the model's refusals."""


@dataclass(frozen=True)
class Answered:
    """Train prompts with what the unchanged model did."""

    texts: tuple[str, ...]
    labels: tuple[PromptLabel, ...]
    refused: tuple[bool | None, ...]

    def where(self, wanted: bool | None) -> list[int]:  # noqa: FBT001
        """Indices of the prompts with this verdict."""
        return [index for index, each in enumerate(self.refused) if each is wanted]


def answered_train(
    study: Learning, known: RefusalThreshold | None = None
) -> tuple[dict[PromptLabel, list[CompletionRecord]], int, int]:
    """Judged answers to train prompts of every set; how long answers must be to be judged; verdicts that this changes.

    The first of each set are answered at length; the rest, as all later answers of the run, at the learned length: the
    shortest at which nearly all verdicts are those of the long answers. What a run has learned already (`known`) holds:
    of its answers it may have kept the verdicts alone.
    """
    study.runner.max_new_tokens = study.settings.max_new_tokens
    present = [label for label in LABELS if label in study.prompts]
    asked = {label: study.split(label, "train")[: study.settings.n_answered] for label in present}
    study.progress.start("learning how the model refuses", sum(map(len, asked.values())))

    def answers(first: int, end: int | None) -> dict[PromptLabel, list[CompletionRecord]]:
        some = {label: each[first:end] for label, each in asked.items()}
        return study.runner.complete_sets(some, condition=BASE_MODEL, split="train", until_settled=True)

    settled = study.settings.verdict_tokens or (_LONGEST if isinstance(study.runner.judge, SettlingJudge) else 0)
    if settled:
        study.runner.max_new_tokens = min(settled, study.settings.max_new_tokens)
    whole = answers(0, _WHOLE)
    if known is not None and known.verdict_tokens is not None:
        length, changes = known.verdict_tokens, known.verdict_changes
    else:
        length, changes = _verdict_length(study, [record for each in whole.values() for record in each])
    study.runner.max_new_tokens = length
    rest = answers(_WHOLE, None)
    return {label: [*whole[label], *rest[label]] for label in present}, length, changes


def _verdict_length(study: Learning, records: Sequence[CompletionRecord]) -> tuple[int, int]:
    settings = study.settings
    if settings.verdict_tokens:
        return min(settings.verdict_tokens, settings.max_new_tokens), 0
    judge, tokenizer = study.runner.judge, study.chat.tokenizer
    if not isinstance(judge, SettlingJudge):  # a model that judges: asking it again for every length costs too much
        return settings.max_new_tokens, 0
    encoded = [tokenizer(record.completion or "", add_special_tokens=False)["input_ids"] for record in records]

    def changed(length: int) -> int:
        """Refusals that are not seen yet, or no longer; text that turns out garbled later is no refusal."""
        cut = [str(tokenizer.decode(tokens[:length])) for tokens in encoded]
        verdicts = judge.judge_batch([(record.prompt, text) for record, text in zip(records, cut, strict=True)])
        pairs = zip(verdicts, records, strict=True)
        return sum((_refuses(one) is True) != (is_refusal(record) is True) for one, record in pairs)

    allowed = int(_ALLOWED * len(records))
    most = study.runner.max_new_tokens
    for length in _LENGTHS:
        if length < most and (late := changed(length)) <= allowed:
            return length, late
    return most, 0


def _refuses(judgement: Judgement) -> bool | None:
    return None if judgement.verdict == "unjudged" else judgement.verdict != "full_compliance"


def as_answered(study: Learning, records: Mapping[PromptLabel, Sequence[CompletionRecord]]) -> Answered:
    """All records in one row. Texts are those of the prompts: a record may have kept its verdict alone."""
    every = [
        (prompt.text, label, is_refusal(record))
        for label, each in records.items()
        for prompt, record in zip(study.split(label, "train"), each, strict=False)
    ]
    texts, labels, refused = zip(*every, strict=True)
    return Answered(texts, labels, refused)


def find_tokens(study: Learning, records: Mapping[PromptLabel, Sequence[CompletionRecord]]) -> tuple[RefusalToken, ...]:
    """The tokens of the refusal score: the user's, or found from the model's own refusals and answers.

    Raises:
        ModelError: the model refuses nothing, or everything.
        InputError: the user's tokens are not in its vocabulary.
    """
    if study.settings.refusal_tokens is not None:
        return _given_tokens(study, study.settings.refusal_tokens)
    chat, size = study.chat, study.settings.batch_size
    for label, wanted, what in (
        ("harmful", True, "this model does not refuse: is it a base model, or one whose refusals were removed?"),
        ("harmless", False, "this model refuses (or garbles) everything, so no direction separates the two."),
    ):
        each = records[label]  # type: ignore[index]
        if sum(is_refusal(record) is wanted for record in each) < 2:
            # Damaged weights answer nothing that could be judged: reading the logits says so.
            logits_after(chat, chat.encode([record.prompt for record in each[:_READ]]), batch_size=size)
            measured = refusal_rate(each)
            raise ModelError(
                f"{chat.name}: {what} It refused {measured.k} of {measured.n} {label} train prompts "
                f"(95 % interval {measured.low:.0%} to {measured.high:.0%}; {measured.unjudged} unjudged). Use a "
                "chat model that refuses, check the chat template, or set --refusal-tokens."
            )
    answered = as_answered(study, records)
    logits = []
    for wanted in (True, False):
        chosen = _spread(answered.where(wanted), _DISCOVERY)
        logits.append(logits_after(chat, chat.encode([answered.texts[index] for index in chosen]), batch_size=size))
    return discover_refusal_tokens(chat, *logits)


def _spread(indices: Sequence[int], most: int) -> list[int]:
    """At most so many, taken evenly, so that every set has its part."""
    return [indices[number * len(indices) // most] for number in range(most)] if len(indices) > most else list(indices)


def _given_tokens(study: Learning, tokens: Sequence[int]) -> tuple[RefusalToken, ...]:
    size = logits_after(study.chat, study.encode("harmful", "train")[:1]).shape[-1]
    if max(tokens) >= size:
        raise InputError(
            f"{study.chat.name}: --refusal-tokens names the token {max(tokens)}; the ids "
            f"of this model go from 0 to {size - 1}."
        )
    return tuple(
        RefusalToken(
            id=token, text=study.chat.tokenizer.decode([token]), probability_refused=None, probability_answered=None
        )
        for token in tokens
    )


def learn_threshold(
    study: Learning, records: Mapping[PromptLabel, Sequence[CompletionRecord]], length: int, changes: int
) -> RefusalThreshold:
    """Where the refusal score tells refusals from answers, of the ways of reading it that tell best.

    Where the first token of an answer does not tell, the score is read after the first tokens of the model's own
    commonest refusal too. Where nothing tells, the record says so (`tells`).
    """
    answered = as_answered(study, records)
    refused, fine = answered.where(True), answered.where(False)
    learned = {"verdict_tokens": length, "verdict_changes": changes}
    if min(len(refused), len(fine)) < _FEWEST:
        note = (
            f"Of {len(answered.texts)} judged answers to train prompts {len(refused)} are refusals and {len(fine)} are "
            "answers, too few to learn from which refusal score on this model refuses; the papers' 0 is used."
        )
        study.warnings.append(note)
        return RefusalThreshold(value=0.0, source="given", note=note, **learned)
    tried: list[tuple[ScoreReading, list[float]]] = [_read(study, answered, ())]
    if not _tells(tried[0][0]):
        opening = _commonest_opening([record for each in records.values() for record in each], study)
        tried += [_read(study, answered, opening[:count]) for count in _OPENINGS if len(opening) > count]
    reading, scores = max(tried, key=lambda each: each[0].auroc)
    fit = fit_threshold(
        [scores[index] for index in refused], [scores[index] for index in fine], seed=study.settings.seed
    )
    tells = _tells(reading)
    note = ""
    if not tells:
        note = (
            f"The refusal score does not tell this model's refusals from its answers (AUROC {reading.auroc:.2f}, "
            f"{reading.low:.2f} to {reading.high:.2f}): directions are fitted on judged verdicts, and candidates are "
            "kept by judged answers."
        )
        study.warnings.append(note)
    judged = {
        label: JudgedScores(
            refused=tuple(scores[index] for index in refused if answered.labels[index] == label),
            answered=tuple(scores[index] for index in fine if answered.labels[index] == label),
            unjudged=sum(answered.labels[index] == label for index in answered.where(None)),
        )
        for label in records
    }
    return RefusalThreshold(
        value=fit.value,
        source="learned",
        slope=fit.slope,
        low=fit.low,
        high=fit.high,
        tells=tells,
        note=note,
        reading=reading,
        tried=tuple(each for each, _ in tried),
        wrong=fit.wrong,
        judged=judged,
        **learned,
    )


def _tells(reading: ScoreReading) -> bool:
    return reading.auroc >= _TELLS or reading.low >= _SURELY


def _read(study: Learning, answered: Answered, opening: tuple[int, ...]) -> tuple[ScoreReading, list[float]]:
    """Scores of all answered prompts after a forced opening, and how well they tell."""
    chat, size = study.chat, study.settings.batch_size
    encoded = [[*tokens, *opening] for tokens in chat.encode(answered.texts)]
    if opening:
        # After an opening other tokens tell; which ones is found in the same way.
        logits = logits_after(chat, encoded, batch_size=size)
        sides = [logits[_spread(answered.where(wanted), _DISCOVERY)] for wanted in (True, False)]
        tokens = [token.id for token in discover_refusal_tokens(chat, *sides)]
        scores = refusal_scores(logits, tokens)
    else:
        tokens = [token.id for token in study.refusal_tokens]
        scores = scores_after(chat, encoded, tokens, batch_size=size)
    values: list[float] = torch.as_tensor(scores).tolist()
    found = separation(
        [values[index] for index in answered.where(True)], [values[index] for index in answered.where(False)]
    )
    text = str(chat.tokenizer.decode(list(opening))) if opening else ""
    reading = ScoreReading(
        opening=text,
        opening_tokens=opening,
        tokens=tuple(tokens),
        auroc=found.auroc,
        low=found.low,
        high=found.high,
    )
    return reading, values


def _commonest_opening(records: Sequence[CompletionRecord], study: Learning) -> tuple[int, ...]:
    """The first tokens that most refusals begin with, token by token."""
    tokenizer = study.chat.tokenizer
    rows = [
        tokenizer(record.completion or "", add_special_tokens=False)["input_ids"]
        for record in records
        if is_refusal(record)
    ]
    opening: list[int] = []
    while len(opening) <= max(_OPENINGS):
        following = [row[len(opening)] for row in rows if row[: len(opening)] == opening and len(row) > len(opening)]
        if not following:
            break
        opening.append(max(sorted(set(following)), key=following.count))
    return tuple(opening)
