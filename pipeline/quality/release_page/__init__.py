"""The report of a release: what it shows, chosen section by section; `pipeline.report` draws it."""

from __future__ import annotations

from .asking import FORMS, Reported, new_place, report_of, report_text, written
from .stored import Asked, stored_report
from .told import category_lines
from .tonight import report_page

__all__ = [
    "FORMS",
    "Asked",
    "Reported",
    "category_lines",
    "new_place",
    "report_of",
    "report_page",
    "report_text",
    "stored_report",
    "written",
]
