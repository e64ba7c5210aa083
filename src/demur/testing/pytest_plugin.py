"""Suites under pytest: every case of a `*.suite.yaml` or `test_*.demur.yaml` file is a test.

    pytest --demur-model=MODEL [--demur-run=RUN] tests/

Loaded by every pytest run where demur is installed, so it imports nothing heavy until a suite is run, and looks only at
files that say `schema: demur.suite/...`.
"""

# ruff: noqa: PLC0415
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from demur.assurance import Suite, SuiteCase, SuiteSession
    from demur.models import ChatModel
    from demur.records import SuiteCaseResult

_FILES = ("*.suite.yaml", "*.suite.yml", "test_*.demur.yaml", "test_*.demur.yml")
_MARK = "demur.suite/"
_CHAT = pytest.StashKey["ChatModel"]()
_NO_MODEL = "needs a model: give --demur-model with a hub id or a folder"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of this plugin."""
    group = parser.getgroup("demur")
    group.addoption("--demur-model", metavar="MODEL", help="Hub id or folder of the chat model that suites are run on.")
    group.addoption("--demur-run", metavar="RUN", help="Folder of a calibration, which gives suites r and w'.")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> "SuiteCollector | None":
    """Collect a file of cases; other files of such a name are left alone."""
    if not any(fnmatch(file_path.name, pattern) for pattern in _FILES):
        return None
    if _MARK not in file_path.read_text(encoding="utf-8", errors="replace"):
        return None
    return SuiteCollector.from_parent(parent, path=file_path)


def _chat(config: pytest.Config) -> "ChatModel":
    """The model of `--demur-model`, loaded once."""
    name = config.getoption("demur_model")
    if name is None:
        pytest.skip(_NO_MODEL)
    if _CHAT not in config.stash:
        from demur.models import load_chat_model

        config.stash[_CHAT] = load_chat_model(name)
    return config.stash[_CHAT]


@pytest.fixture(scope="session")
def demur_chat(pytestconfig: pytest.Config) -> "ChatModel":
    """The chat model of `--demur-model`; tests that ask for it are skipped without one."""
    return _chat(pytestconfig)


class SuiteCollector(pytest.File):
    """One suite. Its cases share what they ask of the model."""

    suite: "Suite"
    _session: "SuiteSession | None" = None

    def collect(self) -> Iterator["CaseItem"]:
        """One test for each case."""
        from demur.assurance import load_suite
        from demur.errors import DemurError

        try:
            self.suite = load_suite(self.path)
        except DemurError as error:
            raise self.CollectError(str(error)) from error
        for case in self.suite.cases:
            yield CaseItem.from_parent(self, name=case.name, case=case)

    def result(self, case: "SuiteCase") -> "SuiteCaseResult":
        """Run one case; what others that were not deselected want is measured with it."""
        if self._session is None:
            from demur.assurance import SuiteSession

            items = [item for item in self.session.items if isinstance(item, CaseItem) and item.parent is self]
            self._session = SuiteSession(
                _chat(self.config), self.suite, [item.case for item in items], run=self.config.getoption("demur_run")
            )
        return self._session.result(case)


class CaseItem(pytest.Item):
    """One case."""

    def __init__(self, *, case: "SuiteCase", **others: object) -> None:
        super().__init__(**others)  # type: ignore[arg-type]
        self.case = case
        self.extra_keyword_matches.update((*case.tags, case.severity))
        properties = (("severity", case.severity), ("owner", case.owner), ("tags", " ".join(case.tags)))
        self.user_properties += [(name, value) for name, value in properties if value]

    def runtest(self) -> None:
        """Pass, fail or skip as the case does."""
        from demur.reports import suite_lines

        if not isinstance(self.parent, SuiteCollector):
            raise AssertionError("a case outside a suite")
        result = self.parent.result(self.case)
        lines = suite_lines(result)
        if result.outcome == "skipped":
            pytest.skip(result.message)
        if result.outcome != "passed":
            raise CaseFailure(f"{result.outcome}: " + "\n".join(lines))
        self.add_report_section("call", "demur", "\n".join(lines))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: object = None) -> str:  # noqa: ARG002
        """What did not hold, without a traceback; other errors as they are."""
        from demur.errors import DemurError

        if isinstance(excinfo.value, (CaseFailure, DemurError)):
            return str(excinfo.value)
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """File and name."""
        return self.path, None, self.name


class CaseFailure(Exception):  # noqa: N818 (no error of the program)
    """A case did not pass."""
