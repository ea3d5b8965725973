"""Nights of large catalogues on one machine: seconds and the driver's memory of every step, and how both grow.

The real plan, carry-over, compaction, index and publishing of a refresh run in one process, as in the driver. Only the
photos are not there: the parts that actors would write are written by this benchmark, with random latents of 8 numbers,
in a process of its own that is not measured. Night 1 encodes everything, night 2 changes, adds and removes half a per
cent each, night 3 repeats night 2's catalogue under another index setting, so that a release is made of carried photos.

    python tests/benchmarks/bench_scale.py --photos 1000000 [3000000 ...] --json scale.json --plot scale.png
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from options import Given, Options
from PIL import Image, ImageDraw
from plots import Panel, draw_panel
from record import made_on, memory, write
from steps import apart
from watched import Watched

from jobs.building import build_candidate
from jobs.computing import encode_photos
from jobs.config import Config, photo_files
from jobs.context import Context
from jobs.pipeline_run import config_text, publish_candidate
from pipeline.encoding import Shard
from pipeline.models import build_model, save_bundle
from pipeline.parts import write_part
from pipeline.planning import Plan, main_transforms, shard_builder
from pipeline.planning.freezing import How, frozen_plan
from pipeline.planning.standing import look
from pipeline.progress import Progress
from pipeline.runs import open_run
from pipeline.schema import latents_schema, pixels_schema
from pipeline.storage import open_store
from pipeline.watch import Watch

DIM = 8
BATCH = 1_000_000
PHOTOS = "memory://shop-photos/"
COLOURS = {"plan": ("#1f4e9c", "#7fb0ff"), "encode": ("#1c7a2e", "#74d68a"), "build": ("#a0341f", "#ff9d85")}
CHURN = 200  # one photo in so many is changed, one added, one removed


def write_catalogue(path: Path, photos: int, *, night: int) -> None:
    """Write one row a photo: key, URI, version, category and price; about 60 letters a URI, as shops have them."""
    first = photos // CHURN if night > 1 else 0
    with pq.ParquetWriter(path, catalogue_batch(0, 1, night).schema) as writer:
        for start in range(first, photos + first, BATCH):
            writer.write_table(catalogue_batch(start, min(start + BATCH, photos + first), night))


def catalogue_batch(start: int, end: int, night: int) -> pa.Table:
    numbers = np.arange(start, end)
    text = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 10, "0")
    changed = pa.array((numbers % CHURN == 7) & (night > 1))
    return pa.table(
        {
            "item_id": pc.binary_join_element_wise("sku", text, "-"),
            "image": pc.binary_join_element_wise(
                "memory://shop-photos/products/2026/front-1600x1600/", text, ".jpg", ""
            ),
            "v": pc.binary_join_element_wise(text, pc.if_else(changed, "b", "a"), "etag-0123456789abcdef"),
            "category": pc.if_else(pa.array(numbers % 3 == 0), "Shoes", "Bags"),
            "price": pa.array(numbers % 977 / 10),
        }
    )


def settings(folder: Path, night: int) -> Config:
    values = {
        "store": {"url": str(folder / "store")},
        "catalogue": {
            "source": str(folder / f"catalogue-{min(night, 2)}.parquet"),
            "version": "v",
            "allowed_prefixes": [PHOTOS],  # judged as s3:// is, and the page finds no photo there
        },
        "images": {"size": 16, "keep": "never"},
        "model": {"kind": "autoencoder", "latent_dim": DIM, "channels": [8, 8]},
        "index": {"kind": "flat", "metric": "l2" if night == 3 else "cosine"},
        "gates": {"min_recall": None, "max_removed": None},
    }
    return Config.model_validate(values)


def save_random_model(folder: Path) -> None:
    """Save a bundle that answers the config's train key; nothing is trained."""
    config = settings(folder, 1)
    store = config.store.open()
    standing = look(config, store, run="night-1", limit=None)
    if standing.model_id is None:
        model = build_model(config.model, image_size=config.images.size)
        save_bundle(store, model, config.model, config.images, train_key=standing.train_key, card={})


def write_parts(folder: Path, night: int) -> None:
    """Write what actors would for the shards of a frozen plan: parts without pixels, and random latents."""
    config = settings(folder, night)
    store = open_store(str(folder / "store"))
    held = open_run(store, f"night-{night}").read_frozen("plan.parquet")
    assert held is not None
    plan = Plan.from_bytes(held)
    transforms = main_transforms(config, store, plan.summary.model_id)
    build = shard_builder(config, store, transforms, plan.summary.model_id, stores=False)
    for shard in build(plan.rows, ""):
        write_shard(store, shard)


def write_shard(store: Any, shard: Shard) -> None:
    rows, generator = shard.photos.num_rows, np.random.default_rng(shard.number)
    digests = pa.array([generator.bytes(32).hex() for _ in range(rows)])
    keys = [shard.photos[name] for name in ("item_id", "uri", "token")]
    none = pa.nulls(rows, pa.string())
    photos = pa.Table.from_arrays([*keys, digests, none, none, none], schema=pixels_schema())
    write_part(store, shard.pixels_name, photos, shard.pixels_key)
    means = pa.FixedSizeListArray.from_arrays(pa.array(generator.normal(size=rows * DIM).astype(np.float32)), DIM)
    columns = [*keys, digests, pa.array(np.arange(rows), pa.int32()), means]
    latents = pa.Table.from_arrays(columns, schema=latents_schema(DIM, log_var=False))
    write_part(store, str(shard.latents_name), latents, str(shard.latents_key))


def night(folder: Path, number: int) -> dict[str, Any]:
    """Run one night as its driver does, and return what each step took."""
    config, how = settings(folder, number), How()
    store = config.store.open()
    run = open_run(store, f"night-{number}")
    steps = Watched()
    with ExitStack() as stack:
        attempt = stack.enter_context(run.begin(config_text(config, how)))
        watch = stack.enter_context(Watch())
        context = Context(config, store, photo_files(config), run, attempt, Progress(), watch)
        with steps.step("plan"):
            plan = frozen_plan(context, how)
        apart(__file__, "--write-parts", folder, "--night", number)
        with steps.step("encode"):  # everything but fetching and encoding: find parts, collect, compact, hash
            encoded = encode_photos(context, plan, str(plan.summary.model_id), start_ray)
        with steps.step("build"):  # index, changes, measures, page, files, manifest
            candidate = build_candidate(context, plan, str(plan.summary.model_id), encoded)
        with steps.step("publish"):
            outcome = publish_candidate(context, plan, candidate)
    files = {role: [entry.bytes for entry in entries] for role, entries in candidate.manifest.files.items()}
    return {
        "photos": encoded.items.num_rows, "counts": plan.summary.counts, "parts": len(candidate.manifest.parts),
        "format": candidate.manifest.format, "published": outcome.published,
        "import_mib": steps.found.pop("import_mib"), "steps": steps.found, "seconds": watch.summary()["seconds"],
        "bytes_a_photo": {
            "plan rows": round(plan.rows.nbytes / plan.rows.num_rows, 1),
            "items": round(encoded.items.nbytes / encoded.items.num_rows, 1),
            "items, files": round(sum(files["items"]) / encoded.items.num_rows, 1),
            "index, file": round(sum(files["index"]) / encoded.items.num_rows, 1),
            "plan.parquet": round(len(run.read_frozen("plan.parquet") or b"") / plan.rows.num_rows, 1),
            "latents parts": round(sum(part.bytes for part in candidate.manifest.parts) / encoded.items.num_rows, 1),
        },
    }  # fmt: skip


def start_ray() -> None:
    raise AssertionError("every part is there; nothing may be computed")


def measure(folder: Path, photos: int, nights: int) -> Iterator[dict[str, Any]]:
    """Yield what has been measured after each night."""
    for number in (1, 2):
        write_catalogue(folder / f"catalogue-{number}.parquet", photos, night=number)
    apart(__file__, "--save-model", folder)
    found: dict[str, Any] = {"photos": photos}
    for number in range(1, nights + 1):
        print(f"{photos:,} photos, night {number}", file=sys.stderr, flush=True)
        found[f"night {number}"] = apart(__file__, "--run-night", folder, "--night", number)
        yield found


def plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw how seconds and memory grow, a line a step and night, with their last values."""
    image = Image.new("RGB", (1200, 460), "white")
    draw = ImageDraw.Draw(image)
    for number, (title, key, scale) in enumerate((("seconds", "s", 1.0), ("driver's peak, GiB", "peak_mib", 1024.0))):
        lines, colours = {}, {}
        for step, shades in COLOURS.items():
            for night, shade in zip(("night 1", "night 2"), shades, strict=True):
                points = [(result["photos"] / 1e6, result[night]["steps"][step][key] / scale)
                          for result in results if night in result]  # fmt: skip
                if points:
                    lines[f"{night}, {step}"], colours[f"{night}, {step}"] = points, shade
        panel = Panel(60 + 590 * number, 380, 350, ".3g", ticks=2)
        draw_panel(draw, panel, f"{title}, by million photos", lines, colours)
    image.save(path)


def main() -> int:
    folder = (Path, "where catalogue and store lie; a temporary one by default")
    parser = Options(__doc__, folder=folder, nights=3, json=Path, plot=Path)
    parser.add_argument("--photos", type=int, nargs="+", default=[100_000, 300_000])
    options = parser.hidden(night=1, save_model=Path, write_parts=Path, run_night=Path).parse_args()
    if options.save_model:
        save_random_model(options.save_model)
    elif options.write_parts:
        write_parts(options.write_parts, options.night)
    elif options.run_night:
        print(json.dumps(night(options.run_night, options.night)))
    else:
        results: dict[int, dict[str, Any]] = {}
        for photos in options.photos:
            with tempfile.TemporaryDirectory(prefix="scale-", dir=options.folder) as folder:
                for found in measure(Path(folder), photos, options.nights):
                    results[photos] = {**found, "load": round(os.getloadavg()[0], 1)}
                    save(list(results.values()), options)
    return 0


def save(results: Sequence[dict[str, Any]], options: Given) -> None:
    """Write what there is so far, so that a run that is stopped leaves its finished nights."""
    if options.json:
        write(options.json, {**made_on(memory()), "results": results})
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    sys.exit(main())
