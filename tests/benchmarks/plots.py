"""Lines drawn with PIL alone: what grew, as a picture beside a results file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import ImageDraw

Points = Sequence[Sequence[float]]  # of each the first two numbers: to the right, and up


@dataclass(frozen=True)
class Panel:
    """Where a plot stands, in pixels, and how it writes numbers. ticks: on each axis, without that at 0."""

    left: int
    width: int
    height: int
    shown: str
    ticks: int
    top: int = 40


def draw_panel(
    draw: ImageDraw.ImageDraw, panel: Panel, title: str, lines: Mapping[str, Points], colours: Mapping[str, str]
) -> None:
    """Draw lines with a dot at each point, and beside their ends their names and last values, highest first."""
    left, top, width, height = panel.left, panel.top, panel.width, panel.height
    right, most = (max(point[axis] for line in lines.values() for point in line) for axis in (0, 1))
    draw.text((left, top - 25), title, fill="black")
    draw.line([(left, top), (left, top + height), (left + width, top + height)], fill="black")
    for share in (tick / panel.ticks for tick in range(panel.ticks + 1)):
        draw.text((left - 50, top + height * (1 - share) - 6), format(most * share, panel.shown), fill="black")
        draw.text((left + width * share - 8, top + height + 8), format(right * share, panel.shown), fill="black")
    free = top - 14.0  # labels never cover each other: from the top, each below the last
    for name, line in sorted(lines.items(), key=lambda pair: -pair[1][-1][1]):
        places = [(left + width * point[0] / right, top + height * (1 - point[1] / most)) for point in line]
        draw.line(places, fill=colours[name], width=2)
        for x, y in places:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colours[name])
        free = max(places[-1][1] - 6, free + 14)
        draw.text((places[-1][0] + 8, free), f"{name}: {format(line[-1][1], panel.shown)}", fill=colours[name])
