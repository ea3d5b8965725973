"""Two bundles of one model on Fashion-MNIST, the second of another seed: what a consumer loses at a retrain.

Both nights are the real command, its stages in this process. A consumer fits a logistic regression to the first
release's `vectors` for half of the products, and asks it about the other half: with the first release's vectors, with
the second's as the model gives them, and with the second's in the kept space. Neighbours are held against an exact
search of the model's own vectors: a rotation must move none.

    python tests/benchmarks/bench_space.py --data ../shared/data --json tests/benchmarks/results/space.json
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from nights_here import codebooks
from options import NEEDED, Options
from record import made_on, write
from sklearn.linear_model import LogisticRegression

from pipeline.index import LatentArrays, gather_latents, nearest_exact
from pipeline.index.kept_space import release_space
from pipeline.index.metrics import METRICS
from pipeline.reader import Release, open_release
from pipeline.release.tables import read_table
from pipeline.storage import Store, open_store

ASKED, K = 200, 10
KEPT = ["publish.keep_space=true", "tables.vectors=true", "index.kind=flat"]
KEPT += ["measures.queries=10", "measures.sample=100"]  # what a night measures is not the matter here


def two_nights(base: Path, data: Path, *, items: int, epochs: int, metric: str, kind: str) -> Store:
    table = pq.read_table(data / "fashion-mnist" / "train.parquet").slice(0, items)
    pq.write_table(table, base / "catalogue.parquet")
    for seed in (0, 1):
        codebooks(
            "refresh", "--run", f"seed-{seed}", f"store={base / 'store'}", f"catalogue.source={base}/catalogue.parquet",
            "catalogue.item_id=item_id", "catalogue.image=image", "catalogue.category=category", f"model.kind={kind}",
            "model.latent_dim=32", "model.network=fc", "images.size=28", f"train.epochs={epochs}",
            f"train.seed={seed}", "train.when=always", f"index.metric={metric}", *KEPT,
        )  # fmt: skip
    return open_store(str(base / "store"))


def vectors_of(release: Release) -> np.ndarray:
    table = release.table("vectors")
    return np.stack(table["vector"].to_pylist()).astype(np.float64)


def heads(first: Release, second: Release, own: np.ndarray, seed: int) -> dict[str, float]:
    """Return the accuracy of the consumer's classifier, fitted to one half of the products, on the other half."""
    ids = first.item_ids()
    labels = np.array([first.attributes(item)["category"] for item in ids])
    order = np.random.default_rng(seed).permutation(len(ids))
    fitted, asked = order[: len(ids) // 2], order[len(ids) // 2 :]
    known, kept = vectors_of(first), vectors_of(second)
    head = LogisticRegression(max_iter=2000).fit(known[fitted], labels[fitted])
    anew = LogisticRegression(max_iter=2000).fit(own[fitted], labels[fitted])
    _, counts = np.unique(labels[asked], return_counts=True)
    return {
        "first_release": head.score(known[asked], labels[asked]),
        "second_release_rotated": head.score(kept[asked], labels[asked]),
        "second_release_as_the_model_gives_it": head.score(own[asked], labels[asked]),
        "second_release_head_fitted_anew": anew.score(own[asked], labels[asked]),
        "largest_category": float(counts.max() / counts.sum()),
    }


def overlap(second: Release, raw: np.ndarray, metric: str) -> dict[str, float]:
    """Return the share of the reader's nearest ten that an exact search of the model's own vectors has too."""
    latents, ids = LatentArrays(raw.astype(np.float32)), second.item_ids()
    rows = np.linspace(0, len(ids) - 1, ASKED).astype(np.int64)
    near, scores = nearest_exact(METRICS[metric], latents, latents.take(rows), K, exclude=rows)
    shared, apart = 0, 0.0
    for row, expected, exact in zip(rows, near, scores, strict=True):
        found = second.similar(ids[row], K)
        shared += len({each.item_id for each in found} & {ids[other] for other in expected})
        apart = max(apart, float(np.abs(np.array([each.score for each in found]) - exact).max()))
    return {"neighbour_overlap": shared / (ASKED * K), "largest_difference_of_a_score": apart}


def measured(store: Store, metric: str) -> dict[str, Any]:
    second = open_release(store.url)
    first = open_release(store.url, release_id=second.manifest.parent)
    assert first.manifest.model_id != second.manifest.model_id
    assert first.item_ids() == second.item_ids()
    items = read_table(store, second.manifest, "items")
    raw = gather_latents(store, items).mean
    space = release_space(store, second.manifest)
    assert space is not None
    own = vectors_of(second) @ space.rotation.T
    told = second.manifest.inputs["space"]
    return {
        "items": len(second),
        "metric": metric,
        **{name: told[name] for name in ("photos", "before", "residual")},
        **overlap(second, raw, metric),
        "head": heads(first, second, own, seed=0),
    }


def main() -> int:
    parser = Options(__doc__, data=NEEDED, items=2000, epochs=10, json=Path)
    parser.add_argument("--kinds", nargs="+", default=["vae", "autoencoder"])
    parser.add_argument("--metrics", nargs="+", default=["cosine", "l2"])
    options = parser.parse_args()
    rows = []
    for kind in options.kinds:
        for metric in options.metrics:
            began = time.process_time()
            with tempfile.TemporaryDirectory(prefix="space-") as folder:
                asked = {"items": options.items, "epochs": options.epochs, "metric": metric, "kind": kind}
                store = two_nights(Path(folder), options.data, **asked)
                rows.append({"model": kind, **measured(store, metric), "cpu_s": round(time.process_time() - began, 1)})
            print(json.dumps(rows[-1]), flush=True)
    if options.json:
        write(options.json, {**made_on(f"Python {platform.python_version()}"), "results": rows})
    return 1 if min(row["neighbour_overlap"] for row in rows) < 1.0 else 0


if __name__ == "__main__":
    sys.exit(main())
