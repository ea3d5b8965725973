"""Our loop on pixel parts against a plain PyTorch loop of the same model on pixels already in memory, one process.

Alternates A B B A and prints the median ratio of images/s with its interval (of seven pairs: the smallest and largest,
98 % for a median), and the same per second of CPU time, which other work on the machine disturbs less:

    python tests/benchmarks/bench_train.py [--pairs 7] [--photos 4096] [--epochs 3] [--size 64] [--json FILE]
"""

from __future__ import annotations

import argparse
import datetime as dt
import io
import json
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import TypeAdapter

from pipeline.models import AnyModelConfig, build_model
from pipeline.models.base import Batch, Model, Step
from pipeline.schema import pixels_schema
from pipeline.storage import Store, open_store
from pipeline.training import Loop, PixelLoader, PixelRows, TrainConfig
from pipeline.training.optimisers import build_optimiser
from pipeline.training.part_cache import PartCache, PartReader
from pipeline.training.worker import fix_process


def fill(store: Store, photos: int, size: int) -> list[PixelRows]:
    """Write four parts of blocky noise pictures."""
    rng = np.random.default_rng(0)
    schema = pixels_schema(size)
    pixels = []
    for part in range(4):
        count = photos // 4
        images = rng.integers(0, 256, (count, size // 4, size // 4, 3), np.uint8).repeat(4, 1).repeat(4, 2)
        columns = {"pixels": pa.array([image.tobytes() for image in images], schema.field("pixels").type)}
        columns |= {name: pa.array([str(row) for row in range(count)]) for name in ("item_id", "uri", "token")}
        table = pa.table([columns.get(field.name, pa.nulls(count, field.type)) for field in schema], schema=schema)
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd", row_group_size=1024)
        store.put(f"pixels/bench/{part}.parquet", sink.getvalue())
        pixels.append(PixelRows(f"pixels/bench/{part}.parquet", np.arange(count, dtype=np.int32)))
    return pixels


def now() -> np.ndarray:
    """Return seconds by the clock and of CPU time, this process's threads all."""
    return np.array([time.perf_counter(), time.process_time()])


def ours(model: Model, loader: PixelLoader, config: TrainConfig) -> np.ndarray:
    """Return images/s of our loop over all epochs, by the clock and by CPU time."""
    loop = Loop(model, loader, config)
    begun = now()
    loop.run()
    return loop.total_steps * config.batch_size / (now() - begun)


def plain(model: Model, images: torch.Tensor, config: TrainConfig) -> np.ndarray:
    """Return images/s of the shortest loop that trains the same model, by the clock and by CPU time."""
    model.train()
    optimiser = build_optimiser(model, config)
    steps = config.epochs * len(images) // config.batch_size
    begun = now()
    for number in range(steps):
        batch = images[torch.randperm(len(images))[: config.batch_size]]
        optimiser.zero_grad(set_to_none=True)
        losses = model(Batch(batch), Step(number, steps))
        losses.total.backward()
        optimiser.step()
        model.after_step()
    return steps * config.batch_size / (now() - begun)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--photos", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--kind", default="vae")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    kind = TypeAdapter(AnyModelConfig).validate_python({"kind": asked.kind})
    config = TrainConfig(epochs=asked.epochs, batch_size=128, threads=asked.threads)
    fix_process(config, torch.device("cpu"))  # for both: without it the allocator's luck decides who is faster
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        pixels = fill(store, asked.photos, asked.size)
        reader = PartReader(PartCache(store, Path(folder) / "cache"), asked.size)
        loader = PixelLoader(reader, pixels, batch_size=128, rank=0, world_size=1, seed=0, window_parts=4)
        memory = torch.cat([batch.images for batch in loader.batches(0, loader.steps_per_epoch)])
        pairs = []
        for number in range(-1, asked.pairs):  # the first pair warms up
            speeds = {}
            for mine in (True, False) if number % 2 else (False, True):  # whoever begins a pair has a handicap
                torch.manual_seed(0)
                model = build_model(kind, image_size=asked.size)
                speeds[mine] = ours(model, loader, config) if mine else plain(model, memory, config)
            if number < 0:
                continue
            pairs.append((speeds[True], speeds[False]))
            ratio, cpu_ratio = pairs[-1][0] / pairs[-1][1]
            print(f"ours {pairs[-1][0][0]:.0f} images/s, plain {pairs[-1][1][0]:.0f}, {ratio:.3f}, CPU {cpu_ratio:.3f}")
    both = np.array(pairs)  # [pairs, ours or plain, clock or CPU]
    ratios = both[:, 0] / both[:, 1]
    result = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": platform.platform(),
        "torch": torch.__version__,
        **{name: value for name, value in vars(asked).items() if name != "json"},
        "ours_images_per_s": np.median(both[:, 0, 0]),
        "plain_images_per_s": np.median(both[:, 1, 0]),
        "ratio_median": np.median(ratios[:, 0]),
        "ratio_interval": [ratios[:, 0].min(), ratios[:, 0].max()],
        "cpu_ratio_median": np.median(ratios[:, 1]),
        "cpu_ratio_interval": [ratios[:, 1].min(), ratios[:, 1].max()],
    }
    print(json.dumps(result, indent=2))
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
