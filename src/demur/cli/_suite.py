"""`demur test`: a targeted suite against a model, as a test runner would."""

# ruff: noqa: PLC0415, FBT002
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from demur.cli._console import Out
from demur.cli._options import (
    EXIT_CODES,
    Device,
    Dtype,
    Json,
    JudgeCache,
    JudgeSettings,
    JudgeSpec,
    RemoteCode,
    ResponsePrefix,
    Revision,
    Rubric,
    Source,
    System,
    TemplateOptions,
    app,
    load_judge,
    load_model,
)
from demur.errors import InputError
from demur.records import Severity, SuiteCaseResult, SuiteRecord, write_text
from demur.reports import suite_junit, suite_lines, suite_summary

if TYPE_CHECKING:
    from demur.assurance import Suite, SuiteCase

_STYLES = {"passed": "green", "failed": "bold red", "error": "bold red", "inconclusive": "bold yellow"}


@app.command("test")
def test(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id or local folder.")],
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="YAML file, or demur:refusal, which ships with demur.")],
    run: Annotated[
        Path | None, typer.Option("--run", help="Calibration that gives r and w'; without one r is found from prompts.")
    ] = None,
    harmful: Annotated[
        str | None, typer.Option(metavar="SRC", help=f"Prompts from which r is found, instead of the suite's. {Source}")
    ] = None,
    harmless: Annotated[str | None, typer.Option(metavar="SRC", help="The same of plainly fine prompts.")] = None,
    keyword: Annotated[
        str | None, typer.Option("-k", metavar="FILTER", help="Cases by name: a part, a pattern with *, `a or not b`.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Cases with this tag; may be given several times.")] = None,
    severity: Annotated[
        list[str] | None, typer.Option(metavar="blocker|major|minor", help="May be given several times.")
    ] = None,
    repeat: Annotated[
        int | None, typer.Option(metavar="N", help="N samples at temperature 1 of every case; 1 is greedy.")
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="Show the cases; load no model.")] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop after the first case that fails.")] = False,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JUnit XML.")] = None,
    to: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write suite.json and its page; a killed run goes on.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Answers generated together.")] = 64,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    system: System = None,
    template_option: TemplateOptions = None,
    response_prefix: ResponsePrefix = "",
    trust_remote_code: RemoteCode = False,
    judge: JudgeSpec = "phrase",
    rubric: Rubric = "strict",
    judge_option: JudgeSettings = None,
    judge_cache: JudgeCache = None,
    as_json: Json = False,
) -> int:
    """Run the cases of a suite: prompts, a condition (r ablated, a suffix, int8, ...), what is expected under it."""
    out = Out(as_json=as_json)
    with out.progress(None if listing else to) as progress:
        with progress.working("reading the suite and its prompts", quiet=True):
            from demur.assurance import load_suite, run_suite, select_cases, suite_prompts

            loaded = load_suite(suite)
            cases = select_cases(loaded, keyword=keyword, tags=tag or (), severities=_severities(severity))
            prompts = suite_prompts(loaded, cases)  # what is wrong with a source is told before a model is loaded
        if listing:
            return _list(out, loaded, cases, {name: len(some) for name, some in prompts.items()})
        with progress.working("loading the judge", quiet=True):
            verdicts = load_judge(judge, rubric, judge_option, judge_cache)
        results: list[SuiteCaseResult] = []
        # Lines among the moving bars of a terminal would be drawn over, so there they come at the end.
        waits = out.errors.is_terminal
        chat = load_model(
            model, revision, dtype, device, system, template_option, response_prefix, trust_remote_code, progress
        )
        record = run_suite(
            chat,
            loaded,
            cases=cases,
            run=run,
            harmful=harmful,
            harmless=harmless,
            judge=verdicts,
            repeat=repeat,
            fail_fast=fail_fast,
            batch_size=batch_size,
            out=to,
            progress=progress,
            tell=results.append if waits else lambda result: _tell(out, result),
        )
    for result in results:
        _tell(out, result)
    return _finish(out, record, to, junit)


def _severities(given: list[str] | None) -> tuple[str, ...]:
    known = get_args(Severity)
    for each in given or ():
        if each not in known:
            raise InputError(f"--severity takes {', '.join(known)}; got {each!r}.")
    return tuple(given or ())


def _list(out: Out, suite: "Suite", cases: "tuple[SuiteCase, ...]", sizes: dict[str, int]) -> int:
    rows = [
        {
            "name": case.name,
            "severity": case.severity,
            "owner": case.owner,
            "tags": list(case.tags),
            "n_prompts": sizes[case.name],
            "description": case.description,
        }
        for case in cases
    ]
    for row in rows:
        what = f": {row['description']}" if row["description"] else ""
        out.say(f"{row['name']} [{row['severity']}, {row['n_prompts']} prompts]{what}")
    out.say(f"{len(cases)} of {len(suite.cases)} cases")
    out.json({"suite": suite.name, "cases": rows})
    return 0


def _tell(out: Out, result: SuiteCaseResult) -> None:
    first, *rest = suite_lines(result)
    out.results.print(f"{result.outcome.upper():<12} ", style=_STYLES.get(result.outcome), end="")
    out.say(first)
    for line in rest:
        out.say(f"{'':<13}{line}")


def _finish(out: Out, record: SuiteRecord, folder: Path | None, junit: Path | None) -> int:
    out.say(suite_summary(record))
    if junit is not None:
        write_text(junit, suite_junit(record))
    out.decided(record.decision, [suite_summary(record)])
    if folder is not None:
        out.pages(folder, only="suite")
    out.json(record.model_dump(mode="json", by_alias=True))
    return EXIT_CODES[record.decision]
