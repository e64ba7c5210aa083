"""Model x intervention x prompts x judge -> completion records, batched, resumable, each computed once."""

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from demur.evaluation._judge import Judge
from demur.interventions import Intervention, in_shipped_form
from demur.models import ChatModel, Completion, length_sorted_batches
from demur.prompts import Prompt
from demur.records import PLAIN, CompletionRecord, JsonLines, JudgeIdentity, canonical_json
from demur.types import Progress, SilentProgress, Split


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


@dataclass
class Runner:
    """Generates and judges. Every completion is looked up by the hash of what it depends on before it is computed.

    Args:
        chat: the model.
        judge: gives the verdicts.
        store: where records are kept; None keeps them in memory only.
        max_new_tokens: longest answer.
        batch_size: prompts generated together.
    """

    chat: ChatModel
    judge: Judge
    store: JsonLines | None = None
    max_new_tokens: int = 128
    batch_size: int = 64
    progress: Progress = field(default_factory=SilentProgress)
    _known: dict[str, CompletionRecord] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
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
        """
        keys = [self._key(prompt, intervention, asking, folded=folded) for prompt in prompts]
        missing = [index for index, key in enumerate(keys) if key not in self._known]
        done = dict(self._known)
        self.progress.advance(len(prompts) - len(missing))
        if missing:
            context = nullcontext() if intervention is None else self._context(intervention, folded=folded)
            with context:
                for batch in self._batches(prompts, keys):
                    answers = self._answers([prompts[index].text for index in batch], asking)
                    fresh = self._judged(prompts, batch, answers, keys, condition, asking, split, keep_text=keep_text)
                    fresh = [each for each in fresh if each.key not in done]
                    done.update((each.key, each) for each in fresh)
                    if record:
                        self._keep(fresh)
                    self.progress.advance(len(fresh))
        return [done[key] for key in keys]

    def _answers(self, texts: Sequence[str], asking: Asking | None) -> list[Completion]:
        if asking is None:
            return self.chat.generate(texts, max_new_tokens=self.max_new_tokens)
        return asking.answers(self.chat, texts, max_new_tokens=self.max_new_tokens)

    def _context(self, intervention: Intervention, *, folded: bool) -> AbstractContextManager[None]:
        return in_shipped_form(self.chat, intervention) if folded else intervention.applied_to(self.chat)

    def _batches(self, prompts: Sequence[Prompt], keys: Sequence[str]) -> list[list[int]]:
        """Batches that hold something missing. They are formed from all prompts, so a resumed run has the same ones."""
        lengths = [len(tokens) for tokens in self.chat.encode([prompt.text for prompt in prompts])]
        batches = length_sorted_batches(lengths, self.batch_size)
        return [batch for batch in batches if any(keys[index] not in self._known for index in batch)]

    def _keep(self, records: Sequence[CompletionRecord]) -> None:
        if self.store is not None:
            self.store.append(records)
        self._known.update((record.key, record) for record in records)

    def _key(self, prompt: Prompt, intervention: Intervention | None, asking: Asking | None, *, folded: bool) -> str:
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
                verdict=judgement.verdict,
                judge=JudgeIdentity(id=self.judge.id, version=self.judge.version),
                score=judgement.score,
                degenerate=judgement.degenerate,
                harm=judgement.harm,
                answer_found=None if prompt.answer is None else contains_answer(answer.text, prompt.answer),
            )
            for index, prompt, answer, judgement in zip(batch, asked, answers, judgements, strict=True)
        ]


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
