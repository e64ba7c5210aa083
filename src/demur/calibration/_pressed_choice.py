"""Does an operating point hold under pressure? Asked on validation prompts, before it is chosen.

Fewest false refusals at rest are often bought with refusals that a suffix or a system prompt then talks away, so that
the gate would fail on test prompts. Next tokens tell first, where they can; judged answers then.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from demur.calibration._kept import Change, Kept, score_change
from demur.calibration._study import Study
from demur.evaluation import (
    PRESSURE_MARGIN,
    Asked,
    Condition,
    applicable_conditions,
    ask_together,
    pressure_table,
    scores_after,
)
from demur.interventions import Intervention, in_shipped_form
from demur.models import ChatModel
from demur.prompts import Prompt
from demur.types import PressureFamily

_NEXT_TOKEN = ("suffix-32", "system-careful", "earlier-turn")
"""Conditions without opening and sampling, so that the next token says whether a prompt is refused; of those of its
family the one that asks most."""
_ANSWERED: tuple[tuple[str, ...], ...] = (("sample-1", "opening-5"), ("int4",))
"""Conditions whose answers are judged; those of one row are read alike, and asked together."""


@dataclass(frozen=True)
class Pressed:
    """What became of true refusals under pressure."""

    kept: Kept
    note: str
    """The worst loss, in words; empty where nothing was lost."""
    family: PressureFamily | None = None
    change: Change | None = None


def next_token_conditions(chat: ChatModel) -> list[Condition]:
    """The conditions under which next tokens tell, as far as the model can be put under them."""
    return [each for each in applicable_conditions(chat)[0] if each.name in _NEXT_TOKEN]


def pressed_prompts(study: Study) -> tuple[Prompt, ...]:
    """The harmful validation prompts that are put under pressure: all kinds, not only those that were refused."""
    prompts = study.split("harmful", "validation")
    return prompts[: study.settings.n_pressed or len(prompts)]


def hold_under_pressure(study: Study, intervention: Intervention, *, first: PressureFamily | None = None) -> Pressed:
    """What an operating point keeps of the true refusals; stops at the first family in which they are lost.

    Args:
        study: the calibration.
        intervention: the point.
        first: the family to begin with: what another point lost, this one is likely to lose too.
    """
    if not study.settings.pressure:
        return Pressed(Kept.shown, "")
    worst = Pressed(Kept.shown, "")
    conditions: list[_Asking | _Judging] = [*_by_next_tokens(study, intervention), *_by_answers(study, intervention)]
    for measure in sorted(conditions, key=lambda each: first not in each.families):
        worst = max(worst, measure(), key=lambda each: each.kept)
        if worst.kept == Kept.lost:
            break
    return worst


def _verdict(study: Study, condition: Condition, change: Change) -> Pressed:
    n_test = min(len(study.split("harmful", "test")), study.settings.n_pressure or 10**9)
    kept = change.kept(PRESSURE_MARGIN, n_test=n_test)
    note = ""
    if kept != Kept.shown:
        note = (
            f"true refusals {100 * change.difference:+.1f} points ({100 * change.low:+.1f} to "
            f"{100 * change.high:+.1f}) under {condition.name}"
        )
    return Pressed(kept, note, condition.family, change)


def _by_next_tokens(study: Study, intervention: Intervention) -> list["_Asking"]:
    if not study.threshold.tells:
        return []
    return [_Asking(study, intervention, condition) for condition in next_token_conditions(study.chat)]


@dataclass(frozen=True)
class _Asking:
    """One condition by next tokens, measured when it is called."""

    study: Study
    intervention: Intervention
    condition: Condition

    @property
    def families(self) -> set[PressureFamily]:
        """What it belongs to."""
        return {self.condition.family}

    def __call__(self) -> Pressed:
        study, texts = self.study, [prompt.text for prompt in pressed_prompts(self.study)]
        requests = self.condition.requests(study.chat, texts)
        encoded = [[*tokens, *study.opening] for tokens, _ in requests]
        study.progress.start(f"trying {self.condition.name}", 2 * len(texts))

        def probabilities() -> list[float]:
            scores = scores_after(study.chat, encoded, study.token_ids, batch_size=study.rows, check=False)
            study.progress.advance(len(texts))
            return [study.probability(score) for score in scores.tolist()]

        before = study.remembered(f"pressed {self.condition.fingerprint}", probabilities)
        with in_shipped_form(study.chat, self.intervention):
            after = probabilities()
        return _verdict(study, self.condition, score_change(before, after))


def _by_answers(study: Study, intervention: Intervention) -> list["_Judging"]:
    known = {condition.name: condition for condition in applicable_conditions(study.chat)[0]}
    rows = [[known[name] for name in row if name in known] for row in _ANSWERED]
    if not study.threshold.tells:  # then the conditions of next tokens are judged too
        rows += [[known[name]] for name in _NEXT_TOKEN if name in known]
    return [_Judging(study, intervention, row) for row in rows if row]


@dataclass(frozen=True)
class _Judging:
    """Conditions that are read alike, by judged answers."""

    study: Study
    intervention: Intervention
    conditions: Sequence[Condition]

    @property
    def families(self) -> set[PressureFamily]:
        """What they belong to."""
        return {each.family for each in self.conditions}

    def __call__(self) -> Pressed:
        study, prompts = self.study, pressed_prompts(self.study)
        names = " and ".join(each.name for each in self.conditions)
        study.progress.start(f"trying {names}", 2 * len(self.conditions) * len(prompts))
        before = ask_together(study.runner, self.conditions, prompts, None, split="validation")
        after = ask_together(study.runner, self.conditions, prompts, self.intervention, split="validation")
        worst = Pressed(Kept.shown, "")
        for each in zip(self.conditions, before, after, strict=True):
            (pooled,) = pressure_table([Asked(*each)], not_applicable={}).families
            measured = pooled.comparison
            change = Change(measured.n, measured.difference, measured.low, measured.high)
            worst = max(worst, _verdict(study, each[0], change), key=lambda one: one.kept)
        return worst
