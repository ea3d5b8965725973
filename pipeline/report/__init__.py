"""Results as self-contained HTML pages: of a release, and of a quality table."""

from __future__ import annotations

from .drawing import render_night
from .night import NightReport
from .page import NeighbourRow, Picture, ReportData, render_page
from .quality import Cell, QualityData, QualityTable, SpaceLine, render_quality

__all__ = [
    "Cell",
    "NeighbourRow",
    "NightReport",
    "Picture",
    "QualityData",
    "QualityTable",
    "ReportData",
    "SpaceLine",
    "render_night",
    "render_page",
    "render_quality",
]
