"""Exports of a release some of whose items are delisted, and those that other libraries write."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError
from pipeline.index.sids import SidTable
from pipeline.index.vector_lists import as_lists
from pipeline.schema import SEMANTIC_IDS, table_schema, vectors_schema
from pipeline.tables.exports import EXPORTS, export
from pipeline.tables.library_exports import LIBRARIES

ITEMS, DIM = 9, 3
IDS = [f"item-{number}" for number in range(ITEMS)]
HIDDEN = {"item-0", "item-5"}
CODES = np.array([[number % 3, number % 2] for number in range(ITEMS)], np.uint16)
SUFFIXES = np.array([sum((CODES[:number] == CODES[number]).all(axis=1)) for number in range(ITEMS)], np.int32)
VECTORS = np.random.default_rng(0).normal(size=(ITEMS, DIM)).astype(np.float32)


class Release:
    """What an export asks of a release; `hidden` of its items are delisted."""

    manifest = SimpleNamespace(metric="cosine")

    def __init__(self, folder: Path, hidden: set[str]) -> None:
        self.hidden = hidden
        order = np.lexsort([SUFFIXES, *CODES.T[::-1]])
        schema = table_schema(SEMANTIC_IDS)
        lists = {
            name: as_lists(CODES[order].astype(kind), schema.field(name).type)
            for name, kind in (("codes", np.uint16), ("nearest_codes", np.uint16), ("offset_codes", np.int32))
        }
        plain = {"item_id": np.array(IDS)[order], "suffix": SUFFIXES[order], "since": ["one"] * ITEMS,
                 "token": [""] * ITEMS, "residual_norm": np.zeros(ITEMS, np.float32)}  # fmt: skip
        path = folder / "sids.parquet"
        pq.write_table(pa.table({name: {**lists, **plain}[name] for name in schema.names}, schema), path)
        self._sids = SidTable([str(path)], {"levels": [3, 2], "epoch": 1}, IDS)

    def item_ids(self) -> list[str]:
        return [item for item in IDS if item not in self.hidden]

    def attributes(self, item_id: str) -> dict[str, Any]:
        return {"number": IDS.index(item_id)}

    def sids(self) -> SidTable:
        return self._sids

    def table(self, role: str) -> pa.Table:
        lists = pa.FixedSizeListArray.from_arrays(pa.array(VECTORS.reshape(-1)), DIM)
        return pa.table([pa.array(IDS), lists], schema=vectors_schema(DIM))


@pytest.mark.parametrize("hidden", [set(), HIDDEN])
def test_every_form_holds_the_shown_items_each_beside_its_own(tmp_path: Path, hidden: set[str]) -> None:
    release: Any = Release(tmp_path, hidden)
    files = {form: tmp_path / form for form in EXPORTS}
    for form, path in files.items():
        assert export(release, form, path) == path.stat().st_size
    ids = [json.loads(line) for line in files["item-ids"].read_text().splitlines()]
    assert ids == [item for item in IDS if item not in hidden]
    numbers = [IDS.index(item) for item in ids]
    assert np.array_equal(np.load(files["vectors-npy"]), VECTORS[numbers])
    assert np.array_equal(np.load(files["sids-npy"]), CODES[numbers].T)
    slots = sorted((*CODES[number].tolist(), int(SUFFIXES[number])) for number in numbers)
    assert [tuple(row) for row in np.load(files["sids-sorted-npy"]).tolist()] == slots
    words = json.loads(files["sids-json"].read_text())
    assert list(words) == ids
    for number in numbers:
        code = (*CODES[number].tolist(), int(SUFFIXES[number]))
        assert words[IDS[number]] == [f"<{level}_{part}>" for level, part in zip("abc", code, strict=True)]
    points = [json.loads(line) for line in files["qdrant-jsonl"].read_text().splitlines()]
    assert [(point["id"], point["payload"]["item_id"]) for point in points] == list(enumerate(ids))
    for point, number in zip(points, numbers, strict=True):
        assert point["payload"]["number"] == number
        np.testing.assert_array_equal(np.array(point["vector"], np.float32), VECTORS[number])
    with pytest.raises(ConfigError, match="item 'nobody' has no semantic ID in this release"):
        release.sids().words(["item-1", "nobody"])


@pytest.mark.parametrize("form", sorted(LIBRARIES))
def test_a_library_that_is_not_installed_is_named(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = LIBRARIES[form]
    monkeypatch.setitem(sys.modules, library.module.partition(".")[0], None)
    release: Any = Release(tmp_path, set())
    with pytest.raises(ConfigError, match=f"{form} is written by the package .* run `pip install {library.package}`"):
        export(release, form, tmp_path / "out")
    assert list(tmp_path.glob("out*")) == []


def test_what_a_library_leaves_half_done_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def halfway(table: pa.Table, path: str, *, mode: str) -> None:
        (Path(path) / "data").mkdir(parents=True)
        (Path(path) / "data" / "0.lance").write_bytes(b"half")
        assert table["item_id"].to_pylist() == [item for item in IDS if item not in HIDDEN]
        raise OSError("disk full")

    monkeypatch.setitem(sys.modules, "lance", SimpleNamespace(write_dataset=halfway))
    release: Any = Release(tmp_path, HIDDEN)
    with pytest.raises(OSError, match="disk full"):
        export(release, "lance", tmp_path / "out")
    assert list(tmp_path.glob("out*")) == []
    (tmp_path / "out.part").mkdir()
    with pytest.raises(ConfigError, match=r"out\.part is there: another export writes it, or was stopped"):
        export(release, "lance", tmp_path / "out")
