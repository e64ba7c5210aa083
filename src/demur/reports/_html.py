"""The document as one HTML file that loads nothing: styles and figures are inside it."""

import re
from importlib.resources import files

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from demur.reports._document import Document
from demur.reports._format import clean

_TEMPLATE = "report.html.j2"
_STYLES = "report.css"


def render_html(document: Document, figures: dict[str, str]) -> str:
    """Render the document.

    Args:
        document: What to say. All of its text is escaped.
        figures: SVG of each figure by name, drawn by `_figures`; the only markup that is trusted.

    Returns:
        The HTML.
    """
    folder = files("demur.reports")
    environment = Environment(
        loader=DictLoader({_TEMPLATE: folder.joinpath(_TEMPLATE).read_text(encoding="utf-8")}),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_without_control_characters,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["unbroken"] = _unbroken
    # The style sheet is ours and the figures were serialised by an XML writer, so both go in as they are.
    return environment.get_template(_TEMPLATE).render(
        document=document,
        styles=Markup(folder.joinpath(_STYLES).read_text(encoding="utf-8")),
        figures={name: Markup(svg) for name, svg in figures.items()},
    )


def _without_control_characters(value: object) -> object:
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _unbroken(sentence: str) -> str:
    """A sentence of ours, whose lines do not break between a number and its percent sign."""
    return re.sub(r"(?<=\d) %", "\u00a0%", sentence)
