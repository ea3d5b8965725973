"""Which photos of a release its quality table is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import ConfigError, InputError
from ..ordering import as_numpy, ranks, take_column, take_rows
from ..planning import NightSettings
from ..schema import attribute_fields
from ..storage import Store
from ..training.split import held_out
from .pictures import Pictures

PHOTOS = 5_000
LEAST = 40
ASKED = 0.25
_PARTS = 32  # pixels parts that are read; up to 128 MB each


@dataclass(frozen=True, slots=True)
class Sampled:
    """Photos of as many items, uint8 [n, size, size, 3]; labels, groups [n] as text; asked bool [n].

    labels: None where the catalogue names no category. split_by: the column that keeps photos on one side.
    """

    pixels: NDArray[np.uint8]
    labels: Sequence[str] | None
    groups: Sequence[str]
    asked: NDArray[np.bool_]
    split_by: str


def sample_photos(
    store: Store, config: NightSettings, items: pa.Table, *, photos: int, pictures: Pictures | None = None
) -> Sampled:
    """Return a seeded sample of up to `photos` items, each by its first photo whose pixels are kept.

    pictures: reads them; where it can fetch photos and too few are kept, each item's first photo takes part. items:
    schema.items_schema. Of photos with the same bytes the first takes part, and where the catalogue names categories
    only photos that have one. A quarter of the groups is asked: train.split_by, else items; by the same seeded hash
    that holds photos out of training, so what a training held out for validation is among the asked. Of a large
    catalogue a seeded _PARTS of the pixels parts are read. Raises ConfigError for a column that is not there,
    InputError for fewer than LEAST photos or groups that cannot be divided.
    """
    seed, category = config.train.seed, config.catalogue.category
    pictures = pictures or Pictures(store, config.images)
    rows = _candidates(items, category, seed)
    if len(rows) < min(photos, items.num_rows, LEAST) and pictures.files is not None:
        rows = _candidates(items, category, seed, kept=False)
    rows = np.sort(np.random.default_rng([seed, 3]).permutation(rows)[:photos])
    if len(rows) < LEAST:
        labelled = f" and a value of catalogue.category ({category!r})" if category else ""
        raise InputError(
            f"{len(rows)} items have a photo with kept pixels{labelled}; a quality table takes at least {LEAST}. Raise "
            "--photos or --limit; pixels that have expired come back with a run of another images setting"
        )
    kept = pictures.read(items, rows.tolist())
    rows = np.array([row for row in rows.tolist() if row in kept], np.int64)
    chosen = take_rows(items, rows)
    groups = _groups(chosen, config)
    asked = held_out(groups, ASKED, seed)
    if asked.all() or not asked.any():
        raise InputError(
            f"{len(set(groups.to_pylist()))} groups of train.split_by {config.train.split_by!r} cannot be divided into "
            "known and asked ones; name a column of more values, another train.seed, or none"
        )
    labels = None if category is None else chosen[category].cast(pa.string()).to_pylist()
    pixels = np.stack([kept[row] for row in rows.tolist()])
    return Sampled(pixels, labels, groups.to_pylist(), asked, config.train.split_by or "item_id")


def _candidates(items: pa.Table, category: str | None, seed: int, *, kept: bool = True) -> NDArray[np.int64]:
    """Return the rows that may be drawn: one an item and one a digest, of the parts that are read; kept: of any."""
    usable = np.ones(items.num_rows, np.bool_) if category is None else as_numpy(pc.is_valid(items[category]))
    rows = np.flatnonzero(usable)
    if kept:
        parts, _ = ranks(items["pixels_part"])
        rows = rows[parts[rows] >= 0]
        named = np.unique(parts[rows])
        read = named[np.random.default_rng([seed, 4]).permutation(len(named))[:_PARTS]]
        rows = rows[np.isin(parts[rows], read)]
    for column in ("item_id", "digest"):
        values = np.asarray(take_column(items[column], rows).to_pylist(), np.str_)
        rows = rows[np.sort(np.unique(values, return_index=True)[1])]
    return np.asarray(rows, np.int64)


def _groups(items: pa.Table, config: NightSettings) -> pa.ChunkedArray:
    """Return each row's group: its value in train.split_by, else its item_id."""
    column = config.train.split_by
    if column is None:
        return items["item_id"]
    names = ["item_id", *(field.name for field in attribute_fields(items.schema))]
    if column not in names:
        raise ConfigError(
            f"train.split_by is {column!r}, and the release has no such column; it has: {', '.join(names)}"
        )
    return pc.coalesce(items[column].cast(pa.string()), items["item_id"])
