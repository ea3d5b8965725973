"""Every kind of index over real latents: recall, speed, memory and seconds, and what filters do to each.

Fashion-MNIST's 60,000 training photos as 64 principal components of their pixels, queried by photos of its test set,
which are in no index; truth by NumPy in float64. Each kind is built and tuned as a night does it, written, and opened
as a reader opens it: mapped, in a process of its own for the memory. One thread.

    python tests/benchmarks/bench_index.py --data ../shared/data [--json results.json] [--kinds flat ivf_sq8]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import faiss  # noqa: E402
import numpy as np  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from PIL import Image  # noqa: E402

from pipeline.errors import ConfigError  # noqa: E402
from pipeline.index import KINDS, IndexConfig, LatentArrays, SearchIndex, build_index, open_index  # noqa: E402
from pipeline.index.filters import RowFilter  # noqa: E402

K = 10
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


def truth_of(items: NDArray[np.float64], queries: NDArray[np.float64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the K nearest allowed rows of each query by the cosine, by definition."""
    near = queries @ items[rows].T
    there = min(K, len(rows))
    return rows[np.argsort(-near, axis=1, kind="stable")[:, :there]]


def latencies(index: SearchIndex, queries: LatentArrays, allowed: RowFilter | None) -> dict[str, float]:
    alone = []
    for number in range(min(300, len(queries))):
        start = time.perf_counter()
        index.search(queries.take(np.s_[number : number + 1]), K, allowed=allowed)
        alone.append(1e3 * (time.perf_counter() - start))
    start = time.perf_counter()
    index.search(queries, K, allowed=allowed)
    qps = len(queries) / (time.perf_counter() - start)
    p50, p99 = np.percentile(alone, [50, 99])
    return {"qps": round(qps, 1), "p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3)}


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
    start = time.perf_counter()
    try:
        built = build_index(items, IndexConfig(kind=kind, threads=1, target_recall=target))
    except ConfigError as error:
        return {"kind": kind, "refused": str(error).splitlines()[1].strip()}
    seconds = time.perf_counter() - start
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
            "reported_recall": round(built.recall, 4),
            "bytes_per_item": round(len(built.data) / len(items), 1),
            "features_bytes_per_item": 0 if built.features is None else round(len(built.features) / len(items), 1),
            "build_s": round(seconds, 1),
            **resident(folder, dict(built.parameters), lossy),
            "filters": filtered(index, queries, truths),
        }
    print(json.dumps(row), file=sys.stderr)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=[*KINDS, "auto"])
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--target", type=float, default=0.98)
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)
    train, test = components(options.data / "fashion-mnist", options.queries, options.dim)
    items, asked = unit(train), unit(test)
    generator = np.random.default_rng(0)
    truths = {}
    for name, share in SHARES.items():
        count = max(1, round(share * len(items)))
        rows = np.sort(generator.permutation(len(items))[:count]).astype(np.int64)
        truths[name] = (rows, truth_of(items, asked, rows))
    result: dict[str, Any] = {
        "machine": f"{os.cpu_count()} x {platform.machine()}, one thread, shared with other work",
        "faiss": faiss.__version__,
        "photos": len(items),
        "dim": options.dim,
        "queries": len(test),
        "target_recall": options.target,
        "kinds": [],
    }
    if options.json is not None and options.json.exists():
        result["kinds"] = json.loads(options.json.read_text())["kinds"]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    said = {"date": datetime.now(UTC).date().isoformat(), "commit": commit.stdout.strip()}
    for kind in options.kinds:  # each is kept as it is measured, in the place of an earlier one
        row = measure(kind, LatentArrays(mean=train), LatentArrays(mean=test), truths, options.target)
        result["kinds"] = [*(old for old in result["kinds"] if old["kind"] != kind), {**row, **said}]
        text = json.dumps(result, indent=1) + "\n"
        print(text) if options.json is None else options.json.write_text(text)


if __name__ == "__main__":
    main()
