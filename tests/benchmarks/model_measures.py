"""What the benchmarks of models measure in the process of one training: photos as parts, presets, the floors."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from bench_refresh import split
from claim_experiments import RENDERED
from options import Given

from jobs.command import Arguments
from jobs.config import Config, load_config
from pipeline.encoding.actors import Encoder
from pipeline.errors import NotReconstructing, PhotoRefused
from pipeline.evaluation.baselines import hog_features, pixel_features, principal_components
from pipeline.evaluation.knn import knn_accuracy
from pipeline.evaluation.latents import code_measures, gaussian_measures
from pipeline.evaluation.reconstruction import (
    category_errors,
    joined,
    photo_errors,
    reconstruct_errors,
    reconstruction_measures,
)
from pipeline.images import ImagesConfig, decode
from pipeline.images.config import transform_id
from pipeline.models import Model, build_model
from pipeline.models.base import to_float
from pipeline.models.conditions import condition_of
from pipeline.models.vqvae2 import VQVAE2
from pipeline.schema import pixels_schema
from pipeline.storage import open_store
from pipeline.training import Loop, PartRows, PixelLoader
from pipeline.training.part_cache import PartCache, PartReader
from pipeline.training.progress import Scalars
from pipeline.training.split import held_out
from pipeline.training.worker import fix_process

FLOORS = "floors"
SIZES = {"fashion_mnist": 28, "clothing": 64}  # of each catalogue's photos; the former's own size
PART_ROWS = 5000


@dataclass(frozen=True)
class Photos:
    """pixels: uint8 [n, size, size, 3]. groups: item_id, the contributor where the catalogue names one, or a rendered
    photo's colour.
    """

    pixels: np.ndarray
    categories: list[str]
    items: list[str]
    groups: list[str]


def source_rows(data: Path, catalogue: str, part: str) -> Iterator[tuple[bytes, str, str, str]]:
    """Yield a photo's bytes, category, item_id and group, of the part `train` or `test`."""
    if catalogue == "fashion_mnist":
        for batch in pq.ParquetFile(data / "fashion-mnist" / f"{part}.parquet").iter_batches(PART_ROWS):
            for number, row in enumerate(batch.to_pylist()):
                item = str(row.get("item_id", number))
                yield row["image"], str(row["category"]), item, item
        return
    if catalogue == RENDERED:
        yield from rendered_rows(data, part)
        return
    for row in split(data)[part == "test"]:
        yield (data / "clothing" / row["image"]).read_bytes(), row["category"], row["item_id"], row["sender_id"]


def rendered_rows(data: Path, part: str) -> Iterator[tuple[bytes, str, str, str]]:
    """Yield the rendered catalogue's usable photos, their colour as the group; a quarter of the items is `test`."""
    with (data / "catalogue.csv").open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    away = held_out([row["item_id"] for row in rows], 0.25, 0)
    for row, last in zip(rows, away, strict=True):
        if last != (part == "test"):
            continue
        for name in json.loads(row["image"]) if row["image"].startswith("[") else [row["image"]]:
            photo = (data / name).read_bytes() if (data / name).exists() else b""
            try:
                decode(photo, ImagesConfig(size=16))
            except PhotoRefused:  # some are broken on purpose
                continue
            yield photo, row["category"], row["item_id"], row["colour"]


def prepare(data: Path, cache: Path, catalogue: str, size: int, limit: int | None) -> str:
    """Decode a catalogue's photos into parts, once, and return the folder's name in the cache, as parts are named."""
    config = ImagesConfig(size=size)
    name = f"pixels/{catalogue}-{size}-{transform_id(config)}" + (f"-{limit}" if limit else "")
    if (cache / name).exists():
        return name
    print(f"decoding {catalogue} at {size} pixels", flush=True)
    (cache / name).parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=cache))
    for part in ("train", "test"):
        chunk: list[tuple[bytes, str, str, str]] = []
        number = 0
        for count, (photo, *rest) in enumerate(source_rows(data, catalogue, part)):
            if limit and count == limit:
                break
            chunk.append((decode(photo, config).tobytes(), *rest))  # type: ignore[arg-type]
            if len(chunk) == PART_ROWS:
                write_part(aside / f"{part}-{number:03}.parquet", chunk, size)
                chunk, number = [], number + 1
        if chunk:
            write_part(aside / f"{part}-{number:03}.parquet", chunk, size)
    try:
        aside.rename(cache / name)
    except OSError:  # somebody else was faster
        shutil.rmtree(aside)
    return name


def write_part(path: Path, rows: list[tuple[bytes, str, str, str]], size: int) -> None:
    """Write a pixels part as the pipeline does, with the columns category and group beside its own."""
    pixels, categories, items, groups = zip(*rows, strict=True)
    schema = pixels_schema(size)
    given = {"pixels": pixels, "item_id": items, "uri": items, "token": items}
    columns = [pa.array(given.get(field.name, [None] * len(rows)), field.type) for field in schema]
    table = pa.table(columns, schema=schema)
    table = table.append_column("category", pa.array(categories)).append_column("group", pa.array(groups))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=1024)
    path.write_bytes(sink.getvalue())


def load(folder: Path, part: str, size: int) -> Photos:
    """Read all parts of `train` or `test`."""
    table = pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob(f"{part}-*.parquet"))])
    pixels = np.frombuffer(b"".join(table["pixels"].to_pylist()), np.uint8).reshape(-1, size, size, 3)
    return Photos(pixels, *(table[name].to_pylist() for name in ("category", "item_id", "group")))


def both_parts(
    data: Path, cache: Path, catalogue: str, size: int, limit: int | None = None
) -> tuple[str, Photos, Photos]:
    """Return the cache's folder of a catalogue's photos, those to learn from and those held out."""
    folder = prepare(data, cache, catalogue, size, limit)
    return folder, load(cache / folder, "train", size), load(cache / folder, "test", size)


def preset_config(name: str, epochs: int | None, more: Sequence[str] = ()) -> Config:
    """Return a preset's settings. epochs: instead of its own; more: settings that differ, written `key=value`."""
    overrides = ["store=/nowhere", "catalogue.source=/nowhere.parquet", *more]
    overrides += [f"train.epochs={epochs}"] if epochs else []
    return load_config(Arguments(config=name, overrides=tuple(overrides)), {})


def train(
    config: Config,
    seed: int,
    cache: Path,
    folder: str,
    photos: Photos,
    *,
    chosen: np.ndarray | None = None,
    begin: Callable[[Model], object] | None = None,
) -> tuple[Model, dict[str, Any]]:
    """Return the trained model, and minutes, images/s and the last epoch's measures of the training.

    chosen: which photos are trained on, bool [n]; all by default. begin: what is done to the new model before. Where
    photos are held out, `epoch_loss` has their loss after every epoch.
    """
    settings = config.train.model_copy(update={"seed": seed, "threads": 1})
    fix_process(settings, torch.device("cpu"))
    torch.manual_seed(seed)
    labels = tuple(sorted(set(photos.categories)))
    model = build_model(config.model, image_size=config.images.size, labels=labels)
    if begin is not None:
        begin(model)
    pixels, _ = pixel_rows(config, seed, folder, photos, chosen=chosen)
    loader = PixelLoader(
        PartReader(PartCache(open_store(str(cache)), cache / "parts"), config.images.size),
        pixels,
        batch_size=settings.batch_size,
        rank=0,
        world_size=1,
        seed=seed,
        window_parts=settings.window_parts,
        balance=settings.balance,
    )
    kept = Kept()
    loop = Loop(model, loader, settings, labels=labels, open_scalars=lambda step: kept)
    begun, cpu = time.perf_counter(), time.process_time()
    trained = loop.run()
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    images = loop.total_steps * settings.batch_size
    measures: dict[str, Any] = {}
    measures |= {name.replace("/", "_"): value for name, value in kept.values.items() if name.startswith("codebook/")}
    if kept.losses:
        measures["epoch_loss"] = kept.losses
    return trained, {
        "train_s": seconds,
        "train_cpu_s": cpu,
        "images_per_s": images / seconds,
        "images_per_cpu_s": images / cpu,
        "train_photos": loader.num_photos,
        **measures,
    }


def pixel_rows(
    config: Config, seed: int, folder: str, photos: Photos, *, chosen: np.ndarray | None = None
) -> tuple[list[PartRows], tuple[str, ...]]:
    """Return the parts of the training photos with who is held out, and the categories.

    chosen: which photos are trained on, bool [n]; all by default.
    """
    labels = tuple(sorted(set(photos.categories)))
    category = condition_of(labels, photos.categories).numpy().astype(np.int32)
    away = held_out(photos.groups if config.train.split_by else photos.items, config.train.validation, seed)
    pixels = []
    for number, first in enumerate(range(0, len(photos.items), PART_ROWS)):
        rows = slice(first, first + PART_ROWS)
        living = np.flatnonzero(np.ones(len(category[rows])) if chosen is None else chosen[rows]).astype(np.int32)
        name = f"{folder}/train-{number:03}.parquet"
        pixels.append(PartRows(name, living, category[rows][living], away[rows][living]))
    return pixels, labels


class Kept(Scalars):
    """Keeps the last value of every scalar, where a run writes them for TensorBoard, and the held-out losses."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.losses: list[float] = []

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self.values.update(values)
        if "validation/total" in values:
            self.losses.append(values["validation/total"])

    def add_pictures(self, step: int, name: str, pictures: torch.Tensor) -> None: ...

    def add_table(self, step: int, name: str, values: Mapping[str, float]) -> None: ...

    def upload(self) -> None: ...

    def close(self) -> None: ...


def measure_preset(name: str, seed: int, asked: Given) -> list[dict[str, Any]]:
    """Train and measure one preset with one seed."""
    config = preset_config(name, asked.epochs)
    folder, bank, held = both_parts(asked.data, asked.cache, asked.catalogue, config.images.size, asked.limit)
    model, result = train(config, seed, asked.cache, folder, bank)
    encoder = Encoder(model, batch_size=250, threads=1)
    begun = time.perf_counter()
    known, found = (encoder(photos.pixels, np.arange(len(photos.pixels))) for photos in (bank, held))
    result["encode_images_per_s"] = (len(bank.pixels) + len(held.pixels)) / (time.perf_counter() - begun)
    result["knn"] = knn_accuracy(known.mean, np.asarray(bank.categories), found.mean, np.asarray(held.categories))
    if found.log_var is not None:
        result |= gaussian_measures(found.mean, found.log_var)
    if found.codes is not None:
        result |= all_code_measures(model, found.codes)
    try:
        conditions = condition_of(model.labels, held.categories).numpy() if config.model.conditional else None
        errors = reconstruct_errors(model, held.pixels, conditions=conditions)
        result |= reconstruction_measures(errors)
        result["categories"] = {each.category: each.mse for each in category_errors(errors, held.categories)}
    except NotReconstructing:
        result["mse"] = None
    target = config.model.target
    shown = target.kind if target.kind != "pixels" else f"pixels, {target.loss}"
    about = {"kind": config.model.kind, "target": shown, "size": config.images.size, "dims": model.latent_dim}
    return [{"name": name.removesuffix(f"_{asked.catalogue}"), **about, "epochs": config.train.epochs, **result}]


def all_code_measures(model: Any, codes: np.ndarray) -> dict[str, Any]:
    """Return num_codes and how held-out photos use them; of two levels over both codebooks, one after the other."""
    if not isinstance(model, VQVAE2):
        return {"num_codes": model.quantizer.num_codes, **code_measures(codes, model.quantizer.num_codes)}
    top, number = model.num_top_codes, model.top_quantizer.num_codes + model.bottom_quantizer.num_codes
    numbered = np.concatenate([codes[:, :top], codes[:, top:] + model.top_quantizer.num_codes], axis=1)
    return {"num_codes": number, **code_measures(numbered, number)}


def measure_floors(asked: Given) -> list[dict[str, Any]]:
    """Measure raw pixels, principal components of pixels and of gradient histograms."""
    size, grey = SIZES[asked.catalogue], asked.catalogue == "fashion_mnist"
    _, bank, held = both_parts(asked.data, asked.cache, asked.catalogue, size, asked.limit)
    labels, truth = np.asarray(bank.categories), np.asarray(held.categories)
    results = []

    def record(name: str, target: str, seconds: float, known: np.ndarray, found: np.ndarray, **more: float) -> None:
        about = {"name": name, "kind": FLOORS, "target": target, "size": size, "dims": known.shape[1]}
        accuracy = knn_accuracy(known, labels, found, truth)
        results.append({**about, "train_s": seconds, "knn": accuracy, **more})

    known, found = (pixel_features(photos.pixels, grey=grey) for photos in (bank, held))
    record("raw pixels", "pixels", 0.0, known, found)
    for count in (10, 64):
        begun = time.perf_counter()
        parts = principal_components(known, count)
        seconds = time.perf_counter() - begun
        coordinates = parts.project(found)
        drawn = parts.draw(coordinates).clip(0, 1).reshape(len(found), size, size, -1)
        record(f"PCA-{count}", "pixels", seconds, parts.project(known), coordinates, **drawing(held.pixels, drawn))
    begun = time.perf_counter()
    known, found = (hog_features(photos.pixels, cell=4 if grey else 8) for photos in (bank, held))
    seconds = time.perf_counter() - begun
    for count in (10, 64):
        begun = time.perf_counter()
        parts = principal_components(known, count)
        more = time.perf_counter() - begun
        record(f"HOG + PCA-{count}", "hog", seconds + more, parts.project(known), parts.project(found))
    return results


def drawing(pixels: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
    """Return the measures of pictures drawn, float32 [n, size, size, 3 or 1], against uint8 [n, size, size, 3]."""
    parts = []
    for start in range(0, len(drawn), 250):
        photos = torch.from_numpy(pixels[start : start + 250].transpose(0, 3, 1, 2).copy())
        made = torch.from_numpy(drawn[start : start + 250].transpose(0, 3, 1, 2).copy())
        parts.append(photo_errors(to_float(photos), made.expand(-1, 3, -1, -1)))
    return reconstruction_measures(joined(parts))
