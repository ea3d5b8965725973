"""A large catalogue stays in Arrow: time and memory of reading and comparing it, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROWS = int(os.environ.get("CODEBOOKS_SCALE_ROWS", "500000"))
# Peak memory beyond the imported libraries, as a multiple of all tables that are alive at the end (photos, parent and
# difference). One dict a photo would alone exceed it several times.
MOST = 1.8

PROGRAM = """
import json, resource, sys, time
import numpy as np, pyarrow as pa, pyarrow.compute as pc, pyarrow.parquet as pq
from pipeline.catalogue import CatalogueConfig, compare, read_photos, resolve_tokens
from pipeline.schema import ITEMS
from pipeline.storage import Files

path, rows = sys.argv[1], int(sys.argv[2])

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

writer = None
step = 100_000
shuffle = np.random.default_rng(0).permutation(rows)
for start in range(0, rows, step):
    number = pa.array(shuffle[start : start + step]).cast(pa.string())
    batch = pa.table({
        "sku": pc.binary_join_element_wise("sku-", pc.utf8_lpad(number, 10, "0"), ""),
        "photo": pc.binary_join_element_wise("images/products/2026/", number, "-front-1600x1600.jpg", ""),
        "category": pc.if_else(pc.starts_with(number, "1"), "Shoes", "Bags"),
        "price": pa.array(shuffle[start : start + step] / 100),
        "v": number,
    })
    writer = writer or pq.ParquetWriter(path, batch.schema)
    writer.write_table(batch)
writer.close()

config = CatalogueConfig(source=path, item_id="sku", image="photo", category="category", version="v")
base = peak()
began = time.perf_counter()
photos = read_photos(config, Files())
photos, cost = resolve_tokens(photos, config, Files())
read_s, read_peak = time.perf_counter() - began, peak() - base
assert photos.num_rows == rows and (cost.listed, cost.heads) == (0, 0)

# The parent: the same items but the last tenth, every hundredth with another token, a twentieth with another price.
held = photos.slice(0, rows - rows // 10)
place = np.arange(held.num_rows)
token = pc.if_else(pa.array(place % 100 == 0), "version:old", held["token"])
price = pc.if_else(pa.array(place % 20 == 1), 0.5, held["price"])
number = pa.array(place // 8192).cast(pa.string())
part = pc.binary_join_element_wise("latents/0123456789abcdef/", number, ".parquet", "")
row = pa.array(place % 8192, pa.int32())
parent = pa.table(
    [held["item_id"], held["uri"], held["view"], token, token, part, row, part, row, held["category"], price],
    schema=pa.schema([*ITEMS, pa.field("category", pa.string()), pa.field("price", pa.float64())]),
)
del held
began = time.perf_counter()
found = compare(photos.slice(rows // 10), parent, None)
compare_s = time.perf_counter() - began
alive = photos.nbytes + parent.nbytes + found.rows.nbytes + found.removed.nbytes + found.relabelled.nbytes
print(json.dumps({
    "rows": rows, "read_s": read_s, "compare_s": compare_s, "photos_mb": photos.nbytes / 1e6, "alive_mb": alive / 1e6,
    "read_ratio": read_peak / photos.nbytes, "ratio": (peak() - base) / alive, "counts": found.counts,
}))
"""


@pytest.mark.slow
def test_a_large_catalogue_in_bounded_memory(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "c.parquet"), str(ROWS)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"},
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    print(json.dumps(measured))
    tenth = ROWS // 10
    shared = range(tenth, ROWS - tenth)
    changed = sum(place % 100 == 0 for place in shared)
    assert measured["counts"] == {
        "added": tenth,
        "changed": changed,
        "same": len(shared) - changed,
        "refused": 0,
        "removed": tenth,
        "relabelled": sum(place % 20 == 1 for place in shared),
        "held": 0,
    }
    assert measured["ratio"] < MOST, measured
