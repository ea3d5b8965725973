"""Draws one product picture of the demo catalogue: a garment in a colour and pattern, lit, with a soft shadow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from .garments import GARMENTS, Line, Point, Shape

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "black": (44, 44, 48),
    "white": (243, 242, 238),
    "grey": (146, 149, 154),
    "red": (196, 38, 44),
    "orange": (236, 129, 34),
    "yellow": (244, 205, 60),
    "green": (52, 128, 68),
    "blue": (38, 84, 172),
    "purple": (120, 62, 150),
    "pink": (238, 146, 176),
}
PATTERNS = ("plain", "stripes", "pinstripes", "checks", "dots", "diagonal")

_SUPERSAMPLING = 2  # drawn at this scale, then averaged: smooth edges


@dataclass(frozen=True, slots=True)
class Product:
    """What an item looks like. angle in degrees, shade and width as factors around 1."""

    category: str
    colour: str
    pattern: str
    angle: float
    shade: float
    width: float


@dataclass(frozen=True, slots=True)
class View:
    """How one photo shows an item. zoom as a factor, turn in degrees, shift in unit lengths."""

    mirrored: bool = False
    zoom: float = 1.0
    turn: float = 0.0
    shift: Point = (0.0, 0.0)
    backdrop: int = 244  # grey level of the background


def is_light(colour: str, shade: float) -> bool:
    """Return whether seams and patterns of a fabric are darker than it; on a dark one patterns are lighter."""
    return sum(_times(COLOURS[colour], shade)) > 330


def draw_product(product: Product, view: View, *, size: tuple[int, int]) -> Image:
    """Return the picture, RGB of `size` (width, height) pixels."""
    from PIL import Image, ImageChops, ImageDraw

    scale = _SUPERSAMPLING
    large = (size[0] * scale, size[1] * scale)
    pen = _Pen(product, view, large)
    garment = GARMENTS[product.category]

    canvas = Image.new("RGB", large, (view.backdrop, view.backdrop, min(255, view.backdrop + 2)))
    _drop_shadow(canvas, pen, garment.body)
    brush = ImageDraw.Draw(canvas)
    for part in garment.behind:
        pen.draw(brush, part)

    mask = Image.new("L", large, 0)
    outline = ImageDraw.Draw(mask)
    for shape in garment.body:
        outline.polygon(pen.place(_rounded(shape.points, shape.rounding, closed=True)), fill=255)
    fabric = Image.new("RGB", large, pen.tones["fabric"])
    _draw_pattern(ImageDraw.Draw(fabric), pen, product.pattern)
    canvas.paste(fabric, mask=mask)

    for shape in garment.body:
        edge = _rounded(shape.points, shape.rounding, closed=True)
        brush.line(pen.place([*edge, edge[0]]), fill=pen.tones["deep"], width=max(1, round(0.008 * pen.unit)))
    for part in garment.over:
        pen.draw(brush, part)
    return ImageChops.multiply(canvas.reduce(scale), _light(size))


class _Pen:
    """Places unit coordinates on the canvas and knows the colours."""

    def __init__(self, product: Product, view: View, size: tuple[int, int]) -> None:
        self.unit = 0.86 * min(size) * view.zoom  # pixels of one unit length
        turn = math.radians(product.angle + view.turn)
        across = -product.width if view.mirrored else product.width
        cosine, sine = math.cos(turn) * self.unit, math.sin(turn) * self.unit
        self._x = (cosine * across, -sine)
        self._y = (sine * across, cosine)
        self._centre = (size[0] / 2 + view.shift[0] * self.unit, size[1] / 2 + view.shift[1] * self.unit)
        fabric = _times(COLOURS[product.colour], product.shade)
        bright = is_light(product.colour, product.shade)
        self.tones: dict[str, Rgb] = {
            "fabric": fabric,
            "deep": _times(fabric, 0.78) if bright else _mixed(_times(fabric, 0.7), (255, 255, 255), 0.10),
            "dark": _times(fabric, 0.50) if bright else _times(fabric, 0.42),
            "white": (248, 247, 244),
            "metal": (212, 178, 96),
            "pattern": _times(fabric, 0.45) if bright else _mixed(fabric, (250, 248, 240), 0.88),
        }

    def place(self, points: Sequence[Point]) -> list[Point]:
        """Return unit points as pixels."""
        (xx, xy), (yx, yy), (left, upper) = self._x, self._y, self._centre
        return [(left + xx * (x - 0.5) + xy * (y - 0.5), upper + yx * (x - 0.5) + yy * (y - 0.5)) for x, y in points]

    def draw(self, brush: ImageDraw, part: Shape | Line) -> None:
        """Draw one part that carries no pattern."""
        closed = isinstance(part, Shape)
        pixels = self.place(_rounded(part.points, part.rounding, closed=closed))
        if isinstance(part, Line):
            width = max(1, round(part.width * self.unit))
            brush.line(pixels, fill=self.tones[part.tone], width=width, joint="curve")
        else:
            brush.polygon(pixels, fill=self.tones[part.tone])


@lru_cache(maxsize=512)
def _rounded(points: tuple[Point, ...], times: int, *, closed: bool) -> tuple[Point, ...]:
    """Cut every corner `times` times (Chaikin 1974); an open line keeps its ends."""
    for _ in range(times):
        cut: list[Point] = []
        pairs = zip(points, points[1:] + points[:1] if closed else points[1:], strict=False)
        for (ax, ay), (bx, by) in pairs:
            cut += [(0.75 * ax + 0.25 * bx, 0.75 * ay + 0.25 * by), (0.25 * ax + 0.75 * bx, 0.25 * ay + 0.75 * by)]
        points = tuple(cut) if closed else (points[0], *cut[1:-1], points[-1])
    return points


def _draw_pattern(brush: ImageDraw, pen: _Pen, pattern: str) -> None:
    ink, pale = pen.tones["pattern"], _mixed(pen.tones["fabric"], pen.tones["pattern"], 0.45)
    steps = range(-3, 15)

    def band(start: float, thick: float, *, down: bool, fill: Rgb) -> None:
        corners = [(-0.3, start), (1.3, start), (1.3, start + thick), (-0.3, start + thick)]
        brush.polygon(pen.place([(y, x) for x, y in corners] if down else corners), fill=fill)

    if pattern == "stripes":
        for step in steps:
            band(step * 0.10, 0.05, down=False, fill=ink)
    elif pattern == "pinstripes":
        for step in range(-6, 30):
            band(step * 0.055, 0.013, down=True, fill=ink)
    elif pattern == "checks":
        for step in steps:
            band(step * 0.11, 0.055, down=False, fill=pale)
        for step in steps:
            band(step * 0.11, 0.055, down=True, fill=pale)
        for row in steps:
            for column in steps:
                x, y = column * 0.11, row * 0.11
                corners = [(x, y), (x + 0.055, y), (x + 0.055, y + 0.055), (x, y + 0.055)]
                brush.polygon(pen.place(corners), fill=ink)
    elif pattern == "dots":
        radius = 0.021 * pen.unit
        for row in range(-2, 16):
            shift = 0.045 if row % 2 else 0.0
            for x, y in pen.place([(column * 0.09 + shift, row * 0.078) for column in range(-2, 14)]):
                brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
    elif pattern == "diagonal":
        for step in range(-10, 24):
            x = step * 0.12
            brush.polygon(pen.place([(x, -0.2), (x + 0.05, -0.2), (x - 1.35, 1.2), (x - 1.40, 1.2)]), fill=ink)
    elif pattern != "plain":
        raise ValueError(f"pattern {pattern!r} is not one of {', '.join(PATTERNS)}")


def _drop_shadow(canvas: Image, pen: _Pen, body: Sequence[Shape]) -> None:
    from PIL import Image, ImageDraw, ImageFilter

    factor = 8  # blurred small, then enlarged: the same look at a fraction of the time
    small = Image.new("L", (canvas.width // factor, canvas.height // factor), 0)
    brush = ImageDraw.Draw(small)
    for shape in body:
        pixels = pen.place(_rounded(shape.points, shape.rounding, closed=True))
        brush.polygon([(x / factor + 0.8, y / factor + 1.6) for x, y in pixels], fill=95)
    shadow = small.filter(ImageFilter.GaussianBlur(2.2)).resize(canvas.size, Image.Resampling.BILINEAR)
    canvas.paste((60, 62, 70), mask=shadow)


@lru_cache(maxsize=8)
def _light(size: tuple[int, int]) -> Image:
    """Return a soft light from the upper left, as factors 0 to 255 in RGB."""
    from PIL import Image

    ramp = Image.linear_gradient("L").rotate(25, Image.Resampling.BICUBIC, fillcolor=128)
    soft = ramp.crop((40, 40, 216, 216)).resize(size, Image.Resampling.BICUBIC)
    return soft.point([255 - level * 26 // 255 for level in range(256)]).convert("RGB")


def _times(colour: Rgb, factor: float) -> Rgb:
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


def _mixed(first: Rgb, second: Rgb, share: float) -> Rgb:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue
