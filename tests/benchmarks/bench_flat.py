"""Whether memory grows while very many photos are encoded: driver and actors, second by second.

    python tests/benchmarks/bench_flat.py [--count 200000] [--json FILE] [--plot FILE]

Two hundred small JPEGs are made once and stand at as many addresses as asked; everything else is the real encoding
through Ray, by an untrained VAE. Every second the memory of each process that is its own (resident
without what it shares) is noted. The slope is that of a line by least squares through the medians of ten seconds each,
from when a quarter of the photos is done, in MiB per 100,000 photos, with its 95 % interval. `--here`: one worker in
this process, without Ray.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from encode_accounts import kind_of
from encode_photos import RepeatedPhotos, added_plan, make_job, start_ray
from made_photos import make_photo
from options import Given, Options
from PIL import Image, ImageDraw
from plots import Panel, draw_panel
from record import made_on
from scipy import stats
from watched import Looking, of_each

from pipeline.encoding import ShardResult, assign_shards, build_shards, run_shards, run_shards_here

PHOTOS, BLOCK_S = 200, 10.0
COLOURS = ("#1f4e9c", "#a0341f", "#1c7a2e", "#7a5c1c", "#5c1c7a", "#444444", "#999999")
Line = list[tuple[float, float, int]]  # seconds since the begin, MiB, photos done


class Sampler(Looking):
    """Notes each second what every process of this one's tree holds of its own."""

    def __init__(self) -> None:
        super().__init__(1.0)
        self.lines: dict[str, Line] = {}
        self.done = 0
        self._began = time.monotonic()

    def look(self) -> None:
        told = of_each(lambda process: (f"{kind_of(process)} {process.pid}", process.memory_info()))
        for name, memory in told:
            at = (time.monotonic() - self._began, (memory.rss - memory.shared) / 2**20, self.done)
            self.lines.setdefault(name, []).append(at)


def slope(line: Line, begin: int) -> dict[str, float]:
    """Return the growth of a line from photo `begin` on."""
    rows = np.array([row for row in line if row[2] >= begin])
    blocks = ((rows[:, 0] - rows[0, 0]) // BLOCK_S).astype(int)
    points = np.array([np.median(rows[blocks == block][:, [2, 1]], axis=0) for block in np.unique(blocks)])
    fit = stats.linregress(points[:, 0] / 100_000, points[:, 1])
    # A line without any spread has no margin, and no number for it in SciPy.
    margin = float(np.nan_to_num(stats.t.ppf(0.975, len(points) - 2) * fit.stderr))
    return {
        "mib_a_100000": round(float(fit.slope), 2), "low": round(float(fit.slope) - margin, 2),
        "high": round(float(fit.slope) + margin, 2), "median_mib": round(float(np.median(rows[:, 1])), 1),
        "most_mib": round(float(rows[:, 1].max()), 1), "blocks": len(points),
    }  # fmt: skip


def measure(options: Given, folder: Path) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    files = RepeatedPhotos([make_photo(generator, 48, 48) for _ in range(PHOTOS)])
    job = make_job(folder, files, size=32, model="vae", actors=2)
    plan = added_plan([f"{folder}/{n}" for n in range(options.count)])
    plan = assign_shards(plan, image_size=32, shard_rows=options.rows)
    shards = build_shards(plan, transform_id=job.transform_id, model_id=job.model_id, precision="fp32")
    sampler = Sampler()

    def on_result(result: ShardResult, *_: int) -> None:
        sampler.done += result.photos - result.refused

    sampler.start()
    began = time.monotonic()
    (run_shards_here if options.here else run_shards)(shards, job, on_result=on_result)
    seconds = time.monotonic() - began
    sampler.stop()
    # Those that were there all the time: a process of which less than half is seen has no slope to speak of.
    whole = {name: line for name, line in sampler.lines.items() if len(line) > 0.5 * seconds}
    return {
        "photos": options.count, "here": options.here, "encoded": sampler.done, "shards": len(shards),
        "seconds": round(seconds, 1),
        "slopes": {name: slope(line, options.count // 4) for name, line in whole.items()},
        "lines": {
            name: [[round(at), round(mib, 1), done] for at, mib, done in line[::5]] for name, line in whole.items()
        },
    }  # fmt: skip


def plot(lines: dict[str, Sequence[Sequence[float]]], path: Path) -> None:
    """Draw MiB by seconds, a line a process, its name and last value beside its end."""
    image = Image.new("RGB", (1150, 620), "white")
    falling = sorted(lines, key=lambda name: -lines[name][-1][1])
    colours = {name: COLOURS[min(number, len(COLOURS) - 1)] for number, name in enumerate(falling)}
    panel = Panel(70, 780, 520, ",.0f", ticks=4)
    draw_panel(ImageDraw.Draw(image), panel, "MiB of its own, by seconds", lines, colours)
    image.save(path)


def main() -> None:
    parser = Options(__doc__, count=200_000, rows=1_000, here=(False, "without Ray"), json=Path, plot=Path)
    options = parser.parse_args()
    if not options.here:
        start_ray(cpus=4)
    with tempfile.TemporaryDirectory() as folder:
        found = {**made_on(), **measure(options, Path(folder))}
    ray.shutdown()
    if options.plot:
        plot(found["lines"], options.plot)
    if options.json:
        options.json.write_text(json.dumps(found) + "\n")
    for name, line in found["slopes"].items():
        print(name, line)
    print(f"{found['encoded']:,} of {found['photos']:,} photos in {found['seconds']:.0f} s")


if __name__ == "__main__":
    main()
