"""From a matplotlib figure to SVG that can stand inside an HTML page, the same bytes for the same figure.

Text stays text, colours become CSS variables so that the page's light or dark scheme rules them, ids are made unique to
the figure. Knows nothing about what is drawn.
"""

import io
import re
import warnings
from collections.abc import Callable, Mapping
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK = "#010101"
MUTED = "#010102"
GRID = "#010103"
CARD = "#010104"
ACCENT = "#010105"
MARK = "#010106"
HARMFUL = "#010107"
BORDERLINE = "#010108"
HARMLESS = "#010109"

SHADES = tuple(f"#0102{shade:02x}" for shade in range(12))
"""A scale from worst to best: pale to deep on a light page, dull to bright on a dark one."""

ON_WORSE = "#010301"
ON_BETTER = "#010302"
"""Ink that can be read on the first and on the second half of `SHADES`."""

_VARIABLES = {
    **{shade: f"var(--chart-shade-{number})" for number, shade in enumerate(SHADES)},
    ON_WORSE: "var(--chart-on-worse)",
    ON_BETTER: "var(--chart-on-better)",
    INK: "var(--chart-ink)",
    MUTED: "var(--chart-muted)",
    GRID: "var(--chart-grid)",
    CARD: "var(--chart-card)",
    ACCENT: "var(--chart-accent)",
    MARK: "var(--chart-mark)",
    HARMFUL: "var(--chart-harmful)",
    BORDERLINE: "var(--chart-borderline)",
    HARMLESS: "var(--chart-harmless)",
}
"""Colours that no chart would use by chance stand for the page's own; the page has them in `report.css`."""

_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "demur",
    "svg.image_inline": True,
    "text.parse_math": False,  # a token such as $x$ is text
    "text.usetex": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # shipped with matplotlib, so every machine measures the same widths
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.unicode_minus": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "hatch.color": MUTED,
    "hatch.linewidth": 0.6,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}

_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def draw(name: str, label: str, paint: Callable[[], Figure], titles: Mapping[str, str] | None = None) -> str:
    """Paint a figure under demur's own settings, whatever the user's matplotlibrc says, and serialise it.

    Args:
        name: Prefix of all ids, unique in the page.
        label: What a screen reader says instead of the picture.
        paint: Makes the figure; called with the settings in force.
        titles: Tooltip by the gid that an artist was given.

    Returns:
        An `<svg>` element for inclusion in HTML.
    """
    file = io.StringIO()
    with mpl.rc_context(), warnings.catch_warnings():
        # The browser draws the text, in its own fonts; that matplotlib's lacks a glyph changes nothing.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support", category=UserWarning)
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        figure = paint()
        FigureCanvasSVG(figure)
        figure.savefig(file, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    return _for_html(root, name=name, label=label, titles=titles or {})


def _for_html(root: ElementTree.Element, *, name: str, label: str, titles: Mapping[str, str]) -> str:
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):  # its style sheet would reach the whole page
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        title = titles.get(element.get("id", ""))
        attributes = {key.removeprefix(_XLINK): _attribute(key, value, name) for key, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update(attributes)
        if title is not None:
            child = ElementTree.Element("title")
            child.text = title
            element.insert(0, child)
    view_box = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib.update({"viewBox": view_box, "role": "img", "aria-label": label, "id": f"{name}-chart"})
    return ElementTree.tostring(root, encoding="unicode")


def _attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == f"{_XLINK}href":
        return value.replace("#", f"#{name}-", 1)
    value = _REFERENCE.sub(rf"url(#{name}-\1)", value)
    if key == "style":
        for colour, variable in _VARIABLES.items():
            value = value.replace(colour, variable)
    return value
