"""Semantic IDs of a new bundle: its codes take the old numbers, and every item is encoded once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.index import LatentArrays
from pipeline.index.sids import FACT
from pipeline.keys import digest_of
from pipeline.release import Manifest
from pipeline.release import tables as release_tables
from pipeline.release.manifest import FileEntry
from pipeline.schema import changes_schema
from pipeline.storage import MemoryStore
from pipeline.tables import FurtherTables, Makers, Night, SemanticIdsConfig, TablesConfig, coded, further_tables, slots
from pipeline.tables.code_map import renumbered
from pipeline.tables.codebook_files import codebooks_bytes, keep_codebooks
from pipeline.tables.quantizer import Codebooks, encode, fit_codebooks

SIDS = SemanticIdsConfig(levels=(16, 8))
MAKERS = Makers(lambda *_: pytest.fail("k-means needs no training"), lambda: ())


def clustered(count: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    middle = np.random.default_rng(7).normal(size=(20, 6))
    return (middle[generator.integers(20, size=count)] + generator.normal(0, 0.3, (count, 6))).astype(np.float32)


def night_of(vectors: np.ndarray, first: int, model: str, parent: Manifest | None, run: str = "run") -> Night:
    """Return a night of one photo an item, items in the order of their keys from a number on."""
    items = pa.table({"item_id": [f"sku-{number:04d}" for number in range(first, first + len(vectors))]})
    changes = pa.table({name: [] for name in changes_schema().names}, changes_schema())
    index: Any = None  # of no use to these tables
    return Night(run, model, "l2", items, LatentArrays(vectors), index, changes, parent)


def tables(store: MemoryStore, night: Night) -> FurtherTables:
    return further_tables(store, night, TablesConfig(), SIDS, MAKERS)


def released(store: MemoryStore, made: FurtherTables) -> Manifest:
    files = {}
    for role in ("semantic_ids", "sid_retired"):
        held = made.files[role]
        assert not isinstance(held, tuple)
        entries = []
        for number, file in enumerate(held):
            name = f"releases/one/{role}-{number}.parquet"
            store.put_if_absent(name, file.data)
            entries.append(FileEntry(name=name, bytes=len(file.data), sha256=digest_of(file.data), rows=file.rows))
        files[role] = tuple(entries)
    return Manifest.model_construct(release_id="one", files=files, inputs=made.inputs, parent=None)


def rows_of(made: FurtherTables, role: str) -> list[dict[str, Any]]:
    held = made.files[role]
    assert not isinstance(held, tuple)
    return pa.concat_tables([pq.read_table(pa.BufferReader(file.data)) for file in held]).to_pylist()


def equally_near() -> tuple[np.ndarray, Codebooks]:
    """Return vectors some of which are as near to two centroids: to two that are one, and to two on either side."""
    generator = np.random.default_rng(1)
    level = generator.normal(size=(16, 6)).astype(np.float32)
    level[9] = level[4]
    level[3], level[12] = [0.5, 9, 0, 0, 0, 0], [-0.5, 9, 0, 0, 0, 0]
    between = np.array([0, 9, 0, 0, 0, 0], np.float32)
    vectors = np.concatenate([clustered(200, 2), level, np.repeat(between[None], 5, 0)])
    return vectors, Codebooks((level, np.round(generator.normal(size=(8, 6)), 1).astype(np.float32)))


def test_renumbered_codes_are_those_of_the_renumbered_codebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coded, "_ROWS", 50)
    store = MemoryStore("memory://renumbered")
    vectors, books = equally_near()
    found = coded.coded(store, "run", vectors, books)
    old = (np.array(books.sizes) - 1 - found.codes).astype(np.uint16)  # the other way round
    placed = renumbered(books, old, found.codes, books.sizes)
    again = coded.coded(store, "run", vectors, placed.books)
    mine = coded.recoded(vectors, found, placed)
    assert np.array_equal(mine.codes, again.codes)
    assert np.array_equal(mine.norms, again.norms)
    assert np.array_equal(mine.codes, encode(vectors, placed.books))
    # The known wrong version, which gives every row the new number of its code, is another.
    wrong = np.stack([numbers[found.codes[:, level]] for level, numbers in enumerate(placed.numbers)], axis=1)
    assert 5 < (wrong != again.codes).any(axis=1).sum() <= len(found.tied) < len(vectors)
    left = renumbered(books, old, found.codes, (8, 8))  # fewer codes before: that level stays
    assert np.array_equal(left.numbers[0], np.arange(16))
    assert np.array_equal(coded.recoded(vectors, found, left).codes, encode(vectors, left.books))


def test_a_new_bundle_encodes_every_item_once_and_says_what_two_passes_did(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore("memory://renewal")
    first = tables(store, night_of(clustered(400, 0), 0, "one", None))
    parent = released(store, first)
    vectors = clustered(450, 5)
    seen: list[int] = []
    encoded = coded.encoded

    def counted(rows: np.ndarray, books: Codebooks) -> Any:
        seen.append(len(rows))
        return encoded(rows, books)

    monkeypatch.setattr(coded, "encoded", counted)
    made = tables(store, night_of(vectors, 100, "two", parent))
    assert sum(seen) == len(vectors), "two passes are twice as many"
    # What was made before: those in both are encoded, the codebooks renumbered by them, and all encoded again.
    had = {row["item_id"]: row["codes"] for row in rows_of(first_again(store), "semantic_ids")}
    both = [number for number in range(100, 400) if f"sku-{number:04d}" in had]
    fitted = fit_codebooks(vectors, SIDS.levels, seed=SIDS.seed)
    old = np.array([had[f"sku-{number:04d}"] for number in both], np.uint16)
    right = renumbered(fitted, old, encode(vectors[np.array(both) - 100], fitted), SIDS.levels).books
    data, *_ = made.files["sid_codebooks"]
    facts = {"method": "rq_kmeans", "model_id": "two", "metric": "l2", "seed": "0"}
    assert data == codebooks_bytes(right, facts)
    codes = {row["item_id"]: row["codes"] for row in rows_of(made, "semantic_ids")}
    assert [codes[f"sku-{number:04d}"] for number in range(100, 550)] == encode(vectors, right).tolist()
    assert made.inputs[FACT]["epoch"] == 2


def first_again(store: MemoryStore) -> FurtherTables:
    return tables(store, night_of(clustered(400, 0), 0, "one", None))


def test_slots_are_read_a_file_at_a_time_and_looked_up_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    store, vectors = MemoryStore("memory://files"), clustered(500, 0)
    monkeypatch.setattr(release_tables, "FILE_ROWS", 70)
    monkeypatch.setattr(slots, "_LOOKED_UP", 33)
    first = tables(store, night_of(vectors[:400], 0, "one", None, "monday"))
    parent = released(store, first)
    assert len(parent.files["semantic_ids"]) == 6
    had = {
        row["item_id"]: row for row in rows_of(tables(store, night_of(vectors[:400], 0, "one", None)), "semantic_ids")
    }
    made = tables(store, night_of(vectors[100:], 100, "one", parent, "tuesday"))
    assert made.measures["sid_moves"] == 0.0
    now = {row["item_id"]: row for row in rows_of(made, "semantic_ids")}
    for item, row in now.items():
        assert row["since"] == ("monday" if item < "sku-0400" else "tuesday")
        if item in had:
            assert (row["codes"], row["suffix"]) == (had[item]["codes"], had[item]["suffix"])
    gone = rows_of(made, "sid_retired")
    assert sorted(row["item_id"] for row in gone) == [f"sku-{number:04d}" for number in range(100)]
    assert {(row["since"], row["retired"]) for row in gone} == {("monday", "tuesday")}
    texts = pa.chunked_array([["b", "x", "a"], [], ["b", "y"]], pa.string())
    values = pa.chunked_array([[f"{number}" for number in range(40)], ["a", "b"]], pa.string())
    assert slots.places_among(texts, values).tolist() == [41, -1, 40, 41, -1]
    assert slots.places_among(texts, values.slice(0, 0)).tolist() == [-1] * 5


def test_who_was_not_first_with_codebooks_takes_the_codes_of_those_that_were(monkeypatch: pytest.MonkeyPatch) -> None:
    store, vectors = MemoryStore("memory://second"), clustered(300, 0)
    other = fit_codebooks(clustered(300, 1), SIDS.levels, seed=9)

    def late(where: MemoryStore, name: str, books: Codebooks, facts: dict[str, str]) -> Any:
        where.put_if_absent(name, codebooks_bytes(other, facts))
        return keep_codebooks(where, name, books, facts)

    monkeypatch.setattr("pipeline.tables.night.keep_codebooks", late)
    made = tables(store, night_of(vectors, 0, "one", None))
    codes = {row["item_id"]: row["codes"] for row in rows_of(made, "semantic_ids")}
    assert [codes[item] for item in sorted(codes)] == encode(vectors, other).tolist()
    # Whoever fitted the very same has nothing to make again.
    mine = fit_codebooks(vectors, SIDS.levels, seed=0)
    assert keep_codebooks(store, "models/x", mine, {}).books is mine
    assert keep_codebooks(store, "models/x", mine, {}).books is mine
