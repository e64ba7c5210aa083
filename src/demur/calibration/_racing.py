"""Choosing the lowest of many candidates under limits, with as few measurements as the exact answer needs.

Pure bookkeeping on numbers: what a measurement is, and what it costs, the caller knows. Every score is a mean over
prompts, measured some prompts at a time, and a candidate is dropped once no values of the others could save it: KL
terms are never negative, refusal scores lie within +-18.42 (epsilon 1e-8), a share counts whole prompts. What is
dropped could not have been chosen, so the choice is that of measuring everything.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from demur.types import Progress

Key = TypeVar("Key", bound=Hashable)
Values = tuple[float, ...]

_SLACK = 1e-9
"""Sums in another order differ by rounding; a bound must be passed by more than that before it decides."""


RUNNERS_UP = 4
"""Candidates beside the winner that are measured to the end."""


@dataclass(frozen=True)
class Score:
    """One mean over prompts, with what is known of its terms before they are measured."""

    kind: str
    prompts: int
    least: float = -math.inf
    """No term is smaller."""
    most: float = math.inf
    """No term is larger."""

    def lowest(self, values: Sequence[float]) -> float:
        """The smallest mean that these first values leave possible."""
        return self._bound(values, self.least)

    def highest(self, values: Sequence[float]) -> float:
        """The largest mean that these first values leave possible."""
        return self._bound(values, self.most)

    def _bound(self, values: Sequence[float], extreme: float) -> float:
        left = self.prompts - len(values)
        return (math.fsum(values) + (left * extreme if left else 0.0)) / self.prompts


@dataclass(frozen=True)
class Limit:
    """A filter: the mean of a score must not be beyond a limit; equality is kept. A mean that is no number fails."""

    score: Score
    name: str
    """The word for it in `rejected_by`."""
    at_least: float = -math.inf
    at_most: float = math.inf
    read: Callable[[float], float] = float
    """From a measured value to the term that is averaged."""

    @property
    def undecided(self) -> int:
        """Prompts that can be measured before any values could reject a candidate, whatever they are."""
        prompts, least, most = self.score.prompts, self.score.least, self.score.most

        def may_decide(measured: int) -> bool:
            highest, lowest = self.score.highest([least] * measured), self.score.lowest([most] * measured)
            return highest < self.at_least - _SLACK or lowest > self.at_most + _SLACK

        return next((measured for measured in range(1, prompts) if may_decide(measured)), prompts) - 1

    def fails(self, values: Values) -> bool:
        """Whether no values of the other prompts can bring the mean within the limit."""
        terms = [self.read(value) for value in values]
        if not all(map(math.isfinite, terms)):
            return True
        if len(terms) == self.score.prompts:
            mean = math.fsum(terms) / len(terms)
            return not self.at_least <= mean <= self.at_most
        highest, lowest = self.score.highest(terms), self.score.lowest(terms)
        return highest < self.at_least - _SLACK or lowest > self.at_most + _SLACK


@dataclass(frozen=True)
class Ask(Generic[Key]):
    """One measurement: candidates of one heat on the next prompts of a score."""

    kind: Any
    """Of the score."""
    span: range
    """Which prompts, by their place in its order."""
    keys: tuple[Key, ...]
    """Candidates."""
    heat: tuple[Key, ...]
    """All that are measured side by side, until none of them is left to measure."""


Measure = Callable[[Sequence[Ask[Key] | None]], Sequence[Mapping[Key, Values]]]
"""What each lane asks for, None where it has nothing left -> for each, its candidates with their values."""


@dataclass
class Race(Generic[Key]):
    """Candidates, what was measured of each, and why those that are out are out.

    Args:
        measure: measures; called with spans of prompts in order, each candidate at most once for each prompt.
        rows: candidates times prompts that are measured well together.
        heats: cuts candidates, in order, into those that are measured side by side, for a kind of score.
        lanes: heats that are run at the same time. What is measured does not depend on it.
        watch: called after every measurement.
        rejected: candidate -> name of the filter that removed it, or nan.
    """

    measure: Measure[Key]
    rows: int
    heats: Callable[[Any, Sequence[Key]], Iterable[Sequence[Key]]] = lambda _, keys: [keys]
    lanes: int = 1
    watch: Callable[[], None] = lambda: None
    rejected: dict[Key, str] = field(default_factory=dict)
    outscored: set[Key] = field(default_factory=set)
    """Candidates that could no longer win."""
    values: dict[tuple[str, Key], Values] = field(default_factory=dict)

    def of(self, score: Score, key: Key) -> Values:
        """What was measured of one candidate so far."""
        return self.values.get((score.kind, key), ())

    def mean(self, score: Score, key: Key, read: Callable[[float], float] = float) -> float | None:
        """The mean of a candidate whose score is complete, NaN if a value is; None where it is not complete."""
        values = [read(value) for value in self.of(score, key)]
        if len(values) < score.prompts:
            return None
        return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan

    def settle(
        self,
        score: Score,
        keys: Iterable[Key],
        *,
        until: Callable[[Key], bool] = lambda _: False,
        to: int | None = None,
        together: int = 0,
    ) -> None:
        """Measure candidates, each for itself, until it is decided or complete.

        Heat after heat, so that what must be kept for those that are being measured is little, however many there are.

        Args:
            score: what is measured.
            keys: candidates.
            until: whether a candidate is decided, by its own values.
            to: up to which prompt, all by default.
            together: up to which prompt nothing is decided, so that full batches cost nothing.
        """
        end = score.prompts if to is None else to

        def asked(heat: Sequence[Key]) -> Ask[Key] | None:
            behind = [key for key in heat if len(self.of(score, key)) < end and not until(key)]
            if not behind:
                return None
            start = min(len(self.of(score, key)) for key in behind)
            behind = [key for key in behind if len(self.of(score, key)) == start]
            step = max(min(first_step(score.prompts), self.rows), min(self.rows // len(behind), together - start))
            return Ask(score.kind, range(start, min(start + step, end)), tuple(behind), tuple(heat))

        left = [key for key in keys if len(self.of(score, key)) < end and not until(key)]
        waiting = iter(self.heats(score.kind, left)) if left else iter(())
        lanes: list[Sequence[Key]] = [()] * self.lanes
        while True:
            asks: list[Ask[Key] | None] = []
            for lane, heat in enumerate(lanes):
                ask = asked(heat)
                while ask is None and (following := next(waiting, None)) is not None:
                    lanes[lane], ask = following, asked(following)
                asks.append(ask)
            if not any(asks):
                return
            for measured in self.measure(asks):
                for key, values in measured.items():
                    self.values[score.kind, key] = self.of(score, key) + values
            self.watch()

    def complete(self, score: Score, keys: Iterable[Key]) -> None:
        """Measure all prompts of candidates, whatever was decided about them."""
        self.settle(score, keys, together=score.prompts)

    def filter(self, limit: Limit, keys: Iterable[Key], *, to: int | None = None) -> list[Key]:
        """Measure until every candidate is rejected or complete (up to `to`); return those that are left, in order."""
        keys = list(keys)

        def failed(key: Key) -> bool:
            values = self.of(limit.score, key)
            if key not in self.rejected and values and limit.fails(values):
                self.rejected[key] = limit.name if all(math.isfinite(limit.read(one)) for one in values) else "nan"
            return key in self.rejected

        self.settle(limit.score, keys, until=failed, to=to, together=limit.undecided)
        return [key for key in keys if not failed(key)]

    def lowest(
        self, score: Score, keys: Sequence[Key], *, group: Callable[[Key], Hashable], limits: Sequence[Limit] = ()
    ) -> dict[Hashable, Key]:
        """The candidate of each group with the smallest mean that passes `limits`; of equal ones the first in order.

        Limits are measured only of candidates that would win. Groups do not compete, but are measured together.
        """
        order = {key: index for index, key in enumerate(keys)}
        best: dict[Hashable, Key] = {}

        def rank(key: Key) -> tuple[float, int]:
            values = self.of(score, key)
            return math.fsum(values) / max(1, len(values)), order[key]

        def out(key: Key) -> bool:
            return self._out(score, key, best.get(group(key)), order)

        def running() -> dict[Hashable, list[Key]]:
            """By group: candidates that may still win, the likeliest first."""
            found: dict[Hashable, list[Key]] = {}
            for key in sorted((key for key in keys if not out(key)), key=rank):
                found.setdefault(group(key), []).append(key)
            return found

        self.settle(score, keys, to=first_step(score.prompts))
        while left := running():
            # Where nothing has won yet, the likeliest go first: what they reach decides how soon the others may stop.
            if leaders := [each[0] for name, each in left.items() if name not in best]:
                self.complete(score, leaders)
            else:
                self.settle(score, [key for each in left.values() for key in each], until=out)
            done = [
                next((key for key in each if self.mean(score, key) is not None), None) for each in running().values()
            ]
            passed = [key for key in done if key is not None]
            for limit in limits:
                passed = self.filter(limit, passed)
            best.update((group(key), key) for key in passed)
        return best

    def complete_runners_up(self, score: Score, keys: Iterable[Key], *, limits: Sequence[Limit] = ()) -> None:
        """Measure to the end the nearest of the candidates that could no longer win.

        The choice does not need it. How often other prompts would have chosen otherwise cannot be said without.
        """
        beaten = [key for key in keys if key in self.outscored and self.of(score, key)]
        near = sorted(beaten, key=lambda key: math.fsum(self.of(score, key)) / len(self.of(score, key)))[:RUNNERS_UP]
        for limit in limits:
            near = self.filter(limit, near)
        self.complete(score, near)

    def _out(self, score: Score, key: Key, best: Key | None, order: Mapping[Key, int]) -> bool:
        """Whether a candidate need not be looked at any more: it is out, or it is the best."""
        if key in self.rejected or key in self.outscored or key == best:
            return True
        if not all(map(math.isfinite, self.of(score, key))):
            self.rejected[key] = "nan"
        elif best is not None and self._beaten(score, key, best, order):
            self.outscored.add(key)
        return key in self.rejected or key in self.outscored

    def _beaten(self, score: Score, key: Key, by: Key, order: Mapping[Key, int]) -> bool:
        target, mean = self.mean(score, by), self.mean(score, key)
        assert target is not None
        if mean is not None:
            return (mean, order[key]) > (target, order[by])
        return score.lowest(self.of(score, key)) > target + _SLACK


@dataclass
class Watched:
    """Tells a progress display how many candidates of a race are decided, and by what."""

    progress: Progress
    task: str
    total: int
    _told: int = 0

    def start(self) -> None:
        """The race begins."""
        self.progress.start(self.task, self.total)

    def tell(self, rejected: Mapping[Key, str], outscored: Collection[Key]) -> None:
        """How the race stands."""
        counts = Counter(rejected.values()) + Counter({"outscored": len(outscored)})
        self.progress.note(", ".join(f"{name} {count}" for name, count in counts.items()))
        self.progress.advance(counts.total() - self._told)
        self._told = counts.total()


def first_step(prompts: int) -> int:
    """Prompts that are measured before anything is decided: an eighth."""
    return max(1, prompts // 8)
