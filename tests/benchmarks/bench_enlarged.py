"""Fashion-MNIST seen by a pretrained network: 28 pixels enlarged, by the quality table's split and measures.

60,000 pictures are known and 10,000 asked. Maps of the network are computed once, by `--weights`, an ONNX file of
uint8 photos [n, SIZE, SIZE, 3] with the output LAYER, and kept in the cache. Components are fitted on the known
pictures. How a fusion is weighed is chosen on the last 10,000 known ones, asked of the others, never on the asked.
Models that learn of these 64 components are trained by their presets on the known pictures, one seed.
Intervals: 95 %, bootstrap over queries; differences to HOG + PCA-64 by pairs.

    python tests/benchmarks/bench_enlarged.py --data ../shared/data --weights lite0.onnx [--json enlarged.json]
        [--rows "NAME;..."] [--table]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from bench_folds import ALONE, fastest, fitted_model, session_of
from folds_trained import Trained, encoded, texts
from model_tables import enlarged_table
from options import Options, absent, names_of
from record import DATA, RESULTS, ROOT, read, renewed, today, write_runs

from pipeline.evaluation.baselines import hog_features
from pipeline.evaluation.knn import knn_labels
from pipeline.evaluation.quality import QUERIES, paired_difference
from pipeline.evaluation.retrieval import interval, retrieve
from pipeline.images import ImagesConfig, decode
from pipeline.models.components import principal_components

KNOWN, JUDGED = 60_000, 10_000  # of the known ones so many, the last, judge a choice
SIZE, LAYER, CELLS = 96, "b10", 3  # the end of the fifth of seven stages, 112 channels
DIMS, BATCH, FITTED = 64, 32, 20_000  # components are fitted on so many pictures, as a night fits them
FLOOR, LITE0 = "HOG + PCA-64", "Lite0"
GRADIENTS = {"HOG": FLOOR, "descriptor_views": "descriptor_views"}
LEARNT = {
    "VAE of Lite0": Trained("vae_features_fashion_mnist"),
    "CVAE of Lite0": Trained("cvae_features_fashion_mnist"),
    "VQ-VAE of Lite0": Trained("vqvae_features_fashion_mnist"),
    "VQ-VAE of Lite0, bag of codes": Trained("vqvae_features_fashion_mnist", space="words"),
    "student of Lite0, in closed form": Trained("ridge_fashion_mnist"),
    "student of Lite0, trained": Trained("distilled_fashion_mnist"),
}
SHARES = (0.5, 1.0, 2.0)  # of the network beside gradients
ROWS = (FLOOR, "descriptor_views", LITE0, *(f"{LITE0} + {short}" for short in GRADIENTS), *LEARNT)


class Pictures:
    """The catalogue: pixels uint8 [70000, 28, 28, 3], labels, and features by name, each computed once."""

    def __init__(self, data: Path, cache: Path, weights: Path | None) -> None:
        self.cache, self.weights = cache, weights
        parts = [pq.read_table(data / "fashion-mnist" / f"{part}.parquet") for part in ("train", "test")]
        self.photos = [photo for part in parts for photo in part["image"].to_pylist()]
        self.labels = np.array([str(label) for part in parts for label in part["category"].to_pylist()])
        self.known = np.arange(len(self.photos)) < KNOWN
        self.pixels = self._decoded(slice(None), 28)
        self.network_s = 0.0

    def space(self, name: str) -> np.ndarray:
        """Return a space of DIMS numbers, float32 [n, DIMS], its components those of known pictures."""
        path = self.cache / f"enlarged-space-{name.replace(' ', '_')}.npy"
        if not path.exists():
            np.save(path, self._space(name))
        return np.asarray(np.load(path))

    def _space(self, name: str) -> np.ndarray:
        chosen = np.zeros(len(self.photos), np.bool_)
        chosen[np.random.default_rng(0).permutation(KNOWN)[:FITTED]] = True
        if name == "descriptor_views":
            return fitted_model("descriptor_views_fashion_mnist", self.pixels, chosen, 0)
        rows = torch.from_numpy(hog_features(self.pixels, cell=4) if name == FLOOR else self.maps())
        fitted = rows[torch.from_numpy(chosen)].float()
        _, directions = principal_components(fitted, DIMS)
        centre = fitted.mean(dim=0)
        return torch.cat([(part.float() - centre) @ directions.float().T for part in rows.split(5000)]).numpy()

    def maps(self) -> np.ndarray:
        """Return the network's map in CELLS x CELLS cells, float16 [n, D]."""
        path = self.cache / f"enlarged-{SIZE}-{LAYER}-{CELLS}.npy"
        if not path.exists():
            np.save(path, np.concatenate(list(self._encoded())))
        return np.asarray(np.load(path))

    def _encoded(self) -> Iterator[np.ndarray]:
        session = self.session()
        for start in range(0, len(self.photos), BATCH):
            photos = self._decoded(slice(start, start + BATCH), SIZE)
            found = torch.from_numpy(session.run([LAYER], {session.get_inputs()[0].name: photos})[0])
            yield torch.nn.functional.adaptive_avg_pool2d(found, CELLS).flatten(1).half().numpy()

    def session(self) -> Any:
        """Return the network, on one thread."""
        return session_of(self.weights, [LAYER])

    def photos_per_s(self, name: str) -> float:
        """Return how many pictures one CPU second turns into a space's features."""
        if name != LITE0:
            return BATCH / fastest(lambda: hog_features(self.pixels[:BATCH], cell=4))
        session, photos = self.session(), self._decoded(slice(0, BATCH), SIZE)
        return BATCH / fastest(lambda: session.run([LAYER], {session.get_inputs()[0].name: photos}))

    def _decoded(self, rows: slice, size: int) -> np.ndarray:
        config = ImagesConfig(size=size)
        return np.stack([decode(photo, config) for photo in self.photos[rows]])


def side_by_side(first: np.ndarray, second: np.ndarray, share: float, known: np.ndarray) -> np.ndarray:
    """Return two spaces in one, each less its known mean and to length 1, the first weighed by `share` to 1."""
    parts = []
    for space, weight in ((first, share), (second, 1.0)):
        centred = space - space[known].mean(axis=0)
        parts.append(centred / np.linalg.norm(centred, axis=1, keepdims=True) * (weight / (share + 1)) ** 0.5)
    return np.concatenate(parts, axis=1)


def asked(vectors: np.ndarray, pictures: Pictures) -> dict[str, np.ndarray]:
    """Return k-NN, precision and average precision of each asked picture, the last two of a sample, seeded."""
    known, labels = pictures.known, pictures.labels
    found = knn_labels(vectors[known], labels[known], vectors[~known])
    sample = KNOWN + np.sort(np.random.default_rng(0).permutation(int((~known).sum()))[:QUERIES])
    ranked = retrieve(vectors[known], labels[known], vectors[sample], labels[sample])
    return {"knn": (found == labels[~known]).astype(float), "precision_at_10": ranked.precision,
            "map_at_r": ranked.average_precision}  # fmt: skip


def best_share(first: np.ndarray, second: np.ndarray, pictures: Pictures) -> tuple[float, float]:
    """Return the best of SHARES, and its k-NN, by the last JUDGED known pictures asked of the others."""
    bank, judges = slice(0, KNOWN - JUDGED), slice(KNOWN - JUDGED, KNOWN)
    labels, scores = pictures.labels, dict[float, float]()
    for share in SHARES:
        joined = side_by_side(first, second, share, np.arange(len(labels)) < KNOWN - JUDGED)
        scores[share] = float((knn_labels(joined[bank], labels[bank], joined[judges]) == labels[judges]).mean())
    best = max(scores, key=scores.__getitem__)
    return best, scores[best]


def spaces_of(pictures: Pictures) -> Iterator[tuple[str, np.ndarray, float, dict[str, float]]]:
    """Yield every row that is not learnt: its vectors, seconds a picture and how it was chosen."""
    spaces = {name: pictures.space(name) for name in (FLOOR, "descriptor_views", LITE0)}
    seconds = {name: 1 / pictures.photos_per_s(name) for name in spaces}
    for name, vectors in spaces.items():
        yield name, vectors, seconds[name], {}
    for short, name in GRADIENTS.items():
        share, judged = best_share(spaces[LITE0], spaces[name], pictures)
        joined = side_by_side(spaces[LITE0], spaces[name], share, pictures.known)
        yield f"{LITE0} + {short}", joined, seconds[LITE0] + seconds[name], {"share": share, "judged_knn": judged}


def learnt(name: str, pictures: Pictures) -> tuple[np.ndarray, float, dict[str, float]]:
    """Return what a model of LEARNT says of all pictures, its seconds a picture, and those of its training."""
    row, begun = LEARNT[name], time.process_time()
    found = encoded(row, pictures.pixels, pictures.space(LITE0), pictures.labels.tolist(), pictures.known, 0)
    spent = time.process_time() - begun - found.photo_s * len(pictures.pixels)
    sees = 0.0 if row.preset.startswith(ALONE) else 1 / pictures.photos_per_s(LITE0)
    vectors = texts(found, pictures.known) if row.space == "words" else found.mean
    return vectors, found.photo_s + sees, {"train_cpu_s": spent}


def run(pictures: Pictures, path: Path, names: list[str] | None) -> None:
    """Measure every row, or those named, and write it when it is there."""
    floor = asked(pictures.space(FLOOR), pictures)

    def measured(name: str, vectors: np.ndarray, photo_s: float, more: dict[str, float]) -> None:
        result: dict[str, Any] = {"name": name, "catalogue": "fashion_mnist", "seed": 0, "dims": vectors.shape[1],
                                  "date": today(), "size": SIZE, "layer": LAYER,
                                  "cells": CELLS, "photos_per_cpu_s": 1 / photo_s, **more}  # fmt: skip
        for measure, own in (floor if name == FLOOR else asked(vectors, pictures)).items():
            low, high = interval(own)
            result |= {measure: float(own.mean()), f"{measure}_low": low, f"{measure}_high": high}
            if name != FLOOR:
                result[f"ahead_{measure}"] = list(paired_difference(own, floor[measure], seed=0))
        write_runs(path, renewed(read(path), result, "name"))
        print(f"{name}: k-NN {result['knn']:.4f} {more}", flush=True)

    if names is None or not set(names) <= set(LEARNT):
        for row in spaces_of(pictures):
            if names is None or row[0] in names:
                measured(*row)
    for name in LEARNT if names is None else [name for name in LEARNT if name in names]:
        measured(name, *learnt(name, pictures))


def main() -> int:
    """Run the benchmark."""
    given = Options(
        __doc__,
        data=DATA,
        weights=(Path, f"EfficientNet-Lite0 as ONNX, of photos [n, {SIZE}, {SIZE}, 3]"),
        cache=ROOT / ".cache" / "bench-enlarged",
        json=RESULTS / "enlarged.json",
        rows=(str, "names with semicolons between; all by default"),
        table=(False, "only print what is in --json"),
    ).parse_args()
    names = names_of(given.rows, ROWS, "rows", apart=";") if given.rows else None
    if not given.table:
        if absent(given.data):
            return 0
        torch.set_num_threads(1)
        given.cache.mkdir(parents=True, exist_ok=True)
        run(Pictures(given.data, given.cache, given.weights), given.json, names)
    print(enlarged_table(read(given.json)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
