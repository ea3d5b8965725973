"""The page of a channel's measures: a curve for each, and the same numbers as a table behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .page import template

WIDTH, HEIGHT = 340, 130  # of a plot, as wide as a phone shows it
_LEFT, _RIGHT, _TOP, _BOTTOM = 8, 8, 18, 18


@dataclass(frozen=True, slots=True)
class Point:
    """A release's value. label: which release; value: None where it has none; words: as people read it; changed: the
    bundle is another than before."""

    label: str
    value: float | None
    words: str
    changed: bool = False


@dataclass(frozen=True, slots=True)
class Placed:
    """A point on the plot, x and y in its units; y None where there is no value."""

    x: float
    y: float | None
    point: Point


@dataclass(frozen=True, slots=True)
class Curve:
    """A measure over releases, oldest first."""

    name: str
    points: Sequence[Point]

    @property
    def known(self) -> list[Point]:
        """The points that have a value."""
        return [point for point in self.points if point.value is not None]

    @property
    def moves(self) -> bool:
        """Whether its values differ."""
        return len({point.value for point in self.known}) > 1

    def extreme(self, *, largest: bool) -> Point:
        """Return the point of the largest or the smallest value, the first of several."""
        return (max if largest else min)(self.known, key=lambda point: point.value or 0.0)

    def placed(self) -> list[Placed]:
        """Return where the points lie; a curve without change runs through the middle."""
        values = [point.value for point in self.points if point.value is not None]
        low, high = min(values, default=0.0), max(values, default=0.0)
        step = (WIDTH - _LEFT - _RIGHT) / max(1, len(self.points) - 1)
        room = HEIGHT - _TOP - _BOTTOM
        return [
            Placed(
                round(_LEFT + place * step, 1),
                None
                if point.value is None
                else round(_TOP + room * ((high - point.value) / (high - low) if high > low else 0.5), 1),
                point,
            )
            for place, point in enumerate(self.points)
        ]

    def lines(self) -> list[str]:
        """Return the curve's pieces as `points` of SVG polylines; releases without a value interrupt it."""
        pieces: list[list[str]] = [[]]
        for one in self.placed():
            if one.y is None:
                pieces.append([])
            else:
                pieces[-1].append(f"{one.x},{one.y}")
        return [" ".join(piece) for piece in pieces if len(piece) > 1]


@dataclass(frozen=True, slots=True)
class TrendsData:
    """All that the page shows. entries: (number, release, created, reason, bundle, bundle changed, verdict)."""

    title: str
    about: str
    entries: Sequence[tuple[str, str, str, str, str, bool, str]]
    curves: Sequence[Curve]


def render_trends(data: TrendsData) -> bytes:
    """Return the page, UTF-8; the same bytes for the same data."""
    return template("trends.html.j2").render(data=data, width=WIDTH, height=HEIGHT).encode("utf-8")
