"""What a person sees: progress, tables and errors on stderr; results on stdout."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Task as RichTask
from rich.table import Table
from rich.text import Text

from demur.records import Inspection, JudgeQuality, Summary
from demur.reports import summary_table
from demur.types import Verdict

_DECISION_STYLES = {"pass": "bold green", "fail": "bold red", "inconclusive": "bold yellow"}


class _RateColumn(TextColumn):
    """Steps per second."""

    def render(self, task: RichTask) -> Text:
        """The rate, once there is one."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


class ConsoleProgress:
    """Draws one bar per task with rate and time left; a plain line per task where stderr is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(""),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._name = ""
        self._note = ""
        self._started = 0.0
        self._steps = 0

    @contextmanager
    def running(self) -> Iterator["ConsoleProgress"]:
        """Show bars while the context is open."""
        if self._live:
            self._bars.start()
        try:
            yield self
        finally:
            self._finish()
            if self._live:
                self._bars.stop()

    def start(self, task: str, total: int) -> None:
        """A new task; the one before it is done and gets its line."""
        self._finish()
        self._name, self._note, self._started, self._steps = task, "", time.monotonic(), 0
        if self._live:
            self._task = self._bars.add_task(escape(task), total=total)

    def advance(self, steps: int = 1) -> None:
        """Move the current bar."""
        self._steps += steps
        if self._live and self._task is not None:
            self._bars.advance(self._task, steps)

    def note(self, text: str) -> None:
        """Put a few words beside the bar, and in the end on the task's line."""
        self._note = text
        if self._live and self._task is not None:
            self._bars.update(self._task, description=escape(f"{self._name} ({text})" if text else self._name))

    def _finish(self) -> None:
        if not self._name:
            return
        seconds = time.monotonic() - self._started
        if self._live and self._task is not None:
            self._bars.remove_task(self._task)
        note = f" ({escape(self._note)})" if self._note else ""
        self._console.print(f"  {escape(self._name)}: {self._steps} in {seconds:.1f} s{note}", highlight=False)
        self._name = ""


class Out:
    """Where a command writes: people read stderr and the tables, programs read one JSON document on stdout."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.errors = Console(stderr=True)
        self.results = Console(stderr=as_json)

    def json(self, value: Any) -> None:
        """The one JSON document of this command."""
        if self.as_json:
            sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def say(self, text: str) -> None:
        """A line for people."""
        self.results.print(text, highlight=False, markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """A line for people about what is going on."""
        self.errors.print(text, highlight=False, markup=False, soft_wrap=True)

    def progress(self) -> ConsoleProgress:
        """A progress display on stderr."""
        return ConsoleProgress(self.errors)

    def judge_quality(self, quality: JudgeQuality) -> None:
        """Confusion matrix, and agreement in all and per model."""
        verdicts: tuple[Verdict, ...] = ("full_refusal", "partial_refusal", "full_compliance", "unjudged")
        matrix = Table(show_edge=False, pad_edge=False)
        for heading in ("people say, judge says", *verdicts):
            matrix.add_column(heading.replace("_", " "))
        for label, row in quality.confusion.items():
            matrix.add_row(label.replace("_", " "), *(str(row.get(verdict, 0)) for verdict in verdicts))
        self.results.print(matrix)
        table = Table(show_edge=False, pad_edge=False)
        headings = ("answers of", "n", "unjudged", "kappa any refusal", "kappa three-way", "refused: people", "judge")
        for heading in headings:
            table.add_column(heading)
        for name, one in (("all", quality), *quality.per_model.items()):
            table.add_row(
                escape(name),
                str(one.n),
                str(one.unjudged),
                _with_interval(one.kappa_any_refusal, one.kappa_any_refusal_interval),
                _with_interval(one.kappa_three_way, one.kappa_three_way_interval),
                f"{one.refused_by_human:.1%}",
                "-" if one.refused_by_judge is None else f"{one.refused_by_judge:.1%}",
            )
        self.results.print(table)

    def inspection(self, inspection: Inspection) -> None:
        """Writers, proof, template and verdict of one model."""
        self.say(f"{inspection.model}: {inspection.architecture} {inspection.dtype}")
        if inspection.writers:
            self.results.print(_writer_table(inspection))
        for line in _inspection_lines(inspection):
            self.say(line)
        self.say(f"verdict: {inspection.verdict.replace('_', ' ')}: {inspection.reason}")

    def summary(self, summary: Summary) -> None:
        """The before/after table and the gate."""
        table = Table(title=None, show_edge=False, pad_edge=False)
        for heading in ("on test prompts", "before", "after", "paired difference"):
            table.add_column(heading, overflow="fold")
        for row in summary_table(summary):
            cells: Sequence[Any] = (row.before, row.after, row.difference)
            table.add_row(escape(row.measure), *("-" if cell is None else escape(str(cell)) for cell in cells))
        self.results.print(table)
        if summary.gate is not None:
            decision = summary.gate.decision
            self.results.print(f"gate: [{_DECISION_STYLES[decision]}]{decision}[/]")
            if decision != "pass":
                for reason in summary.gate.reasons:
                    self.say(f"  - {reason}")


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None or interval is None:
        return "-"
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def _writer_table(inspection: Inspection) -> Table:
    """One row per kind of writer: blocks that have the same one are put together."""
    table = Table(show_edge=False, pad_edge=False)
    for heading in ("writer", "kind", "blocks", "shape", "axis", ""):
        table.add_column(heading, overflow="fold")
    rows: dict[tuple[str, ...], list[int]] = {}
    for writer in inspection.writers:
        prefix = "" if writer.block is None else inspection.blocks[writer.block] + "."
        name = writer.parameter.removeprefix(prefix)
        shape = " x ".join(str(size) for size in writer.shape)
        note = "norm after the write" if writer.norm_after else ""
        blocks = rows.setdefault((name, writer.kind, shape, str(writer.axis), note), [])
        if writer.block is not None:
            blocks.append(writer.block)
    for (name, kind, shape, axis, note), blocks in rows.items():
        table.add_row(escape(name), kind, _ranges(blocks), shape, axis, note)
    return table


def _ranges(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 as `0-2, 5`."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts) or "-"


def _inspection_lines(inspection: Inspection) -> Iterator[str]:
    probe, same, template = inspection.probe, inspection.equivalence, inspection.template
    if probe is not None:
        yield (
            f"probe: {probe.residual:.1e} of a random direction left at any block boundary ({probe.baseline:.2g} "
            f"before; tolerance {probe.tolerance:.0e}, {probe.stream_dtype}); silenced, the stream moves "
            f"{probe.silent_difference:.1e}"
        )
        yield (
            f"capture sites: {probe.capture_difference:.1e} off the stream; embedding plus writes adds up to "
            f"{probe.decomposition_error:.1e}"
        )
    if same is not None:
        yield (
            f"runtime against folded weights: logits differ by {same.logit_difference:.1e} (the ablation changes them "
            f"by {same.logit_change:.2g}); {same.same_tokens} of {same.tokens} greedy tokens are the same"
        )
    if template is not None:
        tokens = " ".join(f"{one.position}:{one.text!r}" for one in template.positions)
        yield f"post-instruction tokens: {tokens}"
        system = "takes a system message" if template.system_role else "takes no system message"
        thinking = "; the prompt ends inside a thinking block" if template.opens_thinking else ""
        yield f"template: {template.bos_tokens} BOS, {system}{thinking}"
