"""Semantic IDs by residual k-means and by a trained autoencoder on the same Fashion-MNIST vectors.

    python tests/benchmarks/bench_rqvae.py --data ../shared/data --json rqvae.json [--items 5000] [--epochs 100 300]

Vectors as in bench_sids.py. `kept` is the share of the vectors' spread that the codes bring back (1 - squared error /
variance): of rq_kmeans by the sum of its centroids, of rqvae by a least-squares line from the sum of its codes, as what
is frozen has no decoder.
"""

from __future__ import annotations

import json
import platform
import time
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from bench_sids import LEVELS, next_items, read_vectors
from options import NEEDED, Options
from record import made_on, write

from pipeline.storage.memory import MemoryStore
from pipeline.tables import SemanticIdsConfig
from pipeline.tables.quantizer import Codebooks, encode, fit_codebooks, some_vectors
from pipeline.tables.sid_measures import neighbour_measures, purity_measures, usage_measures
from pipeline.training import CodebooksJob, train_codebooks


def books_of(vectors: np.ndarray, levels: tuple[int, ...], epochs: int | None) -> Codebooks:
    """Return codebooks of rq_kmeans, or of an rqvae of so many epochs."""
    if epochs is None:
        return fit_codebooks(vectors, levels, seed=0)
    asked = SemanticIdsConfig.model_validate({"levels": levels, "method": "rqvae", "rqvae": {"epochs": epochs}})
    sample = some_vectors(vectors, levels, np.random.default_rng(0))
    return train_codebooks(CodebooksJob(MemoryStore("memory://bench"), sample, asked, "runs/bench"))


def kept(vectors: np.ndarray, codes: np.ndarray, books: Codebooks) -> float:
    sums = np.zeros((len(vectors), books.levels[0].shape[1]))
    for number, level in enumerate(books.levels):
        sums += level[codes[:, number]]
    if books.encoder is not None:
        known = np.column_stack([sums, np.ones(len(sums))])
        sums = known @ np.linalg.lstsq(known, vectors.astype(np.float64), rcond=None)[0]
    return float(1 - np.square(vectors - sums).sum() / np.square(vectors - vectors.mean(axis=0)).sum())


def measured(
    vectors: np.ndarray, categories: pa.ChunkedArray, levels: tuple[int, ...], epochs: int | None
) -> dict[str, float]:
    began = time.process_time()
    books = books_of(vectors, levels, epochs)
    fitted = time.process_time()
    codes = encode(vectors, books)
    ended = time.process_time()
    found = {
        "kept": kept(vectors, codes, books),
        **usage_measures(codes, levels),
        **purity_measures(codes, categories),
        **neighbour_measures(codes, vectors, metric="cosine", seed=0),
        "hit_rate_with_ids": next_items(vectors, codes)["hit_rate_with_ids"],
    }
    pieces = [encode(vectors[start : start + 7], books) for start in range(0, 700, 7)]
    found["differ_by_7"] = int((np.concatenate(pieces) != codes[:700]).any(axis=1).sum())
    rounded = {name: round(value, 4) for name, value in found.items()}
    return {"fit_s": round(fitted - began, 1), "encode_s": round(ended - fitted, 2), **rounded}


def main() -> None:
    parser = Options(__doc__, data=NEEDED, json=NEEDED, items=5000)
    parser.add_argument("--epochs", type=int, nargs="+", default=[100, 300])
    options = parser.parse_args()
    torch.set_num_threads(1)
    vectors, categories = read_vectors(options.data, options.items)
    results: dict[str, Any] = {"items": len(vectors), "dim": vectors.shape[1], "levels": {}}
    for name, levels in LEVELS["fashion_mnist"].items():
        kinds = {"rq_kmeans": None, **{f"rqvae, {epochs} epochs": epochs for epochs in options.epochs}}
        results["levels"][name] = {
            kind: measured(vectors, categories, levels, epochs) for kind, epochs in kinds.items()
        }
        print(name, json.dumps(results["levels"][name], indent=1))
    write(options.json, {**made_on(f"no GPU, Python {platform.python_version()}"), "results": results})


if __name__ == "__main__":
    main()
