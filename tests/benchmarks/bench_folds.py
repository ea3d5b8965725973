"""Clothing photos over five folds by contributor: every photo asked once of a space that was made without its own.

Settings of each row stand in ROWS, and what they were picked by; the row "as folds choose" takes of GRID, anew in
every fold, what four folds of its training photos like best, by the mean of the three measures.
Features of a pretrained network are computed once, by `--weights`, an ONNX file with the outputs of LAYERS (photos at
224 pixels, padded or cropped), and kept in the cache; read-outs, fusions and trainings are made anew in every fold, of
its training photos alone. Intervals and differences: bootstrap over contributors, differences to HOG + PCA-64 by pairs.
The old split (279 photos of other contributors) is asked too, for continuity.

Every row is written when it is there; run again, what is there for the same settings is not measured again.

    python tests/benchmarks/bench_folds.py --data ../shared/data [--weights lite0.onnx] [--rows "NAME;..."] [--seeds 0]
        [--json folds.json] [--table]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_refresh import clothing_rows
from bench_refresh import split as old_split
from folds_trained import Encoded, Headed, Trained, asked_by_kl, encoded, headed, purities, texts
from model_measures import preset_config
from model_tables import folds_table
from options import Options, absent, names_of
from record import DATA, RESULTS, ROOT, read, renewed, today, write_runs

from pipeline.evaluation.baselines import hog_features, model_latents, photo_batches
from pipeline.evaluation.folds import FOLD_MEASURES, FOLDS, ask_fold, deal_folds, group_difference, group_mean
from pipeline.images import ImagesConfig, decode
from pipeline.images.config import Fit
from pipeline.keys import key_of, portable
from pipeline.models import Batch, build_model
from pipeline.models.components import principal_components

FLOOR = "HOG + PCA-64"
LAYERS = ("b15", "h")  # ends of stages of EfficientNet-Lite0, the last before the global mean
# Features by name: a layer, in how many cells a side; `hog` and `views` are gradients, of which the latter are read out
# as `descriptor_views_clothing` is, against views of the photos.
CELLS = {"b15": ("b15", 3), "h": ("h", 1), "hx3": ("h", 3)}
CROP = " crop"  # after a layer's name: of the central square of a photo; else of the whole one, padded
GRADIENTS = {"hog", "views"}
ALONE = ("distilled", "ridge", "vae_hog")  # presets whose models, once trained, look at photos alone
VIEWS = "descriptor_views_clothing"
BATCH = 16
MOST = 128  # components that are fitted; fewer are the first of these
# Training photos, bool [n], to FOLD_MEASURES of all others, and numbers a photo.
Asked = Callable[[np.ndarray], tuple[dict[str, np.ndarray], int]]


@dataclass(frozen=True)
class Shown:
    """The catalogue's photos with a category: labels, contributors, which are asked in the old split, and files."""

    labels: list[str]
    groups: list[str]
    old: np.ndarray
    files: list[Path]


@dataclass(frozen=True)
class Fused:
    """A row of features side by side: each reduced to `dims` of its principal components, brought to length 1 and
    counted by its weight; `of` names features of `Features`."""

    of: tuple[str, ...]
    dims: tuple[int, ...]
    weights: tuple[float, ...] = (1.0,)
    licence: str = "-"


LITE0 = "Apache-2.0"
CHOSEN = "Lite0 fused as folds choose"
# Drawn up after looking at inner folds of the first fold's training photos, and at the old split for the crop.
GRID = [
    Fused((lite0, gradients), (dims, 64), (share, 1.0), licence=LITE0)
    for lite0 in ("hx3", "hx3 crop")
    for gradients in ("hog", "views")
    for dims in (64, 128)
    for share in (2.0, 4.0, 8.0)
]
Row = Fused | Trained | Headed | str
ROWS: dict[str, Row] = {
    FLOOR: Fused(("hog",), (64,)),
    "descriptor_views": Fused(("views",), (64,)),
    "Lite0 as it is": Fused(("b15",), (64,), licence=LITE0),
    "Lite0 head mean": Fused(("h",), (64,), licence=LITE0),
    "Lite0 + HOG 2:1": Fused(("b15", "hog"), (64, 64), (2.0, 1.0), licence=LITE0),
    "Lite0 head 3x3": Fused(("hx3",), (64,), licence=LITE0),
    "Lite0 head 3x3 + descriptor_views 4:1": Fused(("hx3", "views"), (128, 64), (4.0, 1.0), licence=LITE0),
    "Lite0 head 3x3 of the central square": Fused(("hx3 crop",), (64,), licence=LITE0),
    "that of the central square + descriptor_views 4:1": Fused(
        ("hx3 crop", "views"), (128, 64), (4.0, 1.0), licence=LITE0
    ),
    CHOSEN: CHOSEN,
    "VAE of features": Trained("vae_features_clothing", "hx3 crop", licence=LITE0),
    "VAE of features, KL": Trained("vae_features_clothing", "hx3 crop", space="kl", licence=LITE0),
    "CVAE of features": Trained("cvae_features_clothing", "hx3 crop", more=("train.balance=true",), licence=LITE0),
    "VQ-VAE of features": Trained("vqvae_features_clothing", "hx3 crop", licence=LITE0),
    "VQ-VAE of features, bag of codes": Trained("vqvae_features_clothing", "hx3 crop", space="words", licence=LITE0),
    "Lite0 head 3x3 of the central square, told categories": Headed("hx3 crop", 128, licence=LITE0),
    "descriptor_views of the central square": Fused(("views crop",), (64,)),
    "student, trained": Trained("distilled_clothing", "hx3 crop", licence=LITE0),
    "student, trained for 10 epochs": Trained(
        "distilled_clothing", "hx3 crop", more=("train.epochs=10",), licence=LITE0
    ),
    "student, in closed form": Trained("ridge_clothing", "hx3 crop", licence=LITE0),
    "VAE of gradients, from scratch": Trained("vae_hog_clothing"),
}


class Features:
    """Features of all photos by name, computed once and kept in the cache."""

    def __init__(self, shown: Shown, cache: Path, weights: Path | None) -> None:
        self.shown, self.cache, self.weights = shown, cache, weights
        self._session: Any = None
        self._along: dict[tuple[str, bytes], torch.Tensor] = {}
        self._trained: dict[Any, Encoded] = {}

    def pixels(self, fit: Fit = "pad") -> np.ndarray:
        """Return the photos at 64 pixels, uint8 [n, 64, 64, 3], padded or their central squares."""
        config = ImagesConfig(size=64, fit=fit)
        path = self.cache / f"pixels-{config.size}{'' if fit == 'pad' else f'-{fit}'}.npy"
        if not path.exists():
            np.save(path, np.stack([decode(file.read_bytes(), config) for file in self.shown.files]))
        return np.load(path)

    def of(self, name: str) -> np.ndarray:
        """Return one kind of features, float32 [n, D]."""
        if name in ("hog", "hog crop"):
            return hog_features(self.pixels(fit_of(name)), cell=8)
        path = self.cache / f"lite0-{name.replace(' ', '-')}.npy"
        if not path.exists():
            self._encode(fit_of(name))
        return np.load(path).astype(np.float32)

    def along(self, name: str, dims: int, known: np.ndarray) -> torch.Tensor:
        """Return features along the first principal components of the known photos' ones, not whitened, [n, dims]."""
        key = (name, known.tobytes())
        if key not in self._along and name in ("views", "views crop"):
            self._along[key] = torch.from_numpy(fitted_model(VIEWS, self.pixels(fit_of(name)), known, 0))
        if key not in self._along:
            rows = torch.from_numpy(self.of(name))
            side = torch.from_numpy(known)
            _, directions = principal_components(rows[side], MOST)
            self._along[key] = (rows - rows[side].mean(dim=0)) @ directions.float().T
        return self._along[key][:, :dims]

    def trained(self, row: Trained, known: np.ndarray, seed: int) -> Encoded:
        """Return what a row's model says of all photos, trained on known ones; kept for other spaces."""
        key = (row.preset, row.teacher, row.dims, row.more, seed, known.tobytes())
        if key not in self._trained:
            given = self.along(row.teacher, row.dims, known).numpy()
            shown = self.pixels(preset_config(row.preset, None).images.fit)
            self._trained[key] = encoded(row, shown, given, self.shown.labels, known, seed)
        return self._trained[key]

    def photos_per_s(self, names: Sequence[str]) -> float:
        """Return how many photos one CPU second turns into all these features, the best of some tries."""
        spent = 0.0
        named = {name.removesuffix(CROP) for name in names}
        if GRADIENTS & named:
            pixels = self.pixels()[:BATCH]
            spent += fastest(lambda: hog_features(pixels, cell=8))
        named -= GRADIENTS
        if layers := sorted({CELLS[name][0] for name in named}):
            session, photos = self.session(), np.zeros((BATCH, 224, 224, 3), np.uint8)
            photos[:, ::2] = np.arange(224, dtype=np.uint8)[:, None]
            spent += fastest(lambda: session.run(layers, {session.get_inputs()[0].name: photos}))
        return BATCH / spent

    def session(self) -> Any:
        """Return the network, on one thread."""
        if self._session is None:
            self._session = session_of(self.weights, LAYERS)
        return self._session

    def _encode(self, fit: Fit) -> None:
        """Compute all layers."""
        session = self.session()
        config, found = ImagesConfig(size=224, fit=fit), dict[str, list[np.ndarray]]()
        for start in range(0, len(self.shown.files), BATCH):
            files = self.shown.files[start : start + BATCH]
            photos = np.stack([decode(file.read_bytes(), config) for file in files])
            maps_of = session.run(list(LAYERS), {session.get_inputs()[0].name: photos})
            maps = {layer: torch.from_numpy(own) for layer, own in zip(LAYERS, maps_of, strict=True)}
            for name, (layer, cells) in CELLS.items():
                pooled = torch.nn.functional.adaptive_avg_pool2d(maps[layer], cells)
                found.setdefault(name, []).append(pooled.flatten(1).half().numpy())
        for layer, parts in found.items():
            np.save(self.cache / f"lite0-{layer}{'-crop' if fit == 'crop' else ''}.npy", np.concatenate(parts))


def session_of(weights: Path | None, layers: Sequence[str]) -> Any:
    """Return a network with such outputs, on one thread."""
    if weights is None:
        raise SystemExit(f"rows of Lite0 need --weights: an ONNX file with the outputs {', '.join(layers)}")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(weights), options, providers=["CPUExecutionProvider"])


def fit_of(name: str) -> Fit:
    """Return how photos are brought to a square for features of this name."""
    return "crop" if name.endswith(CROP) else "pad"


def fastest(work: Callable[[], object], tries: int = 5) -> float:
    """Return the least CPU seconds of some tries; the first warms up."""
    spent = []
    for _ in range(1 + tries):
        begun = time.process_time()
        work()
        spent.append(time.process_time() - begun)
    return max(min(spent[1:]), 1e-9)


def shown_photos(data: Path) -> Shown:
    """Return the clothing photos whose category is one."""
    rows = clothing_rows(data)
    asked = {row["item_id"] for row in old_split(data)[1]}
    files = [data / "clothing" / row["image"] for row in rows]
    old = np.array([row["item_id"] in asked for row in rows], np.bool_)
    return Shown([row["category"] for row in rows], [row["sender_id"] for row in rows], old, files)


def asking(row: Row, features: Features, seed: int) -> Asked:
    """Return what makes a row's vectors of training photos and asks them of all others."""
    shown = features.shown

    def by_cosine(vectors: np.ndarray, known: np.ndarray) -> tuple[dict[str, np.ndarray], int]:
        return ask_fold(vectors, shown.labels, shown.groups, ~known), vectors.shape[1]

    def asked(known: np.ndarray) -> tuple[dict[str, np.ndarray], int]:
        if isinstance(row, Fused):
            return by_cosine(fused(row, features, known), known)
        if isinstance(row, str):
            return by_cosine(fused(chosen(features, known), features, known), known)
        if isinstance(row, Headed):
            return by_cosine(headed(features.along(row.of, row.dims, known).numpy(), shown.labels, known), known)
        found = features.trained(row, known, seed)
        if row.space == "kl":
            return asked_by_kl(found, shown.labels, ~known), found.mean.shape[1]
        return by_cosine(texts(found, known) if row.space == "words" else found.mean, known)

    return asked


def fused(row: Fused, features: Features, known: np.ndarray) -> np.ndarray:
    """Return a row's vectors, float32 [n, d], its components and centres fitted on known photos, bool [n].

    As kind `fusion` makes them (`scale: each_photo`): less the mean of the known, to length 1, times the square root of
    the share.
    """
    total, parts = sum(row.weights), []
    for name, dims, weight in zip(row.of, row.dims, row.weights, strict=True):
        vectors = features.along(name, dims, known)
        vectors = vectors - vectors[torch.from_numpy(known)].mean(dim=0)
        joined = torch.nn.functional.normalize(vectors, dim=1) if len(row.of) > 1 else vectors
        parts.append(joined * (weight / total) ** 0.5)
    return torch.cat(parts, dim=1).numpy()


def chosen(features: Features, known: np.ndarray) -> Fused:
    """Return the row of GRID that inner folds of the known photos like best; the others are never looked at."""
    shown, rows = features.shown, np.flatnonzero(known)
    labels, groups = ([each[at] for at in rows] for each in (shown.labels, shown.groups))
    inner = deal_folds(groups, FOLDS - 1)

    def score(row: Fused) -> float:
        vectors = fused(row, features, known)[rows]
        asked = [ask_fold(vectors, labels, groups, inner == fold) for fold in range(FOLDS - 1)]
        return float(np.mean([np.nanmean(np.concatenate([one[name] for one in asked])) for name in FOLD_MEASURES]))

    best = max(GRID, key=score)
    print(f"  chosen: {best.of}, {best.dims}, {best.weights}: {score(best):.4f}", flush=True)
    return best


def fitted_model(preset: str, pixels: np.ndarray, known: np.ndarray, seed: int) -> np.ndarray:
    """Return the latents of a preset's model that is only fitted, on known photos."""
    torch.manual_seed(seed)
    model = build_model(preset_config(preset, None).model, image_size=pixels.shape[1]).eval()
    with torch.inference_mode():
        model.fit(Batch(photos) for photos in photo_batches(pixels[known]))
    return model_latents(model, pixels)


def measure(name: str, features: Features, seed: int, floor: Mapping[str, np.ndarray] | None) -> dict[str, Any]:
    """Return a row's numbers; those of each photo go into the cache, for paired differences."""
    shown, row = features.shown, ROWS[name]
    ask = asking(row, features, seed)
    values = over_folds(lambda known: ask(known)[0], shown.groups)
    old, dims = ask(~shown.old)
    licence = LITE0 if isinstance(row, str) else row.licence
    result: dict[str, Any] = {"name": name, "dims": dims, "licence": licence}
    result["photos_per_cpu_s"] = speed(row, features, ~shown.old, seed)
    result |= told(values, floor, shown.groups)
    result |= {f"old_{measured}": float(np.nanmean(own)) for measured, own in old.items()}
    if isinstance(row, Trained) and row.space != "kl":
        trained = features.trained(row, ~shown.old, seed)
        vectors = texts(trained, ~shown.old) if row.space == "words" else trained.mean
        result |= purities(vectors, trained.codes, shown.labels, ~shown.old)
    np.savez_compressed(photos_file(features.cache, name, seed), **values)
    return result


def over_folds(ask: Callable[[np.ndarray], Mapping[str, np.ndarray]], groups: Sequence[str]) -> dict[str, np.ndarray]:
    """Return FOLD_MEASURES of each photo, float64 [n], asked in the one fold that knows no photo of its contributor."""
    folds = deal_folds(groups, FOLDS)
    values = {measured: np.full(len(folds), np.nan) for measured in FOLD_MEASURES}
    for fold in range(FOLDS):
        asked = folds == fold
        for measured, own in ask(~asked).items():
            values[measured][asked] = own[asked]
    return values


def told(
    values: Mapping[str, np.ndarray], floor: Mapping[str, np.ndarray] | None, groups: Sequence[str]
) -> dict[str, Any]:
    """Return means, intervals and differences to the floor's numbers of the same photos, as the results' files say
    them."""
    result: dict[str, Any] = {}
    for measured, own in values.items():
        found = group_mean(own, groups)
        result |= {measured: found.mean, f"{measured}_low": found.low, f"{measured}_high": found.high}
        if floor is not None:
            result[f"ahead_{measured}"] = list(group_difference(own, floor[measured], groups))
    return result


def photos_file(cache: Path, name: str, seed: int) -> Path:
    """Return where the numbers of each photo are kept, for paired differences."""
    return cache / f"photos-{slug(name)}-{seed}.npz"


def speed(row: Row, features: Features, known: np.ndarray, seed: int) -> float:
    """Return how many photos a row's latents take one CPU second; decoding is not in it."""
    if isinstance(row, Headed):
        return features.photos_per_s([row.of])
    if not isinstance(row, Trained):
        return features.photos_per_s(row.of if isinstance(row, Fused) else ("hx3", "views"))
    photo_s = features.trained(row, known, seed).photo_s
    if row.preset.startswith(ALONE):
        return 1 / photo_s
    return 1 / (photo_s + 1 / features.photos_per_s([row.teacher]))


def slug(name: str) -> str:
    """Return a name as part of a file's."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def digest(name: str) -> str:
    """Return 12 hex digits of what decides a row."""
    row = ROWS[name]
    facts: Any = [each.__dict__ for each in GRID] if row == CHOSEN else row.__dict__
    return key_of(portable({"row": facts}))[:12]


def main() -> int:
    """Run the benchmark."""
    asked = Options(
        __doc__,
        data=DATA,
        weights=(Path, "EfficientNet-Lite0 as ONNX, of uint8 photos [n, 224, 224, 3]"),
        rows=(str, "names of ROWS with semicolons between; all by default"),
        seeds="0",
        cache=ROOT / ".cache" / "bench-folds",
        json=RESULTS / "folds.json",
        table=(False, "only print what is in --json"),
    ).parse_args()
    names = names_of(asked.rows, ROWS, "rows", apart=";")
    if not asked.table:
        if absent(asked.data):
            return 0
        torch.set_num_threads(1)
        asked.cache.mkdir(parents=True, exist_ok=True)
        features = Features(shown_photos(asked.data), asked.cache, asked.weights)
        run_all(names, features, [int(seed) for seed in asked.seeds.split(",")], asked.json)
    print(folds_table(read(asked.json)))
    return 0


def run_all(names: Sequence[str], features: Features, seeds: Sequence[int], path: Path) -> None:
    """Measure what is not there yet, the floor first."""
    for name in dict.fromkeys([FLOOR, *names]):
        for seed in seeds if isinstance(ROWS[name], Trained) else [0]:
            there = read(path)
            kept = photos_file(features.cache, FLOOR, 0)
            floor = dict(np.load(kept)) if name != FLOOR and kept.exists() else None
            done = any((run["name"], run["digest"], run["seed"]) == (name, digest(name), seed) for run in there)
            if done and (name != FLOOR or kept.exists()):
                continue
            facts = {"catalogue": "clothing", "seed": seed, "digest": digest(name), "date": today()}
            result = {**facts, **measure(name, features, seed, floor)}
            write_runs(path, renewed(there, result, "name", "seed"))
            print(f"{name}, seed {seed}: k-NN {result['knn']:.4f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
