"""What changed since the parent, made by ranges of items: whoever makes one reads the parent's files of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..catalogue import CARRIED, changes_between
from ..index.segments import TASK_BYTES
from ..mapping import Kept, Scratch, mapped_file, mapped_in_turn
from ..ordering import first_at_least, item_boundaries, sorted_by
from ..release import FileEntry, Manifest
from ..release.tables import FILE_ROWS, read_entry
from ..storage import Store
from .pieces import packed, unpacked

_ROW_BYTES = 1000  # of a task, for each row of tonight's and of the parent's


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the parent's items. first, last: its smallest and largest item_id; None: not looked up, any."""

    entry: FileEntry
    first: str | None = None
    last: str | None = None

    def reaches(self, low: str | None, high: str | None) -> bool:
        """Return whether it may hold items from `low` on that come before `high`; None: no such bound."""
        below = high is None or self.first is None or self.first < high
        return below and (low is None or self.last is None or low <= self.last)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What tasks share. files: of the parent's items; scratch: where Ray tasks leave what they find."""

    store: Store
    files: tuple[_File, ...]
    scratch: Scratch | None


@dataclass(slots=True)
class _Range:
    """Items from `low` on that come before `high`. tables: tonight's, tonight's quarantine, and the parent's; such a
    range travels as its own rows, where a pickle has the whole of what it was cut from."""

    low: str | None
    high: str | None
    tables: tuple[pa.Table, ...]

    def __getstate__(self) -> tuple[str | None, str | None, tuple[pa.Buffer, ...]]:
        return self.low, self.high, tuple(packed(table) for table in self.tables)

    def __setstate__(self, state: tuple[str | None, str | None, tuple[pa.Buffer, ...]]) -> None:
        self.low, self.high, data = state
        self.tables = tuple(unpacked(one) for one in data)


def night_changes(
    store: Store,
    run: str,
    items: pa.Table,
    quarantine: pa.Table,
    parent: Manifest | None,
    parent_quarantine: pa.Table | None,
) -> pa.Table:
    """Return what `changes_between` does of tonight's tables and the parent's, whose items are never held whole.

    A range is that of one of the parent's files, or a part of it where tonight has many more. Of several ranges, where
    Ray is, tasks find the changes; these lie in files then, which this process maps and nobody else can open any more.
    Raises IntegrityError for a file of the parent's that is not what its manifest says.
    """
    entries = [] if parent is None else [entry for entry in parent.files_of("items") if entry.rows != 0]
    files = tuple(_spans(store, entries)) if len(entries) > 1 else tuple(_File(entry) for entry in entries)
    living = sorted_by(items.drop_columns([name for name in CARRIED if name in items.column_names]), "item_id")
    refused = sorted_by(quarantine, "item_id")
    before = refused.slice(0, 0) if parent_quarantine is None else sorted_by(parent_quarantine, "item_id")
    tonight = (living, refused, before)
    ranges = list(_ranges(living["item_id"], files))
    scratch = Scratch.of_run(store, run, len(ranges))
    rows = FILE_ROWS + max((entry.rows or 0 for entry in entries), default=0)
    found = mapped_in_turn(
        _changes,
        _Asked(store, files, scratch),
        (_Range(low, high, tuple(_between(table, low, high) for table in tonight)) for low, high in ranges),
        scratch=scratch,
        task_bytes=TASK_BYTES + _ROW_BYTES * rows,
        while_doing="comparing items with the parent's",
    )
    return pa.concat_tables([_here(scratch, one) for one in found])


def _spans(store: Store, entries: Sequence[FileEntry]) -> Iterator[_File]:
    """Yield files with what they hold, by their footers; one whose footer does not say is read."""
    for entry in entries:
        with store.open(entry.name) as handle:
            ends = _told(handle)
        if ends is None:
            ids = pc.min_max(read_entry(store, entry, columns=["item_id"])["item_id"])
            ends = ids["min"].as_py(), ids["max"].as_py()
        yield _File(entry, *ends)


def _told(handle: IO[bytes]) -> tuple[str, str] | None:
    """Return the smallest and the largest item_id by a footer's statistics, None where it has none."""
    try:
        metadata = pq.read_metadata(handle)
    except (pa.ArrowInvalid, OSError):  # whoever reads it whole says what is wrong
        return None
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    told = [column.statistics for column in columns if column.path_in_schema == "item_id"]
    if not told or any(one is None or not one.has_min_max for one in told):
        return None
    return min(one.min for one in told), max(one.max for one in told)


def _ranges(ids: pa.ChunkedArray, files: Sequence[_File]) -> Iterator[tuple[str | None, str | None]]:
    """Yield the ends of ranges of items, in their order: one a file of the parent's, more where many are new."""
    firsts = sorted({file.first for file in files if file.first is not None})
    edges = [None, *firsts[1:], None]
    for low, high in pairwise(edges):
        start, stop = _rows(ids, low, high)
        count = max(1, round((stop - start) / FILE_ROWS))
        inner = item_boundaries(ids.slice(start, stop - start), -(-(stop - start) // count) or 1)
        yield from pairwise([low, *inner, high])


def _rows(ids: pa.ChunkedArray, low: str | None, high: str | None) -> tuple[int, int]:
    """Return the rows of a range among sorted item_ids: the first, and the one behind the last."""
    start = 0 if low is None else first_at_least(ids, low)
    return start, len(ids) if high is None else first_at_least(ids, high)


def _between(table: pa.Table, low: str | None, high: str | None) -> pa.Table:
    start, stop = _rows(table["item_id"], low, high)
    return table.slice(start, stop - start)


def _changes(asked: _Asked, items: _Range) -> pa.Table | Kept:
    """Return what changed in a range of items."""
    now, refused, refused_before = items.tables
    files = [file for file in asked.files if file.reaches(items.low, items.high)]
    held = [read_entry(asked.store, file.entry, without=CARRIED) for file in files]
    before = [_between(sorted_by(table, "item_id"), items.low, items.high) for table in held]
    found = changes_between(now, refused, pa.concat_tables(before) if before else now.slice(0, 0), refused_before)
    return found if asked.scratch is None else asked.scratch.keep("changes", memoryview(packed(found)))


def _here(scratch: Scratch | None, found: pa.Table | Kept) -> pa.Table:
    """Return what a task found; a file is mapped, and deleted: it lasts as long as the map."""
    if scratch is None or isinstance(found, pa.Table):
        return found
    table = unpacked(pa.py_buffer(mapped_file(scratch.store, found)))
    scratch.forget([found])
    return table
