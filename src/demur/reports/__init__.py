"""Records in, documents out: `report.html` and `report.md` of one run folder. Needs no torch and no model."""

from demur.reports._tables import Cell, SummaryRow, summary_table
from demur.reports._write import write_reports

__all__ = ["Cell", "SummaryRow", "summary_table", "write_reports"]
