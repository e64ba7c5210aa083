"""What a person sees: progress, tables and errors on stderr; results on stdout."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from demur.cli._log import RunLog, command_line
from demur.cli._progress import ConsoleProgress, StderrConsole
from demur.records import Inspection, JudgeQuality, Summary
from demur.reports import summary_table, write_pages
from demur.types import Verdict

WORDS: ContextVar[tuple[str, ...]] = ContextVar("words", default=())
"""The command line that is being run, for its log."""
_DECISION_STYLES = {"pass": "bold green", "fail": "bold red", "inconclusive": "bold yellow"}


class Out:
    """Where a command writes: people read stderr and the tables, programs read one JSON document on stdout."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.errors = StderrConsole()
        self.results = Console(stderr=as_json)
        self.log = RunLog()
        self._progress: ConsoleProgress | None = None

    def json(self, value: Any) -> None:
        """The one JSON document of this command."""
        if self.as_json:
            sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def say(self, text: str) -> None:
        """A line for people."""
        self.results.print(text, highlight=False, markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """A line for people about what is going on."""
        if self._progress is not None:
            self._progress.tell(text)
            return
        self.errors.print(text, highlight=False, markup=False, soft_wrap=True)
        self.log.write(text)

    @contextmanager
    def progress(self, folder: Path | None = None, *, log: Path | None = None) -> Iterator[ConsoleProgress]:
        """A progress display on stderr while the context is open, and in the log of the command's folder.

        Args:
            folder: gets `log.txt`, where the command has a folder and this is the process that writes it.
            log: the log's file, where the command has no folder.
        """
        if log is not None:
            self.log.attach_file(log)
        else:
            self.log_into(folder)
        self.log.write(f"demur {version('demur')}: {command_line(WORDS.get())}")
        with self._running() as progress:
            yield progress

    def log_into(self, folder: Path | None) -> None:
        """Keep the log in this folder, if this is the process that writes it."""
        if os.environ.get("RANK", "0") == "0":
            self.log.attach(folder)

    @contextmanager
    def working(self, text: str, *, quiet: bool = False) -> Iterator[None]:
        """Something that takes a while, while the context is open; inside `progress` or not."""
        with self._running() as progress, progress.working(text, quiet=quiet):
            yield

    @contextmanager
    def _running(self) -> Iterator[ConsoleProgress]:
        if self._progress is not None:
            yield self._progress
            return
        with ConsoleProgress(self.errors, self.log).running() as progress:
            self._progress = progress
            try:
                yield progress
            finally:
                self._progress = None

    def pages(self, folder: Path, *, only: str | None = None, word: str = "report") -> None:
        """Write the pages of a folder's records, and say where they are; `only` says one of them."""
        with self.working("writing the report", quiet=True):
            pages = write_pages(folder)
        for html in (html for html, _ in pages if only in (None, html.stem)):
            self.say(f"{word}: {html}")

    def decided(self, decision: str, reasons: Sequence[str] = (), warnings: Sequence[str] = ()) -> None:
        """Keep in the log how it came out."""
        for warning in warnings:
            self.log.write(f"warning: {warning}")
        self.log.write(f"decision: {decision}")
        for reason in reasons:
            self.log.write(f"  - {reason}")

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
        gate = summary.gate
        self.decided("none" if gate is None else gate.decision, () if gate is None else gate.reasons, summary.warnings)
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
            f"by {same.logit_change:.2g}); {same.same_tokens} of {same.tokens} next tokens are the same"
        )
    if template is not None:
        tokens = " ".join(f"{one.position}:{one.text!r}" for one in template.positions)
        yield f"post-instruction tokens: {tokens}"
        system = "takes a system message" if template.system_role else "takes no system message"
        thinking = "; the prompt ends inside a thinking block" if template.opens_thinking else ""
        yield f"template: {template.bos_tokens} BOS, {system}{thinking}"
