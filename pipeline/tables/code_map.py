"""Which code took the place of which when the codebooks changed: the best matching of every level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..index.latents import Rows
from ..schema import SID_MAP, table_schema
from .quantizer import Codebooks, Codes


def matched(old: NDArray[Any], new: NDArray[Any], sizes: tuple[int, int]) -> tuple[Rows, Rows, np.ndarray]:
    """Return pairs (old codes, new codes) that most items moved between, each code once, and the counts [old, new].

    old, new: [n], the code of one level that each item had and has; sizes: how many codes there are of each. The
    Hungarian method: no other matching keeps more items.
    """
    from scipy.optimize import linear_sum_assignment

    pairs = old.astype(np.int64) * sizes[1] + new
    counts = np.bincount(pairs, minlength=sizes[0] * sizes[1]).reshape(sizes)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return rows.astype(np.int64), columns.astype(np.int64), counts


@dataclass(frozen=True, slots=True)
class Renumbered:
    """Codebooks whose codes have other numbers than before. numbers: by level int64 [codes], the new one of each."""

    books: Codebooks
    numbers: tuple[Rows, ...]


def renumbered(books: Codebooks, old: Codes, new: Codes, sizes: tuple[int, ...]) -> Renumbered:
    """Return new codebooks whose codes have the numbers of the old ones that they took the place of.

    old, new: uint16 [n, levels], of the same items. Levels of which there were more or fewer codes stay as they are.
    """
    levels, numbers = [], []
    for number, level in enumerate(books.levels):
        if number >= len(sizes) or sizes[number] != len(level) or not len(old):
            levels.append(level)
            numbers.append(np.arange(len(level)))
            continue
        was, now, _ = matched(old[:, number], new[:, number], (len(level), len(level)))
        placed = np.empty_like(level)
        placed[was] = level[now]
        levels.append(placed)
        numbers.append(was[np.argsort(now)])
    return Renumbered(Codebooks(tuple(levels), books.encoder), tuple(numbers))


def map_table(old: Codes, new: Codes, old_sizes: tuple[int, ...], new_sizes: tuple[int, ...]) -> pa.Table:
    """Return the table `sid_map` of the levels that both have: one row a matched code, and those left over."""
    rows = []
    for number, sizes in enumerate(zip(old_sizes, new_sizes, strict=False)):
        was, now, counts = matched(old[:, number], new[:, number], sizes)
        had = counts.sum(axis=1)
        for before, after in zip(was.tolist(), now.tolist(), strict=True):
            moved = int(counts[before, after])
            rows.append((number + 1, before, after, moved, moved / max(1, int(had[before]))))
        rows += [(number + 1, code, None, 0, 0.0) for code in sorted(set(range(sizes[0])) - set(was.tolist()))]
        rows += [(number + 1, None, code, 0, 0.0) for code in sorted(set(range(sizes[1])) - set(now.tolist()))]
    columns = [[row[at] for row in rows] for at in range(len(SID_MAP))]
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, SID_MAP, strict=True)],
        schema=table_schema(SID_MAP),
    )
