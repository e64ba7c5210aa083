"""One calibration in progress: the model, its prompts by split, its folder, and what every stage needs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from demur.calibration._own_threshold import answered_train, find_tokens, learn_threshold
from demur.calibration._score_books import Kind, Place, ScoreBook
from demur.calibration._settings import CalibrationSettings
from demur.errors import ModelError
from demur.evaluation import (
    Runner,
    bootstrap_mean,
    is_refusal,
    logits_after,
    refusal_probability,
    refusal_scores,
    scores_after,
)
from demur.models import ChatModel
from demur.prompts import Prompt, PromptSet
from demur.records import (
    BASE_MODEL,
    CompletionRecord,
    Mean,
    RefusalThreshold,
    RefusalToken,
    RunFolder,
    read_record,
    write_record,
)
from demur.types import Progress, PromptLabel, Split

FEWEST_FITTED = 16
"""Fewest prompts behind a mean: the sampling error of a mean of fewer is as large as typical differences of means."""


@dataclass
class Study:
    """What all stages of a calibration share. Values that several stages need are computed once."""

    chat: ChatModel
    prompts: Mapping[PromptLabel, PromptSet]
    settings: CalibrationSettings
    folder: RunFolder
    runner: Runner
    progress: Progress
    warnings: list[str] = field(default_factory=list)
    _logits: dict[tuple[PromptLabel, Split], Tensor] = field(default_factory=dict, init=False)
    _scores: dict[tuple[PromptLabel, Split], Tensor] = field(default_factory=dict, init=False)
    _remembered: dict[str, list[float]] = field(default_factory=dict, init=False)

    @cached_property
    def scores(self) -> ScoreBook:
        """Candidate scores kept so far."""
        return ScoreBook(self.folder.scores)

    def split(self, label: PromptLabel, split: Split) -> tuple[Prompt, ...]:
        """Prompts of one set and split, at most as many as the settings say; the first by hash, so always the same."""
        prompts = self.prompts[label].split(split)
        limit = {"train": self.settings.n_train, "validation": self.settings.n_validation}.get(split)
        return tuple(sorted(prompts, key=lambda prompt: prompt.sha256)[:limit])

    def texts(self, label: PromptLabel, split: Split) -> list[str]:
        """The same, texts only."""
        return [prompt.text for prompt in self.split(label, split)]

    def base_logits(self, label: PromptLabel, split: Split) -> Tensor:
        """Next-token logits of the unchanged model on the first prompts of a split, [prompt, vocabulary].

        Computed once, for as many prompts as are compared over the whole vocabulary: all of a test split, the scored
        ones of the harmless validation split.
        """
        key = (label, split)
        if key not in self._logits:
            first = self.encode(label, split)[: self._compared(label, split)]
            self._logits[key] = logits_after(self.chat, first, batch_size=self.settings.batch_size)
        return self._logits[key]

    def _compared(self, label: PromptLabel, split: Split) -> int | None:
        """Prompts whose logits are kept: a row is the whole vocabulary, often more than half a megabyte."""
        if split == "test":
            return None
        return self.settings.n_scored if (label, split) == ("harmless", "validation") else 0

    def base_scores(self, label: PromptLabel, split: Split) -> Tensor:
        """Refusal scores of the unchanged model, [prompt], float64; computed once."""
        key = (label, split)
        if key not in self._scores:
            tokens, size = self.token_ids, self.settings.batch_size
            known: list[Tensor] = []
            if not self.opening:
                compared = self.base_logits(label, split)
                known = [refusal_scores(compared, tokens)] if len(compared) else []
            others = self.encode_scored(label, split)[sum(map(len, known)) :]
            self._scores[key] = torch.cat([*known, scores_after(self.chat, others, tokens, batch_size=size)])
        return self._scores[key]

    def mean_base_score(self, label: PromptLabel) -> Mean:
        """Mean refusal score of the unchanged model on validation prompts."""
        return bootstrap_mean(self.base_scores(label, "validation").tolist(), seed=self.settings.seed)

    def mean_score(self, kind: Kind, place: Place, strength: float | None = None) -> Mean:
        """Mean of a candidate's stored scores over validation prompts."""
        values = self.scores.get(kind, place, strength)
        assert values is not None
        return bootstrap_mean(values, seed=self.settings.seed)

    @cached_property
    def _learning(self) -> tuple[dict[PromptLabel, list[CompletionRecord]], int, int]:
        # Before anything is answered: damaged weights refuse nothing either, and would be taken for that.
        logits_after(self.chat, [self.encode(label, "train", [0])[0] for label in self.prompts])
        path = self.folder.refusal_threshold
        return answered_train(self, read_record(path, RefusalThreshold) if path.exists() else None)

    @cached_property
    def refusal_tokens(self) -> tuple[RefusalToken, ...]:
        """The first tokens of the model's refusals: the user's, or found from its own refusals and answers.

        Raises:
            ModelError: the model refuses nothing, or everything.
            InputError: the user's tokens are not in its vocabulary.
        """
        return find_tokens(self, {} if self.settings.refusal_tokens is not None else self._learning[0])

    @cached_property
    def threshold(self) -> RefusalThreshold:
        """From which refusal score on the model refuses: given, or learned from its judged answers.

        From here on answers are as long as a verdict on this model needs.
        """
        given, path = self.settings.refusal_threshold, self.folder.refusal_threshold
        if given is not None and self.settings.refusal_tokens is not None:
            length = self.settings.verdict_tokens or None  # nothing is left to be learned from answers
            self.runner.max_new_tokens = min(length or self.settings.max_new_tokens, self.settings.max_new_tokens)
            return RefusalThreshold(value=given, source="given", verdict_tokens=length)
        if path.exists():
            if note := read_record(path, RefusalThreshold).note:
                self.warnings.append(note)  # a run that goes on says what one that was not cut says
        else:
            records, length, changes = self._learning
            learned = learn_threshold(self, records, length, changes)
            if given is not None:
                self.warnings[:] = [each for each in self.warnings if each != learned.note]  # of what is not used
                learned = learned.model_copy(
                    update={
                        "value": given,
                        "source": "given",
                        "slope": None,
                        "low": None,
                        "high": None,
                        "tells": True,
                        "note": "",
                    }
                )
            write_record(path, learned)
        record = read_record(path, RefusalThreshold)
        self.runner.max_new_tokens = record.verdict_tokens or self.settings.max_new_tokens
        return record

    @property
    def opening(self) -> tuple[int, ...]:
        """Tokens that are forced before the refusal score is read; none where the first token of an answer tells."""
        reading = self.threshold.reading
        return () if reading is None or self.threshold.source == "given" else reading.opening_tokens

    @property
    def token_ids(self) -> list[int]:
        """Ids of the tokens whose probability makes the refusal score."""
        reading = self.threshold.reading
        if not self.opening or reading is None:
            return [token.id for token in self.refusal_tokens]
        return list(reading.tokens)

    def refuses(self, score: float) -> bool:
        """Whether a refusal score counts as a refusal."""
        return score > self.threshold.value

    def _side(self, score: float) -> bool | None:
        """A score that is equal to the threshold, or no number, says neither."""
        return True if self.refuses(score) else False if score < self.threshold.value else None

    def probability(self, score: float) -> float:
        """P(refusal) at a refusal score, by the learned curve; where a threshold was given 1 above it, 0 up to it.

        NaN stays NaN.
        """
        return score if math.isnan(score) else refusal_probability(score, self.threshold.value, self.threshold.slope)

    def remembered(self, key: str, compute: Callable[[], list[float]]) -> list[float]:
        """What was computed of the unchanged model under a key, once."""
        if key not in self._remembered:
            self._remembered[key] = compute()
        return self._remembered[key]

    @property
    def induce_minimum(self) -> float:
        """The refusal score that adding a refusal direction must reach on harmless prompts."""
        set_to = self.settings.induce_minimum
        return self.threshold.value if set_to is None else set_to

    @cached_property
    def positions(self) -> tuple[int, ...]:
        """All post-instruction positions, negative, the earliest first."""
        return tuple(range(-len(self.chat.template.post_instruction_tokens()), 0))

    @cached_property
    def allowed_layers(self) -> range:
        """Layers from which a direction may be taken."""
        return range(int(self.settings.layer_fraction * self.chat.n_layers))

    @property
    def rows(self) -> int:
        """Rows of one forward pass of a sweep."""
        return self.settings.batch_size

    def refused_by_base(self, label: PromptLabel, split: Split) -> list[bool | None]:
        """Whether the unchanged model refuses each prompt: by its score, or as judged where the score does not tell."""
        if self.threshold.tells:
            return [self._side(score) for score in self.base_scores(label, split).tolist()]
        prompts = self.split(label, split)
        self.progress.start(f"judging {label} {split} prompts", len(prompts))
        records = self.runner.complete(prompts, condition=BASE_MODEL, split=split, until_settled=True)
        return [is_refusal(record) for record in records]

    def fitted_prompts(self, label: PromptLabel, *, refused: bool) -> list[str]:
        """Train prompts that the model refuses, or answers, as expected (both papers' train filter).

        Raises:
            ModelError: too few are left to fit a mean on.
        """
        found = self.refused_by_base(label, "train")
        kept = [text for text, each in zip(self.texts(label, "train"), found, strict=True) if each is refused]
        if len(kept) < FEWEST_FITTED:
            raise ModelError(
                f"{self.chat.name}: only {len(kept)} of {len(found)} {label} train prompts "
                f"{self._criterion(refused=refused)}, and a mean needs at least {FEWEST_FITTED}. "
                + _few(label, refused=refused)
            )
        return kept

    def _criterion(self, *, refused: bool) -> str:
        if not self.threshold.tells:
            return f"are {'refused' if refused else 'answered'}, as judged"
        return f"have a refusal score {'above' if refused else 'up to'} the threshold {self.threshold.value:.3g}"

    def scored_validation(self, label: PromptLabel, *, refused: bool | None) -> list[int]:
        """Indices of the validation prompts that candidates are scored on.

        Args:
            label: which set.
            refused: keep only prompts that the model refuses (True) or answers (False), as Arditi et al. do
                (appendix B); None keeps all, as Wang et al. do.
        """
        n = min(self.settings.n_scored, len(self.split(label, "validation")))
        if refused is None:
            return list(range(n))
        found = self.refused_by_base(label, "validation")[:n]
        indices = [index for index, each in enumerate(found) if each is refused]
        if not indices:
            raise ModelError(
                f"{self.chat.name}: none of {len(found)} {label} validation prompts "
                f"{self._criterion(refused=refused)}. " + _few(label, refused=refused)
            )
        return indices

    def encode(self, label: PromptLabel, split: Split, indices: Sequence[int] | None = None) -> list[list[int]]:
        """Rendered and tokenized prompts of one split."""
        texts = self.texts(label, split)
        return self.chat.encode(texts if indices is None else [texts[index] for index in indices])

    def encode_scored(self, label: PromptLabel, split: Split, indices: Sequence[int] | None = None) -> list[list[int]]:
        """The same up to where the refusal score is read."""
        return [[*tokens, *self.opening] for tokens in self.encode(label, split, indices)]


def _few(label: PromptLabel, *, refused: bool) -> str:
    if label == "borderline":
        return "The model hardly refuses these borderline prompts, so there is little to remove: give more of them."
    if refused:
        return "The model hardly refuses these harmful prompts: give plainer or more ones, or set --refusal-tokens."
    return "The model seems to refuse harmless prompts: check the chat template, or set --refusal-tokens."
