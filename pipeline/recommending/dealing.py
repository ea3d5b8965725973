"""Dealing events into buckets of whole customers, on the disk, so that one bucket at a time is held in memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..ordering import as_numpy
from .events import EventTable

BUCKET_ROWS = 1 << 18  # events of a bucket, about; one customer's events lie in one bucket, however many
_MOST_BUCKETS = 256  # files open at once
_SAMPLE = 1 << 16  # customers looked at to divide them evenly
_NAMED = 5  # unknown items that are shown
_COUNTED = 100_000  # and told apart


@dataclass
class Unknown:
    """Events of items that the release does not hold. rows: all of them; items: distinct, up to 100,000."""

    rows: int = 0
    items: set[str] = field(default_factory=set)
    first: list[str] = field(default_factory=list)

    def add(self, item_ids: pa.Array) -> None:
        """Count the items of some events."""
        self.rows += len(item_ids)
        for text in pc.unique(item_ids).to_pylist():
            if text not in self.items and len(self.items) < _COUNTED:
                self.items.add(text)
                if len(self.first) < _NAMED:
                    self.first.append(text)


@dataclass(frozen=True, slots=True)
class Dealt:
    """The events in buckets: paths of Arrow streams of customer, item (its number, -1: unknown), weight, time_us.

    Customers of a later bucket come behind those of an earlier one, in the order of text. asked: bool [items], whether
    an event names the item.
    """

    buckets: list[Path]
    unknown: Unknown
    asked: np.ndarray

    def tables(self) -> Iterator[pa.Table]:
        """Yield one bucket after the other."""
        for path in self.buckets:
            with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
                yield stream.read_all()


_SCHEMA = pa.schema(
    [("customer", pa.large_string()), ("item", pa.int64()), ("weight", pa.float64()), ("time_us", pa.int64())]
)


def deal(events: EventTable, item_ids: pa.Array, folder: Path, *, bucket_rows: int = BUCKET_ROWS) -> Dealt:
    """Deal all events into buckets below `folder`; item_ids: the release's items by number, as large_string.

    Raises what reading the events raises.
    """
    edges = _edges(events, min(_MOST_BUCKETS, -(-events.rows // bucket_rows)))
    buckets = [folder / f"events-{number:03d}.arrow" for number in range(len(edges) + 1)]
    unknown, asked = Unknown(), np.zeros(len(item_ids), np.bool_)
    with ExitStack() as stack:
        files = [stack.enter_context(pa.OSFile(str(path), "wb")) for path in buckets]
        writers = [stack.enter_context(pa.ipc.new_stream(file, _SCHEMA)) for file in files]
        for batch in events.batches():
            numbers = as_numpy(pc.index_in(batch["item"], value_set=item_ids), missing=-1).astype(np.int64)
            unknown.add(batch["item"].filter(pa.array(numbers < 0)).combine_chunks())
            asked[numbers[numbers >= 0]] = True
            table = batch.set_column(1, "item", pa.array(numbers)).cast(_SCHEMA)
            places = _buckets_of(table["customer"], edges)
            for number in np.unique(places).tolist():
                writers[number].write_table(table.filter(pa.array(places == number)))
    return Dealt(buckets, unknown, asked)


def _edges(events: EventTable, count: int) -> list[str]:
    """Return up to count - 1 customers that divide the events about evenly, in the order of text."""
    if count < 2:
        return []
    step = max(1, events.rows // _SAMPLE)
    seen, sample = 0, []
    for customers in events.customers():
        sample += customers.take(pa.array(np.arange(-seen % step, len(customers), step))).to_pylist()
        seen += len(customers)
    sample.sort()
    picked = (sample[len(sample) * number // count] for number in range(1, count))
    return list(dict.fromkeys(picked))


def _buckets_of(customers: pa.ChunkedArray, edges: list[str]) -> np.ndarray:
    encoded = customers.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    bucket = np.array([bisect_right(edges, text) for text in encoded.dictionary.to_pylist()], np.int64)
    places: np.ndarray = bucket[as_numpy(encoded.indices)]
    return places
