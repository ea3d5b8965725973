"""How many photos are asked for at once, and what one that cannot be had for now does to the others."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pytest

from pipeline.catalogue import CatalogueConfig, PhotoReader
from pipeline.schema import PHOTOS
from pipeline.storage import Body, Files

THREADS, COUNT = 5, 60


class Counted(Files):
    """Files that note how many are read at once, and of which one may fail."""

    def __init__(self, broken: int | None = None) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.at_once = self.most = 0
        self.broken = broken
        self.counting = threading.Lock()

    def fetch(self, uri: str, **wanted: Any) -> Body:
        with self.counting:
            self.asked.append(uri)
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        time.sleep(0.002)
        with self.counting:
            self.at_once -= 1
        if uri == f"memory://b/{self.broken}":
            raise RuntimeError("a mistake in our code")
        return Body(uri.encode(), ())


def photos(count: int) -> pa.Table:
    given = {
        "item_id": [f"i{n}" for n in range(count)], "uri": [f"memory://b/{n}" for n in range(count)],
        "token": [f"version:{n}" for n in range(count)],
    }  # fmt: skip
    return pa.Table.from_arrays(
        [pa.array(given.get(field.name, [None] * count), field.type) for field in PHOTOS], schema=PHOTOS
    )


def test_photos_are_read_once_each_in_order_and_so_many_at_once() -> None:
    files = Counted()
    reader = PhotoReader(files, CatalogueConfig(source="memory://b/c.parquet"), threads=THREADS)
    for _ in range(2):
        assert reader.read(photos(COUNT)) == [f"memory://b/{n}".encode() for n in range(COUNT)]
    assert sorted(files.asked) == sorted(2 * [f"memory://b/{n}" for n in range(COUNT)])
    assert files.most == THREADS
    assert reader.read(photos(1)) == [b"memory://b/0"]
    assert reader.read(photos(0)) == []


def test_two_shards_of_an_actor_do_not_wait_for_each_others_answers() -> None:
    files = Counted()
    reader = PhotoReader(files, CatalogueConfig(source="memory://b/c.parquet"), threads=THREADS)
    with ThreadPoolExecutor(2) as shards:
        answers = list(shards.map(reader.read, [photos(COUNT), photos(COUNT)]))
    assert answers[0] == answers[1] == [f"memory://b/{n}".encode() for n in range(COUNT)]
    assert THREADS < files.most <= 2 * THREADS


def test_an_error_that_is_no_photos_fault_ends_the_reading() -> None:
    files = Counted(broken=7)
    reader = PhotoReader(files, CatalogueConfig(source="memory://b/c.parquet"), threads=THREADS)
    with pytest.raises(RuntimeError, match="a mistake"):
        reader.read(photos(COUNT))
    assert len(files.asked) < COUNT, "the others are not asked for any more"
    files.broken = None
    assert len(reader.read(photos(COUNT))) == COUNT
