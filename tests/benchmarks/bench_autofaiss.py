"""`index: {kind: auto}` beside autofaiss, in an environment of its own: the same vectors, queries and memory.

Fashion-MNIST's training photos as 64 principal components, drawn again with a jitter until there are --rows, at length
1; asked are photos of the test set, which are in neither index; truth by NumPy in float64. autofaiss builds in its own
process (`build_index` with `max_index_memory_usage` and its other defaults, inner product, one core); both files are
then searched by one process, in turn, A B A B, in batches and one by one. Ours keeps the exact vectors beside the
index, in a file that is mapped: its bytes, and what it adds to resident memory, are told apart.

    python -m venv AUTOFAISS && AUTOFAISS/bin/pip install autofaiss==2.18.0 'faiss-cpu<1.14'
    python tests/benchmarks/bench_autofaiss.py --data ../shared/data --python AUTOFAISS/bin/python
        --json results/autofaiss.json [--rows 200000 --memory-mb 20 --pairs 7]
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from bench_index import KINDS, K, components, drawn_again, resident, truth_of, unit
from options import NEEDED, Options
from record import made_on, write
from timing import alone_ms, quantiles, spread

from pipeline.index import IndexConfig, LatentArrays, build_index, open_index

THEIRS = """
import json, resource, sys, time
import faiss, numpy as np
from autofaiss import build_index
folder, memory = sys.argv[1:]
faiss.omp_set_num_threads(1)
vectors = np.load(folder + "/unit.npy")
start, cpu = time.perf_counter(), time.process_time()
index, about = build_index(
    vectors, save_on_disk=False, max_index_memory_usage=memory, current_memory_available="6GB", metric_type="ip",
    nb_cores=1, verbose=40)
told = {"build_s": time.perf_counter() - start, "build_cpu_s": time.process_time() - cpu, "key": about["index_key"],
        "parameters": about["index_param"], "bytes": len(faiss.serialize_index(index))}
faiss.write_index(index, folder + "/theirs.faiss")
print(json.dumps(told))
"""


def build_theirs(python: Path, folder: Path, memory_mb: float) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    asked = [str(python), "-c", THEIRS, str(folder), f"{memory_mb:g}MB"]
    done = subprocess.run(asked, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def build_ours(folder: Path, items: LatentArrays, memory_mb: float, target: float) -> tuple[dict[str, Any], Any]:
    config = IndexConfig(kind="auto", threads=1, target_recall=target, memory_gib=memory_mb * 1e6 / 2**30)
    start, cpu = time.perf_counter(), time.process_time()
    built = build_index(items, config)
    spent = {"build_s": time.perf_counter() - start, "build_cpu_s": time.process_time() - cpu}
    for role, (data, suffix, _) in built.files().items():
        (folder / f"{role}{suffix}").write_bytes(data)
    lossy = KINDS[built.kind].lossy
    beside = folder / "features.npy" if lossy else None
    index = open_index(folder / "index.faiss", "cosine", features=beside, parameters=built.parameters)
    told = {
        **spent, "key": built.kind, "why": built.parameters["chosen"],
        "parameters": {name: built.parameters[name] for name in KINDS[built.kind].tuned},
        "reported_recall": round(built.recall_low, 4), "mean_recall": round(built.recall, 4), "bytes": len(built.data),
        "features_bytes": 0 if built.features is None else len(built.features),
        **resident(folder, dict(built.parameters), lossy),
    }  # fmt: skip
    return told, index


def asked_of(search: Any, queries: Any, rows: np.ndarray) -> dict[str, Any]:
    """Return what one turn of a batch and of 200 single queries took."""
    cpu, start = time.process_time(), time.perf_counter()
    found = search(queries)
    batch, batch_cpu = time.perf_counter() - start, time.process_time() - cpu
    alone = alone_ms(lambda row: search(queries[row : row + 1]), rows)
    return {"found": found, "qps": len(queries) / batch, "qps_cpu": len(queries) / batch_cpu, "alone": alone}


def main() -> None:
    options = Options(
        __doc__, data=NEEDED, python=(NEEDED, "of the environment with autofaiss"), json=NEEDED, rows=200_000,
        memory_mb=20.0, target=0.95, queries=1000, pairs=7,
    ).parse_args()  # fmt: skip
    faiss.omp_set_num_threads(1)
    train, test = components(options.data / "fashion-mnist", options.queries, 64)
    items, queries = (unit(each).astype(np.float32) for each in (drawn_again(train, options.rows, 0.1), test))
    truth = truth_of(items, queries, np.arange(len(items)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "unit.npy", items)
        np.save(folder / "queries.npy", queries)
        theirs = build_theirs(options.python, folder, options.memory_mb)
        print(json.dumps(theirs), flush=True)
        ours, index = build_ours(folder, LatentArrays(mean=items), options.memory_mb, options.target)
        print(json.dumps(ours), flush=True)
        other = faiss.read_index(str(folder / "theirs.faiss"))
        ways = {
            "ours": (ours, lambda asked: index.search(LatentArrays(mean=asked), K).ids),
            "autofaiss": (theirs, lambda asked: other.search(asked, K)[1]),
        }
        turns: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
        for pair in range(options.pairs + 1):  # the first warms
            rows = np.random.default_rng(pair).choice(len(queries), 200)
            for way, (_, search) in ways.items():
                turns[way].append(asked_of(search, queries, rows))
    result: dict[str, Any] = {"rows": len(items), "dim": 64, "queries": len(queries), "memory_mb": options.memory_mb}
    for name, (told, _) in ways.items():
        own = turns[name][1:]
        shared = [len(np.intersect1d(a, b)) for a, b in zip(own[0]["found"], truth, strict=True)]
        alone = np.concatenate([turn["alone"] for turn in own])
        result[name] = {
            **told, "recall_at_10": round(float(np.sum(shared)) / truth.size, 4),
            **{each: round(float(np.median([turn[each] for turn in own])), 1) for each in ("qps", "qps_cpu")},
            **quantiles(alone, digits=3),
        }  # fmt: skip
    for each in ("qps", "qps_cpu"):
        ratios = [a[each] / b[each] for a, b in zip(turns["ours"][1:], turns["autofaiss"][1:], strict=True)]
        result[f"{each}_ratio"] = spread(ratios, 0, 100)
    for each in ("build_s", "build_cpu_s"):
        result[f"{each}_ratio"] = round(theirs[each] / ours[each], 2)
    said = {**made_on("one thread, shared with other work"), "faiss": faiss.__version__}
    write(options.json, {"results": {**result, **said}})
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
