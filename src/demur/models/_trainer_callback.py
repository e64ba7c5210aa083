"""Measuring a model while transformers' Trainer trains it, at a bounded share of the training time."""

import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

from demur.errors import InputError

LARGEST_SHARE = 0.02
"""Of the training time that measuring may take by default."""


@dataclass(frozen=True)
class Measured:
    """What one measurement says."""

    values: Mapping[str, float]
    """For the trainer's log, by name."""
    alarm: str | None = None
    """In words: what is wrong."""


class DriftWarning(UserWarning):
    """A model that is being trained is losing refusals."""


class TimeShare:
    """Keeps an account of time: a cost is due as soon as all costs together stay below a share of the time passed.

    What the next one will cost is taken from the dearest of the last three.

    Args:
        share: largest share, between 0 and 1.
        clock: gives seconds.
    """

    def __init__(self, share: float, clock: Callable[[], float] = time.perf_counter) -> None:
        if not 0 < share <= 1:
            raise InputError(f"the share of time for measuring lies between 0 and 1, such as 0.02; got {share}.")
        self._share, self._clock = share, clock
        self._started = clock()
        self.spent = 0.0
        """Seconds."""
        self._recent: deque[float] = deque(maxlen=3)

    def restart(self) -> None:
        """Begin counting now."""
        self._started, self.spent = self._clock(), 0.0
        self._recent.clear()

    def due(self) -> bool:
        """Whether one more cost would stay within the share."""
        return self.spent + max(self._recent, default=0.0) <= self._share * (self._clock() - self._started)

    def charge(self, work: Callable[[], Measured]) -> Measured:
        """Do the work and put its time on the account."""
        before = self._clock()
        try:
            return work()
        finally:
            self._recent.append(self._clock() - before)
            self.spent += self._recent[-1]

    @property
    def taken(self) -> float:
        """The share of the time passed that was spent."""
        passed = self._clock() - self._started
        return self.spent / passed if passed > 0 else 0.0


class MeasuringCallback(TrainerCallback):  # type: ignore[misc]
    """Calls a measuring function before training and then as often as its share of the training time allows.

    Values go into the trainer's `log_history`; set `log = trainer.log` to send them to all its loggers. An alarm is a
    `DriftWarning`, once for each text, and stops the training if asked to. Only the first process measures.

    Args:
        measure: is given the training step.
        share: largest share of the training time that measuring takes, the measurement before training included; that
            one is always made, so the share holds from `cost / share` seconds of training on.
        every: measure at every so many steps instead, whatever it costs.
        stop: end the training at an alarm.
        clock: gives seconds.
    """

    def __init__(
        self,
        measure: Callable[[int], Measured],
        *,
        share: float = LARGEST_SHARE,
        every: int | None = None,
        stop: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if every is not None and every < 1:
            raise InputError(f"every is a number of training steps of at least 1; got {every}.")
        self._measure, self._every, self._stop = measure, every, stop
        self._warned: set[str] = set()
        self.account = TimeShare(share, clock)
        self.log: Callable[[dict[str, float]], None] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_more: Any) -> None:  # noqa: ARG002
        """The measurement that later ones are compared with."""
        self.account.restart()
        self._run(state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_more: Any) -> None:  # noqa: ARG002
        """Measure if it is time."""
        if self.account.due() if self._every is None else state.global_step % self._every == 0:
            self._run(state, control)

    def _run(self, state: Any, control: Any) -> None:
        if not state.is_world_process_zero:
            return
        step = int(state.global_step)
        measured = self.account.charge(lambda: self._measure(step))
        values = {**measured.values, "drift/time_share": self.account.taken}
        if self.log is not None:
            self.log(values)
        else:
            state.log_history.append({**values, "epoch": state.epoch, "step": step})
        if measured.alarm is None:
            return
        if measured.alarm not in self._warned:
            self._warned.add(measured.alarm)
            warnings.warn(f"step {step}: {measured.alarm}", DriftWarning, stacklevel=2)
        if self._stop:
            control.should_training_stop = True
