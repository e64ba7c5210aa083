"""Targeted suites: cases of prompts, condition and expectation, run like tests against one model."""

from collections.abc import Callable, Sequence
from pathlib import Path

from demur.assurance._suite_cases import SuiteCase
from demur.assurance._suite_load import Suite, load_suite
from demur.assurance._suite_session import BATCH_SIZE, SuiteSession
from demur.calibration import provenance
from demur.evaluation import Judge, PhraseJudge
from demur.models import ChatModel
from demur.records import JudgeIdentity, SuiteCaseResult, SuiteRecord, write_record
from demur.types import Decision, Progress, SilentProgress

SUITE_RECORD = "suite.json"


def run_suite(
    chat: ChatModel,
    suite: Suite | Path | str,
    *,
    cases: Sequence[SuiteCase] | None = None,
    run: Path | str | None = None,
    harmful: str | None = None,
    harmless: str | None = None,
    judge: Judge | None = None,
    repeat: int | None = None,
    fail_fast: bool = False,
    batch_size: int = BATCH_SIZE,
    out: Path | str | None = None,
    progress: Progress | None = None,
    tell: Callable[[SuiteCaseResult], None] | None = None,
) -> SuiteRecord:
    """Run the cases of a suite; changes are made in memory, no text of an answer is kept.

    Args:
        chat: the model.
        suite: a suite, its file, or `demur:NAME`.
        cases: those to run, as of `select_cases`; all by default.
        run: folder of a calibration that gives the directions.
        harmful: source of prompts from which r is found without `run`, in the place of the suite's.
        harmless: the same of harmless ones.
        judge: gives the verdicts; the phrase judge by default.
        repeat: samples of every case, in the place of its own number.
        fail_fast: stop after the first case that fails or cannot be run.
        batch_size: answers generated together.
        out: folder for `suite.json` and for judgements, from which a killed run goes on.
        progress: is told what is being done.
        tell: is given every result as soon as it is there.

    Raises:
        InputError: the suite or a source of prompts cannot be used, or directions are needed and not given.
        JudgeError: the judge cannot be reached.
    """
    loaded = suite if isinstance(suite, Suite) else load_suite(suite)
    folder = None if out is None else Path(out)
    session = SuiteSession(
        chat,
        loaded,
        cases,
        run=run,
        harmful=harmful,
        harmless=harmless,
        judge=judge or PhraseJudge(),
        repeat=repeat,
        batch_size=batch_size,
        out=folder,
        progress=progress or SilentProgress(),
    )
    results: list[SuiteCaseResult] = []
    for case in session.selected:
        results.append(session.result(case))
        if tell is not None:
            tell(results[-1])
        if fail_fast and results[-1].outcome in ("failed", "error"):
            break
    record = _record(session, results)
    if folder is not None:
        write_record(folder / SUITE_RECORD, record)
    return record


def _record(session: SuiteSession, results: Sequence[SuiteCaseResult]) -> SuiteRecord:
    directions = session.directions
    return SuiteRecord(
        suite=session.suite.name,
        description=session.suite.content.description,
        source=Path(session.suite.source).name,
        suite_sha256=session.suite.sha256,
        model=session.chat.identity,
        judge=JudgeIdentity(id=session.judge.id, version=session.judge.version),
        directions=None if directions is None else directions.source,
        n_cases=len(session.suite.cases),
        cases=tuple(results),
        stopped=len(results) < len(session.selected),
        decision=_decision(results),
        cost=session.cost(),
        provenance=provenance(session.chat, seed=0),
    )


def _decision(results: Sequence[SuiteCaseResult]) -> Decision:
    outcomes = {result.outcome for result in results}
    if outcomes & {"failed", "error"}:
        return "fail"
    return "pass" if "passed" in outcomes and "inconclusive" not in outcomes else "inconclusive"
