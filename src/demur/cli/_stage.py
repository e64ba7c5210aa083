"""One stage of a command: how far it is, how fast of late, how long still; and that in words."""

from collections import deque

_WINDOW = 60.0
"""Seconds over which a rate is taken: what was fast an hour ago says nothing about what is left."""
_FEWEST = 5
"""Advances that count however old they are, as a slow stage has fewer in a window."""
_AT_ONCE = 0.2
"""Seconds after a stage's start. What is done by then was kept from an earlier call, and has no rate."""


class Stage:
    """What is being done, and how many of its steps are.

    Args:
        name: what is being done.
        total: steps; None where nobody counts them, such as while a model is loaded.
        now: a clock's time.
        quiet: whether its end is worth no line of its own.
    """

    def __init__(self, name: str, total: int | None, now: float, *, quiet: bool = False) -> None:
        self.name = name
        self.total = total
        self.quiet = quiet
        self.started = now
        self.advanced = now
        self.steps = 0
        self.note = ""
        self._seen = deque([(now, 0)])

    def advance(self, steps: int, now: float) -> None:
        """So many more steps are done."""
        self.steps += steps
        self.advanced = now
        if now - self.started < _AT_ONCE:
            self._seen = deque([(now, self.steps)])
            return
        self._seen.append((now, self.steps))
        while len(self._seen) > _FEWEST and self._seen[1][0] < now - _WINDOW:
            self._seen.popleft()

    def rate(self, now: float) -> float | None:
        """Steps per second of late; None while there is none."""
        since, before = self._seen[0]
        span, idle = self.advanced - since, now - self.advanced
        if idle > span:  # it has been standing longer than it was moving: that is what its rate is
            span += idle
        return (self.steps - before) / span if span > 0 and self.steps > before else None

    def left(self, now: float) -> float | None:
        """Seconds until the last step, at the rate of late."""
        rate = self.rate(now)
        if rate is None or self.total is None or self.steps >= self.total:
            return None
        return (self.total - self.steps) / rate

    def line(self, now: float, still: float) -> str:
        """How it stands; one that has not advanced for `still` seconds says so."""
        if self.total is None:
            return f"{self.name}{self._noted()}: {duration(now - self.started)} so far"
        idle = now - self.advanced
        if self.steps >= self.total:
            done = f"{self.name}: all {self.total} done{self._noted()}"
            return done if idle < still else f"{done}, working on what follows for {duration(idle)}"
        count, left = f"{self.steps} of {self.total}{self._noted()}", self.left(now)
        until = "" if left is None else f", about {duration(left)} left"
        if idle >= still:
            return f"{self.name}: still at {count} for {duration(idle)}{until}"
        rate = self.rate(now)
        return f"{self.name}: {count}{'' if rate is None else f', {per_second(rate)}'}{until}"

    def end(self, now: float) -> str:
        """What it came to."""
        seconds = now - self.started
        took = f"{seconds:.1f} s" if seconds < 60 else duration(seconds)
        return f"{self.name}: {'' if self.total is None else f'{self.steps} in '}{took}{self._noted()}"

    def _noted(self) -> str:
        return f" ({self.note})" if self.note else ""


def duration(seconds: float) -> str:
    """24 s; 1 min 20 s; 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def per_second(rate: float) -> str:
    """0.8/s; slower than one in ten seconds: one in 12 s."""
    if rate < 0.1:
        return f"one in {duration(1 / rate)}"
    return f"{rate:.1f}/s" if rate < 100 else f"{rate:.0f}/s"
