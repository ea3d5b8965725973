"""Results of a release as one self-contained HTML page."""

from __future__ import annotations

from .page import GateRow, NeighbourRow, Picture, ReportData, render_page

__all__ = ["GateRow", "NeighbourRow", "Picture", "ReportData", "render_page"]
