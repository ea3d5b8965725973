"""Silhouettes of the demo catalogue's products, in a unit square: x to the right, y down, both 0 to 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Point = tuple[float, float]
Tone = Literal["fabric", "deep", "dark", "white", "metal"]


@dataclass(frozen=True, slots=True)
class Shape:
    """A filled outline. rounding: how often its corners are cut; a point given twice stays sharp."""

    points: tuple[Point, ...]
    tone: Tone = "deep"
    rounding: int = 2


@dataclass(frozen=True, slots=True)
class Line:
    """A stroke; width in unit lengths."""

    points: tuple[Point, ...]
    width: float = 0.008
    tone: Tone = "dark"
    rounding: int = 0


@dataclass(frozen=True, slots=True)
class Garment:
    """What is drawn, in this order: behind, body (which carries the pattern), over."""

    body: tuple[Shape, ...]
    behind: tuple[Shape | Line, ...] = ()
    over: tuple[Shape | Line, ...] = ()


def _mirrored(*left: Point) -> tuple[Point, ...]:
    """Complete a left half, given from the top centre down to the bottom centre."""
    return left + tuple((1 - x, y) for x, y in reversed(left) if x != 0.5)


def _both(*points: Point, width: float = 0.007, tone: Tone = "dark", rounding: int = 0) -> tuple[Line, Line]:
    """Return a stroke and its mirror image."""
    flipped = tuple((1 - x, y) for x, y in points)
    return Line(points, width, tone, rounding), Line(flipped, width, tone, rounding)


def _sharp(*points: Point) -> tuple[Point, ...]:
    return tuple(point for point in points for _ in range(2))


_NECK_INSIDE = Shape(_mirrored((0.5, 0.085), (0.41, 0.10), (0.44, 0.17), (0.5, 0.20)), "dark")
_COLLAR = Line(((0.395, 0.10), (0.42, 0.165), (0.5, 0.205), (0.58, 0.165), (0.605, 0.10)), 0.022, "deep", 2)

_T_SHIRT = Garment(
    behind=(_NECK_INSIDE,),
    body=(
        Shape(
            _mirrored(
                (0.5, 0.205), (0.43, 0.17), *_sharp((0.395, 0.09)), (0.28, 0.125), (0.20, 0.19),
                *_sharp((0.06, 0.37)), *_sharp((0.185, 0.46)), *_sharp((0.285, 0.36)), (0.285, 0.6),
                *_sharp((0.275, 0.915)), (0.5, 0.93),
            )
        ),
    ),
    over=(
        _COLLAR,
        *_both((0.285, 0.36), (0.275, 0.24), (0.30, 0.15)),
        *_both((0.085, 0.385), (0.20, 0.465)),
        Line(((0.28, 0.885), (0.5, 0.90), (0.72, 0.885)), 0.006, "dark", 1),
    ),
)  # fmt: skip

_LONGSLEEVE = Garment(
    behind=(_NECK_INSIDE,),
    body=(
        Shape(
            _mirrored(
                (0.5, 0.205), (0.43, 0.17), *_sharp((0.395, 0.09)), (0.28, 0.125), (0.21, 0.20), (0.15, 0.40),
                *_sharp((0.03, 0.84)), *_sharp((0.145, 0.875)), (0.25, 0.56), *_sharp((0.295, 0.38)),
                (0.295, 0.6), *_sharp((0.29, 0.915)), (0.5, 0.925),
            )
        ),
    ),
    over=(
        _COLLAR,
        *_both((0.295, 0.38), (0.28, 0.25), (0.305, 0.15)),
        *_both((0.045, 0.795), (0.16, 0.83), width=0.012, tone="deep"),
        Line(((0.293, 0.885), (0.5, 0.895), (0.707, 0.885)), 0.012, "deep", 1),
    ),
)  # fmt: skip

_DRESS = Garment(
    behind=(Shape(_mirrored((0.5, 0.10), (0.40, 0.07), (0.42, 0.16), (0.5, 0.20)), "dark"),),
    body=(
        Shape(
            _mirrored(
                (0.5, 0.215), (0.43, 0.19), *_sharp((0.41, 0.04)), *_sharp((0.35, 0.04)), (0.355, 0.16),
                *_sharp((0.305, 0.235)), (0.35, 0.33), (0.365, 0.43), (0.28, 0.62), *_sharp((0.11, 0.93)),
                (0.3, 0.965), (0.5, 0.975),
            )
        ),
    ),
    over=(
        Shape(_mirrored((0.5, 0.415), *_sharp((0.357, 0.405)), *_sharp((0.352, 0.45)), (0.5, 0.46)), "deep", 1),
        *_both((0.42, 0.47), (0.36, 0.70), (0.29, 0.95), rounding=2),
        *_both((0.475, 0.47), (0.455, 0.70), (0.43, 0.96), rounding=2),
    ),
)  # fmt: skip

_TROUSERS = Garment(
    body=(
        Shape(
            _mirrored(
                (0.5, 0.045), *_sharp((0.325, 0.04)), (0.285, 0.22), (0.265, 0.5), *_sharp((0.245, 0.955)),
                *_sharp((0.405, 0.965)), (0.455, 0.62), *_sharp((0.5, 0.345)),
            )
        ),
    ),
    over=(
        Shape(_mirrored((0.5, 0.045), *_sharp((0.325, 0.04)), *_sharp((0.317, 0.09)), (0.5, 0.095)), "deep", 1),
        Line(((0.5, 0.095), (0.5, 0.345))),
        Line(((0.5, 0.26), (0.545, 0.20), (0.545, 0.095)), 0.006, "dark", 2),
        *_both((0.37, 0.095), (0.36, 0.16), (0.305, 0.18), rounding=2),
        *_both((0.335, 0.45), (0.325, 0.95), width=0.005),
        Shape(((0.49, 0.055), (0.51, 0.055), (0.51, 0.082), (0.49, 0.082)), "metal", 3),
    ),
)  # fmt: skip

_SHORTS = Garment(
    body=(
        Shape(
            _mirrored(
                (0.5, 0.225), *_sharp((0.265, 0.22)), (0.215, 0.42), *_sharp((0.12, 0.755)),
                *_sharp((0.44, 0.80)), *_sharp((0.5, 0.555)),
            )
        ),
    ),
    over=(
        Shape(_mirrored((0.5, 0.225), *_sharp((0.265, 0.22)), *_sharp((0.252, 0.28)), (0.5, 0.285)), "deep", 1),
        Line(((0.5, 0.285), (0.5, 0.555))),
        *_both((0.335, 0.285), (0.31, 0.40), (0.215, 0.43), rounding=2),
        *_both((0.128, 0.725), (0.446, 0.77), width=0.006),
        *_both((0.47, 0.255), (0.455, 0.41), width=0.011, tone="white", rounding=1),
    ),
)  # fmt: skip

_SKIRT = Garment(
    body=(
        Shape(
            _mirrored(
                (0.5, 0.165), *_sharp((0.335, 0.16)), (0.29, 0.36), *_sharp((0.075, 0.80)), (0.2, 0.845),
                (0.35, 0.83), (0.5, 0.86),
            )
        ),
    ),
    over=(
        Shape(_mirrored((0.5, 0.165), *_sharp((0.335, 0.16)), *_sharp((0.322, 0.225)), (0.5, 0.23)), "deep", 1),
        *_both((0.38, 0.23), (0.30, 0.50), (0.19, 0.835), rounding=2),
        *_both((0.44, 0.23), (0.41, 0.50), (0.355, 0.835), rounding=2),
        Line(((0.5, 0.23), (0.5, 0.855)), 0.007),
    ),
)  # fmt: skip

_SNEAKER = Garment(
    behind=(Shape(((0.09, 0.38), (0.13, 0.32), (0.34, 0.325), (0.40, 0.37), (0.36, 0.45), (0.10, 0.46)), "dark"),),
    body=(
        Shape(
            (
                *_sharp((0.085, 0.34)), (0.15, 0.42), (0.29, 0.42), *_sharp((0.375, 0.335)), (0.50, 0.46),
                (0.64, 0.55), (0.86, 0.58), (0.945, 0.68), *_sharp((0.94, 0.72)), *_sharp((0.07, 0.72)),
                (0.10, 0.60), (0.06, 0.47),
            )
        ),
    ),
    over=(
        Shape((*_sharp((0.055, 0.70)), *_sharp((0.955, 0.70)), (0.965, 0.79), (0.84, 0.80), (0.15, 0.80),
               (0.05, 0.79)), "white"),
        Line(((0.06, 0.752), (0.955, 0.752)), 0.008, "deep"),
        Shape(((0.72, 0.70), (0.73, 0.60), (0.85, 0.585), (0.95, 0.66), *_sharp((0.955, 0.70))), "deep"),
        Shape((*_sharp((0.07, 0.70)), (0.10, 0.60), (0.065, 0.49), (0.17, 0.53), *_sharp((0.22, 0.70))), "deep"),
        *(Line(((x, y), (x + 0.075, y - 0.062)), 0.018, "white")
          for x, y in ((0.375, 0.475), (0.43, 0.52), (0.49, 0.56), (0.56, 0.595))),
        Line(((0.27, 0.66), (0.42, 0.64), (0.62, 0.655)), 0.03, "white", 2),
    ),
)  # fmt: skip

_BOOT = Garment(
    behind=(Shape(((0.25, 0.09), (0.29, 0.045), (0.55, 0.045), (0.60, 0.09), (0.55, 0.14), (0.29, 0.14)), "dark"),),
    body=(
        Shape(
            (
                *_sharp((0.245, 0.085)), (0.42, 0.13), *_sharp((0.605, 0.085)), (0.575, 0.34), (0.585, 0.53),
                (0.72, 0.61), (0.885, 0.68), *_sharp((0.92, 0.815)), *_sharp((0.255, 0.82)), (0.275, 0.66),
                (0.265, 0.45),
            )
        ),
    ),
    over=(
        Shape((*_sharp((0.25, 0.81)), *_sharp((0.925, 0.805)), (0.93, 0.86), (0.70, 0.865),
               *_sharp((0.475, 0.862)), *_sharp((0.465, 0.945)), *_sharp((0.25, 0.945))), "dark", 1),
        Line(((0.25, 0.17), (0.42, 0.205), (0.595, 0.17)), 0.02, "deep", 2),
        Line(((0.435, 0.20), (0.44, 0.50), (0.46, 0.81)), 0.006, "dark", 2),
        Line(((0.745, 0.80), (0.735, 0.70), (0.775, 0.645)), 0.007, "dark", 2),
        Line(((0.272, 0.55), (0.42, 0.585), (0.60, 0.545)), 0.03, "deep", 2),
        Shape(((0.50, 0.545), (0.56, 0.535), (0.565, 0.59), (0.505, 0.60)), "metal", 1),
    ),
)  # fmt: skip

_BAG = Garment(
    behind=(
        Line(((0.31, 0.45), (0.30, 0.20), (0.42, 0.09), (0.58, 0.09), (0.70, 0.20), (0.69, 0.45)), 0.035, "dark", 3),
    ),
    body=(
        Shape(
            _mirrored(
                (0.5, 0.385), *_sharp((0.15, 0.385)), (0.115, 0.60), (0.06, 0.885), (0.16, 0.915), (0.5, 0.92),
            )
        ),
    ),
    over=(
        Shape(_mirrored((0.5, 0.385), *_sharp((0.15, 0.385)), (0.125, 0.56), (0.32, 0.635), (0.5, 0.65)), "deep"),
        Line(((0.145, 0.40), (0.13, 0.56), (0.32, 0.63), (0.5, 0.645), (0.68, 0.63), (0.87, 0.56), (0.855, 0.40)),
             0.006, "dark", 2),
        Shape(((0.455, 0.60), (0.545, 0.60), (0.545, 0.70), (0.455, 0.70)), "metal", 2),
        *_both((0.31, 0.385), (0.31, 0.46), width=0.05, tone="dark"),
    ),
)  # fmt: skip

_HAT = Garment(
    behind=(
        Shape(
            ((0.02, 0.66), (0.10, 0.60), (0.30, 0.57), (0.70, 0.57), (0.90, 0.60), (0.98, 0.66), (0.90, 0.755),
             (0.70, 0.80), (0.30, 0.80), (0.10, 0.755)), "fabric", 3,
        ),
    ),
    body=(
        Shape(
            (
                *_sharp((0.235, 0.675)), (0.26, 0.42), (0.29, 0.25), (0.40, 0.215), (0.5, 0.265), (0.60, 0.215),
                (0.71, 0.25), (0.74, 0.42), *_sharp((0.765, 0.675)), (0.64, 0.715), (0.36, 0.715),
            )
        ),
    ),
    over=(
        Shape(
            (
                *_sharp((0.235, 0.675)), *_sharp((0.247, 0.56)), (0.37, 0.60), (0.63, 0.60), *_sharp((0.753, 0.56)),
                *_sharp((0.765, 0.675)), (0.64, 0.715), (0.36, 0.715),
            ),
            "dark",
        ),
        Line(((0.5, 0.27), (0.49, 0.36), (0.5, 0.44)), 0.008, "deep", 2),
        Line(((0.05, 0.665), (0.12, 0.735), (0.30, 0.775), (0.70, 0.775), (0.88, 0.735), (0.95, 0.665)),
             0.006, "deep", 2),
    ),
)  # fmt: skip

GARMENTS: dict[str, Garment] = {
    "t-shirt": _T_SHIRT,
    "longsleeve": _LONGSLEEVE,
    "dress": _DRESS,
    "trousers": _TROUSERS,
    "shorts": _SHORTS,
    "skirt": _SKIRT,
    "sneaker": _SNEAKER,
    "boot": _BOOT,
    "bag": _BAG,
    "hat": _HAT,
}
