"""Photos per second from JPEG files to pixels and latents: through Ray Data against a plain loop in one process.

    python tests/benchmarks/bench_encode.py [--photos FOLDER] [--count N] [--pairs N] [--actors N] [--json]

Runs alternate A B A B on one Ray cluster; printed are the median ratio of a pair (above 1: Ray is faster) and the range
of its middle half. An execution on Ray costs some seconds before its first photo (actors start and import torch), so
the rate of what follows is given too: a shard has `--rows` photos, and the first result of each actor is not counted.
The plain loop reads, decodes, encodes and saves arrays, with one torch thread. Without a folder, JPEGs of 400 x 533
pixels are made here; they are linked under as many names as asked.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.catalogue import CatalogueConfig
from pipeline.encoding import EncodeConfig, EncodeJob, ShardResult, assign_shards, build_shards, run_shards
from pipeline.images import ImagesConfig, decode, transform_id
from pipeline.models import MODELS, build_model, load_bundle, save_bundle
from pipeline.schema import plan_schema
from pipeline.storage import Files, open_store


@dataclass(frozen=True)
class Timing:
    """seconds: a whole run. steady: photos per second after every actor has given its first result."""

    seconds: float
    steady: float


def make_photos(folder: Path, source: Path | None, count: int) -> list[str]:
    if source is None:
        generator = np.random.default_rng(0)
        originals = []
        for n in range(min(count, 500)):
            coarse = Image.fromarray(generator.integers(0, 256, (9, 7, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((400, 533), Image.Resampling.BICUBIC)).astype(np.int16)
            noisy = smooth + generator.normal(0, 6, smooth.shape).astype(np.int16)
            sink = io.BytesIO()
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(sink, "JPEG", quality=80)
            originals.append(folder / f"original-{n}.jpg")
            originals[-1].write_bytes(sink.getvalue())
    else:
        found = (path for path in source.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg"})
        originals = []
        for n, path in enumerate(sorted(found)[: min(count, 500)]):
            originals.append(folder / f"original-{n}.jpg")  # copied: the source may lie on another disk
            originals[-1].write_bytes(path.read_bytes())
    names = [folder / f"{n:07d}.jpg" for n in range(count)]
    for n, name in enumerate(names):
        os.link(originals[n % len(originals)], name)
    return [str(name) for name in names]


def plain(uris: list[str], job: EncodeJob, folder: Path) -> Timing:
    torch.set_num_threads(1)
    model = load_bundle(job.store, str(job.model_id)).model
    began = time.perf_counter()
    size, batch = job.images.size, job.encode.batch_size
    pixels = np.empty((len(uris), size, size, 3), np.uint8)
    means = []
    with torch.inference_mode():
        for start in range(0, len(uris), batch):
            for n, uri in enumerate(uris[start : start + batch], start):
                pixels[n] = decode(Path(uri).read_bytes(), job.images)
            images = torch.from_numpy(pixels[start : start + batch]).permute(0, 3, 1, 2).contiguous()
            means.append(model.encode(images).mean.numpy())
    np.save(folder / "pixels.npy", pixels)
    np.save(folder / "means.npy", np.concatenate(means))
    seconds = time.perf_counter() - began
    return Timing(seconds, len(uris) / seconds)


def through_ray(plan: pa.Table, job: EncodeJob, folder: Path) -> Timing:
    """A run that finds no part, hence a transform_id of its own; the bundle is the same."""
    job = replace(job, transform_id=os.urandom(8).hex())
    shards = build_shards(plan, transform_id=job.transform_id, model_id=job.model_id, precision="fp32")
    came: list[tuple[float, int]] = []

    def on_result(result: ShardResult, done: int, total: int) -> None:
        came.append((time.perf_counter(), result.photos))

    began = time.perf_counter()
    run_shards(shards, job, on_result=on_result)
    seconds = time.perf_counter() - began
    warm = came[job.encode.actors - 1][0]
    rest = sum(photos for _, photos in came[job.encode.actors :])
    return Timing(seconds, rest / max(came[-1][0] - warm, 1e-9))


def measure(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    uris = make_photos(folder, options.photos, options.count)
    images = ImagesConfig(size=options.size)
    config = MODELS[options.model][0]()
    torch.manual_seed(0)
    store = open_store(str(folder / "store"))
    model = build_model(config, image_size=images.size)
    model_id = save_bundle(store, model, config, images.model_dump(mode="json"), train_key="bench", card={})
    job = EncodeJob(
        store=store, files=Files(), catalogue=CatalogueConfig(source=str(folder)), images=images,
        encode=EncodeConfig(actors=options.actors), model_id=model_id, transform_id=transform_id(images),
    )  # fmt: skip
    count = len(uris)
    given = {
        "item_id": [f"{n:07d}" for n in range(count)], "uri": uris, "view": [0] * count, "token": ["version:1"] * count,
        "status": ["added"] * count, "retried": [False] * count,
    }  # fmt: skip
    schema = plan_schema([])
    columns = [pa.array(given.get(field.name, [None] * count), field.type) for field in schema]
    plan = assign_shards(pa.Table.from_arrays(columns, schema=schema), image_size=images.size, shard_rows=options.rows)
    plain(uris[:256], job, folder)  # imports and caches
    pairs = [(through_ray(plan, job, folder), plain(uris, job, folder)) for _ in range(options.pairs)]
    ratios = [b.seconds / a.seconds for a, b in pairs]
    steady = [a.steady / b.steady for a, b in pairs]

    def rounded(values: list[float]) -> list[float]:
        return [round(float(value), 2) for value in np.percentile(values, [50, 25, 75])]

    return {
        "photos": count, "size": images.size, "model": options.model, "actors": options.actors, "pairs": options.pairs,
        "ray_per_s": round(float(count / np.median([a.seconds for a, _ in pairs]))),
        "ray_steady_per_s": round(float(np.median([a.steady for a, _ in pairs]))),
        "plain_per_s": round(float(count / np.median([b.seconds for _, b in pairs]))),
        "ratio": rounded(ratios), "steady_ratio": rounded(steady),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--count", type=int, default=6000)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--model", choices=sorted(MODELS), default="vae")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])  # for the actors
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.init(
        num_cpus=options.actors + 2, include_dashboard=False, object_store_memory=512 * 2**20, logging_level="ERROR",
        log_to_driver=False, configure_logging=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    ray.shutdown()
    if options.json:
        print(json.dumps(result))
        return
    whole, steady = result["ratio"], result["steady_ratio"]
    print(
        f"{result['photos']} photos to {result['size']} px and {result['model']} latents: Ray with {result['actors']} "
        f"actors {result['ray_per_s']:,}/s, start-up included, {result['ray_steady_per_s']:,}/s after it; plain "
        f"{result['plain_per_s']:,}/s; median ratio of {result['pairs']} pairs {whole[0]} (middle half {whole[1]} to "
        f"{whole[2]}), after start-up {steady[0]} ({steady[1]} to {steady[2]})"
    )


if __name__ == "__main__":
    main()
