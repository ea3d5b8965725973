"""What the reader costs over FAISS alone: `similar()` against a raw search of the same index, one query at a time.

The reader also finds the key, leaves the item itself out, scores again in float64, groups photos into items, breaks
ties by key and brings attributes along. Runs alternate A B A B; the median of the pairs' ratios is printed with its
range.

    python tests/benchmarks/bench_search.py [--photos 60000] [--dim 32] [--pairs 7] [--queries 300]
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from beside import release_maker
from options import Given, Options
from timing import spread

from pipeline.index import IndexConfig
from pipeline.reader import open_release
from pipeline.storage import open_store


def clustered_photos(maker: Any, count: int, dim: int) -> list[Any]:
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(600, dim)) * 2
    means = (centres[generator.integers(600, size=count)] + generator.normal(0, 0.5, (count, dim))).astype(np.float32)
    kinds = [("Shoes", "Hats", "Bags")[number] for number in generator.integers(3, size=count)]
    return [maker.Photo(f"sku-{n:08d}", f"u/{n}", 0, means[n], kinds[n]) for n in range(count)]


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(ours: Callable[[], object], raw: Callable[[], object], pairs: int, queries: int) -> dict[str, Any]:
    ours(), raw()  # warm
    taken = [(seconds(ours), seconds(raw)) for _ in range(pairs)]
    ratio, *ends = spread([a / b for a, b in taken], 0, 100, digits=3)
    return {
        "ratio": ratio,
        "range": ends,
        "reader_ms": round(statistics.median(a for a, _ in taken) / queries * 1e3, 4),
        "faiss_ms": round(statistics.median(b for _, b in taken) / queries * 1e3, 4),
    }


def measure(kind: str, options: Given, folder: Path) -> dict[str, Any]:
    maker = release_maker(options.dim)
    store = open_store(str(folder / kind))
    config = IndexConfig(kind=kind, ef_construction=100)
    made = maker.make_release(store, clustered_photos(maker, options.photos, options.dim), index=config)
    release = open_release(store.url, cache_dir=folder / "cache")
    manifest = release.manifest
    index = faiss.read_index(str(Path(store.url) / manifest.file("index").name))
    rows = np.random.default_rng(1).permutation(options.photos)[: options.queries]
    keys = [made.photos[row].item_id for row in rows]
    vectors = [index.reconstruct(int(row))[None] for row in rows]
    where = {"category": "Shoes"}
    allowed = np.array([photo.category == "Shoes" for photo in made.photos])
    selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    graph = kind == "hnsw"
    filtered = faiss.SearchParametersHNSW(sel=selector) if graph else faiss.SearchParameters(sel=selector)
    if graph:
        filtered.efSearch = index.hnsw.efSearch
    return {
        "index": {"kind": kind, **manifest.index_parameters},
        "similar": compare(
            lambda: [release.similar(key, k=10) for key in keys],
            lambda: [index.search(vector, 11) for vector in vectors],
            options.pairs,
            options.queries,
        ),
        "similar where": compare(
            lambda: [release.similar(key, k=10, where=where) for key in keys],
            lambda: [index.search(vector, 11, params=filtered) for vector in vectors],
            options.pairs,
            options.queries,
        ),
        "search, 300 vectors at once": compare(
            lambda: release.search(np.concatenate(vectors), k=10),
            lambda: index.search(np.concatenate(vectors), 10),
            options.pairs,
            options.queries,
        ),
    }


def main() -> None:
    options = Options(__doc__, photos=60_000, dim=32, pairs=7, queries=300).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = [measure(kind, options, Path(folder)) for kind in ("flat", "hnsw")]
    print(json.dumps({**vars(options), "cpus": os.cpu_count(), "results": results}, indent=2))


if __name__ == "__main__":
    main()
