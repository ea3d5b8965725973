"""The nearest items of every item, made block by block with the release's own index."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from ..index import GroupHits, Grouping, SearchIndex, nearest_groups
from ..ordering import run_starts, take_column
from ..release import ReleaseFile
from ..release.tables import FILE_ROWS, write_table
from ..schema import NEIGHBOURS, table_schema

_ASKED = 4096  # photos asked for at a time, about
_GROUP_ROWS = 1 << 17


def neighbour_files(items: pa.Table, index: SearchIndex, k: int) -> Iterator[ReleaseFile]:
    """Yield the table `neighbours` as files, each made when it is asked for.

    Columns: item_id, rank (from 1), neighbour_id, score. items: sorted by item_id, one row a photo; index: of these
    rows. An item's neighbours and scores are those that the reader's `similar` gives: all its photos ask, and an item's
    score is its best pair of photos. Fewer than k only when there are no more items.
    """
    starts = run_starts(items["item_id"])
    groups = Grouping(np.cumsum(starts) - 1)
    first = np.append(np.flatnonzero(starts), items.num_rows)
    ids = take_column(items["item_id"], first[:-1])
    a_file = max(1, FILE_ROWS // k)
    for start in range(0, max(1, len(ids)), a_file):
        stop = min(start + a_file, len(ids))
        blocks = _blocks(first[start : stop + 1], start)
        tables = [_table(_nearest(index, groups, (first[a], first[b]), k), a, ids) for a, b in blocks]
        table = pa.concat_tables([table_schema(NEIGHBOURS).empty_table(), *tables])
        yield ReleaseFile(write_table(table, group_rows=_GROUP_ROWS), ".parquet", table.num_rows)


def _blocks(first: np.ndarray, number: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of items with about _ASKED photos. first: each item's first row, and the end; number: of item 0."""
    start, items = 0, len(first) - 1
    while start < items:
        stop = max(start + 1, int(np.searchsorted(first, first[start] + _ASKED, side="right")) - 1)
        yield number + start, number + stop
        start = stop


def _nearest(index: SearchIndex, groups: Grouping, rows: tuple[int, int], k: int) -> list[GroupHits]:
    """Return the k nearest items of the items of a range of rows, each without itself."""
    mine = np.arange(*rows)
    owners = groups.numbers[mine]
    found = nearest_groups(index, index.latents(mine), owners - owners[0], k + 1, groups)
    return [_without(hits, own, k) for own, hits in enumerate(found, int(owners[0]))]


def _without(hits: GroupHits, own: int, k: int) -> GroupHits:
    kept = np.flatnonzero(hits.groups != own)[:k]
    return GroupHits(groups=hits.groups[kept], scores=hits.scores[kept])


def _table(answers: list[GroupHits], number: int, ids: pa.ChunkedArray) -> pa.Table:
    """Return the rows of consecutive items, the first of this number."""
    counts = [len(hits.groups) for hits in answers]
    columns = [
        take_column(ids, np.repeat(np.arange(number, number + len(answers)), counts)),
        pa.array(np.concatenate([np.arange(1, count + 1, dtype=np.int32) for count in counts])),
        take_column(ids, np.concatenate([hits.groups for hits in answers])),
        pa.array(np.concatenate([hits.scores for hits in answers])),
    ]
    return pa.table(columns, schema=table_schema(NEIGHBOURS))
