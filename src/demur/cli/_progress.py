"""Progress on stderr and in a log file that is never silent for long, whatever blocks the command."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from demur.cli._log import RunLog
from demur.cli._stage import Stage, duration, per_second
from demur.errors import DemurError, PromptError

BEAT = 8.0
"""Seconds without a line after which one is printed: ten, less what a busy machine may add."""
LOG_BEAT = 20.0
"""The same for the log file, where thirty are promised."""


class _StandColumn(ProgressColumn):
    """Done of how many, rate and time left of the current stage: the words of the plain lines, beside a bar."""

    max_refresh = 0.5

    def __init__(self, stage: Callable[[], tuple[Stage | None, float]]) -> None:
        super().__init__()
        self._stage = stage

    def render(self, task: Task) -> Text:  # noqa: ARG002 (rich draws one task, and there is one stage)
        """The numbers, as far as there are any."""
        stage, now = self._stage()
        if stage is None or stage.total is None:
            return Text("")
        rate, left = stage.rate(now), stage.left(now)
        parts = [f"{stage.steps} of {stage.total}"]
        parts += [] if rate is None else [per_second(rate)]
        parts += [] if left is None else [f"about {duration(left)} left"]
        return Text(", ".join(parts))


class StderrConsole(Console):
    """Standard error; where its reader is gone, the work goes on."""

    def __init__(self) -> None:
        super().__init__(stderr=True)

    def on_broken_pipe(self) -> None:
        """Nothing: rich would end the process, and close its standard output, where the result is to go."""


class ConsoleProgress:
    """Says what is being done, done of how many, rate and time left. May be told of it by several threads.

    In a terminal it draws a bar. Elsewhere it prints a line where a stage ends and one where nothing was printed for a
    while, also when nothing has advanced, which a thread of its own sees to. The log file gets such lines either way.

    Args:
        console: where to print.
        log: gets starts, ends and lines between.
        beat: seconds without a printed line after which there is one.
        log_beat: the same for the log.
        clock: seconds that only go up.
    """

    def __init__(
        self,
        console: Console,
        log: RunLog | None = None,
        *,
        beat: float = BEAT,
        log_beat: float = LOG_BEAT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self.log = RunLog() if log is None else log
        self._beat, self._log_beat, self._clock = beat, log_beat, clock
        self._live = console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            _StandColumn(lambda: (self._stage, self._clock())),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            redirect_stdout=False,  # results go where stdout goes
        )
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._task: TaskID | None = None
        self._stage: Stage | None = None
        self._around: list[Stage] = []
        self._printed = self._logged = self._idle = clock()
        self._shown = False
        self._problem: str | None = None
        self._log_told: Path | None = None

    @contextmanager
    def running(self) -> Iterator["ConsoleProgress"]:
        """Show progress while the context is open."""
        self._printed = self._logged = self._idle = self._clock()
        heart = threading.Thread(target=self._beating, name="demur progress", daemon=True)
        heart.start()
        if self._live:
            self._bars.start()
        try:
            yield self
        except BaseException as error:
            self._end(_why(error), sure=False)
            raise
        else:
            self._end(None, sure=True)
        finally:
            self._stop.set()
            heart.join()
            if self._live:
                self._bars.stop()

    def start(self, task: str, total: int) -> None:
        """A new stage; the one before it is done and gets its line."""
        with self._lock:
            self._begin(Stage(task, total, self._clock()))
            if not self._around:  # what counts steps is the library, which has claimed its folder
                self.log.open_started()
                self._tell_log()

    def advance(self, steps: int = 1) -> None:
        """Move the current stage on."""
        with self._lock:
            if self._stage is None:
                return
            self._stage.advance(steps, self._clock())
            if self._live and self._task is not None:
                self._bars.advance(self._task, steps)

    def note(self, text: str) -> None:
        """Put a few words beside the stage, and in the end on its line."""
        with self._lock:
            if self._stage is None:
                return
            self._stage.note = text
            if self._live and self._task is not None:
                name = self._stage.name
                self._bars.update(self._task, description=escape(f"{name} ({text})" if text else name))

    @contextmanager
    def working(self, text: str, *, quiet: bool = False) -> Iterator["ConsoleProgress"]:
        """A stage that nobody counts, such as loading a model, while the context is open.

        What is called in it may count stages of its own; then the whole gets its line at the end as well.

        Args:
            text: what is being done.
            quiet: print nothing where it is over at once.
        """
        with self._lock:
            whole = Stage(text, None, self._clock(), quiet=quiet)
            if not quiet and not self._live:
                self._print(text)
            self._begin(whole)
            self._around.append(whole)
        try:
            yield self
        finally:
            with self._lock:
                self._around.remove(whole)
                alone = self._stage is whole
                self._finish()
                if not alone:
                    self._tell_end(whole)

    def tell(self, text: str) -> None:
        """Print a line for people, and keep it in the log."""
        with self._lock:
            self._print(text, indent="")
            self._write(text)

    def _begin(self, stage: Stage) -> None:
        self._finish()
        self._stage, self._shown = stage, False
        if self._live:
            self._task = self._bars.add_task(escape(stage.name), total=stage.total)
        count = "" if stage.total is None else f" ({stage.total})"
        self._write(f"begins: {stage.name}{count}")

    def _finish(self) -> None:
        stage, self._stage, self._idle = self._stage, None, self._clock()
        if stage is None:
            return
        if self._live and self._task is not None:
            self._bars.remove_task(self._task)
        if stage not in self._around:  # else it goes on around what begins now
            self._tell_end(stage)

    def _tell_end(self, stage: Stage) -> None:
        text = stage.end(self._clock())
        if self._shown or not stage.quiet:
            self._print(text)
        self._write(f"ended: {text}")

    def _end(self, why: str | None, *, sure: bool) -> None:
        with self._lock:
            self._finish()
            if sure:
                self.log.open()
                self._tell_log()
            if why is not None:
                self._write(why)

    def _tell_log(self) -> None:
        """Say once where the log is, as soon as it is being written."""
        path = self.log.written_to
        if path is not None and path != self._log_told:
            self._log_told = path
            self._print(f"log: {path}")

    def _print(self, text: str, indent: str = "  ") -> None:
        self._printed, self._shown = self._clock(), True
        with suppress(OSError, ValueError):  # whoever read along is gone; the work goes on
            self._console.print(f"{indent}{text}", highlight=False, markup=False, soft_wrap=True)

    def _write(self, text: str) -> None:
        self._logged = self._clock()
        self.log.write(text)
        if self.log.problem != self._problem:
            self._problem = self.log.problem
            self._print(f"note: {self._problem}", indent="")

    def _beating(self) -> None:
        while not self._stop.wait(self._next()):
            with self._lock:
                self._speak()

    def _next(self) -> float:
        """Seconds until there may be something to say."""
        with self._lock:
            due = min(self._logged + self._log_beat, self._line_due())
            # Not for long, as a stage may end meanwhile, and what is due with it.
            return min(max(0.02, due - self._clock()), self._beat / 4)

    def _line_due(self) -> float:
        """When a line is to be printed: in a terminal only where no bar is moving."""
        if not self._live:
            return self._printed + self._beat
        return math.inf if self._stage is not None else max(self._printed, self._idle) + self._beat

    def _speak(self) -> None:
        now = self._clock()
        if now >= self._line_due():
            self._print(self._line(now))
        if now - self._logged >= self._log_beat:
            self.log.open_new()  # also while loading: after so long somebody wants to see where it is
            self._write(self._line(now))

    def _line(self, now: float) -> str:
        if self._stage is None:
            return f"at work for {duration(now - self._idle)} since the last stage"
        return self._stage.line(now, self._beat)


def _why(error: BaseException) -> str:
    """What ended a command. The text of what is no error of ours may hold anything, so its kind must do."""
    if isinstance(error, DemurError) and not isinstance(error, PromptError):
        return f"stopped: {type(error).__name__}: {error}"
    return f"stopped: {type(error).__name__}"
