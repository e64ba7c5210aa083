"""What all cases of a suite want of one model state, measured together: each prompt is read and answered once."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from demur.evaluation import Judge, contains_answer, refusal_scores, stop_of
from demur.interventions import Intervention
from demur.models import ChatModel, Completion, Continuation, FittingBatches, length_sorted_batches, reading_inputs
from demur.records import JsonLines, SuiteAnswer, canonical_json
from demur.types import Progress

Place = tuple[int, int]
"""Layer and position."""


@dataclass(frozen=True)
class TextCheck:
    """A question to the text of an answer, which is not kept."""

    kind: str
    """matches or contains."""
    wanted: str

    @property
    def sha256(self) -> str:
        """Names the question in a record."""
        return hashlib.sha256(f"{self.kind}\n{self.wanted}".encode()).hexdigest()

    def holds(self, answer: str) -> bool:
        """Whether an answer passes."""
        if self.kind == "matches":
            return re.search(self.wanted, answer, re.IGNORECASE) is not None
        return contains_answer(answer, self.wanted)


@dataclass(frozen=True)
class Question:
    """One answer that a case wants."""

    tokens: tuple[int, ...]
    prompt: str
    """For the judge."""
    seed: int | None
    right: str | None
    """The expected answer, where the prompt has one."""


@dataclass(frozen=True)
class Reading:
    """Numbers of the last prompt position of one rendered prompt."""

    score: float | None
    """Refusal score, log-odds; None without refusal tokens."""
    streams: Mapping[Place, Tensor]
    """[d_model] by place, float64."""


@dataclass
class Wanted:
    """Everything that the selected cases want of one model state."""

    intervention: Intervention | None
    answers: dict[Question, set[TextCheck]] = field(default_factory=dict)
    readings: dict[tuple[int, ...], set[Place]] = field(default_factory=dict)


@dataclass
class Counts:
    """What was done, for the record."""

    states: int = 0
    generate_calls: int = 0
    answers: int = 0
    reused: int = 0
    score_passes: int = 0


@dataclass
class Measurer:
    """Answers questions and reads prompts, state by state; keeps verdicts and numbers, never texts."""

    chat: ChatModel
    judge: Judge
    max_new_tokens: int
    batch_size: int
    tokens: Sequence[int]
    """Refusal tokens."""
    store: JsonLines | None
    progress: Progress
    counts: Counts = field(default_factory=Counts)
    _known: dict[str, SuiteAnswer] = field(default_factory=dict, init=False)
    _fitting: FittingBatches = field(init=False)

    def __post_init__(self) -> None:
        self._fitting = FittingBatches(self.progress.note)
        if self.store is not None:
            self._known = {record.key: record for record in self.store.read(SuiteAnswer)}

    def measure(self, wanted: Wanted, name: str) -> tuple[dict[Question, SuiteAnswer], dict[tuple[int, ...], Reading]]:
        """All answers and readings of one state."""
        self.counts.states += 1
        kept = {question: self._kept(wanted, question, checks) for question, checks in wanted.answers.items()}
        done = {question: answer for question, answer in kept.items() if answer is not None}
        self.counts.reused += len(done)
        missing = len(wanted.answers) - len(done)
        self.progress.start(name, missing + len(wanted.readings))
        with self._changed(wanted.intervention):
            # Batches are formed from everything, so that a run that goes on has the same ones.
            for batch in self._batches(wanted.answers):
                if all(question in done for group in batch for question in group):
                    continue
                fresh = self._answered(wanted, batch)
                if self.store is not None:
                    self.store.append(fresh.values())
                done.update(fresh)
            readings = self._read(wanted.readings)
        return done, readings

    def _changed(self, intervention: Intervention | None) -> AbstractContextManager[None]:
        # Hooks and not folded weights: these are measurements of an attack, not operating points.
        return nullcontext() if intervention is None else intervention.applied_to(self.chat)

    def _kept(self, wanted: Wanted, question: Question, checks: set[TextCheck]) -> SuiteAnswer | None:
        found = self._known.get(self._key(wanted, question))
        return found if found is not None and {check.sha256 for check in checks} <= set(found.texts) else None

    def _key(self, wanted: Wanted, question: Question) -> str:
        parts = {
            "model": self.chat.identity.content_hash,
            "intervention": None if wanted.intervention is None else wanted.intervention.fingerprint,
            "tokens": question.tokens,
            "prompt": question.prompt,
            "seed": question.seed,
            "right": question.right,
            "max_new_tokens": self.max_new_tokens,
            "judge": [self.judge.id, self.judge.version],
        }
        return hashlib.sha256(canonical_json(parts).encode()).hexdigest()

    def _batches(self, questions: Mapping[Question, object]) -> Iterator[list[list[Question]]]:
        """Questions in batches of similar length; those on the same tokens (samples) stay together."""
        same: dict[tuple[int, ...], list[Question]] = {}
        for question in questions:
            same.setdefault(question.tokens, []).append(question)
        size = self.batch_size
        groups = [group[start : start + size] for group in same.values() for start in range(0, len(group), size)]
        groups.sort(key=lambda group: -len(group[0].tokens))
        batch: list[list[Question]] = []
        for group in groups:
            if batch and sum(map(len, batch)) + len(group) > size:
                yield batch
                batch = []
            batch.append(group)
        if batch:
            yield batch

    def _answered(self, wanted: Wanted, batch: Sequence[Sequence[Question]]) -> dict[Question, SuiteAnswer]:
        checks = wanted.answers
        rows = max(map(len, batch))
        pieces = self._fitting.pieces(lambda groups: self._generated(groups, checks), batch, rows=rows)
        asked = [question for group in batch for question in group]
        answers = [answer for piece in pieces for answer in piece]
        judgements = self.judge.judge_batch(
            [(question.prompt, answer.text) for question, answer in zip(asked, answers, strict=True)]
        )
        self.counts.answers += len(asked)
        self.progress.advance(len(asked))
        return {
            question: SuiteAnswer(
                key=self._key(wanted, question),
                verdict=judgement.verdict,
                degenerate=judgement.degenerate,
                texts={check.sha256: check.holds(answer.text) for check in checks[question]},
                right=None if question.right is None else contains_answer(answer.text, question.right),
            )
            for question, answer, judgement in zip(asked, answers, judgements, strict=True)
        }

    def _generated(
        self, groups: Sequence[Sequence[Question]], checks: Mapping[Question, set[TextCheck]]
    ) -> list[Completion]:
        stop = stop_of(self.chat, self.judge)
        # An answer whose text is looked at is wanted whole.
        settled = (
            None
            if stop is None
            else [
                [(lambda _: False) if checks[each] or each.right is not None else stop(each.prompt) for each in group]
                for group in groups
            ]
        )
        self.counts.generate_calls += 1
        answers = self.chat.answers_to(
            [group[0].tokens for group in groups],
            [[Continuation(seed=each.seed) for each in group] for group in groups],
            max_new_tokens=self.max_new_tokens,
            settled=settled,
        )
        return [answer for some in answers for answer in some]

    def _read(self, wanted: Mapping[tuple[int, ...], set[Place]]) -> dict[tuple[int, ...], Reading]:
        sequences = list(wanted)
        found: dict[tuple[int, ...], Reading] = {}
        places = {place for some in wanted.values() for place in some}
        for batch in length_sorted_batches([len(tokens) for tokens in sequences], self.batch_size):
            rows = [sequences[index] for index in batch]
            for some in self._fitting.pieces(lambda few: self._pass(few, places), rows):
                found.update(some)
            self.progress.advance(len(rows))
        return found

    def _pass(self, rows: Sequence[tuple[int, ...]], places: set[Place]) -> dict[tuple[int, ...], Reading]:
        """One forward pass: logits at the end, and the stream at every place that any case looks at."""
        streams: dict[Place, Tensor] = {}

        def keep(stream: Tensor, layer: int) -> None:
            for place in places:
                if place[0] == layer:
                    streams[place] = stream[:, place[1]].detach().to(torch.float64).cpu()

        readers = {
            self.chat.layout.blocks[layer]: (lambda stream, layer=layer: keep(stream, layer))
            for layer in {layer for layer, _ in places}
        }
        self.counts.score_passes += 1
        with reading_inputs(self.chat.module, readers):
            logits = self.chat.next_token_logits(self.chat.batch(rows))
        scores = refusal_scores(logits, self.tokens).tolist() if self.tokens else [None] * len(rows)
        return {
            row: Reading(score, {place: stream[index] for place, stream in streams.items()})
            for index, (row, score) in enumerate(zip(rows, scores, strict=True))
        }
