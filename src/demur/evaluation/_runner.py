"""Model x intervention x prompts x judge -> completion records, batched, resumable, each computed once."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, runtime_checkable

from demur.errors import InputError
from demur.evaluation._fidelity import often
from demur.evaluation._judge import Judge
from demur.evaluation._settled import Stop, stop_of
from demur.interventions import Intervention
from demur.models import ChatModel, Completion, Continuation, FittingBatches, in_order, length_sorted_batches
from demur.prompts import Prompt
from demur.records import PLAIN, CompletionRecord, JsonLines, JudgeIdentity, canonical_json
from demur.types import Progress, PromptLabel, SilentProgress, Split


class Asking(Protocol):
    """How prompts are put to a model, where that is not the plain greedy answer to the rendered prompt."""

    @property
    def name(self) -> str:
        """For the record."""

    @property
    def fingerprint(self) -> str:
        """Name and settings: part of every cache key."""

    def answers(self, chat: ChatModel, prompts: Sequence[str], *, max_new_tokens: int) -> list[Completion]:
        """Answers to one batch of prompts, in their order."""


@runtime_checkable
class Continuing(Asking, Protocol):
    """An `Asking` whose answers go on from rendered prompts, so that several can share the reading of one prompt."""

    def requests(self, chat: ChatModel, prompts: Sequence[str]) -> list[tuple[list[int], Continuation]]:
        """Token ids of each prompt, and how its answer goes on."""


@dataclass
class Runner:
    """Generates and judges. Every completion is looked up by the hash of what it depends on before it is computed.

    Args:
        chat: the model.
        judge: gives the verdicts.
        store: where records are kept; None keeps them in memory only.
        max_new_tokens: longest answer.
        batch_size: answers generated together. Where memory does not suffice it is halved for the rest of the run;
            that changes no key.
    """

    chat: ChatModel
    judge: Judge
    store: JsonLines | None = None
    max_new_tokens: int = 128
    batch_size: int = 64
    progress: Progress = field(default_factory=SilentProgress)
    _known: dict[str, CompletionRecord] = field(default_factory=dict, init=False)
    _folded: tuple[str, Callable[[], AbstractContextManager[None]]] | None = field(default=None, init=False)
    """The intervention that was folded last, which is as large as the weights that it changes."""
    _fitting: FittingBatches = field(init=False)

    def __post_init__(self) -> None:
        self._fitting = FittingBatches(self.progress.note)
        if self.store is not None:
            self._known = {record.key: record for record in self.store.read(CompletionRecord)}

    def complete(
        self,
        prompts: Sequence[Prompt],
        *,
        condition: str,
        split: Split,
        intervention: Intervention | None = None,
        asking: Asking | None = None,
        folded: bool = True,
        keep_text: bool = True,
        record: bool = True,
        until_settled: bool = False,
    ) -> list[CompletionRecord]:
        """Judged completions of `prompts`, in their order; greedy where `asking` does not say otherwise.

        Args:
            prompts: what to ask.
            condition: name of the condition for the record, such as `records.BASE_MODEL`.
            split: the split that the prompts belong to.
            intervention: the change to the model, if any.
            asking: how the prompts are put to the model, if not plainly; its `name` goes into the record.
            folded: fold the intervention into the weights (what an export ships) instead of using hooks.
            keep_text: whether the record keeps the text of answers to harmful prompts.
            record: False keeps the records out of the store and of memory: for measurements of an attack.
            until_settled: stop an answer as soon as nothing that follows could change whether it is a refusal, where
                judge and model allow to tell. Rates stay the same; texts, degrees and flags are those of what is there.
        """
        (records,) = self._complete(
            prompts,
            [asking],
            condition,
            split,
            intervention,
            folded=folded,
            keep_text=keep_text,
            record=record,
            until_settled=until_settled,
        )
        return records

    def complete_sets(
        self, prompts: Mapping[PromptLabel, Sequence[Prompt]], **how: Any
    ) -> dict[PromptLabel, list[CompletionRecord]]:
        """What `complete` gives for each of several sets, in batches that hold prompts of all of them.

        Few sets of few prompts then fill whole batches, and give every process something to do.

        Args:
            prompts: by label.
            how: the other arguments of `complete`.
        """
        records = iter(self.complete([prompt for each in prompts.values() for prompt in each], **how))
        return {label: list(islice(records, len(each))) for label, each in prompts.items()}

    def complete_together(
        self,
        prompts: Sequence[Prompt],
        askings: Sequence[Continuing],
        *,
        condition: str,
        split: Split,
        intervention: Intervention | None = None,
        keep_text: bool = True,
        until_settled: bool = False,
    ) -> list[list[CompletionRecord]]:
        """What `complete` gives for each of several ways of asking, each prompt being read once for all of them.

        Args:
            prompts: what to ask.
            askings: ways of going on from the same rendered prompts.
            condition: see `complete`, as for all others.
            split: the split that the prompts belong to.
            intervention: the change to the model, if any.
            keep_text: whether the record keeps the text of answers to harmful prompts.
            until_settled: stop an answer as soon as it is settled whether it is a refusal.

        Raises:
            InputError: the askings render prompts differently.
        """
        return self._complete(
            prompts,
            askings,
            condition,
            split,
            intervention,
            folded=True,
            keep_text=keep_text,
            record=True,
            until_settled=until_settled,
        )

    def _complete(
        self,
        prompts: Sequence[Prompt],
        askings: Sequence[Asking | None],
        condition: str,
        split: Split,
        intervention: Intervention | None,
        *,
        folded: bool,
        keep_text: bool,
        record: bool,
        until_settled: bool,
    ) -> list[list[CompletionRecord]]:
        stop = stop_of(self.chat, self.judge) if until_settled and all(map(_may_stop, askings)) else None
        keys = [
            [self._key(prompt, intervention, asking, folded=folded, stops=stop is not None) for prompt in prompts]
            for asking in askings
        ]
        done = dict(self._known)
        missing = sum(key not in done for row in keys for key in row)
        self.progress.advance(len(askings) * len(prompts) - missing)
        if missing:
            with self._changed(intervention, folded=folded):

                def answered(batch: Sequence[int]) -> list[CompletionRecord]:
                    pieces = self._fitting.pieces(
                        lambda texts: self._answers(texts, askings, stop),
                        [prompts[index].text for index in batch],
                        rows=len(askings),
                    )
                    answers = [[answer for each in pieces for answer in each[row]] for row in range(len(askings))]
                    return [
                        each
                        for row, asking, given in zip(keys, askings, answers, strict=True)
                        for each in self._judged(
                            prompts, batch, given, row, condition, asking, split, keep_text=keep_text
                        )
                        if each.key not in done
                    ]

                for answers in in_order(answered, self._batches(prompts, keys), pack=_packed, unpack=_unpacked):
                    # A prompt that is there twice may have been answered by two processes.
                    fresh = [each for each in answers if each.key not in done]
                    done.update((each.key, each) for each in fresh)
                    if record:
                        self._keep(fresh)
                    self.progress.advance(len(fresh))
        return [[done[key] for key in row] for row in keys]

    def _answers(
        self, texts: Sequence[str], askings: Sequence[Asking | None], stop: Stop | None
    ) -> list[list[Completion]]:
        if len(askings) == 1 and stop is None:
            asking = askings[0]
            if asking is None:
                return [self.chat.generate(texts, max_new_tokens=self.max_new_tokens)]
            return [asking.answers(self.chat, texts, max_new_tokens=self.max_new_tokens)]
        requests = [self._requests(texts, asking) for asking in askings]
        sequences = [tokens for tokens, _ in requests[0]]
        if any([tokens for tokens, _ in each] != sequences for each in requests):
            raise InputError("ways of asking that are asked together must render each prompt alike.")
        given = self.chat.answers_to(
            sequences,
            [[each[index][1] for each in requests] for index in range(len(texts))],
            max_new_tokens=self.max_new_tokens,
            settled=None if stop is None else [[stop(text)] * len(askings) for text in texts],
        )
        return [[some[number] for some in given] for number in range(len(askings))]

    def _requests(self, texts: Sequence[str], asking: Asking | None) -> list[tuple[list[int], Continuation]]:
        if isinstance(asking, Continuing):
            return asking.requests(self.chat, texts)
        return [(tokens, Continuation()) for tokens in self.chat.encode(texts)]

    def _changed(self, intervention: Intervention | None, *, folded: bool) -> AbstractContextManager[None]:
        if intervention is None:
            return nullcontext()
        if not folded:
            return intervention.applied_to(self.chat)
        if self._folded is None or self._folded[0] != intervention.fingerprint:
            self._folded = None  # two of them need not fit into memory
            self._folded = intervention.fingerprint, often(self.chat, intervention)[0]
        return self._folded[1]()

    def _batches(self, prompts: Sequence[Prompt], keys: Sequence[Sequence[str]]) -> list[list[int]]:
        """Batches that hold something missing. They are formed from all prompts, so a resumed run has the same ones."""
        lengths = [len(tokens) for tokens in self.chat.encode([prompt.text for prompt in prompts])]
        batches = length_sorted_batches(lengths, max(1, self.batch_size // len(keys)))
        return [batch for batch in batches if any(row[index] not in self._known for row in keys for index in batch)]

    def _keep(self, records: Sequence[CompletionRecord]) -> None:
        if self.store is not None:
            self.store.append(records)
        self._known.update((record.key, record) for record in records)

    def _key(
        self, prompt: Prompt, intervention: Intervention | None, asking: Asking | None, *, folded: bool, stops: bool
    ) -> str:
        form = "none" if intervention is None else f"{'folded' if folded else 'applied'}:{intervention.fingerprint}"
        parts = {
            "model": self.chat.identity.content_hash,
            "system": self.chat.template.system,
            "options": dict(self.chat.template.options),
            "response_prefix": self.chat.template.response_prefix,
            "intervention": form,
            "asking": None if asking is None else asking.fingerprint,
            "prompt": prompt.sha256,
            "answer": prompt.answer,
            "max_new_tokens": self.max_new_tokens,
            "batch_size": self.batch_size,
            "judge": [self.judge.id, self.judge.version],
        }
        if stops:
            parts["until_settled"] = True
        return hashlib.sha256(canonical_json(parts).encode()).hexdigest()

    def _judged(
        self,
        prompts: Sequence[Prompt],
        batch: Sequence[int],
        answers: Sequence[Completion],
        keys: Sequence[str],
        condition: str,
        asking: Asking | None,
        split: Split,
        *,
        keep_text: bool,
    ) -> list[CompletionRecord]:
        asked = [prompts[index] for index in batch]
        judgements = self.judge.judge_batch(
            [(prompt.text, answer.text) for prompt, answer in zip(asked, answers, strict=True)]
        )
        return [
            CompletionRecord(
                key=keys[index],
                label=prompt.label,
                split=split,
                prompt_sha256=prompt.sha256,
                prompt=prompt.text,
                intervention=condition,
                condition=PLAIN if asking is None else asking.name,
                completion=answer.text if keep_text or prompt.label != "harmful" else None,
                n_tokens=answer.n_tokens,
                ended=answer.ended,
                settled=answer.settled,
                verdict=judgement.verdict,
                judge=JudgeIdentity(id=self.judge.id, version=self.judge.version),
                score=judgement.score,
                degenerate=judgement.degenerate,
                harm=judgement.harm,
                answer_found=None if prompt.answer is None else contains_answer(answer.text, prompt.answer),
            )
            for index, prompt, answer, judgement in zip(batch, asked, answers, judgements, strict=True)
        ]


def _packed(records: Sequence[CompletionRecord]) -> bytes:
    return "\n".join(record.model_dump_json(by_alias=True) for record in records).encode()


def _unpacked(data: bytes) -> list[CompletionRecord]:
    return [CompletionRecord.model_validate_json(line) for line in data.decode().split("\n") if line]


def _may_stop(asking: Asking | None) -> bool:
    return asking is None or isinstance(asking, Continuing)


def contains_answer(completion: str, answer: str) -> bool:
    """Whether the expected answer occurs in the completion as whole words, case aside."""
    words = f" {_words(completion)} "
    return f" {_words(answer)} " in words


def _words(text: str) -> str:
    return " ".join("".join(char if char.isalnum() else " " for char in text.casefold()).split())


def is_refusal(record: CompletionRecord) -> bool | None:
    """Whether the prompt was refused, fully or partly; None where the judge could not say."""
    if record.verdict == "unjudged":
        return None
    return record.verdict != "full_compliance"
