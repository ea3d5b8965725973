"""Every preset of a catalogue trained and measured, beside the floors that need no training.

Each preset and seed trains in a process of its own, through the project's loop on pixel parts that are decoded once.
Then all photos are encoded: k-NN of the held-out photos against all others (cosine, k=10, majority, ties to the
nearest); error, SSIM and detail of the held-out photos' reconstructions; what the latents use. Nothing is chosen by
looking at the held-out photos: the last epoch counts. A conditional model encodes photos without their category, which
would answer the question asked; it reconstructs them with it.

Every result is written when it is there; run again, what is there for the same settings is not measured again.

    python tests/benchmarks/bench_models.py --data ../shared/data [--catalogue fashion_mnist|clothing] [--seeds 0,1,2]
        [--presets NAME,... | floors] [--jobs 2] [--limit 500] [--epochs 1] [--json models.json] [--table | --stamp]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from model_measures import FLOORS, SIZES, measure_floors, measure_preset, prepare, preset_config
from model_tables import models_table
from options import Given, absent, names_of
from record import ROOT, read
from side_by_side import model_options, parsed, record_presets, stamp_preset
from table_cells import newest_rows, shown

from pipeline.keys import key_of, portable


def digest(name: str, catalogue: str, limit: int | None, epochs: int | None) -> str:
    """Return 12 hex digits of what decides a result, the seed apart."""
    asked: dict[str, Any] = {"catalogue": catalogue, "limit": limit}
    if name != FLOORS:
        config = preset_config(name, epochs)
        asked |= {section: getattr(config, section).model_dump(mode="json") for section in ("images", "model")}
        asked["train"] = config.train.key_values()
    return key_of(portable(asked))[:12]


def run_all(names: list[str], asked: Given) -> int:
    """Measure what is not there yet, `jobs` at a time; return how many failed."""
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    digests = {name: digest(name, asked.catalogue, asked.limit, asked.epochs) for name in names}
    there = {(run["digest"], run["seed"]) for run in read(asked.json)}
    wanted = [(name, seed) for seed in seeds for name in names if name != FLOORS or seed == seeds[0]]
    todo = [(name, 0 if name == FLOORS else seed) for name, seed in wanted]
    todo = [(name, seed) for name, seed in todo if (digests[name], seed) not in there]
    # Before anything is timed: two processes would decode the same photos side by side.
    sizes = {SIZES[asked.catalogue] if name == FLOORS else preset_config(name, None).images.size for name, _ in todo}
    for size in sorted(sizes):
        prepare(asked.data, asked.cache, asked.catalogue, size, asked.limit)
    return record_presets(
        Path(__file__), todo, digests, asked, lambda found: f"k-NN {found['knn']:.4f}, {found['train_s']:.0f} s"
    )


def stamp(runs: list[dict[str, Any]], digests: dict[str, str]) -> None:
    """Write each preset's measured time and score into the second line of its file."""
    for name in digests:
        own = [run for run in runs if run["preset"] == name and run["digest"] == digests[name]]
        if name == FLOORS or not own:
            continue
        seconds, speed = shown(own, "train_cpu_s", digits=0), shown(own[:1], "images_per_cpu_s", digits=0)
        spent = f"{seconds} CPU seconds of training ({speed} photos each)"
        stamp_preset(name, f"{len(own)} seeds, one thread: {spent}, k-NN {shown(own, 'knn', 100)} %")


def main() -> int:
    """Run the benchmark."""
    asked = parsed(model_options(__doc__, SIZES, "results.json"))
    if asked.one:
        seed = int(asked.seeds)
        found = measure_floors(asked) if asked.one == FLOORS else measure_preset(asked.one, seed, asked)
        Path(asked.out).write_text(json.dumps(found))
        return 0
    files = (ROOT / "jobs" / "presets").glob(f"*_{asked.catalogue}.yaml")
    names = names_of(asked.presets, [FLOORS, *sorted(path.stem for path in files)], "presets")
    failed = 0
    if not (asked.table or asked.stamp):
        if absent(asked.data):
            return 0
        failed = run_all(names, asked)
    digests = {name: digest(name, asked.catalogue, asked.limit, asked.epochs) for name in names}
    if asked.stamp:
        stamp(read(asked.json), digests)
    print(models_table(newest_rows(read(asked.json), asked.catalogue, asked.limit)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
