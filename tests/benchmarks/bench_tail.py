"""What smaller shards at the end save when one actor is slow: real runs on Ray, and a schedule of many actors.

    python tests/benchmarks/bench_tail.py [--count N] [--rows N] [--pairs N] [--json FILE]

Of two actors the first one to start waits `--slow-s` for every photo, as one whose host answers slowly. Runs with
`encode.tail` even and halves alternate on one Ray cluster; the seconds are those of the whole run, start-up included.
The schedule takes the seconds that the shards of the other actor took in these runs, by photo, draws from them for
every shard, and hands shards in order to whoever is free: it knows nothing of start-up, network or a busy store. With
`--here` there is only the schedule, from shards worked on in this process.
"""

from __future__ import annotations

import heapq
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from encode_photos import SlowHost, added_plan, make_job, make_photos, start_ray
from options import Given, Options
from record import made_on, tell

from pipeline.encoding import EncodeJob, ShardResult, assign_shards, build_shards, run_shards, run_shards_here
from pipeline.encoding.cutting import cut

TAILS = ("even", "halves")
# (photos, photos of a whole shard, actors, how many of them are half as fast)
SCHEDULED = [
    (60_000, 938, 4, 1),
    (1_000_000, 10_870, 16, 1),
    (10_000_000, 10_918, 100, 5),
    (10_000_000, 10_918, 400, 20),
]


def run(uris: list[str], job: EncodeJob, tail: str, options: Given, folder: Path) -> dict[str, Any]:
    """Return the seconds of a run that finds no part, and of each shard the photos, its seconds and whether slow."""
    encode = job.encode.model_copy(update={"tail": tail})
    slow = SlowHost(options.slow_s, Path(tempfile.mkdtemp(dir=folder)))
    job = replace(job, encode=encode, files=slow, transform_id=os.urandom(8).hex())
    plan = added_plan(uris)
    plan = assign_shards(plan, image_size=job.images.size, shard_rows=options.rows, tail_for=encode.tail_for)
    shards = build_shards(plan, transform_id=job.transform_id, model_id=job.model_id, precision="fp32")
    ended: list[tuple[float, ShardResult]] = []
    began = time.perf_counter()
    run_shards(shards, job, on_result=lambda result, *_: ended.append((time.perf_counter() - began, result)))
    return {
        "seconds": round(time.perf_counter() - began, 2),
        "shards": len(shards),
        "sizes": [shard.photos.num_rows for shard in shards],
        "a_photo": [result.seconds / result.photos for _, result in ended],
    }


def scheduled(photos: int, rows: int, actors: int, slow: int, tail: int, a_photo: list[float]) -> float:
    """Return the seconds until the last of the actors has ended."""
    generator = np.random.default_rng(0)
    free, last = [(0.0, number) for number in range(actors)], 0.0
    for size in np.bincount(cut(photos, rows, tail)).tolist():
        at, actor = heapq.heappop(free)
        at += size * float(generator.choice(a_photo)) * (2.0 if actor < slow else 1.0)
        heapq.heappush(free, (at, actor))
        last = max(last, at)
    return last


def schedules(a_photo: list[float]) -> list[dict[str, Any]]:
    found = []
    for photos, rows, actors, slow in SCHEDULED:
        even, halves = (scheduled(photos, rows, actors, slow, tail, a_photo) for tail in (0, actors))
        best = photos * float(np.mean(a_photo)) / (actors - slow / 2)
        found.append({
            "photos": photos, "actors": actors, "slow": slow, "nobody_waits_s": round(best), "even_s": round(even),
            "halves_s": round(halves), "shards": [len(np.bincount(cut(photos, rows, tail))) for tail in (0, actors)],
        })  # fmt: skip
    return found


def measure(options: Given, folder: Path) -> dict[str, Any]:
    uris = make_photos(folder, None, options.count)
    job = make_job(folder, SlowHost(0.0, folder), size=64, model="vae", actors=2)
    if options.here:
        return {"photos": options.count, "rows": options.rows, **drawn(shard_seconds(uris, job, options.rows))}
    runs: dict[str, list[dict[str, Any]]] = {tail: [] for tail in TAILS}
    for pair in range(options.pairs):
        for tail in TAILS if pair % 2 == 0 else reversed(TAILS):
            runs[tail].append(run(uris, job, tail, options, folder))
            print(tail, {name: runs[tail][-1][name] for name in ("seconds", "shards")}, file=sys.stderr, flush=True)
    # Two shards at once in an actor: a shard's seconds hold a part of its neighbour's. Half, and only of usual ones.
    every = sorted(one / 2 for each in runs["even"] for one in each["a_photo"])
    usual = every[: len(every) // 2]
    return {
        "photos": options.count, "actors": 2, "slow_s_a_photo": options.slow_s, "rows": options.rows,
        "sizes": {tail: runs[tail][0]["sizes"] for tail in TAILS},
        "seconds": {tail: [each["seconds"] for each in runs[tail]] for tail in TAILS},
        **drawn(usual),
    }  # fmt: skip


def shard_seconds(uris: list[str], job: EncodeJob, rows: int) -> list[float]:
    """Return the seconds a photo of each shard, one after the other in this process, without Ray."""
    plan = assign_shards(added_plan(uris), image_size=job.images.size, shard_rows=rows)
    shards = build_shards(plan, transform_id=job.transform_id, model_id=job.model_id, precision="fp32")
    ended = [time.perf_counter()]
    run_shards_here(shards, job, on_result=lambda *_: ended.append(time.perf_counter()))
    spent = np.diff(ended)[1:]  # the first one waits for the model
    return [float(seconds) / shard.photos.num_rows for seconds, shard in zip(spent, shards[1:], strict=True)]


def drawn(a_photo: list[float]) -> dict[str, Any]:
    return {"ms_a_photo_drawn_from": [round(1000 * value, 3) for value in a_photo], "schedules": schedules(a_photo)}


def main() -> None:
    options = Options(
        __doc__, count=16_000, rows=2_000, pairs=3, slow_s=0.08,
        here=(False, "only the schedule, from shards of this process"), json=Path,
    ).parse_args()  # fmt: skip
    if not options.here:
        start_ray(cpus=4)
    with tempfile.TemporaryDirectory() as folder:
        found = {**made_on(), **measure(options, Path(folder))}
    ray.shutdown()
    tell(found, options.json)


if __name__ == "__main__":
    main()
