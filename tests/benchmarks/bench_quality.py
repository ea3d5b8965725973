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

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from model_measures import FLOORS, SIZES, prepare, preset_config
from model_tables import AHEAD, FLOOR, labels_table, moves_table
from options import Given, absent, names_of
from quality_measures import MEMBERS, measure, presets_of
from record import kept, read, write
from side_by_side import model_options, parsed, record_presets, stamp_preset
from table_cells import Rows, newest_rows, shown

from pipeline.evaluation.quality import paired_difference
from pipeline.keys import key_of, portable


def digest(name: str, asked: Given) -> str:
    """Return 12 hex digits of what decides a result, the seed apart."""
    facts: dict[str, Any] = {"catalogue": asked.catalogue, "limit": asked.limit}
    if name != FLOORS:
        config = preset_config(name, asked.epochs)
        facts |= {section: getattr(config, section).model_dump(mode="json") for section in ("images", "model")}
        facts["train"] = config.train.key_values()
        facts["members"] = [digest(member, asked) for member in MEMBERS.get(name, ())]
    return key_of(portable(facts))[:12]


def run_all(names: list[str], asked: Given) -> int:
    """Measure what is not there yet, `jobs` at a time, fusions after their members; return how many failed."""
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    digests = {name: digest(name, asked) for name in names}
    there = {(run["digest"], run["seed"]) for run in read(asked.json)}
    todo = [(name, seed) for seed in seeds for name in names if name != FLOORS or seed == seeds[0]]
    todo = [(name, seed) for name, seed in todo if (digests[name], seed) not in there]
    if todo:  # before anything is timed: two processes would decode the same photos side by side
        prepare(asked.data, asked.cache, asked.catalogue, SIZES[asked.catalogue], asked.limit)
    members, fusions = ([task for task in todo if (task[0] in MEMBERS) == later] for later in (False, True))
    return sum(record_presets(Path(__file__), now, digests, asked, told) for now in (members, fusions))


def told(result: dict[str, Any]) -> str:
    """Return a few words about a result."""
    spent = f", {result['train_cpu_s']:.0f} s" if "train_cpu_s" in result else ""
    return f"k-NN {result['knn']:.4f}{spent}"


# --- what is compared query by query


def compared(rows: Rows, cache: Path) -> dict[str, dict[str, list[float]]]:
    """Return how far every model is above the floor, in points: mean and 95 % interval of the mean over seeds.

    By the same queries: the seeds' numbers of each query are averaged before they are drawn. Without a model whose
    files of queries, which lie in the cache alone, are not there.
    """
    found: dict[str, dict[str, list[float]]] = {}
    floor = cache / "queries" / rows[FLOOR][0]["queries"] if FLOOR in rows else None
    for name, own in rows.items():
        files = [cache / "queries" / run["queries"] for run in own]
        if name == FLOOR or floor is None or not all(path.exists() for path in [*files, floor]):
            continue
        base, mine = np.load(floor), [np.load(path) for path in files]
        for measured in AHEAD:
            gained = paired_difference(np.mean([one[measured] for one in mine], axis=0), base[measured], seed=0)
            numbers = [round(100 * value, 1) for value in (gained.mean, gained.low, gained.high)]
            found.setdefault(name, {})[measured] = numbers
    return found


def note_compared(rows: Rows, asked: Given) -> dict[str, dict[str, list[float]]]:
    """Write what can be compared into ahead.json beside the results, and return all that stands there."""
    path = asked.json.with_name("ahead.json")
    noted = kept(path, {})
    known = {**noted.get(asked.catalogue, {}), **compared(rows, asked.cache)}
    if asked.limit is None and known != noted.get(asked.catalogue):
        write(path, {**noted, asked.catalogue: known})
    return known


def stamp(rows: Rows) -> None:
    """Write each preset's measured time and score into the second line of its file."""
    for own in rows.values():
        name = own[0]["preset"]
        if name == FLOORS:
            continue
        spent = f"{shown(own, 'train_cpu_s', digits=0)} CPU seconds of training, " if "train_cpu_s" in own[0] else ""
        seeds = f"{len(own)} seeds" if len(own) > 1 else "1 seed"
        stamp_preset(name, f"{seeds}, one thread: {spent}k-NN {shown(own, 'knn', 100)} %")


def main() -> int:
    """Run the benchmark."""
    asked = parsed(model_options(__doc__, SIZES, "quality.json"))
    if asked.one:
        Path(asked.out).write_text(json.dumps(measure(asked.one, int(asked.seeds), asked)))
        return 0
    there = presets_of(asked.catalogue)
    # The file of a pretrained network's weights is not part of the project.
    names = [FLOORS, *(name for name in there if not name.startswith("pretrained") and "lite0" not in name)]
    wanted = names if asked.presets is None else names_of(asked.presets, [FLOORS, *there], "presets")
    failed = 0
    if not (asked.table or asked.stamp):
        if absent(asked.data):
            return 0
        failed = run_all(wanted, asked)
    rows = newest_rows(read(asked.json), asked.catalogue, asked.limit)
    if asked.stamp:
        stamp(rows)
    print(labels_table(rows, note_compared(rows, asked)) + "\n\n" + moves_table(rows))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
