"""A map of the catalogue: a seeded sample of items by the two directions in which their latents vary most."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from ...index import SearchIndex
from ...index.latents import Float64, Rows
from ...report.night import Dot, Plane
from .sides import PLACES
from .subject import Subject, sampled
from .windows import drawn_rows

_FITTED = 4_000  # photos that the directions are found on
_DOTS = 480
_NAMED = 9  # categories with a colour and a shape of their own
_STOPS = 3  # of a category, where the keyboard stops: all would be hundreds of steps
_EDGE = 0.5  # per cent of the items on either side that are moved to the map's edge

OTHER, NONE = "all others", "no category"


def plane(subject: Subject) -> Plane | None:
    """Return the map; None for fewer than three items."""
    side = subject.now
    rows = drawn_rows(subject, stream=8, most=_DOTS)
    numbers, first = np.unique(side.items.groups.numbers[rows], return_index=True)
    rows = rows[first]
    if len(rows) < 3:
        return None
    fitted = np.array(sampled(subject.draw(9), side.items.num_rows, _FITTED), np.int64)
    middle, axes, explained = _directions(_features(side.index, fitted))
    flat = (_features(side.index, rows) - middle) @ axes
    low, high = np.percentile(flat, [_EDGE, 100 - _EDGE], axis=0)
    placed = np.clip((flat - low) / np.maximum(high - low, 1e-12), 0.0, 1.0).round(3)
    labels = [side.attribute(int(number), subject.category) or NONE for number in numbers]
    frequent = [label for label, _ in Counter(labels).most_common(_NAMED)]
    shown = [label if label in frequent else OTHER for label in labels]
    stops = _stops(subject, placed, shown)
    pixels = subject.album.read(side.lookup(rows, PLACES))
    dots = [
        Dot(side.items.item_id(int(number)), label, float(x), float(1 - y), place in stops, picture)
        for place, (number, label, (x, y), picture) in enumerate(zip(numbers, shown, placed, pixels, strict=True))
    ]
    return Plane(
        sorted(dots, key=lambda dot: (dot.category in (OTHER, NONE), dot.category)), explained, len(side.items)
    )


def _features(index: SearchIndex, rows: Rows) -> Float64:
    """Return what is compared of photos: their means, or where a metric compares codes what its index stores."""
    latents = index.latents(rows)
    found = latents.mean if latents.mean.shape[1] else index.features[rows]
    return np.asarray(found, np.float64)


def _directions(features: Float64) -> tuple[Float64, Float64, float]:
    """Return the mean, the two directions of most variance [d, 2], and the share of all variance that they hold.

    A direction points to where its largest coefficient is positive, so that it is the same every night.
    """
    middle = features.mean(axis=0)
    spread = np.cov(features - middle, rowvar=False).reshape(features.shape[1], -1)
    values, vectors = np.linalg.eigh(spread)
    axes = np.zeros((features.shape[1], 2))
    axes[:, : min(2, features.shape[1])] = vectors[:, ::-1][:, :2]
    largest = axes[np.abs(axes).argmax(axis=0), [0, 1]]
    total = float(values.sum())
    return middle, axes * np.where(largest < 0, -1.0, 1.0), float(values[::-1][:2].sum() / total) if total > 0 else 0.0


def _stops(subject: Subject, placed: NDArray[np.float64], labels: list[str]) -> set[int]:
    """Return the places where the keyboard stops: of each category the item in its midst, and two more by seed."""
    found: set[int] = set()
    generator = subject.draw(10)
    for label in dict.fromkeys(sorted(labels)):
        mine = np.flatnonzero(np.array(labels) == label)
        distances = np.linalg.norm(placed[mine] - np.median(placed[mine], axis=0), axis=1)
        others = generator.choice(mine, size=min(_STOPS - 1, len(mine)), replace=False)
        found |= {int(mine[distances.argmin()]), *others.tolist()}
    return found
