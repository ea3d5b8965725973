"""The quality table: one row a space, which are ahead by more than chance, and a model beside the best baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .quality import (
    LABEL_MEASURES,
    Difference,
    FactorPhotos,
    LabelledPhotos,
    encoder_quality,
    factor_quality,
    label_quality,
    paired_difference,
    spread_quality,
)
from .spaces import Space


@dataclass(frozen=True)
class TablePhotos:
    """What every row is measured on, the same for all.

    pixels: all photos, uint8 [n, size, size, 3], one an item; asked: which are asked, bool [n], the others are known;
    labels, groups: [n] as of LabelledPhotos, labels None where nothing is known of the photos; factors: rendered.
    """

    pixels: NDArray[np.uint8]
    asked: NDArray[np.bool_]
    labels: Sequence[str] | None
    groups: Sequence[str]
    factors: FactorPhotos

    @property
    def known_pixels(self) -> NDArray[np.uint8]:
        """Return the photos that a baseline may be fitted on."""
        return self.pixels[~self.asked]

    def side(self, chosen: NDArray[np.bool_]) -> LabelledPhotos:
        """Return the photos chosen by bool [n] with their labels. Raises InputError where there are no labels."""
        if self.labels is None:
            raise InputError("these photos have no labels; only the measures without labels can be taken")
        rows = np.flatnonzero(chosen).tolist()
        return LabelledPhotos(self.pixels[rows], [self.labels[row] for row in rows], [self.groups[row] for row in rows])


@dataclass(frozen=True, slots=True)
class TableRow:
    """One space. numbers: every measure by name; values: of LABEL_MEASURES, one number an asked photo (`Quality`).

    trained: a model, not a baseline. model_id: of its bundle, None for a baseline.
    """

    name: str
    dims: int
    trained: bool
    model_id: str | None
    numbers: Mapping[str, float]
    values: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Against:
    """How much a model is ahead of the best baseline at one measure, with the 95 % interval of the difference."""

    baseline: str
    difference: Difference


def table_row(space: Space, photos: TablePhotos, *, seed: int, model_id: str | None = None) -> TableRow:
    """Return what a space is worth on these photos.

    Of labels: `label_quality`; without labels only the spread of the asked photos. Rare and local changes need no
    labels and are measured on all photos (`encoder_quality`); factors on rendered ones. Raises InputError where the
    photos are too few or of one kind.
    """
    asked = np.asarray(space.encode(photos.pixels[photos.asked]), np.float32)
    values: Mapping[str, NDArray[np.float64]] = {}
    if photos.labels is None:
        numbers = spread_quality(asked, seed=seed)
    else:
        known, wanted = photos.side(~photos.asked), photos.side(photos.asked)
        found = label_quality(space.encode(known.pixels), known.labels, known.groups, asked, wanted.labels, seed=seed)
        numbers, values = found.numbers(), found.values
    numbers |= encoder_quality(space.encode, photos.pixels, seed=seed)
    numbers |= factor_quality(space.encode, photos.factors, seed=seed)
    return TableRow(space.name, space.dims, model_id is not None, model_id, numbers, values)


def leaders(rows: Sequence[TableRow], *, seed: int) -> dict[str, str]:
    """Return by measure the name of the row that is ahead of every other one by more than the interval; no other.

    Only of LABEL_MEASURES, which have a number a photo to compare by pairs (`paired_difference`).
    """
    found: dict[str, str] = {}
    for name in LABEL_MEASURES:
        measured = [row for row in rows if name in row.values]
        if len(measured) < 2:
            continue
        best = max(measured, key=lambda row: row.numbers[name])
        others = [row for row in measured if row is not best]
        if all(paired_difference(best.values[name], row.values[name], seed=seed).low > 0 for row in others):
            found[name] = best.name
    return found


def against_baselines(model: TableRow, rows: Sequence[TableRow], *, seed: int) -> dict[str, Against]:
    """Return by measure of LABEL_MEASURES how a model stands beside the baseline that is best at it."""
    found: dict[str, Against] = {}
    for name in LABEL_MEASURES:
        floors = [row for row in rows if not row.trained and name in row.values]
        if floors and name in model.values:
            best = max(floors, key=lambda row: row.numbers[name])
            found[name] = Against(best.name, paired_difference(model.values[name], best.values[name], seed=seed))
    return found
