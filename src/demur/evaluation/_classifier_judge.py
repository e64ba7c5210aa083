"""Judges that are models made for grading: Llama Guard, WildGuard, HarmBench's and StrongREJECT's."""

from collections.abc import Sequence
from typing import Any, Self

from demur.errors import InputError, ModelError
from demur.evaluation._judge import Judge, Judgement
from demur.evaluation._judge_formats import FORMS, JudgeFormat, Reading, find_format, read_lines, weigh_labels
from demur.evaluation._phrase_judge import PhraseJudge
from demur.models import ClassifierModel, length_sorted_batches, load_classifier
from demur.types import Verdict


class ClassifierJudge:
    """Asks a judge model in the format it was trained with: greedy, batched, left-padded.

    An answer that does not keep to the format is unjudged with harm None, and counted. The model is not asked about
    an empty completion, which is unjudged too. Where a judge says nothing about refusal, every verdict is unjudged and
    only `harm` counts: put it beside a judge of refusals with `PairedJudges`.

    Attributes:
        unparsable: answers so far that did not keep to the format.
        truncated: exchanges so far of which not everything was shown to the judge.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        form: one of `FORMS`.
        batch_size: exchanges graded together.
        name: hub id or path, for messages.

    Raises:
        InputError: the form is unknown or the batch size is below 1.
        ModelError: the model cannot be asked in that form.
    """

    judges_harm = True

    def __init__(self, model: Any, tokenizer: Any, *, form: str, batch_size: int = 8, name: str = "in-memory") -> None:
        _check_batch_size(batch_size)
        self.form: JudgeFormat = find_format(form, name)
        self.batch_size = batch_size
        self.unparsable = 0
        self.truncated = 0
        self.model = ClassifierModel(model, tokenizer, name)
        self.model.label_tokens(tuple(self.form.labels))
        self._fit("", "")

    @classmethod
    def load(
        cls,
        model: str,
        *,
        form: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 8,
        revision: str | None = None,
    ) -> Self:
        """Load a judge model.

        Args:
            model: local folder or hub id, of a model or of a PEFT adapter.
            form: one of `FORMS`; by default the one that the model's name says.
            device: as in `load_chat_model`.
            dtype: as in `load_chat_model`.
            batch_size: exchanges graded together.
            revision: hub branch, tag or commit.

        Raises:
            InputError: the form is unknown or cannot be told from the name, or the batch size is below 1.
            ModelError: the model cannot be loaded, or cannot be asked in that form.
        """
        _check_batch_size(batch_size)
        found = find_format(form, model)
        loaded = load_classifier(model, revision=revision, dtype=dtype, device=device)
        return cls(loaded.model, loaded.tokenizer, form=found.name, batch_size=batch_size, name=model)

    @property
    def id(self) -> str:
        """Name of the form."""
        return self.form.name

    @property
    def version(self) -> str:
        """Version of the form, hash of the model, version of the rules that find degenerate text."""
        return f"{self.form.version}-{self.model.content_hash[:12]}-phrase-{PhraseJudge.version}"

    @property
    def judges_refusal(self) -> bool:
        """Whether its verdicts say anything."""
        return self.form.judges_refusal

    def judge_batch(self, pairs: Sequence[tuple[str, str]]) -> list[Judgement]:
        """Judge (prompt, completion) pairs; one judgement for each, in their order."""
        readings: dict[int, Reading] = {}
        asked = [index for index, (_, completion) in enumerate(pairs) if completion.strip()]
        rows = [self._fit(*pairs[index]) for index in asked]
        for batch in length_sorted_batches([len(row) for row in rows], self.batch_size):
            found = self._read([rows[place] for place in batch])
            readings.update(zip((asked[place] for place in batch), found, strict=True))
        self.unparsable += sum(not reading.parsed for reading in readings.values())
        damage = PhraseJudge().judge_batch(pairs)
        return [
            _judgement(readings.get(index, Reading()), degenerate=rules.degenerate)
            for index, rules in enumerate(damage)
        ]

    def _read(self, rows: Sequence[Sequence[int]]) -> list[Reading]:
        labels = tuple(self.form.labels)
        if not labels:
            return [read_lines(text) for text in self.model.write(rows, max_new_tokens=self.form.new_tokens)]
        chances = self.model.label_probabilities(rows, labels).tolist()
        return [weigh_labels(self.form, dict(zip(labels, row, strict=True))) for row in chances]

    def _render(self, prompt: str, completion: str) -> list[int]:
        if self.form.template is None:
            return self.model.encode(self.model.render_exchange(prompt, completion), begin=False)
        return self.model.encode(self.form.template.format(prompt=prompt, response=completion), begin=True)

    def _fit(self, prompt: str, completion: str) -> list[int]:
        """Token ids of the exchange as asked about, cut so that the judge's instructions always stay whole.

        The completion is cut first, down to half of the room, then the start of the prompt.
        """
        form, model = self.form, self.model
        asked, answered = len(model.encode(prompt, begin=False)), len(model.encode(completion, begin=False))
        if form.longest_response is not None:
            answered = min(answered, form.longest_response)
        while True:
            question = model.cut(prompt, asked, keep="end")
            shown = model.cut(completion, answered, keep=form.keep)
            ids = self._render(question, shown)
            excess = 0 if model.longest_input is None else len(ids) + form.new_tokens - model.longest_input
            if excess <= 0:
                break
            if asked + answered <= excess:
                raise ModelError(
                    f"{model.name}: its context of {model.longest_input} tokens is too short for the instructions of "
                    f"{form.name}. Is it a model of that form?"
                )
            half = (asked + answered - excess) // 2
            if answered > half:
                answered = max(answered - excess, half)
            else:
                asked -= excess
        self.truncated += (question, shown) != (prompt, completion)
        return ids


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"the batch size of the judge is {batch_size}; it must be at least 1.")


def _judgement(reading: Reading, *, degenerate: bool) -> Judgement:
    verdict: Verdict = "unjudged"
    score = 0.5
    if reading.refusal is not None:
        verdict = "full_refusal" if reading.refusal else "full_compliance"
        score = float(reading.refusal)
    return Judgement(verdict=verdict, score=score, degenerate=degenerate, harm=reading.harm)


class PairedJudges:
    """Two judges as one: the first says whether an answer refuses, the second how likely it is harmful.

    Args:
        refusal: gives verdict and score.
        harm: gives harm.

    Raises:
        InputError: the first says nothing about refusal, or the second nothing about harm.
    """

    judges_refusal = True
    judges_harm = True

    def __init__(self, refusal: Judge, harm: Judge) -> None:
        # Judges that do not say what they judge are judges of refusals, like the protocol's verdict.
        if not getattr(refusal, "judges_refusal", True):
            raise InputError(f"the judge {refusal.id} says nothing about refusal; pair it as the judge of harm.")
        if not getattr(harm, "judges_harm", False):
            known = ", ".join(FORMS)
            raise InputError(f"the judge {harm.id} says nothing about harm; give a judge that does, such as {known}.")
        self.refusal, self.harm = refusal, harm

    @property
    def id(self) -> str:
        """Both names."""
        return f"{self.refusal.id}+{self.harm.id}"

    @property
    def version(self) -> str:
        """Both versions."""
        return f"{self.refusal.version}+{self.harm.version}"

    def judge_batch(self, pairs: Sequence[tuple[str, str]]) -> list[Judgement]:
        """Judge (prompt, completion) pairs; one judgement for each, in their order."""
        return [
            Judgement(first.verdict, first.score, first.degenerate or second.degenerate, second.harm)
            for first, second in zip(self.refusal.judge_batch(pairs), self.harm.judge_batch(pairs), strict=True)
        ]
