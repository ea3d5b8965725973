"""The report of a release of --items items beside its parent: seconds, memory and bytes of the page.

The store is written as a refresh writes it, but latents are drawn (200 directions and a spread), and photos are real
ones from --data/fashion-mnist, 64 a side, in two parts of 4,096 whose pixels all releases share; the parent has 1 %
other items. No bundle lies there, so nothing is decoded; whatever is read from the store is read.

    python tests/benchmarks/bench_report.py --data ../shared/data --items 1000000 --json results/report.json
"""

from __future__ import annotations

import io
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from options import NEEDED, Options, absent
from PIL import Image
from record import DATA, add, made_on, tell

from pipeline.catalogue import changes_between
from pipeline.index import IndexConfig, LatentArrays, build_index
from pipeline.parts import PartFile, pixels_part_name, write_part
from pipeline.quality.release_page import Asked, report_of
from pipeline.release import publish, read_head, write_release
from pipeline.release.tables import table_files
from pipeline.report import render_night
from pipeline.schema import items_schema, pixels_schema, quarantine_schema
from pipeline.storage import Store, open_store

DIM, PART_ROWS, PARTS, SIZE = 64, 4_096, 2, 64
MODEL, TRANSFORM = "ab" * 32, "cd" * 8
KINDS = ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


def write_pixels(store: Store, data: Path) -> list[str]:
    """Write the parts that hold pixels, and return their names."""
    stored = pq.read_table(data / "fashion-mnist" / "train.parquet", columns=["image"])["image"]
    coded = stored.slice(0, PARTS * PART_ROWS).to_pylist()
    photos = np.stack([np.asarray(Image.open(io.BytesIO(each)).convert("L")) for each in coded])
    names = []
    for number in range(PARTS):
        chosen = photos[number * PART_ROWS : (number + 1) * PART_ROWS]
        large = chosen[:, np.arange(SIZE) * 28 // SIZE][:, :, np.arange(SIZE) * 28 // SIZE]
        rows = [np.repeat(photo[..., None], 3, axis=2).tobytes() for photo in large]
        nulls, blank = pa.nulls(len(rows), pa.string()), pa.array([""] * len(rows))
        columns = {"item_id": blank, "uri": blank, "token": blank, "digest": nulls, "pixels": rows,
                   "stage": nulls, "reason": nulls, "detail": nulls}  # fmt: skip
        name = pixels_part_name(TRANSFORM, f"{number:064x}")
        write_part(store, name, pa.table(columns, schema=pixels_schema(SIZE)), "key")
        names.append(name)
    return names


def items_of(numbers: np.ndarray, parts: list[str]) -> pa.Table:
    ids = pa.array([f"sku-{number:08d}" for number in numbers.tolist()])
    part = np.minimum(numbers * PARTS // (int(numbers.max()) + 1), PARTS - 1)
    dictionary = pa.DictionaryArray.from_arrays(pa.array(part.astype(np.int32)), pa.array(parts))
    latents = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(len(numbers), np.int32)), pa.array([f"latents/{MODEL}/0.parquet"])
    )
    schema = items_schema([pa.field("category", pa.string())])
    rows = np.arange(len(numbers), dtype=np.int32)
    places, kinds = pa.array((numbers % PART_ROWS).astype(np.int32)), pa.array(KINDS).take(pa.array(numbers % 10))
    columns = [ids, ids, pa.array(np.zeros_like(rows)), ids, ids, latents, pa.array(rows), dictionary, places, kinds]
    return pa.Table.from_arrays(columns, schema=schema)


def vectors_of(numbers: np.ndarray) -> LatentArrays:
    centres = np.random.default_rng(0).normal(size=(200, DIM))
    spread = np.random.default_rng(1).normal(size=(int(numbers.max()) + 1, DIM)).astype(np.float32)
    return LatentArrays((centres[numbers % 200] + 0.6 * spread[numbers]).astype(np.float32))


def write(store: Store, run: str, items: pa.Table, numbers: np.ndarray, before: tuple[str, pa.Table] | None) -> str:
    built = build_index(vectors_of(numbers), IndexConfig(kind="flat"))
    quarantine = quarantine_schema().empty_table()
    changes = changes_between(items, quarantine, before[1] if before else None, quarantine if before else None)
    store.put(f"latents/{MODEL}/0.parquet", b"x")  # nobody reads it
    part = PartFile(name=f"latents/{MODEL}/0.parquet", bytes=1, rows=len(numbers), sha256="0" * 64)
    written = write_release(
        store, release_id=f"{run}-0123456789ab", release_key="0" * 64, run=run, attempt=1,
        files={"items": table_files(items), "quarantine": table_files(quarantine, looked_up=True),
               "changes": table_files(changes, looked_up=True), **built.files()},
        parent=before[0] if before else None, model_id=MODEL, model_kind="vae", latent_dim=DIM, transform_id=TRANSFORM,
        metric=built.index.metric.name, index_kind=built.kind, index_parameters=built.parameters,
        counts={"items": len(numbers), "photos": len(numbers)}, parts=(part,), code_version="bench",
    )  # fmt: skip
    head = read_head(store, "stable")
    publish(store, "stable", expected_head=head.number if head else 0, release_id=written.manifest.release_id,
            manifest_sha256=written.manifest_sha256, run=run, attempt=1)  # fmt: skip
    return written.manifest.release_id


def measured(store: Store, release: str) -> dict[str, Any]:
    """Return what a report takes, and what a later one takes when the files lie in the cache."""
    found: dict[str, Any] = {}
    for name in ("first", "again"):
        wall, cpu = time.monotonic(), time.process_time()
        reported = report_of(store, release, None, Asked("stable", "category"))
        drawing = time.process_time()
        page = render_night(reported.report)
        spent = {"wall": time.monotonic() - wall, "cpu": time.process_time() - cpu,
                 "drawing_cpu": time.process_time() - drawing}  # fmt: skip
        found |= {f"{name}_{what}_s": round(seconds, 1) for what, seconds in spent.items()}
    pictures = page.count(b"data:image/jpeg")
    left = [name for name, _ in reported.report.left_out]
    return {**found, "bytes": len(page), "pictures": pictures, "left_out": left,
            "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}  # fmt: skip


def main() -> None:
    options = Options(__doc__, data=DATA, items=1_000_000, json=NEEDED).parse_args()
    if absent(options.data):
        return
    with tempfile.TemporaryDirectory(prefix="report-") as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        store = open_store(f"{folder}/store")
        parts = write_pixels(store, options.data)
        fresh = max(1, options.items // 100)
        old, new = np.arange(options.items), np.arange(fresh, options.items + fresh)
        before = items_of(old, parts)
        parent = write(store, "one", before, old, None)
        release = write(store, "two", items_of(new, parts), new, (parent, before))
        del before
        result = {"items": options.items, **measured(store, release), **made_on("one thread, shared with other work")}
    add(options.json, result, f"{options.items}")
    tell(result, None)


if __name__ == "__main__":
    main()
