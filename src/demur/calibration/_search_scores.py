"""Scores of one trial of a search: next tokens of validation prompts, in the order of cost, until a limit is broken."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from demur.calibration._pressed_choice import next_token_conditions
from demur.calibration._racing import first_step
from demur.calibration._study import Study
from demur.evaluation import PRESSURE_MARGIN, kl_after, scores_after
from demur.interventions import Intervention


@dataclass(frozen=True)
class Scores:
    """What is known of a trial."""

    rejected_by: str | None
    violation: float
    kl: float | None = None
    false_refusals: float | None = None


@dataclass(frozen=True)
class _Refused:
    """Harmful prompts that the base model refuses by its next token, those by the least first."""

    name: str
    encoded: list[list[int]]
    allowed: int
    """How many may be lost."""


@dataclass
class TrialScores:
    """Measures trials on the same prompts. Nothing is generated."""

    study: Study
    prompts_read: int = field(default=0, init=False)
    """Forward passes over one prompt each, so far."""

    def of(self, intervention: Intervention) -> Scores:
        """The scores of one trial, as far as no limit is broken.

        The KL comes first: its terms are never negative, so a partial sum can decide; then the true refusals at rest
        and under pressure, those that the model makes by the least first; false refusals last.
        """
        stages = 1 + len(self._refused)
        with intervention.applied_to(self.study.chat):
            kl = self._kl()
            if not kl <= self._kl_limit:
                return Scores("kl", stages - 1 + _share(kl - self._kl_limit, self._kl_limit))
            for passed, refused in enumerate(self._refused, start=1):
                lost = self._lost(refused)
                if lost > refused.allowed:
                    # The share of all, though fewer were read: it orders trials that break the same limit.
                    return Scores(refused.name, stages - passed - 1 + _share(lost, len(refused.encoded)), kl)
            false_refusals = self._false_refusals()
        if math.isnan(false_refusals):
            return Scores("nan", float(stages), kl)
        return Scores(None, 0.0, kl, false_refusals)

    def in_full(self, intervention: Intervention) -> dict[str, list[float]]:
        """The scores that a direction card holds, one value per prompt: KL, borderline and harmful refusal scores."""
        with intervention.applied_to(self.study.chat):
            found = {"kl": [value for part in self._kl_parts() for value in part]}
            for name, encoded in (("borderline", self._borderline), ("harmful", self._refused[0].encoded)):
                found[name] = self._scores(encoded)
        return found

    # What is asked ---------------------------------------------------------------------------------------------------

    @property
    def _kl_limit(self) -> float:
        return min(self.study.settings.false_refusal_kl_limit, self.study.settings.gate_kl_limit)

    @cached_property
    def _harmless(self) -> tuple[list[list[int]], Tensor]:
        indices = self.study.scored_validation("harmless", refused=None)
        return self.study.encode("harmless", "validation", indices), self.study.base_logits("harmless", "validation")

    @cached_property
    def _borderline(self) -> list[list[int]]:
        return self.study.encode("borderline", "validation", self.study.scored_validation("borderline", refused=None))

    @cached_property
    def _refused(self) -> list[_Refused]:
        """At rest first, then under the conditions of pressure that the next token tells of."""
        settings, chat = self.study.settings, self.study.chat
        indices = self.study.scored_validation("harmful", refused=True)
        texts = [self.study.texts("harmful", "validation")[index] for index in indices]
        found = [self._of_base("true_refusals", chat.encode(texts), settings.margin)]
        if settings.pressure:
            for condition in next_token_conditions(chat).values():
                encoded = [tokens for tokens, _ in condition.requests(chat, texts)]
                found.append(self._of_base(condition.name, encoded, PRESSURE_MARGIN))
        return found

    def _of_base(self, name: str, encoded: list[list[int]], margin: float) -> _Refused:
        """Must be called on the unchanged model."""
        scores = self._scores(encoded)
        order = sorted((score, index) for index, score in enumerate(scores) if score > 0)
        kept = [encoded[index] for _, index in order]
        return _Refused(name, kept, int(margin * len(kept) + 1e-9))

    def prepare(self) -> None:
        """Read everything of the unchanged model that trials are compared with."""
        self._harmless, self._borderline, self._refused  # noqa: B018 (cached properties)
        self.prompts_read = 0

    # How it is measured ----------------------------------------------------------------------------------------------

    def _kl(self) -> float:
        """The mean, or a mean above the limit as soon as the sum is."""
        total, n = 0.0, len(self._harmless[0])
        for part in self._kl_parts():
            total += math.fsum(part)
            if not total <= self._kl_limit * n:
                break
        return total / n

    def _kl_parts(self) -> Iterator[list[float]]:
        encoded, base = self._harmless
        indices = self.study.scored_validation("harmless", refused=None)
        for part in self._parts(len(encoded)):
            self.prompts_read += len(part)
            asked, before = [encoded[index] for index in part], base[[indices[index] for index in part]]
            yield kl_after(self.study.chat, asked, before, batch_size=self.study.rows, check=False).tolist()

    def _lost(self, refused: _Refused) -> int:
        lost = 0
        for part in self._parts(len(refused.encoded)):
            lost += sum(not score > 0 for score in self._scores([refused.encoded[index] for index in part]))
            if lost > refused.allowed:
                break
        return lost

    def _false_refusals(self) -> float:
        """Mean probability of a refusal token: smooth, where a count of 32 prompts is coarse."""
        scores = torch.tensor(self._scores(self._borderline), dtype=torch.float64)
        return float(torch.sigmoid(scores).mean())

    def _parts(self, n: int) -> Iterator[range]:
        """A few prompts first, which reject most of what is going to be rejected."""
        first = min(n, first_step(n))
        yield range(first)
        for start in range(first, n, self.study.rows):
            yield range(start, min(start + self.study.rows, n))

    def _scores(self, encoded: Sequence[list[int]]) -> list[float]:
        if not encoded:
            return []
        self.prompts_read += len(encoded)
        study = self.study
        scores = scores_after(study.chat, encoded, study.token_ids, batch_size=study.rows, check=False)
        return [float(score) for score in scores]


def _share(value: float, whole: float) -> float:
    """From 0 to 1, rising; 1 for what is not a number."""
    share = value / (value + whole) if whole > 0 else 1.0
    return share if math.isfinite(share) else 1.0
