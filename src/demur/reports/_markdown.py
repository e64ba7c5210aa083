"""The document as GitHub markdown."""

import re

from demur.reports._document import Document, Section
from demur.reports._examples import Example, ExampleGroup
from demur.reports._format import clean, shorten
from demur.reports._tables import Cell, Table

_SPECIAL = re.compile(r"([\\`*_\[\]|~$#])")

LONGEST_IN_A_CELL = 300
"""Prompts and answers are cut harder here than in the HTML: a table cell is one line."""


def escape(text: str) -> str:
    """Foreign text on one line, so that markdown shows it as it is: in running text and in table cells."""
    plain = clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return " ".join(_SPECIAL.sub(r"\\\1", plain).split())


def render_markdown(document: Document) -> str:
    """The whole document; figures are named and left to the HTML."""
    parts = [f"# {escape(document.title)}"]
    decision = f"**Gate: {document.decision}.** " if document.decision else ""
    parts.append(f"{decision}{escape(document.verdict)}")
    if document.reasons:
        parts.append(_bullets(document.reasons))
    if document.warnings:
        parts.extend(["**Warnings**", _bullets(document.warnings)])
    for section in document.sections:
        parts.extend(_section(section))
    parts.append(f"---\n\n{escape(document.footer)}")
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> list[str]:
    parts = [f"## {escape(section.title)}", *(escape(text) for text in section.words)]
    if section.figure is not None:
        parts.append(f"_Figure in report.html: {escape(section.figure.label)}._")
    for group in section.examples:
        parts.extend(_examples(group))
    for table in section.tables:
        parts.extend(_table(table))
    if section.terms:
        parts.append("\n".join(f"- **{escape(term)}**: {escape(meaning)}" for term, meaning in section.terms))
    return parts


def _bullets(texts: tuple[str, ...]) -> str:
    return "\n".join(f"- {escape(text)}" for text in texts)


def _table(table: Table) -> list[str]:
    caption = f"**{escape(table.caption)}**"
    if not table.rows:
        return [caption]
    numeric = [all(row[i].kind == "number" for row in table.rows) for i in range(len(table.columns))]
    return [caption, "\n".join([_row(table.columns), _rule(numeric), *(_row(_texts(row)) for row in table.rows)])]


def _texts(row: tuple[Cell, ...]) -> tuple[str, ...]:
    return tuple(str(cell) for cell in row)


def _row(texts: tuple[str, ...]) -> str:
    return "| " + " | ".join(escape(text) for text in texts) + " |"


def _rule(numeric: list[bool]) -> str:
    return "| " + " | ".join("---:" if right else "---" for right in numeric) + " |"


def _examples(group: ExampleGroup) -> list[str]:
    headings = ("Prompt", *(answer.heading for answer in group.examples[0].answers))
    rows = [_row(headings), _rule([False] * len(headings)), *(_example(example) for example in group.examples)]
    return [f"### {escape(group.title)}", escape(group.note), "\n".join(rows)]


def _example(example: Example) -> str:
    answers = (
        f"[{answer.verdict}{', degenerate' if answer.degenerate else ''}] {shorten(answer.text, LONGEST_IN_A_CELL)}"
        for answer in example.answers
    )
    return _row((shorten(example.prompt, LONGEST_IN_A_CELL), *answers))
