"""The records of one run folder, read and checked. Knows nothing about documents."""

from dataclasses import dataclass
from pathlib import Path

from demur.records import Candidates, CompletionRecord, CorrectedRun, ProjectionRecord, RunFolder, Summary, read_record


@dataclass(frozen=True)
class RunRecords:
    """What a report is made from; everything but the summary may be absent."""

    summary: Summary
    candidates: Candidates | None = None
    projections: ProjectionRecord | None = None
    completions: tuple[CompletionRecord, ...] = ()
    corrected: CorrectedRun | None = None


def read_run(run_folder: Path) -> RunRecords:
    """Read the records of a run folder.

    Raises:
        RunFolderError: there is no summary, or a record is broken or of another version.
    """
    folder = RunFolder(run_folder)
    return RunRecords(
        summary=folder.read_summary(),
        candidates=read_record(folder.candidates, Candidates) if folder.candidates.is_file() else None,
        projections=read_record(folder.projections, ProjectionRecord) if folder.projections.is_file() else None,
        corrected=read_record(folder.corrected, CorrectedRun) if folder.corrected.is_file() else None,
        completions=tuple(folder.completions.read(CompletionRecord)),
    )
