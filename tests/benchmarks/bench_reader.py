"""A large release as a service meets it: opening cold and warm, first question, latencies, memory of two processes.

--items items of one photo each, whose latents are Fashion-MNIST's 60,000 principal components drawn again with a little
jitter (--data), else generated ones, with two attributes; cosine. No photo is made: parts, index and release are
written as a night writes them. Then, in processes of their own: a first opening (files are hashed into the cache), and
two readers at once, each of which opens, asks by item, by vector singly and in batches of 100, and measures its memory
while the other holds the release open too.

    python tests/benchmarks/bench_reader.py --data ../shared/data/fashion-mnist --items 1000000
        --json results/reader.json
"""

from __future__ import annotations

import cProfile
import json
import os
import pstats
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
from drawn_releases import MODEL, PART_ROWS, base_of, drawn, met, named, publish, release_of, rows_of, write_latents
from options import Given, Options
from record import add, made_on, tell
from steps import begun, ended
from timing import alone_ms, quantiles
from watched import Watched, shared_mib

from pipeline.index import IndexConfig, gather_latents, nightly_index
from pipeline.reader import open_release
from pipeline.storage import open_store
from pipeline.storage.cache import FileCache

RUN = "one"
KINDS = np.array(["Shoes", "Hats", "Bags", "Coats", "Dresses", "Shirts", "Socks"])


def prepare(folder: Path, options: Given) -> dict[str, Any]:
    store, watched, tables, parts = open_store(str(folder / "store")), Watched(), [], []
    with watched.step("parts"):
        for number, start in enumerate(range(0, options.items, PART_ROWS)):
            numbers = np.arange(start, min(start + PART_ROWS, options.items))
            ids = named(numbers)
            parts.append(write_latents(store, ids, drawn(folder, len(ids), number), f"part-{number:05d}"))
            table = rows_of(ids, parts[-1].name)
            table = table.append_column("category", pa.array(KINDS[numbers % 7].tolist()))
            tables.append(table.append_column("price", pa.array(numbers % 1000 / 10)))
        items = pa.concat_tables(tables).unify_dictionaries()
    config = IndexConfig(kind=options.kind, threads=1, gpu="never", queries=200)
    with watched.step("index"):
        latents = gather_latents(store, items, columns=config.needs)
        made = nightly_index(
            store, items, latents, config, model_id=MODEL, parent=None, cache=FileCache(folder / "cache-of-the-night")
        )
    with watched.step("release"):
        publish(store, made, parts, RUN, None)
    return watched.found


def asked(release: Any, folder: Path, options: Given) -> dict[str, Any]:
    """Return the milliseconds of questions: the first, and p50 and p99 of those after it."""
    rng, found = np.random.default_rng(1), dict[str, Any]()
    vectors = drawn(folder, max(100, options.queries), 4243)
    ids = named(rng.integers(0, options.items, options.queries)).to_pylist()
    began = time.perf_counter()
    release.similar(ids[0], 10)
    found["first_question_ms"] = round(1e3 * (time.perf_counter() - began), 1)
    batches = [vectors[:100]] * max(3, options.queries // 40)
    sorts = {
        "by_item": lambda: [(lambda key=key: release.similar(key, 10)) for key in ids],
        "by_vector": lambda: [(lambda row=row: release.search(row[None], 10)) for row in vectors[: options.queries]],
        "where_category": lambda: [
            (lambda key=key: release.similar(key, 10, where={"category": "Hats"})) for key in ids
        ],
        "batch_of_100": lambda: [(lambda batch=batch: release.search(batch, 10)) for batch in batches],
    }
    for name, questions in sorts.items():
        taken = alone_ms(lambda question: question(), questions())
        found[name] = {"asked": len(taken), **quantiles(taken)}
    return found


def read(folder: Path, options: Given) -> dict[str, Any]:
    watched, profile = Watched(), cProfile.Profile()
    with watched.step("open"):
        if options.profile:
            profile.enable()
        release = open_release(str(folder / "store"), release_id=release_of(RUN), cache_dir=folder / "cache")
        profile.disable()
    if options.profile:
        pstats.Stats(profile, stream=sys.stderr).sort_stats("cumulative").print_stats(25)
    if options.step == "cold":
        return watched.found
    watched.found |= asked(release, folder, options)
    wait = met(folder, int(options.step[-1]))
    wait()
    watched.found["memory_mib"] = shared_mib()
    wait()
    return watched.found


def child(options: Given, folder: Path, step: str) -> subprocess.Popen[str]:
    words = ["--items", options.items, "--kind", options.kind, "--queries", options.queries]
    words += ["--profile"] if options.profile and step == "cold" else []
    return begun(__file__, *words, "--folder", folder, "--step", step)


def main() -> None:
    parser = Options(
        __doc__, data=(str, "the folder of Fashion-MNIST as Parquet; without it latents are generated"),
        items=1_000_000, kind="flat", queries=200, profile=(False, "print what the first opening spends its time on"),
        json=Path,
    )  # fmt: skip
    options = parser.hidden(folder=str, step=str).parse_args()
    if options.step:
        folder = Path(options.folder)
        print(json.dumps(prepare(folder, options) if options.step == "publish" else read(folder, options)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        np.save(folder / "base.npy", base_of(options.data)[0])
        found: dict[str, Any] = {step: ended(child(options, folder, step)) for step in ("publish", "cold")}
        readers = [child(options, folder, f"read-{number}") for number in (0, 1)]
        found["two_readers"] = [ended(reader) for reader in readers]
        files = [path for path in (folder / "store").rglob("*") if path.is_file()]
        found["store_mib"] = round(sum(path.stat().st_size for path in files) / 2**20)
    found |= made_on()
    tell(found, None)
    if options.json:
        add(options.json, found, f"{options.items:,} items, {options.kind}")


if __name__ == "__main__":
    main()
