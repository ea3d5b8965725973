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

import json
import sys
from pathlib import Path
from typing import Any

from claim_experiments import EXPERIMENTS, RENDERED, Variant, tables
from claim_measures import SEED, config_of, measure
from model_measures import prepare
from options import Given, Options, absent, names_of
from record import DATA, read
from side_by_side import CACHE, Task, parsed, record_all

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


def answers(key: str, asked: Given) -> list[str]:
    """Return the rows that a result stands in: EXPERIMENT/PLACE of every variant of this digest."""
    return [
        f"{name}/{place}"
        for name, experiment in EXPERIMENTS.items()
        for place, variant in enumerate(experiment.variants)
        if digest(variant, asked.limit, asked.epochs) == key
    ]


def run_all(names: list[str], asked: Given) -> int:
    """Measure what is not there yet, `jobs` at a time; return how many failed."""
    there = {run["digest"] for run in read(asked.json)}
    facts: dict[Task, dict[str, Any]] = {}
    for name in names:
        for number, variant in enumerate(EXPERIMENTS[name].variants):
            if (key := digest(variant, asked.limit, asked.epochs)) not in there:
                there.add(key)
                about = {"experiment": name, "variant": variant.name, "digest": key, "answers": answers(key, asked)}
                facts[f"{name}/{number}", SEED] = about
    # Before anything is timed: two processes would render and decode the same photos side by side.
    wanted = {variant_of(place) for place, _ in facts}
    for catalogue, size in sorted({(v.catalogue, config_of(v, None).images.size) for v in wanted}):
        if catalogue == RENDERED and not (asked.rendered / "catalogue.csv").exists():
            render_catalogue(asked.rendered, items=asked.limit or ITEMS, seed=0)
        prepare(asked.rendered if catalogue == RENDERED else asked.data, asked.cache, catalogue, size, asked.limit)
    passed = ("data", "cache", "limit", "epochs", "rendered")
    return record_all(Path(__file__), asked, passed, facts, lambda found: f"trained in {found['train_s']:.0f} s")


def variant_of(place: str) -> Variant:
    """Return the variant of EXPERIMENT/PLACE."""
    name, number = place.split("/")
    return EXPERIMENTS[name].variants[int(number)]


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
    asked = parsed(parser.hidden(one=str, seeds=str, out=str, rendered=Path))
    if asked.one:
        Path(asked.out).write_text(json.dumps([measure(variant_of(asked.one), asked)]))
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
