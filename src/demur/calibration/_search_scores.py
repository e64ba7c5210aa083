"""Scores of one trial of a search: next tokens of validation prompts, in the order of cost, until a limit is broken."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from demur.calibration._kept import Kept, score_change
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
class _Harmful:
    """Harmful prompts under one condition, all of them, with what the base model does."""

    name: str
    encoded: list[list[int]]
    before: list[float]
    """P(refusal) of each."""
    margin: float


@dataclass
class TrialScores:
    """Measures trials on the same prompts. Nothing is generated."""

    study: Study
    prompts_read: int = field(default=0, init=False)
    """Forward passes over one prompt each, so far."""

    def of(self, intervention: Intervention) -> Scores:
        """The scores of one trial, as far as no limit is broken.

        The KL comes first: its terms are never negative, so a partial sum can decide; then the true refusals at rest
        and under pressure, by their net change; false refusals last.
        """
        stages = 1 + len(self._harmful)
        with intervention.applied_to(self.study.chat):
            kl = self._kl()
            if not kl <= self._kl_limit:
                return Scores("kl", stages - 1 + _share(kl - self._kl_limit, self._kl_limit))
            for passed, harmful in enumerate(self._harmful, start=1):
                after = [self.study.probability(score) for score in self._scores(harmful.encoded)]
                if any(map(math.isnan, after)):
                    return Scores("nan", float(stages), kl)
                change = score_change(harmful.before, after)
                if change.kept(harmful.margin, n_test=change.n) == Kept.lost:
                    return Scores(harmful.name, stages - passed - 1 + _share(-change.difference, 1.0), kl)
            false_refusals = self._false_refusals()
        if math.isnan(false_refusals):
            return Scores("nan", float(stages), kl)
        return Scores(None, 0.0, kl, false_refusals)

    def in_full(self, intervention: Intervention) -> dict[str, list[float]]:
        """The scores that a direction card holds, one value per prompt: KL, borderline and harmful refusal scores."""
        with intervention.applied_to(self.study.chat):
            found = {"kl": [value for part in self._kl_parts() for value in part]}
            for name, encoded in (("borderline", self._borderline), ("harmful", self._harmful[0].encoded)):
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
        study = self.study
        return study.encode_scored("borderline", "validation", study.scored_validation("borderline", refused=None))

    @cached_property
    def _harmful(self) -> list[_Harmful]:
        """At rest first, then under the conditions of pressure that the next token tells of."""
        study, settings, chat = self.study, self.study.settings, self.study.chat
        indices = study.scored_validation("harmful", refused=None)
        texts = [study.texts("harmful", "validation")[index] for index in indices]
        found = [self._of_base("true_refusals", study.encode_scored("harmful", "validation", indices), settings.margin)]
        if settings.pressure:
            for condition in next_token_conditions(chat):
                encoded = [[*tokens, *study.opening] for tokens, _ in condition.requests(chat, texts)]
                found.append(self._of_base(condition.name, encoded, PRESSURE_MARGIN))
        return found

    def _of_base(self, name: str, encoded: list[list[int]], margin: float) -> _Harmful:
        """Must be called on the unchanged model."""
        before = [self.study.probability(score) for score in self._scores(encoded)]
        return _Harmful(name, encoded, before, margin)

    def prepare(self) -> None:
        """Read everything of the unchanged model that trials are compared with."""
        self._harmless, self._borderline, self._harmful  # noqa: B018 (cached properties)
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

    def _false_refusals(self) -> float:
        """Mean probability of a refusal: smooth, where a count of 32 prompts is coarse."""
        scores = [self.study.probability(score) for score in self._scores(self._borderline)]
        return math.fsum(scores) / len(scores)

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
