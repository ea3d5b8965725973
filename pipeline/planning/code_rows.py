"""The photos of a release as a prior learns them: where their codes lie, who is held out, of which categories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import ConfigError
from ..ordering import ranks, take_rows
from ..training import PartRows, TrainConfig
from .training_rows import columns_of, condition_rows, held_out_rows, labels_of


@dataclass(frozen=True, slots=True)
class ReleasePhotos:
    """items: schema.items_schema, by latents part and row in it, which is the order of the codes that are read.

    held_out: which of them are for validation only, bool [n]. category: the column that photos are told by, None where
    none is known.
    """

    items: pa.Table
    held_out: NDArray[np.bool_]
    category: str | None

    def labels(self) -> tuple[str, ...]:
        """Return the categories of the photos that are trained on; none where no column is known."""
        if self.category is None:
            return ()
        return labels_of(self.items[self.category], [np.flatnonzero(~self.held_out)])

    def categories(self) -> pa.ChunkedArray | None:
        """Return the photos' categories as text, None where no column is known."""
        return None if self.category is None else self.items[self.category].cast(pa.string())

    def conditions(self, labels: Sequence[str]) -> NDArray[np.int32] | None:
        """Return the photos' condition rows, int32 [n], for a prior that knows these labels."""
        return None if self.category is None else condition_rows(self.items[self.category], labels)

    def code_rows(self, labels: Sequence[str]) -> list[PartRows]:
        """Return which rows of which latents parts hold the photos' codes, in the order of `items`."""
        parts, names = ranks(self.items["latents_part"])
        rows = self.items["latents_row"].to_numpy().astype(np.int32)
        conditions = self.conditions(labels)
        ends = np.searchsorted(parts, np.arange(len(names) + 1))
        return [
            PartRows(
                part=name,
                rows=rows[begin:end],
                category=None if conditions is None else conditions[begin:end],
                held_out=self.held_out[begin:end],
            )
            for name, begin, end in zip(names, ends[:-1], ends[1:], strict=True)
        ]


def release_photos(items: pa.Table, train: TrainConfig, *, category: str | None) -> ReleasePhotos:
    """Return the photos of a release's items table. category: the column of categories, None for none.

    An item without a value in prior.train.split_by is a group of its own. Raises ConfigError for a column that the
    release has not.
    """
    columns = columns_of(items)
    for name, column in (("prior.train.split_by", train.split_by), ("catalogue.category", category)):
        if column is not None and column not in columns:
            raise ConfigError(f"{name} is {column!r}, and the release has no such column; it has: {', '.join(columns)}")
    parts, _ = ranks(items["latents_part"])
    ordered = take_rows(items, np.lexsort((items["latents_row"].to_numpy(), parts)))
    aside = held_out_rows(ordered, train)
    return ReleasePhotos(ordered, np.zeros(len(ordered), np.bool_) if aside is None else aside, category)
