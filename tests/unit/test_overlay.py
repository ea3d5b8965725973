"""A store laid over another: what is read from below, what stays above, and names that a word sets apart."""

from __future__ import annotations

import pickle

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline.errors import NotFound
from pipeline.storage import MemoryStore
from pipeline.storage.memory import SPACES
from pipeline.storage.overlay import Overlay

PREFIX = ("models/by-key/",)


@pytest.fixture
def below() -> MemoryStore:
    for space in ("overlay-above", "overlay-below"):
        SPACES.pop(space, None)
    store = MemoryStore("memory://overlay-below")
    store.put("models/a/config.json", b"below")
    store.put("models/by-key/k.json", b"the catalogue's own")
    return store


def laid(below: MemoryStore, apart: str) -> Overlay:
    return Overlay(MemoryStore("memory://overlay-above"), below, apart=apart, apart_prefix=PREFIX)


def test_reads_fall_through_and_writes_stay_above(below: MemoryStore) -> None:
    over = laid(below, "one")
    assert over.get("models/a/config.json", start=1, end=3) == b"el"
    assert not over.put_if_absent("models/a/config.json", b"other")
    assert over.put_if_absent("pixels/t/p.parquet", b"new")
    over.put("runs/r/heartbeat", b"1")
    assert [entry.name for entry in over.list()] == ["models/a/config.json", "pixels/t/p.parquet", "runs/r/heartbeat"]
    assert [entry.name for entry in below.list()] == ["models/a/config.json", "models/by-key/k.json"]
    over.delete("models/a/config.json")
    assert over.exists("models/a/config.json")
    assert over.open("models/a/config.json").read() == b"below"
    with pytest.raises(NotFound):
        over.get("models/b/config.json")
    assert pickle.loads(pickle.dumps(over)).get("pixels/t/p.parquet") == b"new"


def test_what_one_word_finds_by_key_another_does_not(below: MemoryStore) -> None:
    one, two = laid(below, "one"), laid(below, "two")
    assert not one.exists("models/by-key/k.json")  # nor what the store below answers
    assert one.put_if_absent("models/by-key/k.json", b"of fold one")
    assert one.get("models/by-key/k.json") == b"of fold one"
    with pytest.raises(NotFound):
        two.get("models/by-key/k.json")
    assert one.put_if_absent("models/b/config.json", b"content")
    assert two.get("models/b/config.json") == b"content"  # named by what it is, so shared
    # Negative control: laid over without a word the catalogue's own answer would be found.
    assert laid(below, "").get("models/by-key/k.json") == b"the catalogue's own"


def test_parts_are_read_through_arrow(below: MemoryStore) -> None:
    over = laid(below, "one")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [1, 2]}), sink)
    below.put("latents/m/p.parquet", sink.getvalue().to_pybytes())
    filesystem, root = over.arrow_filesystem()
    assert ds.dataset(f"{root}/latents/m/p.parquet", filesystem=filesystem).to_table()["x"].to_pylist() == [1, 2]
