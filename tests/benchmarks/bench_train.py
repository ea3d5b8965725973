"""Our loop on pixel parts against a plain PyTorch loop of the same model on pixels already in memory.

First one process, then two: two workers of our loop against two plain gloo processes with DistributedDataParallel.
Each alternates A B B A and prints the median ratio of images/s with its interval (of seven pairs: the smallest and
largest, 98 % for a median), and the same per second of CPU time, which other work on the machine disturbs less:

    python tests/benchmarks/bench_train.py [--pairs 7] [--workers 1,2] [--photos 4096] [--epochs 3] [--size 64]
        [--kind vae] [--json FILE]
"""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from options import Given, Options
from pydantic import TypeAdapter
from record import ROOT, tell, today
from torch.nn.parallel import DistributedDataParallel

from pipeline.models import AnyModelConfig, build_model
from pipeline.models.base import Batch, Model, Step
from pipeline.schema import pixels_schema
from pipeline.storage import Store, open_store
from pipeline.training import Loop, PartRows, PixelLoader, TrainConfig
from pipeline.training.optimisers import build_optimiser
from pipeline.training.part_cache import PartCache, PartReader
from pipeline.training.ranks import Ranks
from pipeline.training.worker import fix_process

PARTS = 4
BATCH = 128  # photos a step, over all workers
SETTINGS = {"pairs": 7, "photos": 4096, "epochs": 3, "size": 64, "kind": "vae", "threads": 1}


def part_name(part: int) -> str:
    return f"pixels/bench/{part}.parquet"


def fill(store: Store, photos: int, size: int) -> None:
    """Write four parts of blocky noise pictures."""
    rng = np.random.default_rng(0)
    schema = pixels_schema(size)
    for part in range(PARTS):
        count = photos // PARTS
        images = rng.integers(0, 256, (count, size // 4, size // 4, 3), np.uint8).repeat(4, 1).repeat(4, 2)
        columns = {"pixels": pa.array([image.tobytes() for image in images], schema.field("pixels").type)}
        columns |= {name: pa.array([str(row) for row in range(count)]) for name in ("item_id", "uri", "token")}
        table = pa.table([columns.get(field.name, pa.nulls(count, field.type)) for field in schema], schema=schema)
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd", row_group_size=1024)
        store.put(part_name(part), sink.getvalue())


def now() -> np.ndarray:
    """Return seconds by the clock and of CPU time, this process's threads all."""
    return np.array([time.perf_counter(), time.process_time()])


def ours(model: Model, loader: PixelLoader, config: TrainConfig, ranks: Ranks) -> None:
    """Train by our loop."""
    Loop(model, loader, config, ranks).run()


def plain(model: Model, images: torch.Tensor, config: TrainConfig, ranks: Ranks) -> None:
    """Train by the shortest loop that trains the same model; images: those of this process."""
    model.train()
    optimiser = build_optimiser(model, config)
    trained = DistributedDataParallel(model) if ranks.world_size > 1 else model
    batch_size = config.batch_size // ranks.world_size
    steps = config.epochs * (len(images) // batch_size)
    for number in range(steps):
        batch = images[torch.randperm(len(images))[:batch_size]]
        optimiser.zero_grad(set_to_none=True)
        losses = trained(Batch(batch), Step(number, steps))
        losses.total.backward()
        optimiser.step()
        model.after_step()


def timed(train: Callable[[], None], photos: int, ranks: Ranks) -> np.ndarray:
    """Return images/s over all workers, by the clock and by the CPU time of all workers."""
    ranks.wait_for_all()
    begun = now()
    train()
    ranks.wait_for_all()
    clock, cpu = (now() - begun).tolist()
    together = ranks.mean(torch.tensor([cpu], dtype=torch.float64)).item() * ranks.world_size
    return photos / np.array([clock, together])


def measure(asked: Given, folder: Path, ranks: Ranks) -> np.ndarray:
    """Return images/s of every pair, float64 [pairs, ours or plain, clock or CPU]; every worker runs this."""
    kind = TypeAdapter(AnyModelConfig).validate_python({"kind": asked.kind})
    config = TrainConfig(
        epochs=asked.epochs, batch_size=BATCH, threads=asked.threads, workers=ranks.world_size, validation=0
    )
    fix_process(config, torch.device("cpu"))  # for both: without it the allocator's luck decides who is faster
    pixels = [PartRows(part_name(part), np.arange(asked.photos // PARTS, dtype=np.int32)) for part in range(PARTS)]
    loader = PixelLoader(
        PartReader(PartCache(open_store(str(folder)), folder / "cache"), asked.size),
        pixels,
        batch_size=config.worker_batch_size(config.workers),
        rank=ranks.rank,
        world_size=ranks.world_size,
        seed=0,
        window_parts=4,
    )
    memory = torch.cat([batch.images for batch in loader.batches(0, loader.steps_per_epoch)])
    photos = config.epochs * loader.steps_per_epoch * config.batch_size
    pairs = []
    for number in range(-1, asked.pairs):  # the first pair warms up
        speeds = {}
        for mine in (True, False) if number % 2 else (False, True):  # whoever begins a pair has a handicap
            torch.manual_seed(0)
            model = build_model(kind, image_size=asked.size)
            if mine:
                speeds[mine] = timed(lambda model=model: ours(model, loader, config, ranks), photos, ranks)
            else:
                speeds[mine] = timed(lambda model=model: plain(model, memory, config, ranks), photos, ranks)
        if number < 0:
            continue
        pairs.append((speeds[True], speeds[False]))
        if ranks.is_first:
            ratio, cpu_ratio = speeds[True] / speeds[False]
            line = (
                f"ours {speeds[True][0]:.0f} images/s, plain {speeds[False][0]:.0f}, {ratio:.3f}, CPU {cpu_ratio:.3f}"
            )
            print(line, file=sys.stderr, flush=True)
    return np.array(pairs)


def measure_in_processes(asked: Given, folder: Path, workers: int) -> np.ndarray:
    """Measure in `workers` new gloo processes and return what rank 0 found; raises when one of them fails."""
    meeting = folder / f"meeting-{workers}"
    command = [sys.executable, __file__, f"--meeting={meeting}"]
    for name in SETTINGS:
        command.append(f"--{name}={getattr(asked, name)}")
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [*command, f"--rank={rank}", f"--world={workers}"],
            env={**os.environ, **paths},
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            text=True,
        )
        for rank in range(workers)
    ]
    try:
        while any(process.poll() is None for process in processes):
            if any(process.poll() for process in processes):
                raise SystemExit("a worker failed; its error stands above")  # the others would wait for it
            time.sleep(0.2)
    finally:
        for process in processes:
            process.kill()
    found = processes[0].communicate()[0]
    if any(process.returncode for process in processes):
        raise SystemExit("a worker failed; its error stands above")
    return np.array(json.loads(found.splitlines()[-1]))


def run_worker(asked: Given) -> None:
    """Be one of several gloo processes; rank 0 prints what it found."""
    meeting = Path(asked.meeting)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=asked.rank,
        world_size=asked.world,
        timeout=dt.timedelta(minutes=5),
    )
    pairs = measure(asked, meeting.parent, Ranks(asked.rank, asked.world))
    dist.destroy_process_group()
    if asked.rank == 0:
        print(json.dumps(pairs.tolist()))


def summary(pairs: np.ndarray) -> dict[str, Any]:
    """Return medians and intervals of pairs [pairs, ours or plain, clock or CPU]."""
    ratios = pairs[:, 0] / pairs[:, 1]
    return {
        "ours_images_per_s": np.median(pairs[:, 0, 0]),
        "plain_images_per_s": np.median(pairs[:, 1, 0]),
        "ratio_median": np.median(ratios[:, 0]),
        "ratio_interval": [ratios[:, 0].min(), ratios[:, 0].max()],
        "cpu_ratio_median": np.median(ratios[:, 1]),
        "cpu_ratio_interval": [ratios[:, 1].min(), ratios[:, 1].max()],
    }


def main() -> None:
    """Run the benchmark."""
    parser = Options(__doc__, **SETTINGS, workers=("1,2", "numbers of processes to compare with"), json=Path)
    asked = parser.hidden(meeting=str, rank=int, world=int).parse_args()
    if asked.meeting:
        run_worker(asked)
        return
    if asked.photos % (PARTS * BATCH):
        raise SystemExit(f"--photos {asked.photos} is not a multiple of {PARTS * BATCH}")
    result: dict[str, Any] = {
        "date": today(),
        "machine": platform.platform(),
        "torch": torch.__version__,
        **{name: getattr(asked, name) for name in SETTINGS},
    }
    with tempfile.TemporaryDirectory() as folder:
        fill(open_store(folder), asked.photos, asked.size)
        for workers in map(int, asked.workers.split(",")):
            print(f"{workers} worker{'s' if workers > 1 else ''}", file=sys.stderr, flush=True)
            one = workers == 1
            pairs = measure(asked, Path(folder), Ranks()) if one else measure_in_processes(asked, Path(folder), workers)
            result |= summary(pairs) if one else {f"workers_{workers}": summary(pairs)}
    tell(result, asked.json)


if __name__ == "__main__":
    main()
