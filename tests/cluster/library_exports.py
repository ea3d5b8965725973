"""The exports that other libraries write, each read back by its own library and held to the table they were made of.

pip install pylance hnswlib tfrecord qdrant-client   # in an environment of its own, which sees this checkout's too
python tests/cluster/library_exports.py --json tests/benchmarks/results/library_exports.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.schema import vectors_schema
from pipeline.tables.exports import export

ROOT = Path(__file__).resolve().parents[2]
ITEMS, DIM, HIDDEN = 2000, 24, 17


class Release:
    """A release of random vectors, of whose items one is delisted."""

    manifest = SimpleNamespace(metric="cosine")

    def __init__(self) -> None:
        values = np.random.default_rng(0).normal(size=(ITEMS, DIM)).astype(np.float32)
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        ids = [f"sku-{number:05d}-ü" for number in range(ITEMS)]
        lists = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), DIM)
        self._table = pa.table([pa.array(ids), lists], schema=vectors_schema(DIM))
        self.ids, self.values = np.delete(ids, HIDDEN).tolist(), np.delete(values, HIDDEN, axis=0)

    def item_ids(self) -> list[str]:
        return self.ids

    def attributes(self, item_id: str) -> dict[str, Any]:
        return {"category": f"shelf {int(item_id[4:9]) % 7}"}

    def table(self, role: str) -> pa.Table:
        assert role == "vectors"
        return self._table


def lance(path: Path, release: Release) -> str:
    import lance

    table = lance.dataset(str(path)).to_table()
    assert table["item_id"].to_pylist() == release.ids
    found = np.array(table["vector"].to_pylist(), np.float32)
    assert np.array_equal(found, release.values)
    assert table.schema.field("vector").type.list_size == DIM
    return f"{table.num_rows} rows and their vectors equal"


def hnswlib(path: Path, release: Release) -> str:
    import hnswlib

    index = hnswlib.Index(space="cosine", dim=DIM)
    index.load_index(str(path))
    held = index.get_items(np.arange(len(release.ids)))
    np.testing.assert_allclose(np.array(held), release.values, atol=1e-6)
    index.set_ef(200)
    labels, _ = index.knn_query(release.values, k=10)
    truth = np.argsort(-(release.values @ release.values.T), axis=1)[:, :10]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(labels.tolist(), truth.tolist(), strict=True)])
    assert (labels[:, 0] == np.arange(len(release.ids))).mean() > 0.99
    assert recall > 0.9
    return f"{index.get_current_count()} vectors equal to 1e-6, recall of the nearest 10 {recall:.4f}"


def tfrecord(path: Path, release: Release) -> str:
    from tfrecord.reader import tfrecord_loader

    rows = list(tfrecord_loader(str(path), None, {"item_id": "byte", "vector": "float"}))
    assert [bytes(row["item_id"]).decode() for row in rows] == release.ids
    assert np.array_equal(np.stack([row["vector"] for row in rows]), release.values)
    return f"{len(rows)} examples equal"


def qdrant(path: Path, release: Release) -> str:
    from qdrant_client import QdrantClient, models

    lines = [json.loads(line) for line in path.read_text().splitlines()]
    client = QdrantClient(":memory:")
    space = models.VectorParams(size=DIM, distance=models.Distance.COSINE)
    client.create_collection("items", vectors_config=space)
    client.upsert("items", points=[models.PointStruct(**line) for line in lines])
    asked = range(0, len(release.ids), 50)
    held = client.retrieve("items", ids=list(asked), with_vectors=True)
    assert [point.payload for point in held] == [
        {"item_id": release.ids[number], **release.attributes(release.ids[number])} for number in asked
    ]
    np.testing.assert_allclose(np.array([point.vector for point in held]), release.values[list(asked)], atol=1e-6)
    hits = 0
    for number in asked:
        found = client.query_points("items", query=release.values[number].tolist(), limit=10).points
        truth = np.argsort(-(release.values @ release.values[number]), kind="stable")[:10]
        hits += len({point.payload["item_id"] for point in found} & {release.ids[near] for near in truth})
    assert hits == 10 * len(asked)
    return f"{client.count('items').count} points, {len(asked)} looked at: equal, with the exact nearest 10"


READ: dict[str, tuple[str, Callable[[Path, Release], str]]] = {
    "lance": ("pylance", lance), "hnswlib": ("hnswlib", hnswlib), "tfrecord": ("tfrecord", tfrecord),
    "qdrant-jsonl": ("qdrant-client", qdrant),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--only", choices=list(READ), nargs="+", default=list(READ))
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for form in options.only:
        package, read = READ[form]
        with tempfile.TemporaryDirectory() as folder:
            release: Any = Release()
            size = export(release, form, Path(folder) / "export")
            results[form] = {"package": f"{package} {version(package)}", "bytes": size,
                             "read_back": read(Path(folder) / "export", release)}  # fmt: skip
        print(form, results[form])
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    document = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
        "machine": f"{os.cpu_count()} x {platform.machine()}",
        "python": platform.python_version(),
        "results": results,
    }
    options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
