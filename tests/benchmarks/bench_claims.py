"""What the project's seed texts claim, each as a few short trainings that show it or do not.

Texts 000 (codebooks collapse, restarts make them alike, pictures blur, codes know shape and colour only, pretraining,
the commonest category, conditions) and 001 (losses, rebalancing, normalisation, sizes). Fashion-MNIST, one seed; codes
also on the demo's rendered catalogue. Nothing is chosen by the test photos, so all numbers are of them: k-NN (cosine,
k=10) and linear probes learn from the training photos. Each training is short: what is compared are the rows of a
table, not these with README's.

Every result is written when it is there; run again, what is there for the same settings is not measured again.

    python tests/benchmarks/bench_claims.py --data ../shared/data [--only collapse,sizes,...] [--jobs 2]
        [--limit 600] [--epochs 1] [--json claims.json] [--table]
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from claim_experiments import EXPERIMENTS, RENDERED, Result, Variant, tables
from claim_measures import SEED, config_of, measure
from model_measures import prepare
from options import Options, absent, names_of
from record import DATA, ROOT, read, today, write_runs
from side_by_side import CACHE, parsed

from pipeline.images.render import render_catalogue
from pipeline.keys import key_of, portable

ITEMS = 1800  # of the rendered catalogue, as in the demo


def digest(variant: Variant, limit: int | None, epochs: int | None) -> str:
    """Return 12 hex digits of what decides a result: equal trainings of two experiments are measured once."""
    config = config_of(variant, epochs)
    asked: dict[str, Any] = {
        section: getattr(config, section).model_dump(mode="json") for section in ("images", "model")
    }
    asked |= {key: getattr(variant, key) for key in ("measure", "catalogue", "share", "pretrained")}
    asked |= {"train": config.train.key_values(), "limit": limit, "seed": SEED}
    return key_of(portable(asked))[:12]


def answers(key: str, asked: argparse.Namespace) -> list[str]:
    """Return the rows that a result stands in: EXPERIMENT/PLACE of every variant of this digest."""
    return [
        f"{name}/{place}"
        for name, experiment in EXPERIMENTS.items()
        for place, variant in enumerate(experiment.variants)
        if digest(variant, asked.limit, asked.epochs) == key
    ]


def run_one(place: tuple[str, int], core: int | None, asked: argparse.Namespace) -> Result:
    """Measure in a process of its own, on one core with one thread."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        options = [f"--{key}={value}" for key in ("data", "cache", "limit", "epochs", "rendered")
                   if (value := getattr(asked, key)) is not None]  # fmt: skip
        one = [f"--one={place[0]}:{place[1]}", f"--out={out}", *([f"--core={core}"] if core is not None else [])]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        command = [sys.executable, __file__, *options, *one]
        done = subprocess.run(command, env={**os.environ, **threads, **paths}, capture_output=True, text=True)
        if done.returncode or not out.exists():
            raise RuntimeError(f"{place[0]}, variant {place[1]}: exit {done.returncode}\n{done.stderr[-3000:]}")
        return dict(json.loads(out.read_text()))


def run_all(names: list[str], asked: argparse.Namespace) -> int:
    """Measure what is not there yet, `jobs` at a time; return how many failed."""
    there = {run["digest"] for run in read(asked.json)}
    todo: dict[str, tuple[str, int]] = {}
    for name in names:
        for place, variant in enumerate(EXPERIMENTS[name].variants):
            if (key := digest(variant, asked.limit, asked.epochs)) not in there:
                todo.setdefault(key, (name, place))
    # Before anything is timed: two processes would render and decode the same photos side by side.
    wanted = {variant_of(place) for place in todo.values()}
    for catalogue, size in sorted({(v.catalogue, config_of(v, None).images.size) for v in wanted}):
        if catalogue == RENDERED and not (asked.rendered / "catalogue.csv").exists():
            render_catalogue(asked.rendered, items=asked.limit or ITEMS, seed=0)
        prepare(asked.rendered if catalogue == RENDERED else asked.data, asked.cache, catalogue, size, asked.limit)
    free: queue.Queue[int | None] = queue.Queue()
    machine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    for place in range(asked.jobs):
        free.put(machine[place % len(machine)] if machine else None)

    def run(key: str) -> tuple[str, Result | RuntimeError]:
        core = free.get()
        try:
            return key, run_one(todo[key], core, asked)
        except RuntimeError as error:
            return key, error
        finally:
            free.put(core)

    failed = 0
    with ThreadPoolExecutor(asked.jobs) as pool:
        for future in as_completed([pool.submit(run, key) for key in todo]):
            key, found = future.result()
            name, variant = todo[key][0], variant_of(todo[key])
            if isinstance(found, RuntimeError):
                failed += 1
                print(found, flush=True)
                continue
            facts = {"experiment": name, "variant": variant.name, "digest": key, "limit": asked.limit}
            facts["answers"] = answers(key, asked)
            facts |= {"jobs": asked.jobs, "date": today()}
            write_runs(asked.json, [*read(asked.json), {**facts, **found}])
            print(f"{name}, {variant.name}: trained in {found['train_s']:.0f} s", flush=True)
    return failed


def variant_of(place: tuple[str, int]) -> Variant:
    return EXPERIMENTS[place[0]].variants[place[1]]


def main() -> int:
    """Run the benchmark."""
    parser = Options(
        __doc__,
        data=DATA,
        only=(str, f"some of {','.join(EXPERIMENTS)}"),
        jobs=(1, "trainings side by side, one core and one thread each"),
        limit=(int, "photos of each part, to see that it works"),
        epochs=(int, "instead of the experiments' own"),
        cache=CACHE,
        json=CACHE / "claims.json",
        table=(False, "only print the tables of what is in --json"),
    )
    asked = parsed(parser.hidden(one=str, out=str, core=str, rendered=Path))
    if asked.one:
        if asked.core is not None:
            os.sched_setaffinity(0, {int(asked.core)})
        name, place = asked.one.split(":")
        Path(asked.out).write_text(json.dumps(measure(variant_of((name, int(place))), asked)))
        return 0
    asked.rendered = asked.cache / f"rendered-{asked.limit or ITEMS}-items"
    names = names_of(asked.only, EXPERIMENTS, "experiments")
    failed = 0
    if not asked.table:
        if absent(asked.data):
            return 0
        failed = run_all(names, asked)
    print(tables(read(asked.json), names))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
