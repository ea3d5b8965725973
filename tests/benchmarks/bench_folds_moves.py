"""What a logo, an edit, colours and nuisances do to the spaces of `bench_folds`: the quality table's measures.

Spaces are made on the known photos of the old split, one seed. What sees a pretrained network is shown photos of 224
pixels, their central squares, all else 64 pixels as it is there; logo, edit and rendered photos are made at that size.
The network's maps of a set of photos are kept in the cache, so that one pass serves all rows.

    python tests/benchmarks/bench_folds_moves.py --data ../shared/data --weights lite0.onnx [--rows "NAME;..."]
        [--cache FOLDER] [--json folds_moves.json] [--table]
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_folds import ALONE, BATCH, CELLS, CROP, FLOOR, LITE0, MOST, ROWS, Features, Fused, digest, shown_photos
from folds_trained import Trained, rows_of
from model_measures import preset_config
from model_tables import folds_moves_table
from options import Options, absent, names_of
from record import DATA, RESULTS, ROOT, read, renewed, today, write_runs

from pipeline.evaluation.baselines import hog_features, model_latents
from pipeline.evaluation.quality import FactorPhotos, encoder_quality, factor_photos, factor_quality, spread_quality
from pipeline.images import ImagesConfig, decode
from pipeline.models import Batch, Model
from pipeline.models.components import principal_components

SEES, SEED = 224, 0
NAMES = (FLOOR, "Lite0 head 3x3 of the central square", "VAE of features", "CVAE of features", "VQ-VAE of features",
         "student, in closed form", "student, trained")  # fmt: skip
Encode = Callable[[np.ndarray], np.ndarray]


class Network:
    """The pretrained network's map of photos uint8 [n, 224, 224, 3], along components of the known photos' maps."""

    def __init__(self, features: Features, name: str, known: np.ndarray) -> None:
        self.features, self.layer = features, CELLS[name.removesuffix(CROP)]
        rows = torch.from_numpy(features.of(name))[torch.from_numpy(known)]
        self.centre, self.directions = rows.mean(dim=0), principal_components(rows, MOST)[1].float()

    def __call__(self, photos: np.ndarray, dims: int) -> torch.Tensor:
        """Return float32 [n, dims]."""
        name = hashlib.sha256(photos.tobytes()).hexdigest()[:16]
        path = self.features.cache / f"moved-{name}.npy"
        if not path.exists():
            np.save(path, self._maps(photos))
        return ((torch.from_numpy(np.load(path)).float() - self.centre) @ self.directions.T)[:, :dims]

    def _maps(self, photos: np.ndarray) -> np.ndarray:
        session, (layer, cells) = self.features.session(), self.layer
        parts = []
        for start in range(0, len(photos), BATCH):
            given = {session.get_inputs()[0].name: photos[start : start + BATCH]}
            found = torch.from_numpy(session.run([layer], given)[0])
            parts.append(torch.nn.functional.adaptive_avg_pool2d(found, cells).flatten(1).half().numpy())
        return np.concatenate(parts)


@cache
def network_of(features: Features, name: str) -> Network:
    """Return the network whose components are those of the old split's known photos, once for all rows."""
    return Network(features, name, ~features.shown.old)


def encoder_of(name: str, features: Features, known: np.ndarray) -> tuple[Encode, bool]:
    """Return what turns photos into a row's latents, and whether it is shown the network's photos."""
    row = ROWS[name]
    if name == FLOOR:
        rows = torch.from_numpy(features.of("hog"))[torch.from_numpy(known)]
        centre, directions = rows.mean(dim=0), principal_components(rows, 64)[1].float()
        return (
            lambda photos: ((torch.from_numpy(hog_features(photos, cell=8)) - centre) @ directions.T).numpy()
        ), False
    if isinstance(row, Trained):
        model = features.trained(row, known, SEED).model
        if row.preset.startswith(ALONE):
            return (lambda photos: model_latents(model, photos)), False
        network = network_of(features, row.teacher)
        side = preset_config(row.preset, None).images.size
        return (lambda photos: of_features(model, network(photos, row.dims), side)), True
    assert isinstance(row, Fused)
    network, dims = network_of(features, row.of[0]), row.dims[0]
    return (lambda photos: network(photos, dims).numpy()), True


@torch.inference_mode()
def of_features(model: Model, seen: torch.Tensor, side: int) -> np.ndarray:
    """Return what a model that sees features float [n, D] alone says; photos are black, no category is told."""
    told = torch.zeros(len(seen), dtype=torch.int64) if model.labels else None
    everything = Batch(torch.zeros(len(seen), 3, side, side, dtype=torch.uint8), told, features=seen)
    parts = [
        model.encode_batch(rows_of(everything, np.arange(start, min(start + 256, len(seen))))).mean
        for start in range(0, len(seen), 256)
    ]
    return torch.cat(parts).numpy()


@cache
def rendered(images: ImagesConfig) -> FactorPhotos:
    """Return rendered photos as a model sees them, once for all rows."""
    return factor_photos(images, seed=SEED)


def measured(name: str, features: Features) -> dict[str, Any]:
    """Return a row's numbers."""
    known = ~features.shown.old
    encode, sees_large = encoder_of(name, features, known)
    row = ROWS[name]
    if sees_large:
        images = ImagesConfig(size=SEES, fit="crop")
        photos = np.stack([decode(file.read_bytes(), images) for file in features.shown.files])
    else:
        images = preset_config(row.preset, None).images if isinstance(row, Trained) else ImagesConfig(size=64)
        photos = features.pixels(images.fit)
    factors = rendered(images)
    vectors = encode(photos)
    spread = spread_quality(vectors[features.shown.old], seed=SEED)
    moved = encoder_quality(encode, photos, seed=SEED)
    return {"dims": vectors.shape[1], "pixels": images.size, **spread, **moved,
            **factor_quality(encode, factors, seed=SEED)}  # fmt: skip


def main() -> int:
    """Run the benchmark."""
    given = Options(
        __doc__,
        data=DATA,
        weights=(Path, "EfficientNet-Lite0 as ONNX, of uint8 photos [n, 224, 224, 3]"),
        rows=(str, "names with semicolons between; all by default"),
        cache=ROOT / ".cache" / "bench-folds",
        json=RESULTS / "folds_moves.json",
        table=(False, "only print what is in --json"),
    ).parse_args()
    names = NAMES if given.rows is None else names_of(given.rows, ROWS, "rows", apart=";")
    if not given.table:
        if absent(given.data):
            return 0
        torch.set_num_threads(1)
        given.cache.mkdir(parents=True, exist_ok=True)
        features = Features(shown_photos(given.data), given.cache, given.weights)
        for name in names:
            facts = {"name": name, "catalogue": "clothing", "seed": SEED, "digest": digest(name),
                     "licence": getattr(ROWS[name], "licence", LITE0), "date": today()}  # fmt: skip
            result = {**facts, **measured(name, features)}
            write_runs(given.json, renewed(read(given.json), result, "name"))
            print(f"{name}: logo {result['rare_recall']:.3f}, moved {result['moved']:.2f}", flush=True)
    print(folds_moves_table(read(given.json)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
