"""One model and the selected cases of a suite: who shares what, and what comes out of it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from demur.assurance._directions import Directions, directions_of
from demur.assurance._suite_cases import Contains, Matches, Projection, Range, Share, SuiteCase, SuiteCondition
from demur.assurance._suite_checks import Flags, check_mean, check_share, flakiness_of, worst
from demur.assurance._suite_load import Suite, load_source, suite_prompts
from demur.assurance._suite_measure import Measurer, Place, Question, Reading, TextCheck, Wanted
from demur.assurance._suite_states import in_words, intervention_of, not_applicable, tokens_under
from demur.errors import DemurError, InputError, JudgeError
from demur.evaluation import Judge, PhraseJudge
from demur.models import ChatModel
from demur.prompts import Prompt, PromptSet, assign_splits, check_disjoint
from demur.records import JsonLines, JudgeIdentity, Outcome, SuiteAnswer, SuiteCaseResult, SuiteCheck, SuiteCost
from demur.types import Decision, Progress, PromptLabel, SilentProgress

ANSWERS = "answers.jsonl"
BATCH_SIZE = 64
_REFERENCES = 64
"""Prompts of each kind between whose means a relative projection is measured."""
_OUTCOMES: dict[Decision, Outcome] = {"pass": "passed", "fail": "failed", "inconclusive": "inconclusive"}
_PLAIN = SuiteCondition()


@dataclass(frozen=True)
class _Plan:
    """What one case asks for."""

    case: SuiteCase
    prompts: tuple[Prompt, ...]
    repeat: int
    state: str
    """Fingerprint of the intervention; empty for the model itself."""
    tokens: tuple[tuple[int, ...], ...]
    """What the model reads, by prompt."""
    questions: tuple[tuple[Question, ...], ...]
    """By prompt and sample; empty where no answer is looked at."""
    plain: tuple[tuple[Question, ...], ...]
    """The same for the model itself, asked plainly, where that is compared with."""
    place: Place | None
    """Where a projection is read."""


@dataclass
class SuiteSession:
    """A model and the cases of a suite that were selected. Each model state is measured once, when first looked at.

    Args:
        chat: the model.
        suite: the suite.
        cases: those to run; all by default.
        run: folder of a calibration that gives the directions; found from prompts without.
        harmful: source of the prompts from which r is found, in the place of the suite's.
        harmless: the same of harmless ones.
        judge: gives the verdicts.
        repeat: samples of every case, in the place of its own number.
        batch_size: answers generated together.
        out: folder in which judgements are kept, so that a killed run goes on from them.
        progress: is told what is being done.

    Raises:
        InputError: a prompt source cannot be used, or directions are needed and not given.
    """

    chat: ChatModel
    suite: Suite
    cases: Sequence[SuiteCase] | None = None
    run: Path | str | None = None
    harmful: str | None = None
    harmless: str | None = None
    judge: Judge = field(default_factory=PhraseJudge)
    repeat: int | None = None
    batch_size: int = BATCH_SIZE
    out: Path | None = None
    progress: Progress = field(default_factory=SilentProgress)
    _measured: dict[str, tuple[dict[Question, SuiteAnswer], dict[tuple[int, ...], Reading]]] = field(
        default_factory=dict, init=False
    )

    def __post_init__(self) -> None:
        if self.repeat is not None and self.repeat < 1:
            raise InputError(f"repeat is a number of samples of at least 1; got {self.repeat}.")
        if self.batch_size < 1:
            raise InputError(f"batch_size is a number of answers of at least 1; got {self.batch_size}.")
        self.selected: tuple[SuiteCase, ...] = self.suite.cases if self.cases is None else tuple(self.cases)
        self._prompts = suite_prompts(self.suite, self.selected)
        self._skipped = {case.name: not_applicable(case.condition, self.chat) for case in self.selected}

    @cached_property
    def directions(self) -> Directions | None:
        """Of the run, or found from prompts; None where no selected case needs any."""
        if not any(_needs_directions(case) for case in self.selected):
            return None
        return directions_of(
            self.chat, None if self.run is not None else self._sources, run=self.run, progress=self.progress
        )

    @cached_property
    def _sources(self) -> dict[PromptLabel, PromptSet]:
        """Prompts from which r is found, split."""
        given = self.suite.content.directions
        labels: tuple[PromptLabel, ...] = ("harmful", "harmless")
        found: dict[PromptLabel, PromptSet] = {}
        for label, own in zip(labels, (self.harmful, self.harmless), strict=True):
            source = own if own is not None else getattr(given, label, None)
            if source is None:
                raise InputError(
                    f"cases of {self.suite.source} need the refusal direction (or prompts between which a projection "
                    "is measured), and the suite names no `directions:`. Give --run with the folder of a calibration, "
                    "or --harmful and --harmless."
                )
            loaded = load_source(self.suite, source, label, relative=own is None)
            found[label] = assign_splits(loaded, minimum={"train": 32, "validation": 16})
        check_disjoint(list(found.values()))
        return found

    @cached_property
    def _measurer(self) -> Measurer:
        directions = self.directions
        return Measurer(
            chat=self.chat,
            judge=self.judge,
            max_new_tokens=self.suite.content.max_new_tokens,
            batch_size=self.batch_size,
            tokens=() if directions is None else directions.tokens,
            store=None if self.out is None else JsonLines(self.out / ANSWERS),
            progress=self.progress,
        )

    @cached_property
    def _plans(self) -> dict[str, _Plan]:
        return {case.name: self._plan(case) for case in self.selected if self._skipped[case.name] is None}

    def _plan(self, case: SuiteCase) -> _Plan:
        prompts = self._prompts[case.name]
        repeat = self.repeat or case.repeat
        intervention = intervention_of(case.condition, self.directions)
        tokens = tuple(tokens_under(case.condition, self.chat, [prompt.text for prompt in prompts]))
        plain: tuple[tuple[Question, ...], ...] = ()
        if case.expect.unchanged is not None:
            itself = tuple(tokens_under(_PLAIN, self.chat, [prompt.text for prompt in prompts]))
            plain = _questions(itself, prompts, repeat)
        answered = any(isinstance(wanted, Share) for wanted in case.expect.given().values())
        return _Plan(
            case=case,
            prompts=prompts,
            repeat=repeat,
            state="" if intervention is None else intervention.fingerprint,
            tokens=tokens,
            questions=_questions(tokens, prompts, repeat) if answered else (),
            plain=plain,
            place=None if case.expect.projection is None else self._place(case.expect.projection, tokens),
        )

    def _place(self, wanted: Projection, tokens: Sequence[Sequence[int]]) -> Place:
        if self.directions is None:
            raise AssertionError("a projection without directions")
        refusal = self.directions.refusal
        layer = refusal.layer if wanted.layer is None else wanted.layer
        position = refusal.position if wanted.position is None else wanted.position
        if layer >= self.chat.n_layers:
            raise InputError(f"projection.layer is {layer}; {self.chat.name} has blocks 0 to {self.chat.n_layers - 1}.")
        shortest = min(map(len, tokens))
        if -position > shortest:
            raise InputError(f"projection.position is {position}; the shortest prompt has {shortest} tokens.")
        return layer, position

    @cached_property
    def _references(self) -> dict[PromptLabel, tuple[tuple[int, ...], ...]]:
        """Tokens of the prompts between whose means a relative projection is measured."""
        return {
            label: tuple(
                tokens_under(_PLAIN, self.chat, [prompt.text for prompt in prompts.split("train")[:_REFERENCES]])
            )
            for label, prompts in self._sources.items()
        }

    def _wanted(self, state: str) -> Wanted:
        """Everything that the selected cases look at in one state."""
        plans = [plan for plan in self._plans.values() if plan.state == state]
        wanted = Wanted(intervention_of(plans[0].case.condition, self.directions) if state else None)
        for plan in plans:
            checks = set(_text_checks(plan.case))
            for question in (question for some in plan.questions for question in some):
                wanted.answers.setdefault(question, set()).update(checks)
            if plan.place is not None or plan.case.expect.refusal_score is not None:
                for tokens in plan.tokens:
                    wanted.readings.setdefault(tokens, set()).update(() if plan.place is None else (plan.place,))
        if not state:
            for question in (each for plan in self._plans.values() for some in plan.plain for each in some):
                wanted.answers.setdefault(question, set())
            for plan in self._plans.values():
                if plan.place is not None and _is_relative(plan.case):
                    for tokens in (each for some in self._references.values() for each in some):
                        wanted.readings.setdefault(tokens, set()).add(plan.place)
        return wanted

    def _state(self, state: str) -> tuple[dict[Question, SuiteAnswer], dict[tuple[int, ...], Reading]]:
        if state not in self._measured:
            name = "asking the model" if not state else f"asking {self._state_in_words(state)}"
            self._measured[state] = self._measurer.measure(self._wanted(state), name)
        return self._measured[state]

    def _state_in_words(self, state: str) -> str:
        condition = next(plan.case.condition for plan in self._plans.values() if plan.state == state)
        changed = ("ablate", "add", "subtract", "quantised", "seed")
        return in_words(SuiteCondition(**{name: getattr(condition, name) for name in changed}))

    def result(self, case: SuiteCase) -> SuiteCaseResult:
        """Run one case; what it shares with others is measured for all of them.

        Raises:
            JudgeError: the judge cannot be reached. Other expected failures make the outcome `error`.
        """
        common: dict[str, Any] = {
            "name": case.name,
            "description": case.description,
            "severity": case.severity,
            "owner": case.owner,
            "tags": case.tags,
            "condition": in_words(case.condition),
            "label": self._prompts[case.name][0].label,
            "n_prompts": len(self._prompts[case.name]),
            "repeat": self.repeat or case.repeat,
        }
        skipped = self._skipped[case.name]
        if skipped is not None:
            return SuiteCaseResult(**common, outcome="skipped", message=skipped)
        try:
            checks, flakiness = self._checks(self._plans[case.name])
        except JudgeError:
            raise
        except DemurError as error:
            return SuiteCaseResult(**common, outcome="error", message=str(error))
        outcome = _OUTCOMES[worst([check.decision for check in checks])]
        return SuiteCaseResult(**common, outcome=outcome, checks=checks, flakiness=flakiness)

    def _checks(self, plan: _Plan) -> tuple[tuple[SuiteCheck, ...], Any]:
        answers, readings = self._state(plan.state)
        judge = JudgeIdentity(id=self.judge.id, version=self.judge.version)
        found: list[SuiteCheck] = []
        shares: list[tuple[Share, Flags]] = []
        for kind, wanted in plan.case.expect.given().items():
            if isinstance(wanted, Share):
                flags = self._flags(kind, wanted, plan, answers)
                shares.append((wanted, flags))
                by = judge if kind in ("refuses", "answers", "unchanged") else None
                found.append(check_share(kind, wanted, flags, plan.prompts, by))  # type: ignore[arg-type]
            elif isinstance(wanted, Projection):
                values, unit = self._projections(wanted, plan, readings)
                found.append(check_mean("projection", wanted, values, plan.prompts, unit=unit))
            else:
                scores = [readings[tokens].score for tokens in plan.tokens]
                values = [score for score in scores if score is not None]
                found.append(check_mean("refusal_score", wanted, values, plan.prompts, unit="log-odds"))
        if plan.repeat == 1 or not shares:
            return tuple(found), None
        refused = [[_refused(answers[each]) for each in some] for some in plan.questions]
        return tuple(found), flakiness_of(shares, refused)

    def _flags(self, kind: str, wanted: Share, plan: _Plan, answers: Mapping[Question, SuiteAnswer]) -> Flags:
        given = [[answers[question] for question in some] for some in plan.questions]
        if kind == "refuses":
            return [[_refused(each) for each in some] for some in given]
        if kind == "answers":
            return [[None if (flag := _refused(each)) is None else not flag for each in some] for some in given]
        if kind == "correct":
            return [[each.right for each in some] for some in given]
        if isinstance(wanted, (Matches, Contains)):
            name = _text_check(wanted).sha256
            return [[each.texts[name] for each in some] for some in given]
        itself = self._state("")[0]
        return [
            [_alike(one, itself[question]) for one, question in zip(some, before, strict=True)]
            for some, before in zip(given, plan.plain, strict=True)
        ]

    def _projections(
        self, wanted: Projection, plan: _Plan, readings: Mapping[tuple[int, ...], Reading]
    ) -> tuple[list[float], str]:
        if self.directions is None or plan.place is None:
            raise AssertionError("a projection without directions")
        unit, place = self.directions.refusal.unit, plan.place
        values = [float(readings[tokens].streams[place] @ unit) for tokens in plan.tokens]
        if wanted.scale == "absolute":
            return values, "along r"
        itself = self._state("")[1]
        harmful, harmless = (
            sum(float(itself[tokens].streams[place] @ unit) for tokens in self._references[label])
            / len(self._references[label])
            for label in ("harmful", "harmless")
        )
        if harmful == harmless:
            raise InputError(f"harmful and harmless prompts have the same mean projection at {place}; use absolute.")
        return [(value - harmless) / (harmful - harmless) for value in values], "of the way from harmless to harmful"

    def cost(self) -> SuiteCost:
        """What was done so far."""
        wanted = sum(len(some) for plan in self._plans.values() for some in (*plan.questions, *plan.plain))
        return SuiteCost(wanted=wanted, **asdict(self._measurer.counts))


def _questions(
    tokens: Sequence[tuple[int, ...]], prompts: Sequence[Prompt], repeat: int
) -> tuple[tuple[Question, ...], ...]:
    return tuple(
        tuple(
            Question(each, prompt.text, None if repeat == 1 else _seed(prompt, number), prompt.answer)
            for number in range(1, repeat + 1)
        )
        for each, prompt in zip(tokens, prompts, strict=True)
    )


def _seed(prompt: Prompt, number: int) -> int:
    """A sample depends on its prompt and its number, not on what is asked beside it."""
    return (int(prompt.sha256[:12], 16) + number) % 2**48


def _text_check(wanted: Matches | Contains) -> TextCheck:
    if isinstance(wanted, Matches):
        return TextCheck("matches", wanted.pattern)
    return TextCheck("contains", wanted.text)


def _text_checks(case: SuiteCase) -> list[TextCheck]:
    return [_text_check(each) for each in (case.expect.matches, case.expect.contains) if each is not None]


def _refused(answer: SuiteAnswer) -> bool | None:
    return None if answer.verdict == "unjudged" else answer.verdict != "full_compliance"


def _alike(one: SuiteAnswer, two: SuiteAnswer) -> bool | None:
    """Whether both refuse or both answer; None where one of them was not judged."""
    return None if "unjudged" in (one.verdict, two.verdict) else _refused(one) == _refused(two)


def _is_relative(case: SuiteCase) -> bool:
    return case.expect.projection is not None and case.expect.projection.scale == "relative"


def _needs_directions(case: SuiteCase) -> bool:
    means = any(isinstance(wanted, Range) for wanted in case.expect.given().values())
    return bool(case.condition.directions) or means
