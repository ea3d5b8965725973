"""The quality table as one self-contained HTML page: no scripts, no files beside it, nothing fetched from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .page import template


@dataclass(frozen=True, slots=True)
class Cell:
    """A value as people read it, its interval in the same unit, and whether it leads its column beyond chance."""

    value: str
    interval: str = ""
    leads: bool = False


@dataclass(frozen=True, slots=True)
class SpaceLine:
    """A row of a table: a space's name, a word on it, whether it is a trained model, and a cell a column."""

    name: str
    about: str
    trained: bool
    cells: Sequence[Cell]


@dataclass(frozen=True, slots=True)
class QualityTable:
    """A table of the page. columns: (short name, what it measures)."""

    title: str
    about: str
    columns: Sequence[tuple[str, str]]
    lines: Sequence[SpaceLine]


@dataclass(frozen=True, slots=True)
class QualityData:
    """All that the page shows. verdicts: (measure, what the comparison says, 1 ahead, -1 behind, 0 neither).

    facts: (name, value); notes: what was left out and why.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    verdicts: Sequence[tuple[str, str, int]]
    tables: Sequence[QualityTable]
    notes: Sequence[str] = ()


def render_quality(data: QualityData) -> bytes:
    """Return the page, UTF-8; the same bytes for the same data."""
    return template("quality.html.j2").render(data=data).encode("utf-8")
