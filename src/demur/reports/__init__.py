"""Records in, documents out: the report of a run, the pages of assurance. Needs no torch and no model."""

from demur.reports._check_ci import check_annotations, check_junit, check_summary
from demur.reports._corrected import corrected_lines
from demur.reports._drift_page import drift_reasons, drift_table, drift_verdict
from demur.reports._markdown import render_markdown
from demur.reports._methods import methods_tables, write_methods_report
from demur.reports._monitor_page import monitor_lines
from demur.reports._pages import write_pages
from demur.reports._suffix_page import verdict as suffix_verdict
from demur.reports._suite_words import suite_junit, suite_lines, suite_summary
from demur.reports._tables import Cell, SummaryRow, Table, summary_table
from demur.reports._write import run_document, write_reports

__all__ = [
    "Cell",
    "SummaryRow",
    "Table",
    "check_annotations",
    "check_junit",
    "check_summary",
    "corrected_lines",
    "drift_reasons",
    "drift_table",
    "drift_verdict",
    "methods_tables",
    "monitor_lines",
    "render_markdown",
    "run_document",
    "suffix_verdict",
    "suite_junit",
    "suite_lines",
    "suite_summary",
    "summary_table",
    "write_methods_report",
    "write_pages",
    "write_reports",
]
