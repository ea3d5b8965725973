"""Gathering latents: order, each part once, only the needed columns, and parts that do not fit items."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections import Counter
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import IntegrityError, Unavailable
from pipeline.index import LatentArrays, gather_latents
from pipeline.index import latents as latents_module
from pipeline.parts import write_part
from pipeline.schema import latents_schema
from pipeline.storage import MemoryStore, open_store


class CountingStore(MemoryStore):
    """Counts opened parts, and how many are open at once."""

    def __init__(self) -> None:
        super().__init__("memory://gather")
        self.opened: Counter[str] = Counter()
        self.busy, self.most, self.lock = 0, 0, threading.Lock()

    def open(self, name: str) -> BinaryIO:
        with self.lock:
            self.opened[name] += 1
            self.busy += 1
            self.most = max(self.most, self.busy)
        handle = super().open(name)
        close = handle.close

        def closed() -> None:
            with self.lock:
                self.busy -= not handle.closed
            close()

        handle.close = closed  # type: ignore[method-assign]
        return handle


def write_model_parts(store: Any, parts: int, rows: int, *, dim: int = 5) -> dict[tuple[str, int], dict[str, Any]]:
    """Write parts with mean, log_var and codes; return (part, row) -> what lies there."""
    generator, held = np.random.default_rng(0), {}
    for number in range(parts):
        columns = {
            "item_id": [f"item-{number}-{row}" for row in range(rows)],
            "uri": [f"u/{number}/{row}" for row in range(rows)],
            "token": ["t"] * rows,
            "digest": ["0" * 64] * rows,
            "pixels_row": list(range(rows)),
            "mean": generator.normal(size=(rows, dim)).astype(np.float32),
            "log_var": generator.normal(size=(rows, dim)).astype(np.float32),
            "codes": generator.integers(0, 99, (rows, 4)).astype(np.int32),
        }
        name = f"latents/m/{number}.parquet"
        listed = {key: value if isinstance(value, list) else value.tolist() for key, value in columns.items()}
        write_part(store, name, pa.table(listed, latents_schema(dim, log_var=True, num_codes=4)), f"{number}")
        held |= {(name, row): {key: value[row] for key, value in columns.items()} for row in range(rows)}
    return held


def items_of(places: list[tuple[str, int]], held: dict[tuple[str, int], dict[str, Any]]) -> pa.Table:
    return pa.table(
        {
            "item_id": [held[place]["item_id"] for place in places],
            "latents_part": [part for part, _ in places],
            "latents_row": pa.array([row for _, row in places], pa.int32()),
        }
    )


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_rows_come_in_the_order_of_items_and_each_part_is_read_once(threads: int) -> None:
    store = CountingStore()
    held = write_model_parts(store, 7, 40)
    order = np.random.default_rng(1).permutation(280)[:200]  # some rows of each part live no more
    places = [list(held)[at] for at in order]
    items = pa.concat_tables([items_of(places[:90], held), items_of(places[90:], held)])  # several chunks
    latents = gather_latents(store, items, columns=("mean", "log_var", "codes"), threads=threads)
    for name, values in (("mean", latents.mean), ("log_var", latents.log_var), ("codes", latents.codes)):
        np.testing.assert_array_equal(values, [held[place][name] for place in places])
    assert (latents.mean.dtype, latents.codes.dtype) == (np.float32, np.int32)
    assert set(store.opened.values()) == {1}
    assert store.most <= threads


def test_only_the_mean_unless_more_is_asked() -> None:
    store = open_store("memory://gather-mean")
    held = write_model_parts(store, 1, 3)
    latents = gather_latents(store, items_of(list(held), held))
    assert latents.log_var is None
    assert latents.codes is None


def test_many_rows_lie_in_a_mapped_file_and_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store("memory://gather-mapped")
    held = write_model_parts(store, 3, 40)
    items = items_of(list(held)[::-1], held)
    small = gather_latents(store, items, columns=("log_var", "codes"))
    assert small.mean.flags.owndata, "negative control: few rows stay in memory"
    monkeypatch.setattr(latents_module, "HELD_BYTES", 1024)
    mapped = gather_latents(store, items, columns=("log_var", "codes"))
    assert isinstance(mapped.mean.base.base.obj, mmap.mmap)
    for name in ("mean", "log_var", "codes"):
        np.testing.assert_array_equal(getattr(mapped, name), getattr(small, name))

    def full(*asked: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(Unavailable, match=r"(?s)120 rows of latents need .* temporary files .*No space left.*TMPDIR"):
        gather_latents(store, items)


def test_a_row_that_is_not_finite_is_found_in_any_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents_module, "_CHECKED", 7)
    values = np.ones((20, 3), np.float32)
    values[[6, 7, 19], [0, 2, 1]] = [np.nan, np.inf, -np.inf]
    assert LatentArrays(mean=values, log_var=values[::-1]).not_finite(["mean"]).tolist() == [6, 7, 19]
    both = LatentArrays(mean=values, log_var=values[::-1]).not_finite(["mean", "log_var"])
    assert both.tolist() == [0, 6, 7, 12, 13, 19]


def test_no_items() -> None:
    items = items_of([], {}).cast(items_of([("p", 0)], {("p", 0): {"item_id": "a"}}).schema)
    assert gather_latents(open_store("memory://gather-none"), items).mean.shape == (0, 0)


def test_a_part_that_does_not_fit_items_is_refused() -> None:
    store = open_store("memory://gather-wrong")
    held = write_model_parts(store, 2, 10)
    swapped = items_of([("latents/m/0.parquet", 3)], held).set_column(0, "item_id", pa.array(["item-0-4"]))
    with pytest.raises(IntegrityError, match="other items"):
        gather_latents(store, swapped)
    beyond = items_of([("latents/m/0.parquet", 3)], held).set_column(2, "latents_row", pa.array([10], pa.int32()))
    with pytest.raises(IntegrityError, match=r"10 rows.*row 10"):
        gather_latents(store, beyond)


def test_parts_of_two_widths_and_parts_without_a_column_are_refused() -> None:
    store = open_store("memory://gather-widths")
    held = write_model_parts(store, 1, 4)
    narrow = {
        "item_id": ["n"], "uri": ["u"], "token": ["t"], "digest": ["0" * 64], "pixels_row": [0], "mean": [[1.0, 2.0]],
    }  # fmt: skip
    write_part(store, "latents/m/n.parquet", pa.table(narrow, latents_schema(2, log_var=False)), "n")
    held[("latents/m/n.parquet", 0)] = {"item_id": "n"}
    both = items_of([("latents/m/0.parquet", 0), ("latents/m/n.parquet", 0)], held)
    with pytest.raises(IntegrityError, match="one release has one model"):
        gather_latents(store, both)
    with pytest.raises(IntegrityError, match="log_var"):
        gather_latents(store, items_of([("latents/m/n.parquet", 0)], held), columns=("mean", "log_var"))


@pytest.mark.slow
def test_part_names_of_more_than_2_gib_are_no_bound() -> None:
    """At 145 letters a name that is 14.8 million photos; here names are longer and rows fewer."""
    store = open_store("memory://gather-names")
    held = write_model_parts(store, 1, 8, dim=1)
    name = f"latents/m/{'x' * 980}.parquet"
    store.put(name, store.get("latents/m/0.parquet"))
    places = [("latents/m/0.parquet", row) for row in range(8)] * 1250
    chunk = items_of(places, held)
    chunk = chunk.set_column(1, "latents_part", pa.array([name] * chunk.num_rows))
    items = pa.concat_tables([chunk.combine_chunks()] * 220)
    assert items["latents_part"].nbytes > 2**31
    mean = gather_latents(store, items).mean
    expected = np.array([held[place]["mean"] for place in places[:8]])
    np.testing.assert_array_equal(mean.reshape(-1, 8), np.tile(expected.reshape(-1), (275_000, 1)))
