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

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from model_measures import FLOOR_SIZES, FLOORS, measure_floors, measure_preset, prepare, preset_config
from side_by_side import add_options, headed, line, read, record_all, shown

from pipeline.keys import key_of, portable

ROOT = Path(__file__).resolve().parents[2]
ORDER = ["autoencoder", "vae", "vae10", "seed_001", "beta_vae", "cvae", "vae_hog", "vqvae"]


def digest(name: str, catalogue: str, limit: int | None, epochs: int | None) -> str:
    """Return 12 hex digits of what decides a result, the seed apart."""
    asked: dict[str, Any] = {"catalogue": catalogue, "limit": limit}
    if name != FLOORS:
        config = preset_config(name, epochs)
        asked |= {section: getattr(config, section).model_dump(mode="json") for section in ("images", "model")}
        asked["train"] = config.train.key_values()
    return key_of(portable(asked))[:12]


def run_all(names: list[str], asked: argparse.Namespace) -> int:
    """Measure what is not there yet, `jobs` at a time; return how many failed."""
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    digests = {name: digest(name, asked.catalogue, asked.limit, asked.epochs) for name in names}
    there = {(run["digest"], run["seed"]) for run in read(asked.json)}
    wanted = [(name, seed) for seed in seeds for name in names if name != FLOORS or seed == seeds[0]]
    todo = [(name, 0 if name == FLOORS else seed) for name, seed in wanted]
    todo = [(name, seed) for name, seed in todo if (digests[name], seed) not in there]
    # Before anything is timed: two processes would decode the same photos side by side.
    sizes = {
        FLOOR_SIZES[asked.catalogue] if name == FLOORS else preset_config(name, None).images.size for name, _ in todo
    }
    for size in sorted(sizes):
        prepare(asked.data, asked.cache, asked.catalogue, size, asked.limit)
    return record_all(
        Path(__file__), todo, digests, asked, lambda found: f"k-NN {found['knn']:.4f}, {found['train_s']:.0f} s"
    )


# --- the table


def used(runs: list[dict[str, Any]]) -> str:
    """Return active units, or codes with their perplexity."""
    if "used_codes" in runs[0]:
        codes, perplexity = shown(runs, "used_codes", digits=0), shown(runs, "perplexity", digits=0)
        return f"{codes} of {runs[0]['num_codes']}, perplexity {perplexity}"
    if "active_units" in runs[0]:
        return f"{shown(runs, 'active_units', digits=0)} of {runs[0]['dims']}"
    return "–"


def extremes(runs: list[dict[str, Any]]) -> str:
    """Return the categories drawn worst and best."""
    if not runs[0].get("categories"):
        return "–"
    means = {name: np.mean([run["categories"][name] for run in runs]) for name in runs[0]["categories"]}
    worst, best = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    return f"{worst} {means[worst]:.4f}, {best} {means[best]:.4f}"


def table(runs: list[dict[str, Any]], names: list[str], digests: dict[str, str]) -> str:
    """Return the Markdown table of README, floors first."""
    heads = ["model", "target", "numbers", "CPU minutes", "photos per CPU second", "k-NN %", "MSE", "SSIM", "detail",
             "active units or codes", "twins %", "code error", "drawn worst, best (MSE)"]  # fmt: skip
    lines = headed(heads)
    current = [run for run in runs if run["digest"] == digests.get(run["preset"])]
    rows: dict[str, list[dict[str, Any]]] = {}
    for run in sorted(current, key=lambda run: names.index(run["preset"])):
        rows.setdefault(run["name"], []).append(run)
    for name, own in rows.items():
        first = own[0]
        cells = [name, first["target"], str(first["dims"]), shown(own, "train_cpu_s", 1 / 60),
                 shown(own, "images_per_cpu_s", digits=0), shown(own, "knn", 100), shown(own, "mse", digits=4),
                 shown(own, "ssim", digits=3), shown(own, "high_frequency", digits=2), used(own),
                 shown(own, "codebook_near_duplicate_share", 100), shown(own, "codebook_quantisation_error", digits=3),
                 extremes(own)]  # fmt: skip
        lines.append(line(cells))
    return "\n".join(lines)


def stamp(runs: list[dict[str, Any]], digests: dict[str, str]) -> None:
    """Write each preset's measured time and score into the second line of its file."""
    for name in digests:
        own = [run for run in runs if run["preset"] == name and run["digest"] == digests[name]]
        if name == FLOORS or not own:
            continue
        seconds, speed = shown(own, "train_cpu_s", digits=0), shown(own[:1], "images_per_cpu_s", digits=0)
        path = ROOT / "jobs" / "presets" / f"{name}.yaml"
        command, _, *rest = path.read_text().splitlines()
        line = (
            f"# Measured, {len(own)} seeds, one thread: {seconds} CPU seconds of training ({speed} photos each), k-NN "
        )
        path.write_text("\n".join([command, f"{line}{shown(own, 'knn', 100)} %; see README, Numbers.", *rest]) + "\n")


def preset_order(name: str) -> tuple[int, str]:
    stem = name.removesuffix("_fashion_mnist").removesuffix("_clothing")
    place = ORDER.index(stem) if stem in ORDER else len(ORDER)
    return place, name


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, FLOOR_SIZES, "results.json")
    asked = parser.parse_args()
    if asked.one:
        seed = int(asked.seeds)
        found = measure_floors(asked) if asked.one == FLOORS else measure_preset(asked.one, seed, asked)
        Path(asked.out).write_text(json.dumps(found))
        return 0
    files = (ROOT / "jobs" / "presets").glob(f"*_{asked.catalogue}.yaml")
    there = sorted((path.stem for path in files), key=preset_order)
    names = [FLOORS, *there] if asked.presets is None else asked.presets.split(",")
    if unknown := set(names) - {FLOORS, *there}:
        raise SystemExit(f"no presets {', '.join(sorted(unknown))}; there are {', '.join([FLOORS, *there])}")
    failed = 0
    if not (asked.table or asked.stamp):
        if not asked.data.exists():
            print(f"no catalogues at {asked.data}: nothing measured; name their folder with --data")
            return 0
        failed = run_all(names, asked)
    digests = {name: digest(name, asked.catalogue, asked.limit, asked.epochs) for name in names}
    if asked.stamp:
        stamp(read(asked.json), digests)
    print(table(read(asked.json), names, digests))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
