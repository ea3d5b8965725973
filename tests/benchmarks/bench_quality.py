"""The quality table: every model and baseline of a catalogue by the same measures, three seeds.

Each preset and seed becomes a bundle by the training's own code, in a process of its own with one thread; bundles stay
in the cache, so a later run that measures something else trains nothing again. All photos are encoded as they are:
k-NN (cosine, k=10, majority), linear probe, precision@10, MAP@R, NDCG@10 of the held-out photos against all others;
effective rank; a logo pasted on 1 % of photos; an edit of 5 % of a photo's area; factors of rendered photos. Nothing is
chosen by looking at the held-out photos. Intervals: 95 %, bootstrap over queries; differences to HOG + PCA-64 by pairs.

    python tests/benchmarks/bench_quality.py --data ../shared/data [--catalogue fashion_mnist|clothing] [--seeds 0,1,2]
        [--presets NAME,... | floors] [--jobs 2] [--limit 500] [--epochs 1] [--json quality.json] [--table | --stamp]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from model_measures import prepare, preset_config
from quality_measures import FLOORS, MEMBERS, SIZES, measure, presets_of
from side_by_side import ROOT, add_options, headed, line, read, record_all, shown

from pipeline.evaluation.quality import LABEL_MEASURES, paired_difference
from pipeline.keys import key_of, portable

FLOOR = "HOG + PCA-64"  # what differences are told against
LABELS = {"knn": "k-NN", "knn_weighted": "k-NN 20, weighted", "probe": "probe", "precision_at_10": "P@10",
          "map_at_r": "MAP@R", "ndcg_at_10": "NDCG@10"}  # fmt: skip
FACTORS = ("category", "colour", "pattern", "angle", "shade", "width")


def digest(name: str, asked: argparse.Namespace) -> str:
    """Return 12 hex digits of what decides a result, the seed apart."""
    facts: dict[str, Any] = {"catalogue": asked.catalogue, "limit": asked.limit}
    if name != FLOORS:
        config = preset_config(name, asked.epochs)
        facts |= {section: getattr(config, section).model_dump(mode="json") for section in ("images", "model")}
        facts["train"] = config.train.key_values()
        facts["members"] = [digest(member, asked) for member in MEMBERS.get(name, ())]
    return key_of(portable(facts))[:12]


def run_all(names: list[str], asked: argparse.Namespace) -> int:
    """Measure what is not there yet, `jobs` at a time, fusions after their members; return how many failed."""
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    digests = {name: digest(name, asked) for name in names}
    there = {(run["digest"], run["seed"]) for run in read(asked.json)}
    todo = [(name, seed) for seed in seeds for name in names if name != FLOORS or seed == seeds[0]]
    todo = [(name, seed) for name, seed in todo if (digests[name], seed) not in there]
    if todo:  # before anything is timed: two processes would decode the same photos side by side
        prepare(asked.data, asked.cache, asked.catalogue, SIZES[asked.catalogue], asked.limit)
    members, fusions = ([task for task in todo if (task[0] in MEMBERS) == later] for later in (False, True))
    return sum(record_all(Path(__file__), now, digests, asked, told) for now in (members, fusions))


def told(result: dict[str, Any]) -> str:
    """Return a few words about a result."""
    spent = f", {result['train_cpu_s']:.0f} s" if "train_cpu_s" in result else ""
    return f"k-NN {result['knn']:.4f}{spent}"


# --- the tables


def with_interval(runs: list[dict[str, Any]], name: str) -> str:
    """Return a measure of labels in percent, and the 95 % interval of the first seed's queries."""
    low, high = (100 * min(runs, key=lambda run: run["seed"])[f"{name}_{end}"] for end in ("low", "high"))
    return f"{shown(runs, name, 100)} ({low:.1f}–{high:.1f})"


def ahead(runs: list[dict[str, Any]], floor: dict[str, Any] | None, cache: Path) -> str:
    """Return how far k-NN, P@10 and MAP@R are above the floor's, in points, with the interval of the mean over seeds.

    By the same queries: the seeds' numbers of each query are averaged before they are drawn. – without the files of
    queries, which lie in the cache alone.
    """
    files = [cache / "queries" / run["queries"] for run in runs]
    if floor is None or not all(path.exists() for path in [*files, cache / "queries" / floor["queries"]]):
        return "–"
    base = np.load(cache / "queries" / floor["queries"])
    told = []
    for name in ("knn", "precision_at_10", "map_at_r"):
        mine = np.mean([np.load(path)[name] for path in files], axis=0)
        gained = paired_difference(mine, base[name], seed=0)
        mark = "**" if gained.low > 0 else ""
        told.append(f"{mark}{100 * gained.mean:+.1f}{mark} ({100 * gained.low:+.1f} to {100 * gained.high:+.1f})")
    return "; ".join(told)


def rows_of(runs: list[dict[str, Any]], names: list[str], digests: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Return the runs of today's settings by row, floors first."""
    rows: dict[str, list[dict[str, Any]]] = {}
    current = [run for run in runs if run["digest"] == digests.get(run["preset"])]
    for run in sorted(current, key=lambda run: (names.index(run["preset"]), run["seed"])):
        rows.setdefault(run["name"], []).append(run)
    return rows


def tables(rows: dict[str, list[dict[str, Any]]], cache: Path) -> str:
    """Return the two Markdown tables of README: labels; and what moves latents."""
    floor = rows.get(FLOOR, [None])[0]
    heads = ["model", "numbers", "CPU minutes", "photos per CPU second", *(f"{title} %" for title in LABELS.values()),
             f"k-NN, P@10, MAP@R above {FLOOR}"]  # fmt: skip
    lines = headed(heads)
    for name, own in rows.items():
        cells = [name, str(own[0]["dims"]), shown(own, "train_cpu_s", 1 / 60), shown(own, "images_per_cpu_s", digits=0),
                 *(with_interval(own, measure) for measure in LABEL_MEASURES),
                 "–" if name == FLOOR else ahead(own, floor, cache)]  # fmt: skip
        lines.append(line(cells))
    heads = ["model", "effective rank", "unit spread", "logo items found %", "without logo %", "ahead %",
             "moved by edit", "still found %", *FACTORS]  # fmt: skip
    lines += ["", *headed(heads)]
    for name, own in rows.items():
        cells = [name, shown(own, "effective_rank_centred"), shown(own, "unit_spread", digits=2),
                 shown(own, "rare_recall", 100), shown(own, "rare_plain_recall", 100), shown(own, "rare_ahead", 100),
                 shown(own, "moved", digits=2), shown(own, "found", 100),
                 *(shown(own, f"factor_{factor}", digits=2) for factor in FACTORS)]  # fmt: skip
        lines.append(line(cells))
    return "\n".join(lines)


def stamp(rows: dict[str, list[dict[str, Any]]]) -> None:
    """Write each preset's measured time and score into the second line of its file."""
    for own in rows.values():
        name = own[0]["preset"]
        if name == FLOORS:
            continue
        path = ROOT / "jobs" / "presets" / f"{name}.yaml"
        command, _, *rest = path.read_text().splitlines()
        spent = f"{shown(own, 'train_cpu_s', digits=0)} CPU seconds of training, " if "train_cpu_s" in own[0] else ""
        seeds = f"{len(own)} seeds" if len(own) > 1 else "1 seed"
        text = f"# Measured, {seeds}, one thread: {spent}k-NN {shown(own, 'knn', 100)} %; see README, Numbers."
        path.write_text("\n".join([command, text, *rest]) + "\n")


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, SIZES, "quality.json")
    asked = parser.parse_args()
    if asked.one:
        Path(asked.out).write_text(json.dumps(measure(asked.one, int(asked.seeds), asked)))
        return 0
    there = presets_of(asked.catalogue)
    # The file of a pretrained network's weights is not part of the project.
    names = [FLOORS, *(name for name in there if not name.startswith("pretrained"))]
    wanted = names if asked.presets is None else asked.presets.split(",")
    if unknown := set(wanted) - {*names, *there}:
        raise SystemExit(f"no presets {', '.join(sorted(unknown))}; there are {', '.join([FLOORS, *there])}")
    failed = 0
    if not (asked.table or asked.stamp):
        if not asked.data.exists():
            print(f"no catalogues at {asked.data}: nothing measured; name their folder with --data")
            return 0
        failed = run_all(wanted, asked)
    rows = rows_of(read(asked.json), names, {name: digest(name, asked) for name in names})
    if asked.stamp:
        stamp(rows)
    print(tables(rows, asked.cache))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
