"""A run folder: which files it holds, to which inputs it belongs, and who may write it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from demur.errors import RunFolderError
from demur.records._run import RunRecord
from demur.records._store import JsonLines, read_record, write_record
from demur.records._summary import Summary

LOG_FILE = "log.txt"
"""What the command line keeps beside the records of a run: when it did what."""


def other_files(folder: Path) -> list[str]:
    """What a folder holds beside the log of a command; hidden files do not count. A new folder holds nothing."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".") and path.name != LOG_FILE)


class RunFolder:
    """The files of one run. `summary.json` is written last: a folder that holds it is complete."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.run = self.path / "run.json"
        self.summary = self.path / "summary.json"
        self.candidates = self.path / "candidates.json"
        self.projections = self.path / "projections.json"
        self.mechanism = self.path / "mechanism.json"
        self.corrected = self.path / "corrected.json"
        self.batch_size = self.path / "batch_size.json"
        self.refusal_threshold = self.path / "refusal_threshold.json"
        self.directions = self.path / "directions.safetensors"
        self.edits = self.path / "edits.safetensors"
        self.completions = JsonLines(self.path / "completions.jsonl")
        self.scores = JsonLines(self.path / "scores.jsonl")
        self.score_pieces = JsonLines(self.path / "score_pieces.jsonl")

    @contextmanager
    def writing(self, record: RunRecord) -> Iterator[None]:
        """Claim the folder for the run that `record` describes; a killed run's folder is continued.

        Raises:
            RunFolderError: the folder belongs to another run, is being written by another process, or is unwritable.
        """
        self._claim_path()
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            others = self.run.exists() and read_record(self.run, RunRecord).fingerprint != record.fingerprint
            raise RunFolderError(
                f"another process is writing {self.path}. Wait for it, or give another folder with --out.",
                taken=others,
            ) from error
        try:
            self._check_owner(record)
            yield
        finally:
            lock.release()

    def _claim_path(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / ".lock").touch()
        except OSError as error:
            raise RunFolderError(
                f"cannot write into {self.path}: {error.strerror or error}. Give a folder that you may write, for "
                "example --out ./run."
            ) from error

    def _check_owner(self, record: RunRecord) -> None:
        if not self.run.exists():
            others = other_files(self.path)
            if others:
                raise RunFolderError(
                    f"{self.path} is not empty and is no run folder (it holds {', '.join(others[:3])}). Give an "
                    "empty or new folder with --out.",
                    taken=True,
                )
            write_record(self.run, record)
            return
        owner = read_record(self.run, RunRecord)
        if owner.fingerprint != record.fingerprint:
            raise RunFolderError(
                f"{self.path} belongs to another run: {_difference(owner, record)}. Give another folder with --out, or "
                "delete this one.",
                taken=True,
            )

    def read_summary(self) -> Summary:
        """The result of the run.

        Raises:
            RunFolderError: there is none, or it cannot be read.
        """
        if not self.summary.exists():
            if self.run.exists():
                raise RunFolderError(
                    f"{self.path} holds an unfinished run. Give its command again; it continues from what is there."
                )
            raise RunFolderError(
                f"{self.path} is no run folder (no summary.json). Make one with: demur calibrate MODEL ... --out "
                f"{self.path}"
            )
        return read_record(self.summary, Summary)


def _difference(owner: RunRecord, record: RunRecord) -> str:
    """In words: what the two runs do not share."""
    if owner.kind != record.kind:
        return f"it holds a run of the kind {owner.kind}, not {record.kind}"
    if owner.model_hash != record.model_hash:
        return (
            f"its model is {owner.model_id} ({owner.model_hash[:12]}), not {record.model_id} ({record.model_hash[:12]})"
        )
    for label, value in record.prompt_hashes.items():
        if owner.prompt_hashes.get(label) != value:
            return f"its {label} prompts are others"
    if owner.judge != record.judge:
        return f"its judge is {owner.judge}, not {record.judge}"
    for name, value in record.settings.items():
        if owner.settings.get(name) != value:
            return f"its setting {name} is {owner.settings.get(name)!r}, not {value!r}"
    return "its inputs are others"
