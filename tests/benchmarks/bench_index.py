"""Every kind of index over real latents: recall, speed, memory and seconds, and what filters do to each.

Fashion-MNIST's 60,000 training photos as 64 principal components of their pixels, queried by photos of its test set,
which are in no index; truth by NumPy in float64. Each kind is built and tuned as a night does it, written, and opened
as a reader opens it: mapped, in a process of its own for the memory. One thread. With --rows the photos are drawn
again, with return, until there are so many, each with a jitter of its own; queries stay the test photos, as they are.
Each kind is built in a process of its own, whose peak memory is noted beside what the latents alone take.

    python tests/benchmarks/bench_index.py --data ../shared/data [--json results.json] [--kinds flat ivf_sq8]
        [--rows 1000000 --jitter 0.1 --queries 200]
"""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import faiss
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from options import NEEDED, Given, Options
from PIL import Image
from record import ROOT, kept, made_on, write
from steps import apart
from timing import alone_ms, quantiles
from watched import forget_peak, held

from pipeline.errors import ConfigError
from pipeline.index import KINDS, IndexConfig, LatentArrays, SearchIndex, build_index, kinds_here, open_index
from pipeline.index.filters import RowFilter

K = 10
BLOCK = 20_000  # rows compared at a time
SHARES = {"all": 1.0, "50 %": 0.5, "5 %": 0.05, "1 %": 0.01, "0.1 %": 0.001, "1 item": 0.0}


def pixels(path: Path, limit: int | None = None) -> NDArray[np.float32]:
    images = pq.read_table(path, columns=["image"])["image"].to_pylist()[:limit]
    flat = [np.asarray(Image.open(io.BytesIO(data)), np.float32).reshape(-1) for data in images]
    return np.stack(flat) / 255.0


def components(data: Path, queries: int, dim: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the training photos' principal components [n, dim] and those of the first test photos."""
    train, test = pixels(data / "train.parquet"), pixels(data / "test.parquet", queries)
    mean = train.mean(axis=0)
    _, axes = np.linalg.eigh(np.cov((train - mean)[::10].T))
    falling = axes[:, ::-1][:, :dim].astype(np.float32)
    return (train - mean) @ falling, (test - mean) @ falling


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def drawn_again(latents: NDArray[np.float32], rows: int, jitter: float) -> NDArray[np.float32]:
    """Return so many latents, each one of these with noise of `jitter` times each number's spread."""
    generator = np.random.default_rng(2)
    picked = latents[generator.integers(len(latents), size=rows)]
    noise = generator.standard_normal(picked.shape, np.float32)
    return picked + np.float32(jitter) * latents.std(axis=0) * noise


def truth_of(items: NDArray[np.float32], queries: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the K nearest allowed rows of each query by the cosine, by definition, in float64."""
    there = min(K, len(rows))
    asked, best = unit(queries), np.empty((len(queries), 0), np.float64)
    found = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        scores = asked @ unit(items[block]).T
        if best.shape[1] == there:  # most rows are none of any query's nearest
            near = (scores >= best[:, -1:]).any(axis=0)
            scores, block = scores[:, near], block[near]
        best = np.concatenate([best, scores], axis=1)
        found = np.concatenate([found, np.broadcast_to(block, (len(asked), len(block)))], axis=1)
        order = np.lexsort((found, -best), axis=-1)[:, :there]
        best, found = np.take_along_axis(best, order, axis=1), np.take_along_axis(found, order, axis=1)
    return found


def latencies(index: SearchIndex, queries: LatentArrays, allowed: RowFilter | None) -> dict[str, float]:
    alone = alone_ms(
        lambda number: index.search(queries.take(np.s_[number : number + 1]), K, allowed=allowed),
        range(min(300, len(queries))),
    )
    start, cpu = time.perf_counter(), time.process_time()
    index.search(queries, K, allowed=allowed)
    qps = len(queries) / (time.perf_counter() - start)
    spent = 1e3 * (time.process_time() - cpu) / len(queries)
    return {"qps": round(qps, 1), "cpu_ms_in_batch": round(spent, 4), **quantiles(alone, digits=3)}


def filtered(
    index: SearchIndex, queries: LatentArrays, truths: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]
) -> dict[str, dict[str, float]]:
    """Return by filter: recall, answers shorter than they need be, excluded rows returned, and the times."""
    found: dict[str, dict[str, float]] = {}
    for name, (rows, truth) in truths.items():
        allowed = None if name == "all" else RowFilter.of_rows(rows, index.rows)
        ids = index.search(queries, K, allowed=allowed).ids
        there = truth.shape[1]
        hits = [len(np.intersect1d(a[:there], b)) for a, b in zip(ids, truth, strict=True)]
        found[name] = {
            "recall": round(float(np.sum(hits)) / truth.size, 4),
            "short": int((ids[:, :there] < 0).any(axis=1).sum()),
            "excluded": int((~np.isin(ids[ids >= 0], rows)).sum()),
            **latencies(index, queries, allowed),
        }
    return found


def resident(folder: Path, parameters: dict[str, Any], lossy: bool) -> dict[str, float]:
    """Return what opening the written files adds to a new process's resident memory, and what 100 searches then do."""
    code = (
        "import json, sys, numpy as np\n"
        "from pipeline.index import LatentArrays, load_faiss, open_index\n"
        "folder, said, lossy = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3] == '1'\n"
        "load_faiss()\n"
        "def held():\n"
        "    return int(open('/proc/self/statm').read().split()[1]) * 4096 / 1e6\n"
        "before = held()\n"
        "beside = folder + '/features.npy' if lossy else None\n"
        "index = open_index(folder + '/index.faiss', 'cosine', features=beside, parameters=said)\n"
        "opened = held()\n"
        "index.search(LatentArrays(mean=np.load(folder + '/queries.npy')[:100]), 10)\n"
        "print(json.dumps({'open_mb': round(opened - before, 1), 'searched_mb': round(held() - before, 1)}))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    asked = [sys.executable, "-c", code, str(folder), json.dumps(parameters), "1" if lossy else "0"]
    done = subprocess.run(asked, check=True, capture_output=True, text=True, env=environment)
    return dict(json.loads(done.stdout))


def measure(
    kind: str, items: LatentArrays, queries: LatentArrays, truths: dict[str, Any], target: float
) -> dict[str, Any]:
    forget_peak()
    before = held("VmRSS")
    start, cpu = time.perf_counter(), time.process_time()
    try:
        built = build_index(items, IndexConfig(kind=kind, threads=1, target_recall=target))
    except ConfigError as error:
        return {"kind": kind, "refused": str(error).splitlines()[1].strip()}
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = held("VmHWM")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for role, (data, suffix, _) in built.files().items():
            (folder / f"{role}{suffix}").write_bytes(data)
        np.save(folder / "queries.npy", queries.mean)
        lossy = KINDS[built.kind].lossy
        beside = folder / "features.npy" if lossy else None
        index = open_index(folder / "index.faiss", "cosine", features=beside, parameters=built.parameters)
        row = {
            "kind": kind,
            "chosen": built.kind,
            "why": built.parameters.get("chosen"),
            "points": [asdict(point) for point in built.points],
            "effort": {name: built.parameters[name] for name in KINDS[built.kind].tuned},
            "reported_recall": round(built.recall_low, 4),
            "mean_recall": round(built.recall, 4),
            "bytes_per_item": round(len(built.data) / len(items), 1),
            "features_bytes_per_item": 0 if built.features is None else round(len(built.features) / len(items), 1),
            "build_s": round(seconds, 1),
            "build_cpu_s": round(cpu, 1),
            "before_build_mb": round(before / 1e6),
            "peak_build_mb": round(peak / 1e6),
            **resident(folder, dict(built.parameters), lossy),
            "filters": filtered(index, queries, truths),
        }
    print(json.dumps(row), file=sys.stderr)
    return row


def main() -> None:
    parser = Options(__doc__, data=NEEDED, json=Path, queries=1000, dim=64, target=0.98, rows=int, jitter=0.1)
    kinds = list(kinds_here(IndexConfig()))  # which go with the cosine
    parser.add_argument("--kinds", nargs="+", default=kinds, choices=[*kinds, "auto"])
    options = parser.hidden(one=str, held=Path).parse_args()
    faiss.omp_set_num_threads(1)
    if options.one is not None:  # one kind, in a process of its own
        print(json.dumps(one_kind(options.one, options.held, options.target)))
        return
    with tempfile.TemporaryDirectory() as folder:
        run(options, Path(folder))


def one_kind(kind: str, folder: Path, target: float) -> dict[str, Any]:
    items, queries = (LatentArrays(mean=np.load(folder / f"{name}.npy")) for name in ("items", "queries"))
    truths = {
        name: (np.load(folder / f"rows-{at}.npy"), np.load(folder / f"truth-{at}.npy"))
        for at, name in enumerate(SHARES)
    }
    return measure(kind, items, queries, truths, target)


def run(options: Given, folder: Path) -> None:
    train, test = components(options.data / "fashion-mnist", options.queries, options.dim)
    if options.rows:
        train = drawn_again(train, options.rows, options.jitter)
    np.save(folder / "items.npy", train)
    np.save(folder / "queries.npy", test)
    generator = np.random.default_rng(0)
    for at, share in enumerate(SHARES.values()):
        count = max(1, round(share * len(train)))
        rows = np.sort(generator.permutation(len(train))[:count]).astype(np.int64)
        np.save(folder / f"rows-{at}.npy", rows)
        np.save(folder / f"truth-{at}.npy", truth_of(train, test, rows))
    result: dict[str, Any] = {
        "machine": f"{os.cpu_count()} x {platform.machine()}, one thread, shared with other work",
        "faiss": faiss.__version__,
        "photos": len(train),
        "drawn_again": bool(options.rows),
        "jitter": options.jitter if options.rows else 0.0,
        "dim": options.dim,
        "queries": len(test),
        "target_recall": options.target,
        "kinds": [],
    }
    if options.json is not None:
        result["kinds"] = kept(options.json, {"kinds": []})["kinds"]
    said = {name: fact for name, fact in made_on().items() if name != "machine"}  # which the file tells
    for kind in options.kinds:  # each is kept as it is measured, in the place of an earlier one
        row = apart(__file__, "--data", ".", "--one", kind, "--held", folder, "--target", options.target)
        result["kinds"] = [*(old for old in result["kinds"] if old["kind"] != kind), {**row, **said}]
        print(json.dumps(result, indent=1)) if options.json is None else write(options.json, result)


if __name__ == "__main__":
    main()
