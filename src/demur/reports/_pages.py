"""The pages of assurance: one record in, one HTML and one markdown file out. Each kind of record has its module.

A page module holds `document(record) -> Document`, and its figures module `draw(record) -> dict[str, str]`, SVG by the
name that a `Figure` of the document has; that one loads matplotlib, so it is imported when a page is written.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demur.records import Record, read_record, write_text
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


PAGES: tuple[Page, ...] = ()
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
