"""Records in, documents out: the report of a run, the pages of assurance. Needs no torch and no model."""

from demur.reports._corrected import corrected_lines
from demur.reports._methods import methods_tables, write_methods_report
from demur.reports._pages import write_pages
from demur.reports._tables import Cell, SummaryRow, Table, summary_table
from demur.reports._write import write_reports

__all__ = [
    "Cell",
    "SummaryRow",
    "Table",
    "corrected_lines",
    "methods_tables",
    "summary_table",
    "write_methods_report",
    "write_pages",
    "write_reports",
]
