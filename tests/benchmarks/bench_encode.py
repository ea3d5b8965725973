"""Photos per second from JPEG files to pixels and latents: through Ray against as many plain processes as actors.

    python tests/benchmarks/bench_encode.py [--photos FOLDER] [--count N] [--pairs N] [--actors N] [--json]
        [--documented] [--get-ms N]

Runs alternate A B A B on one Ray cluster; printed are the median ratio of a pair (above 1: Ray is faster) and the range
of its middle half. An execution on Ray costs some seconds before its first photo (actors start and import torch), so
the rate of what follows is given too, the marginal rate: a shard has `--rows` photos, and the first result of each
actor is not counted. A plain process reads, decodes, encodes and saves arrays of its share with one torch thread; its
imports are not counted. `--documented` adds the pipeline that Ray Data's documentation shows (read_images, map_batches
with a class, write_parquet). `--get-ms` has every photo come so much later, as from an object store. `--slow-s` instead
has one encoder sleep so long a batch, as a GPU at work, and tells its share of busy time in one stage and in two. The
table of stages is of one worker in this process, without Ray; `cpu_s` are CPU seconds after start-up by process, which
other work on the machine does not disturb. Without a folder, JPEGs of 400 x 533 pixels are made here; they are linked
under as many names as asked.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from encode_accounts import CpuBeside, stages_of
from encode_photos import SlowEncoding, SlowFiles, added_plan, busy_share, make_job, make_photos, start_ray
from options import Given, Options
from timing import spread

from pipeline.encoding import EncodeJob, ShardResult, assign_shards, build_shards, run_shards
from pipeline.images import decode
from pipeline.models import MODELS, load_bundle
from pipeline.storage import Files


@dataclass(frozen=True)
class Timing:
    """seconds: a whole run. steady: photos per second after every actor has given its first result.

    cpu: seconds by process, photos: of that time.
    """

    seconds: float
    steady: float
    cpu: dict[str, float]
    photos: int


def one_plain(uris: list[str], job: EncodeJob, folder: Path, number: int, ready: Any, spans: Any) -> None:
    """What a plain process does with its share."""
    torch.set_num_threads(1)
    model = load_bundle(job.store, str(job.model_id)).model
    size, batch, delay = job.images.size, job.encode.batch_size, getattr(job.files, "delay", 0.0)
    pixels = np.empty((len(uris), size, size, 3), np.uint8)
    means = []
    ready.wait()
    began, cpu = time.time(), time.process_time()
    with torch.inference_mode():
        for start in range(0, len(uris), batch):
            for n, uri in enumerate(uris[start : start + batch], start):
                time.sleep(delay)
                pixels[n] = decode(Path(uri).read_bytes(), job.images)
            images = torch.from_numpy(pixels[start : start + batch]).permute(0, 3, 1, 2).contiguous()
            means.append(model.encode(images).mean.numpy())
    np.save(folder / f"pixels-{number}.npy", pixels)
    np.save(folder / f"means-{number}.npy", np.concatenate(means))
    spans.put((began, time.time(), time.process_time() - cpu))


def plain(uris: list[str], job: EncodeJob, folder: Path, processes: int) -> Timing:
    context = multiprocessing.get_context("spawn")
    ready, spans = context.Barrier(processes), context.Queue()
    shares = [uris[number::processes] for number in range(processes)]
    started = [
        context.Process(target=one_plain, args=(share, job, folder, number, ready, spans))
        for number, share in enumerate(shares)
    ]
    for process in started:
        process.start()
    ends = [spans.get() for _ in started]
    for process in started:
        process.join()
    seconds = max(end for _, end, _ in ends) - min(begin for begin, _, _ in ends)
    return Timing(seconds, len(uris) / seconds, {"plain": sum(cpu for _, _, cpu in ends)}, len(uris))


def through_ray(plan: pa.Table, job: EncodeJob, actors: int) -> Timing:
    """A run that finds no part, hence a transform_id of its own; the bundle is the same."""
    job = replace(job, transform_id=os.urandom(8).hex())
    shards = build_shards(plan, transform_id=job.transform_id, model_id=job.model_id, precision="fp32")
    came: list[tuple[float, int]] = []
    beside = CpuBeside()

    def on_result(result: ShardResult, done: int, total: int) -> None:
        came.append((time.perf_counter(), result.photos))
        if done == actors:
            beside.begin()
        elif done == total:
            beside.end()

    began = time.perf_counter()
    run_shards(shards, job, on_result=on_result)
    seconds = time.perf_counter() - began
    rest = sum(photos for _, photos in came[actors:])
    return Timing(seconds, rest / max(came[-1][0] - came[actors - 1][0], 1e-9), beside.spent(), rest)


class DocumentedEncoder:
    """The class of Ray Data's guide to batch inference, with our model in it."""

    def __init__(self, store: Any, model_id: str) -> None:
        torch.set_num_threads(1)
        self.model = load_bundle(store, model_id).model

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        with torch.inference_mode():
            images = torch.from_numpy(np.ascontiguousarray(batch["image"])).permute(0, 3, 1, 2).contiguous()
            batch["mean"] = self.model.encode(images).mean.numpy()
        return batch


def documented(uris: list[str], job: EncodeJob, folder: Path, actors: int) -> Timing:
    out = folder / "documented"
    shutil.rmtree(out, ignore_errors=True)
    size, batch = job.images.size, job.encode.batch_size
    began = time.perf_counter()
    ray.data.read_images(uris, size=(size, size), mode="RGB", include_paths=True).map_batches(
        DocumentedEncoder, fn_constructor_args=(job.store, job.model_id), batch_size=batch,
        compute=ray.data.ActorPoolStrategy(size=actors),
    ).write_parquet(str(out))  # fmt: skip
    seconds = time.perf_counter() - began
    return Timing(seconds, len(uris) / seconds, {}, len(uris))


def slowed(plan: pa.Table, job: EncodeJob, folder: Path, batch_s: float) -> dict[str, object]:
    """Return the share of its time that one slow encoder works, in one stage and in two."""
    found: dict[str, object] = {"photos": plan.num_rows, "sleep_s": batch_s}
    for stages in ("one", "two"):
        encode = job.encode.model_copy(update={"stages": stages, "actors": 1, "decoders": 1})
        slow = replace(job, encode=encode, files=SlowEncoding(batch_s, folder))
        run = through_ray(plan, slow, 1)
        found[stages] = {"busy": round(busy_share(folder), 3), "photos_per_s": round(run.steady)}
    return found


def measure(options: Given, folder: Path) -> dict[str, object]:
    uris = make_photos(folder, options.photos, options.count)
    files = SlowFiles(options.get_ms / 1000) if options.get_ms else Files()
    job = make_job(folder, files, size=options.size, model=options.model, actors=options.actors)
    count = len(uris)
    plan = assign_shards(added_plan(uris), image_size=options.size, shard_rows=options.rows)
    if options.slow_s:
        return slowed(plan, job, folder, options.slow_s)
    pairs = [
        (through_ray(plan, job, options.actors), plain(uris, job, folder, options.actors)) for _ in range(options.pairs)
    ]
    found: dict[str, object] = {
        "photos": count, "size": options.size, "model": options.model, "actors": options.actors, "pairs": options.pairs,
        "rows": options.rows, "get_ms": options.get_ms,
        "ray_per_s": round(float(count / np.median([a.seconds for a, _ in pairs]))),
        "ray_steady_per_s": round(float(np.median([a.steady for a, _ in pairs]))),
        "plain_per_s": round(float(np.median([b.steady for _, b in pairs]))),
        "ratio": spread([b.seconds / a.seconds for a, b in pairs]),
        "steady_ratio": spread([a.steady / b.steady for a, b in pairs]),
        "cpu_s": pairs[-1][0].cpu,
        "cpu_ms_a_photo": {
            name: round(float(np.median([1000 * sum(run.cpu.values()) / run.photos for run in runs])), 3)
            for name, runs in (("ray, all processes", [a for a, _ in pairs]), ("plain", [b for _, b in pairs]))
        },
    }  # fmt: skip
    if options.documented:
        theirs = [documented(uris, job, folder, options.actors) for _ in range(min(3, options.pairs))]
        found["documented_per_s"] = round(float(np.median([run.steady for run in theirs])))
        ours = count / np.median([a.seconds for a, _ in pairs])
        found["ratio_to_documented"] = spread([ours / run.steady for run in theirs])
    part = plan.slice(0, min(count, 4 * options.rows))
    found["stages_ms_a_photo"] = stages_of(part, replace(job, transform_id=os.urandom(8).hex()))
    return found


def main() -> None:
    parser = Options(
        __doc__, photos=Path, count=6000, rows=500, pairs=7, actors=2, size=64, get_ms=0.0, slow_s=0.0,
        documented=False, json=False,
    )  # fmt: skip
    parser.add_argument("--model", choices=sorted(MODELS), default="vae")
    options = parser.parse_args()
    start_ray(cpus=options.actors + 2)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    ray.shutdown()
    if options.json or options.slow_s:
        print(json.dumps(result))
        return
    whole, steady = result["ratio"], result["steady_ratio"]
    print(
        f"{result['photos']} photos to {result['size']} px and {result['model']} latents: Ray with {result['actors']} "
        f"actors {result['ray_per_s']:,}/s, start-up included, {result['ray_steady_per_s']:,}/s after it; as many "
        f"plain processes {result['plain_per_s']:,}/s; median ratio of {result['pairs']} pairs {whole[0]} (middle half "
        f"{whole[1]} to {whole[2]}), then {steady[0]} ({steady[1]} to {steady[2]})"
    )
    if "documented_per_s" in result:
        print(f"as documented: {result['documented_per_s']:,}/s; ours is {result['ratio_to_documented'][0]} times that")
    print("ms a photo of one worker:", result["stages_ms_a_photo"])
    print("CPU seconds after start-up:", result["cpu_s"])
    print("CPU ms a photo:", result["cpu_ms_a_photo"])


if __name__ == "__main__":
    main()
