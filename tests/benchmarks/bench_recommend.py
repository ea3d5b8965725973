"""What `codebooks recommend` holds in memory and takes, in one process and on Ray.

A release of --items drawn latents (see drawn_releases.py; `--kind`, cosine) on a disk, --customers of whom each has ten
items, half of one of a hundred tastes; the command as it is typed, in a process of its own. Memory counts where
the kernel cannot take it back: the most of the process that was asked, of the largest Ray worker, of all together.
Both ways must write the same files.

    python tests/benchmarks/bench_recommend.py --json results/recommend.json [--items 200000] [--customers 200000]
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from drawn_releases import MODEL, base_of, drawn, named, publish, release_of, rows_of, write_latents
from options import NEEDED, Given, Options
from record import ROOT, add, made_on
from watched import of_each

from pipeline.index import IndexConfig, LatentArrays, nightly_index
from pipeline.storage import open_store
from pipeline.storage.cache import FileCache

EACH, TASTES = 10, 100


def prepare(folder: Path, options: Given) -> None:
    """Write the release and the events."""
    np.save(folder / "base.npy", base_of(None)[0])
    store, ids = open_store(str(folder / "store")), named(np.arange(options.items))
    latents = drawn(folder, options.items, 0)
    part = write_latents(store, ids, latents, "only")
    config = IndexConfig(kind=options.kind, threads=1, queries=100, gpu="never")
    cache = FileCache(folder / "cache")
    made = nightly_index(store, rows_of(ids, part.name), LatentArrays(latents), config, model_id=MODEL, parent=None,
                         cache=cache)  # fmt: skip
    publish(store, made, [part], "only", None)
    rng = np.random.default_rng(1)
    taste, size = rng.integers(TASTES, size=options.customers), options.items // TASTES
    wide = rng.integers(options.items, size=(options.customers, EACH - EACH // 2))
    own = taste[:, None] * size + rng.integers(size, size=(options.customers, EACH // 2))
    events = np.concatenate([own, wide], axis=1).reshape(-1)
    customers = np.repeat(np.arange(options.customers), EACH)
    names = pa.array([f"customer-{number:08d}" for number in customers.tolist()])
    pq.write_table(pa.table({"customer": names, "item": ids.take(pa.array(events))}), folder / "events.parquet")


def anonymous(process: psutil.Process) -> tuple[str, int]:
    """Return a process's name and its memory that is no file's, in bytes."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+)", text)
    return " ".join(process.cmdline()), int(found[1]) * 1024 if found else 0


def asked(folder: Path, way: str) -> dict[str, Any]:
    """Run the command one way, and return what it took and held."""
    out = folder / way
    words = [
        "recommend",
        "--events",
        folder / "events.parquet",
        "--release",
        release_of("only"),
        "--out",
        out,
        "--on",
        way,
    ]
    command = [sys.executable, "-m", "jobs", *map(str, words), f"store={folder / 'store'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache-of-readers")}
    began, most = time.monotonic(), {"asked": 0, "worker": 0, "all": 0}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    while process.poll() is None:
        held = [found for found in of_each(anonymous, process.pid) if found[1]]
        workers = [size for name, size in held if name.startswith("ray::")]
        own = next((size for name, size in held if "recommend" in name and not name.startswith("ray::")), 0)
        now = {"asked": own, "worker": max(workers, default=0), "all": sum(size for _, size in held)}
        most = {name: max(most[name], size) for name, size in now.items()}
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(process.returncode)
    return {
        "s": round(time.monotonic() - began, 1),
        **{f"{name}_mib": round(size / 2**20) for name, size in most.items()},
    }


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}


def main() -> None:
    options = Options(__doc__, json=NEEDED, items=200_000, customers=200_000, kind="flat").parse_args()
    with tempfile.TemporaryDirectory(prefix="recommend-") as name:
        folder = Path(name)
        prepare(folder, options)
        found: dict[str, Any] = {"items": options.items, "customers": options.customers, "kind": options.kind}
        for way in ("process", "ray"):
            found[way] = asked(folder, way)
            print(way, found[way], flush=True)
        here, ray = files_of(folder / "process"), files_of(folder / "ray")
        found |= {"files": len(here), "bytes": sum(map(len, here.values())), "same": here == ray}
        add(options.json, {**found, **made_on()}, f"{options.items:,} items, {options.customers:,} customers")


if __name__ == "__main__":
    main()
