"""One calibration in progress: the model, its prompts by split, its folder, and what every stage needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from demur.calibration._score_books import Kind, Place, ScoreBook
from demur.calibration._settings import CalibrationSettings
from demur.errors import InputError, ModelError
from demur.evaluation import (
    Runner,
    bootstrap_mean,
    discover_refusal_tokens,
    is_refusal,
    logits_after,
    refusal_rate,
    refusal_scores,
    scores_after,
)
from demur.models import ChatModel
from demur.prompts import Prompt, PromptSet
from demur.records import BASE_MODEL, Mean, RefusalToken, RunFolder
from demur.types import PressureFamily, Progress, PromptLabel, Split

FEWEST_FITTED = 16
"""Fewest prompts behind a mean: the sampling error of a mean of fewer is as large as typical differences of means."""
_DISCOVERY = 32
"""Prompts of each kind that are answered to find the refusal tokens."""


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
    lost_before: PressureFamily | None = field(default=None, init=False)
    """The conditions under which the last point that was tried lost true refusals."""
    _logits: dict[tuple[PromptLabel, Split], Tensor] = field(default_factory=dict, init=False)
    _scores: dict[tuple[PromptLabel, Split], Tensor] = field(default_factory=dict, init=False)

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
        ones of a validation split, of a train split those that find the refusal tokens.
        """
        key = (label, split)
        if key not in self._logits:
            first = self.encode(label, split)[: self._compared(label, split)]
            self._logits[key] = logits_after(self.chat, first, batch_size=self.settings.batch_size)
        return self._logits[key]

    def _compared(self, label: PromptLabel, split: Split) -> int | None:
        """Prompts whose logits are kept: a row is the whole vocabulary, often more than half a megabyte."""
        if split == "train":
            return _DISCOVERY if self.settings.refusal_tokens is None and label != "borderline" else 0
        if split == "validation":
            return self.settings.n_scored if label == "harmless" else 0
        return None

    def base_scores(self, label: PromptLabel, split: Split) -> Tensor:
        """Refusal scores of the unchanged model, [prompt], float64; computed once."""
        key = (label, split)
        if key not in self._scores:
            compared = self.base_logits(label, split)  # first: they show damaged weights, which refuse nothing either
            tokens, size = self.token_ids, self.settings.batch_size
            others = self.encode(label, split)[len(compared) :]
            known = [refusal_scores(compared, tokens)] if len(compared) else []
            self._scores[key] = torch.cat([*known, scores_after(self.chat, others, tokens, batch_size=size)])
            if split == "train":
                del self._logits[key]  # the refusal tokens are found
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
    def refusal_tokens(self) -> tuple[RefusalToken, ...]:
        """The tokens of the refusal score: the user's, or found from the model's own refusals and answers.

        Raises:
            ModelError: the model refuses nothing, or everything.
            InputError: the user's tokens are not in its vocabulary.
        """
        if self.settings.refusal_tokens is not None:
            size = logits_after(self.chat, self.encode("harmful", "train")[:1]).shape[-1]
            if max(self.settings.refusal_tokens) >= size:
                raise InputError(
                    f"{self.chat.name}: --refusal-tokens names the token {max(self.settings.refusal_tokens)}; the ids "
                    f"of this model go from 0 to {size - 1}."
                )
            return tuple(
                RefusalToken(
                    id=token,
                    text=self.chat.tokenizer.decode([token]),
                    probability_refused=None,
                    probability_answered=None,
                )
                for token in self.settings.refusal_tokens
            )
        self.progress.start("finding refusal tokens", 2 * _DISCOVERY)
        labels: tuple[PromptLabel, PromptLabel] = ("harmful", "harmless")
        records = {
            label: self.runner.complete(self.split(label, "train")[:_DISCOVERY], condition=BASE_MODEL, split="train")
            for label in labels
        }
        refused = [index for index, record in enumerate(records["harmful"]) if is_refusal(record)]
        answered = [index for index, record in enumerate(records["harmless"]) if is_refusal(record) is False]
        for label, found, what in (
            ("harmful", refused, "this model does not refuse: is it a base model, or one whose refusals were removed?"),
            ("harmless", answered, "this model refuses (or garbles) everything, so no direction separates the two."),
        ):
            if len(found) < 2:
                measured = refusal_rate(records[label])  # type: ignore[index]
                raise ModelError(
                    f"{self.chat.name}: {what} It refused {measured.k} of {measured.n} {label} train prompts "
                    f"(95 % interval {measured.low:.0%} to {measured.high:.0%}; {measured.unjudged} unjudged). Use a "
                    "chat model that refuses, check the chat template, or set --refusal-tokens."
                )
        return discover_refusal_tokens(
            self.chat,
            self.base_logits("harmful", "train")[refused],
            self.base_logits("harmless", "train")[answered],
        )

    @cached_property
    def token_ids(self) -> list[int]:
        """Ids of the refusal tokens."""
        return [token.id for token in self.refusal_tokens]

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

    def fitted_prompts(self, label: PromptLabel, *, refused: bool) -> list[str]:
        """Train prompts whose refusal score has the expected sign (both papers' train filter).

        Raises:
            ModelError: too few are left to fit a mean on.
        """
        scores = self.base_scores(label, "train")
        keep = scores > 0 if refused else scores < 0
        kept = [text for text, flag in zip(self.texts(label, "train"), keep.tolist(), strict=True) if flag]
        if len(kept) < FEWEST_FITTED:
            raise ModelError(
                f"{self.chat.name}: only {len(kept)} of {len(scores)} {label} train prompts have a refusal score "
                f"{'above' if refused else 'below'} 0, and a mean needs at least {FEWEST_FITTED}. "
                + _few(label, refused=refused)
            )
        return kept

    def scored_validation(self, label: PromptLabel, *, refused: bool | None) -> list[int]:
        """Indices of the validation prompts that candidates are scored on.

        Args:
            label: which set.
            refused: keep only prompts whose refusal score is above (True) or below (False) 0, as Arditi et al. do
                (appendix B); None keeps all, as Wang et al. do.
        """
        scores = self.base_scores(label, "validation")[: self.settings.n_scored]
        if refused is None:
            return list(range(len(scores)))
        indices = torch.nonzero(scores > 0 if refused else scores < 0).flatten().tolist()
        if not indices:
            raise ModelError(
                f"{self.chat.name}: none of {len(scores)} {label} validation prompts has a refusal score "
                f"{'above' if refused else 'below'} 0. " + _few(label, refused=refused)
            )
        return [int(index) for index in indices]

    def encode(self, label: PromptLabel, split: Split, indices: Sequence[int] | None = None) -> list[list[int]]:
        """Rendered and tokenized prompts of one split."""
        texts = self.texts(label, split)
        return self.chat.encode(texts if indices is None else [texts[index] for index in indices])


def _few(label: PromptLabel, *, refused: bool) -> str:
    if label == "borderline":
        return "The model hardly refuses these borderline prompts, so there is little to remove: give more of them."
    if refused:
        return "The model hardly refuses these harmful prompts: give plainer or more ones, or set --refusal-tokens."
    return "The model seems to refuse harmless prompts: check the chat template, or set --refusal-tokens."
