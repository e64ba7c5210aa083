"""The pages of assurance: one record in, one HTML and one markdown file out. Each kind of record has its module.

A page module holds `document(record) -> Document`, and its figures module `draw(record) -> dict[str, str]`, SVG by the
name that a `Figure` of the document has; that one loads matplotlib, so it is imported when a page is written.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demur.records import (
    Audit,
    BaseComparison,
    CheckRecord,
    DriftRecord,
    MonitorRecord,
    Record,
    SuffixAnalysis,
    SuiteRecord,
    Transfer,
    read_record,
    write_text,
)
from demur.reports import (
    _audit_page,
    _check_page,
    _drift_page,
    _model_pairs_page,
    _monitor_page,
    _suffix_page,
    _suite_page,
)
from demur.reports._document import Document
from demur.reports._markdown import render_markdown


@dataclass(frozen=True)
class Page:
    """How one kind of record becomes a page."""

    file: str
    """Name of the record's file in its folder."""
    record: type[Record]
    document: Callable[[Any], Document]
    figures: Callable[[Any], dict[str, str]]


def _audit_figures(record: Audit) -> dict[str, str]:
    from demur.reports._audit_figures import draw_audit  # noqa: PLC0415 (matplotlib)

    return draw_audit(record)


def _check_figures(record: CheckRecord) -> dict[str, str]:
    from demur.reports._check_figures import draw_check  # noqa: PLC0415 (matplotlib)

    return draw_check(record)


def _suffix_figures(record: SuffixAnalysis) -> dict[str, str]:
    from demur.reports._suffix_figures import draw_suffixes  # noqa: PLC0415 (matplotlib)

    return draw_suffixes(record)


def _monitor_figures(record: MonitorRecord) -> dict[str, str]:
    from demur.reports._monitor_figures import draw  # noqa: PLC0415 (matplotlib)

    return draw(record)


def _drift_figures(record: DriftRecord) -> dict[str, str]:
    from demur.reports._drift_figures import draw_drift  # noqa: PLC0415 (matplotlib)

    return draw_drift(record)


def _base_figures(record: BaseComparison) -> dict[str, str]:
    from demur.reports._model_pairs_figures import draw_base  # noqa: PLC0415 (matplotlib)

    return draw_base(record)


PAGES: tuple[Page, ...] = (
    Page("audit.json", Audit, _audit_page.document, _audit_figures),
    Page("monitor.json", MonitorRecord, _monitor_page.document, _monitor_figures),
    Page("check.json", CheckRecord, _check_page.document, _check_figures),
    Page("drift.json", DriftRecord, _drift_page.document, _drift_figures),
    Page("suite.json", SuiteRecord, _suite_page.document, _suite_page.figures),
    Page("suffixes.json", SuffixAnalysis, _suffix_page.document, _suffix_figures),
    Page("base.json", BaseComparison, _model_pairs_page.base_document, _base_figures),
    Page("transfer.json", Transfer, _model_pairs_page.transfer_document, lambda _: {}),
)
"""Every kind; a folder may hold several."""


def write_pages(folder: Path) -> list[tuple[Path, Path]]:
    """Write the page of every assurance record in a folder: `audit.json` becomes `audit.html` and `audit.md`.

    Returns:
        The paths of HTML and markdown, one pair for each record; empty where the folder holds none.

    Raises:
        RunFolderError: a record is broken, or the folder cannot be written.
    """
    from demur.reports._html import render_html  # noqa: PLC0415 (jinja2)

    written = []
    for page in PAGES:
        path = Path(folder) / page.file
        if not path.is_file():
            continue
        record = read_record(path, page.record)
        document = page.document(record)
        html, markdown = path.with_suffix(".html"), path.with_suffix(".md")
        write_text(html, render_html(document, page.figures(record)))
        write_text(markdown, render_markdown(document))
        written.append((html, markdown))
    return written
