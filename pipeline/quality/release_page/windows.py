"""Some of a release's photos, drawn in runs of neighbouring rows: their parts are then read in few places."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa

from ...index.latents import Rows
from ...parts import read_part_rows
from ...storage import Store
from .subject import Subject

_WINDOWS = 16
_LONG = 128  # rows of a window: those of one release's rows that lie together in one part


def drawn_rows(subject: Subject, *, stream: int, most: int = _WINDOWS * _LONG) -> Rows:
    """Return up to `most` rows in at most 16 runs, seeded, in order, without those that are delisted.

    Spread over the whole table: one run begins in each sixteenth of it.
    """
    side = subject.now
    count = side.items.num_rows
    if count <= most:
        rows = np.arange(count)
    else:
        long = most // _WINDOWS
        edges = np.linspace(0, count - long, _WINDOWS + 1).astype(np.int64)
        generator = subject.draw(stream)
        starts = [int(generator.integers(low, max(low + 1, high))) for low, high in pairwise(edges.tolist())]
        rows = np.unique(np.concatenate([np.arange(start, start + long) for start in starts]))
    return rows[~np.isin(side.items.groups.numbers[rows], side.hidden)]


def latents_column(store: Store, places: pa.Table, column: str) -> np.ndarray:
    """Return one list column of the photos' latents parts, [n, width]; places: columns latents_part, latents_row."""
    parts = places["latents_part"].to_pylist()
    rows = places["latents_row"].to_numpy()
    found: np.ndarray | None = None
    for part in dict.fromkeys(parts):
        mine = np.array([place for place, name in enumerate(parts) if name == part], np.int64)
        table = read_part_rows(store, part, rows[mine].astype(np.int64), [column])
        values = np.stack(table[column].to_numpy(zero_copy_only=False))
        if found is None:
            found = np.zeros((len(parts), values.shape[1]), values.dtype)
        found[mine] = values
    return np.zeros((0, 0)) if found is None else found
