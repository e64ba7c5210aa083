"""The door: a run folder in, two files out."""

from pathlib import Path

from demur.records import write_text
from demur.reports._document import Document, build_document
from demur.reports._markdown import render_markdown
from demur.reports._records import read_run


def run_document(run_folder: Path) -> Document:
    """The report of a finished run without a format: its sections in reading order.

    Raises:
        RunFolderError: there is no summary, or a record is broken.
    """
    return build_document(read_run(Path(run_folder)))


def write_reports(run_folder: Path) -> tuple[Path, Path]:
    """Write `report.html` and `report.md` into a run folder, from the records in it.

    The HTML is one file that opens without a network. The same records give the same bytes. No text of a harmful
    prompt, and nothing a model said to one, gets into either file.

    Args:
        run_folder: The folder of a finished run.

    Returns:
        The paths of the HTML and of the markdown report.

    Raises:
        RunFolderError: there is no summary, a record is broken, or the folder cannot be written.
    """
    # matplotlib takes a second to import, and the summary table of the console needs none of it
    from demur.reports._figures import draw_figures  # noqa: PLC0415
    from demur.reports._html import render_html  # noqa: PLC0415

    run_folder = Path(run_folder)
    run = read_run(run_folder)
    document = build_document(run)
    html, markdown = run_folder / "report.html", run_folder / "report.md"
    html_text, markdown_text = render_html(document, draw_figures(run)), render_markdown(document)
    write_text(html, html_text)
    write_text(markdown, markdown_text)
    return html, markdown
