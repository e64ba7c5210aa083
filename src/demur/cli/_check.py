"""`demur check`: the release gate."""

# ruff: noqa: PLC0415, FBT002
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from demur.cli._console import Out
from demur.cli._options import Json, app
from demur.errors import RunFolderError
from demur.records import CheckRecord, write_record, write_text
from demur.reports import check_annotations, check_junit, check_summary, write_pages

_STYLES = {"pass": "green", "fail": "bold red", "inconclusive": "yellow", "error": "bold red", "skipped": "dim"}
_WIDTH = max(map(len, _STYLES))


class ModelSide(StrEnum):
    """Which model of a run is judged."""

    before = "before"
    after = "after"


@app.command()
def check(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of demur calibrate or demur evaluate.")],
    policy: Annotated[Path, typer.Option("--policy", metavar="FILE", help="TOML policy; see docs/release-gate.md.")],
    baseline: Annotated[
        Path | None, typer.Option("--baseline", metavar="FILE", help="Committed verdicts to compare with.")
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option("--write-baseline", metavar="FILE", help="Write this run's verdicts, if the check is passed."),
    ] = None,
    side: Annotated[
        ModelSide | None,
        typer.Option("--side", help="Base or calibrated model; by default the calibrated one where there is one."),
    ] = None,
    evidence: Annotated[
        list[Path] | None, typer.Option("--evidence", metavar="DIR", help="More folders with records to look at.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder for check.json, check.html and check.md.")
    ] = None,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="JUnit XML, one case per rule.")] = None,
    summary: Annotated[
        Path | None, typer.Option("--summary", metavar="FILE", help="Markdown; added to the end of the file.")
    ] = None,
    github: Annotated[
        bool | None,
        typer.Option("--github/--no-github", help="GitHub annotations and step summary; by default where GitHub runs."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Decide by a policy whether the model of a finished run may be released. Loads no model."""
    from demur.assurance import check as run_check
    from demur.assurance import write_baseline

    out = Out(as_json=as_json)
    checked = run_check(
        run,
        policy=policy,
        baseline=baseline,
        side=None if side is None else side.value,
        evidence=evidence or (),
        bootstrap=write is not None,
    )
    record = checked.record
    _show(out, record)
    if to is not None:
        write_record(to / "check.json", record)
        for html, _ in write_pages(to):
            out.say(f"report: {html}")
    if junit is not None:
        write_text(junit, check_junit(record))
    on_github = os.environ.get("GITHUB_ACTIONS") == "true" if github is None else github
    step_file = os.environ.get("GITHUB_STEP_SUMMARY") if on_github else None
    for path in (summary, step_file):
        if path:
            _append(Path(path), check_summary(record))
    if on_github:
        for line in check_annotations(record):
            typer.echo(line, err=as_json)
    if write is not None and record.exit_code == 0:
        write_baseline(write, checked.baseline)
        out.say(f"baseline: {write}")
    elif write is not None:
        out.note(f"{write} was not written: only a run that passes becomes a baseline.")
    out.json(record.model_dump(mode="json", by_alias=True))
    return record.exit_code


def _show(out: Out, record: CheckRecord) -> None:
    for rule in record.rules:
        word = "waived" if rule.waived else rule.decision
        style = "yellow" if rule.waived else _STYLES[rule.decision]
        line = f"[{style}]{word.ljust(_WIDTH)}[/] {escape(rule.name)}: {escape(rule.reason)}"
        out.results.print(line, highlight=False, soft_wrap=True, emoji=False)
    for use in record.waivers:
        out.say(f"waiver of {use.rule} by {use.owner}, until {use.expires}: {use.state.replace('_', ' ')}")
    for note in record.notes:
        out.say(note)
    out.say(f"{record.decision}: {record.verdict}")


def _append(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}. Give another file.") from error
