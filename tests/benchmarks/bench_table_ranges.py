"""Memory of the tables of a release that Ray tasks make by ranges of items, and the same tables in one process.

For each number of items a process of its own writes latents to a store, builds an index, and makes `vectors`,
`neighbours` and `semantic_ids`: by ranges as Ray tasks (files far shorter than a release's, so that there are many),
and whole, here. Before them `changes`, against a parent of the same items of which 1 % have another token, 0.5 % are
gone and 0.5 % are new, and against none. Both ways must hold the same rows. Peaks are of what a process holds alone
(anonymous memory) and of all that is resident, mapped files too; the driver's above what it held before the tables.
--weed: the store is on an S3 server that is no mock, a SeaweedFS process (see faulty_store.py).

    python tests/benchmarks/bench_table_ranges.py --items 50000,200000 --json results/table_ranges.json [--weed]
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from drawn_releases import DIM, MODEL, write_latents
from faulty_store import WeedServer, sign_in
from options import NEEDED, Options
from record import made_on, write
from watched import Looking, held

from pipeline.index import IndexConfig, build_index, gather_latents
from pipeline.keys import digest_of
from pipeline.release import FileEntry, Manifest
from pipeline.release import tables as release_tables
from pipeline.schema import changes_schema, quarantine_schema
from pipeline.storage import Store, open_store
from pipeline.tables import (
    Makers,
    Night,
    SemanticIdsConfig,
    TablesConfig,
    changes,
    further_tables,
    neighbours,
    night_changes,
    vectors,
)

TOP = 10
PART_ROWS = 20_000


class Peaks(Looking):
    """Looks every 20 ms at what this process and the cluster's workers hold, in MB."""

    def __init__(self) -> None:
        super().__init__(0.02)
        self.begun = _held(os.getpid())
        self.driver, self.workers = dict(self.begun), {"alone": 0.0, "resident": 0.0}

    def look(self) -> None:
        self.driver = _larger(self.driver, _held(os.getpid()))
        for pid in _workers():
            self.workers = _larger(self.workers, _held(pid))

    def told(self) -> dict[str, Any]:
        self.stop()
        above = {name: round(self.driver[name] - self.begun[name], 1) for name in self.begun}
        told: dict[str, Any] = {"driver_above_mb": above, "driver_before_mb": self.begun}
        return told | ({"task_mb": self.workers} if self.workers["resident"] else {})


def _held(pid: int) -> dict[str, float]:
    try:
        return {name: round(held(key, pid) / 1e6, 1) for name, key in (("alone", "RssAnon"), ("resident", "VmRSS"))}
    except (OSError, StopIteration):  # it has just ended
        return {"alone": 0.0, "resident": 0.0}


def _larger(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    return {name: max(one[name], other[name]) for name in one}


def _workers() -> list[int]:
    """Return the processes of this process's cluster that are in a task of ours."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(b"ray::_done"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def night_of(store: Store, count: int) -> Night:
    """Write latents of so many items of one photo each, and return the night over them."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(2000, DIM))
    names, keys = [], pa.array([f"sku-{number:08d}" for number in range(count)])
    for start in range(0, count, PART_ROWS):
        ids = keys.slice(start, PART_ROWS)
        means = centres[generator.integers(len(centres), size=len(ids))] + generator.normal(0, 0.4, (len(ids), DIM))
        names.append(write_latents(store, ids, means.astype(np.float32), f"n1-{start}").name)
    rows = np.arange(count)
    parts = pa.DictionaryArray.from_arrays(pa.array((rows // PART_ROWS).astype(np.int32)), pa.array(names))
    places = pa.array((rows % PART_ROWS).astype(np.int32))
    items = pa.table({"item_id": keys, "uri": keys, "latents_part": parts, "latents_row": places})
    latents = gather_latents(store, items)
    index = build_index(
        latents, IndexConfig(metric="l2", kind="ivf_sq8", target_recall=0.9, threads=1, queries=200)
    ).index
    return Night("n1", MODEL, "l2", items, latents, index, changes_schema().empty_table(), None)


def changes_of(store: Store, ids: pa.ChunkedArray) -> dict[str, Any]:
    """Find what changed from a parent of these items to tonight, and what did from none; each with its peaks."""
    generator, rows = np.random.default_rng(1), len(ids)
    words = pa.array([f"s3://shop/photos/{number:08d}/front-of-the-item.jpg" for number in range(rows)])
    tokens = np.array([f"etag:{number:032x}" for number in range(rows)])
    view = pa.array(np.zeros(rows, np.int32))
    every = pa.table({"item_id": ids, "uri": words, "view": view, "token": tokens})
    order = generator.permutation(rows)
    gone, come, other = np.split(order[: rows // 50], [rows // 200, rows // 100])
    tokens[other] = "etag:another"
    tonight = every.set_column(3, "token", pa.array(tokens)).take(np.setdiff1d(np.arange(rows), gone))
    entries = []
    for number, file in enumerate(release_tables.table_files(every.take(np.setdiff1d(np.arange(rows), come)))):
        name = f"releases/parent/items-{number:04d}.parquet"
        store.put_if_absent(name, file.data)
        entries.append(FileEntry(name=name, bytes=len(file.data), sha256=digest_of(file.data), rows=file.rows))
    parent = Manifest.model_construct(files={"items": tuple(entries)})
    none, told = quarantine_schema().empty_table(), dict[str, Any]()
    del every, words, tokens
    for name, against in (("of_a_parent", parent), ("of_none", None)):
        peaks, began = Peaks(), time.perf_counter()
        peaks.start()
        found = night_changes(store, "n1", tonight, none, against, none if against else None)
        told[name] = {"seconds": round(time.perf_counter() - began, 1), **peaks.told(), "rows": found.num_rows}
        names = []
        for file in release_tables.table_files(found, looked_up=True):
            names.append(f"releases/tonight/{name}-{len(names):04d}.parquet")
            store.put_if_absent(names[-1], file.data)
        told[name]["digest"] = _digest(store, names)
    return told


def made(folder: str, count: int, way: str, entries: int, items: int) -> dict[str, Any]:
    """Make the tables one way. entries, items: of a file of neighbours, and of one of vectors and semantic IDs."""
    store = open_store(folder)
    night = night_of(store, count)
    if way == "tasks":
        import ray

        ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        for module, rows in ((release_tables, items), (vectors, items), (changes, items), (neighbours, entries)):
            vars(module)["FILE_ROWS"] = rows
    changed = changes_of(store, night.items["item_id"])
    sids, asked = SemanticIdsConfig(levels=(256, 64)), TablesConfig(vectors=True, neighbours=TOP)
    peaks, began = Peaks(), time.perf_counter()
    peaks.start()
    further = further_tables(store, night, asked, sids, Makers(lambda *_: sys.exit("trains"), lambda: ()))
    written: dict[str, list[str]] = {}
    for role, files in further.files.items():
        if isinstance(files, tuple):
            continue
        for number, file in enumerate(files):  # one at a time, as a release is written
            written.setdefault(role, []).append(f"releases/{way}/{role}-{number:04d}.parquet")
            store.put_if_absent(written[role][-1], file.data)
    told = {"items": count, "way": way, "seconds": round(time.perf_counter() - began, 1), **peaks.told()}
    told["files"] = {role: len(names) for role, names in written.items()}
    told["left"] = [entry.name for entry in store.list("runs/")]
    told["measures"] = further.measures
    told["rows"] = {role: _digest(store, names) for role, names in written.items()}
    told["rows"] |= {f"changes {name}": one.pop("digest") for name, one in changed.items()}
    return {**told, "changes": changed}


def _digest(store: Store, names: list[str]) -> str:
    """Return the sha256 of a table's values, whatever files they are in."""
    digests: dict[str, Any] = {}
    for name in names:
        for batch in pq.ParquetFile(pa.BufferReader(store.get(name))).iter_batches(1 << 15):
            for column, values in zip(batch.schema.names, batch.columns, strict=True):
                digests.setdefault(column, hashlib.sha256()).update(repr(values.to_pylist())[1:-1].encode() + b", ")
    return hashlib.sha256(repr([digests[key].hexdigest() for key in sorted(digests)]).encode()).hexdigest()


@contextmanager
def stores(folder: Path, *, weed: bool) -> Iterator[str]:
    """Yield where stores are: a folder, or a bucket of a server that runs meanwhile."""
    if not weed:
        yield str(folder)
        return
    sign_in()
    server = WeedServer(folder / "server", "tables")
    os.environ.update(AWS_ENDPOINT_URL=f"http://127.0.0.1:{server.port}", XDG_CACHE_HOME=str(folder / "cache"))
    try:
        yield server.url
    finally:
        server.stop()


def main() -> None:
    """Measure, in processes of their own, and write the result."""
    parser = Options(
        __doc__, items="50000,200000", ways="tasks,here", entries=(50_000, "of a file of neighbours"),
        file_items=(5000, "of a file of vectors and semantic IDs"),
        weed=(False, "on a SeaweedFS"), json=NEEDED,
    )  # fmt: skip
    parser.add_argument("--one", nargs=3, metavar=("FOLDER", "ITEMS", "WAY"), help="of one process")
    options = parser.parse_args()
    if options.one:
        folder, count, way = options.one
        found = made(folder, int(count), way, options.entries, options.file_items)
        options.json.write_text(json.dumps(found))
        return
    told = []
    for count in options.items.split(","):
        pair = {}
        for way in options.ways.split(","):
            with (
                tempfile.TemporaryDirectory(prefix="table-ranges-") as folder,
                stores(Path(folder), weed=options.weed) as where,
            ):
                out = Path(folder) / "found.json"
                words = ["--json", str(out), "--entries", str(options.entries), "--file-items", str(options.file_items)]
                subprocess.run([sys.executable, __file__, *words, "--one", f"{where}/store", count, way], check=True)
                pair[way] = json.loads(out.read_text())
        rows, measures = ([found.pop(name) for found in pair.values()] for name in ("rows", "measures"))
        same = {role: all(one[role] == rows[0][role] for one in rows) for role in rows[0]} if len(rows) > 1 else None
        told.append({"items": int(count), "same_rows": same, "same_measures": measures[0] == measures[-1], **pair})
        print(json.dumps(told[-1], indent=1), flush=True)
    asked = {"entries_a_file": options.entries, "items_a_file": options.file_items, "neighbours": TOP, "dim": DIM}
    kind = {"store": "SeaweedFS 4.48"} if options.weed else {}
    write(options.json, {**made_on(), **kind, **asked, "catalogues": told})


if __name__ == "__main__":
    main()
