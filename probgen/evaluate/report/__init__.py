"""One self-contained HTML page of a comparison: nothing is fetched, everything is escaped."""

from probgen.evaluate.report.page import report

__all__ = ["report"]
