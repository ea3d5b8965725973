"""The generated tables of the READMEs, from `results/*.json`: each stands between two comments that name it.

    python tests/benchmarks/tables.py [--write]

Without --write it says which tables are not those of the results, and ends with 1 when there are any.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from typing import Any

from claim_experiments import tables as claim_tables
from index_tables import (
    autofaiss_table,
    engines_table,
    filters_table,
    gaussians_table,
    kinds_table,
    metrics_table,
    million_table,
    segment_readers_table,
    segments_table,
    spaces_table,
    speed_table,
    turmoil_table,
)
from model_tables import (
    by_name,
    enlarged_table,
    folds_moves_table,
    folds_table,
    labels_table,
    models_table,
    moves_table,
    nuisance_table,
    tuned_table,
    words_table,
    yardsticks_table,
)
from options import Options
from record import RESULTS, ROOT, Run, read
from table_cells import newest_rows, shown, table

PAGES = ("README.md", "tests/benchmarks/README.md", "pipeline/index/README.md")
CATALOGUES = ("fashion_mnist", "clothing")

# What a newcomer chooses among: the row of the quality table and what it is for.
CHOICES = {
    "descriptor_views": "the first to try: fitted in seconds, no single space was better on both catalogues",
    "fusion": "the best measured; its members are trained first",
    "vae_hog": "few numbers a photo; hardly knows colour",
    "vae": "pictures drawn from latents with a variance",
    "vqvae": "codes: priors, outliers, photos as words; reconstructs best",
    "simclr": "mirrored, nearer or turned photos of one product",
    "autoencoder": "reconstructions at the least cost; begins other models",
}


def runs_of(name: str) -> list[Run]:
    """Return the runs of a results file."""
    return read(RESULTS / f"{name}.json")


def read_plain(name: str) -> dict[str, Any]:
    """Return a results file that is one object."""
    return dict(json.loads((RESULTS / f"{name}.json").read_text()))


def results_of(name: str) -> dict[str, Any]:
    """Return the results of a file that holds no runs."""
    return dict(read_plain(name)["results"])


def choices() -> str:
    """Return the small table of which model to take."""
    measured = [newest_rows(runs_of("quality"), catalogue) for catalogue in CATALOGUES]
    heads = ["model", "numbers", "CPU minutes", "k-NN % Fashion-MNIST", "k-NN % clothing", "take it for"]
    rows = []
    for name, reason in CHOICES.items():
        fashion, clothing = (found.get(name, []) for found in measured)
        dims = " / ".join(dict.fromkeys(str(own[0]["dims"]) for own in (fashion, clothing) if own))
        rows.append([f"`{name}`", dims, shown(fashion, "train_cpu_s", 1 / 60), shown(fashion, "knn", 100),
                     shown(clothing, "knn", 100), reason])  # fmt: skip
    return table(heads, rows)


# --- refreshes and what they are compared with


def refresh() -> str:
    """Return the table of bench_refresh.py."""
    titles = {
        "fashion": "Fashion-MNIST, embedded bytes, grey VAE 28 px, 6 epochs",
        "clothing": "clothing photos from a folder, VAE 64 px, 20 epochs",
        "s3": "clothing photos from an S3 server, same preset",
    }
    heads = ["refresh of", "photos", "plan", "pixels", "train", "encode", "index to publish", "all, with start-up",
             "again, nothing changed", "k-NN", "peak memory"]  # fmt: skip
    found, rows = results_of("refresh"), []
    for name, title in titles.items():
        own = found[name]
        seconds, rate, held = own["seconds"], own["photos_per_s"], own["held_out"]
        rest = sum(seconds.get(stage, 0.0) for stage in ("index", "evaluate", "report", "publish"))
        staged = [f"{seconds[stage]:.0f} s ({rate[stage]:,.0f}/s)" for stage in ("pixels", "train", "encode")]
        rows.append([title, f"{own['counts']['photos']:,}", f"{seconds['plan']:.1f} s", *staged, f"{rest:.1f} s",
                     f"{own['wall_s']:.0f} s", f"{own['again']['wall_s']:.1f} s",
                     f"{100 * held['knn_accuracy']:.1f} % of {held['queries']:,}",
                     f"{own['peak_memory_mb'] / 1000:.1f} GB"])  # fmt: skip
    check, wall = found["s3"]["delta"]["check"], found["s3"]["delta"]["wall_s"]
    wanted = "exactly those wanted" if check["exactly_those_wanted"] else "not those wanted"
    told = (
        f"1 % changed, 1 % removed, 1 % new, on S3: {check['photos_fetched']} photos fetched, {wanted}; "
        f"{check['untouched_rows_equal']:,} of {check['untouched']:,} untouched rows equal; removed items left: "
        f"{check['removed_items_left']}; {wall:.1f} s with start-up."
    )
    return table(heads, rows, told)


def kill() -> str:
    """Return the table of bench_kill.py."""
    heads = ["begun", "killed after, s", "had reached", "differs from the undisturbed run", "second attempt, s"]
    return table(heads, [
        [begun.replace("_", " "), f"{run['killed_after_s']:.1f}", run["reached"],
         ", ".join(run["differs"]) or "nothing", f"{run['retry_s']:.1f}"]
        for begun, runs in results_of("kill").items() for run in runs
    ])  # fmt: skip


def search() -> str:
    """Return the table of bench_search.py."""
    found, rows = results_of("search"), []
    for run in found["results"]:
        for question, own in run.items():
            if question != "index":
                low, high = own["range"]
                rows.append([run["index"]["kind"], question, f"{own['reader_ms']:.2f}", f"{own['faiss_ms']:.3f}",
                             f"{own['ratio']:.2f}", f"{low:.2f} to {high:.2f}"])  # fmt: skip
    told = f"{found['photos']:,} vectors of {found['dim']} numbers, {found['pairs']} pairs."
    return table(["index", "question", "reader, ms", "FAISS alone, ms", "ratio", "of all pairs"], rows, told)


def train() -> str:
    """Return the table of bench_train.py."""
    found, rows = read_plain("train"), []
    for workers, own in (("1", found), ("2", found["workers_2"])):
        low, high = own["ratio_interval"]
        rows.append([workers, f"{own['ours_images_per_s']:,.0f}", f"{own['plain_images_per_s']:,.0f}",
                     f"{own['ratio_median']:.2f}", f"{low:.2f} to {high:.2f}"])  # fmt: skip
    return table(["workers", "ours, photos/s", "plain PyTorch, photos/s", "median ratio", "95 % interval"], rows)


# --- tables of models, a catalogue each


def quality(catalogue: str) -> str:
    """Return the two tables of bench_quality.py."""
    rows = newest_rows(runs_of("quality"), catalogue)
    ahead = read_plain("ahead")[catalogue]
    return labels_table(rows, ahead) + "\n\n" + moves_table(rows)


def yardstick(catalogue: str, *names: str) -> list[Run]:
    """Return the runs of some yardsticks."""
    runs = runs_of("yardsticks")
    return [run for run in runs if (run["catalogue"], run["limit"]) == (catalogue, None) and run["preset"] in names]


def numbers(catalogue: str) -> str:
    """Return k-NN by the first numbers of each model, a row a model."""
    found: dict[str, dict[int, str]] = {}
    for name, own in by_name(yardstick(catalogue, "numbers")).items():
        found.setdefault(name.split(" of ")[1], {})[own[0]["dims"]] = shown(own, "knn", 100)
    dims = sorted({each for own in found.values() for each in own}, reverse=True)
    rows = [[name, *(own.get(each, "–") for each in dims)] for name, own in found.items()]
    return table(["numbers", *map(str, dims)], rows)


def resolution() -> str:
    """Return the nights of models of one size and of a fusion of three."""
    results, stages, rows = results_of("resolution"), ("pixels", "train", "encode"), []
    for name, row in results["nights"].items():
        fetches = ", ".join(f"{times} for all {count}" for times, count in row["fetches_a_photo"].items())
        held = (row["bytes"]["pixels"] + row["bytes"]["photos"], row["bytes"]["latents"])
        rows.append([name, fetches, *(f"{row['seconds'].get(stage, 0.0):.1f}" for stage in stages),
                     *(f"{size / results['photos'] / 1000:.1f}" for size in held)])  # fmt: skip
    heads = [
        "night of",
        "fetches a photo",
        *(f"{stage} s" for stage in stages),
        "pixels kB a photo",
        "latents kB a photo",
    ]
    return table(heads, rows)


TABLES: dict[str, Callable[[], str]] = {
    "choices": choices,
    "refresh": refresh,
    "kill": kill,
    "resolution": resolution,
    "search": search,
    "train": train,
    "folds moves": lambda: folds_moves_table(runs_of("folds_moves")),
    "folds clothing": lambda: folds_table(runs_of("folds")),
    "enlarged fashion_mnist": lambda: enlarged_table(runs_of("enlarged")),
    "tuned clothing": lambda: tuned_table(runs_of("tuned")),
    "turmoil": lambda: turmoil_table(results_of("turmoil")),
    "metrics fashion_mnist": lambda: metrics_table(results_of("metrics")["fashion_mnist"]),
    "metrics clothing": lambda: metrics_table(results_of("metrics")["clothing"]),
    "kl beside torch": lambda: speed_table(results_of("divergence")),
    "kinds of gaussians": lambda: gaussians_table(results_of("divergence")),
    "autofaiss": lambda: autofaiss_table(results_of("autofaiss")),
    "spaces": lambda: spaces_table(results_of("spaces")),
    "million": lambda: million_table(read_plain("million"), read_plain("index")),
    "filters of a million": lambda: filters_table(read_plain("million")),
    "kinds of an index": lambda: kinds_table(read_plain("index")),
    "segments": lambda: segments_table(read_plain("segments")),
    "readers of segments": lambda: segment_readers_table(read_plain("segments")),
    "engines": lambda: engines_table(results_of("tables")),
    "claims": lambda: claim_tables(runs_of("claims")).rstrip(),
}
for _name in CATALOGUES:
    TABLES |= {
        f"models {_name}": lambda name=_name: models_table(newest_rows(runs_of("models"), name)),  # type: ignore[misc]
        f"quality {_name}": lambda name=_name: quality(name),  # type: ignore[misc]
        f"labels {_name}": lambda name=_name: yardsticks_table(yardstick(name, "labels", "sample")),  # type: ignore[misc]
        f"numbers {_name}": lambda name=_name: numbers(name),  # type: ignore[misc]
        f"words {_name}": lambda name=_name: words_table(yardstick(name, "words")),  # type: ignore[misc]
        f"nuisance {_name}": lambda name=_name: nuisance_table(yardstick(name, "nuisance")),  # type: ignore[misc]
    }

_PLACE = re.compile(r"(<!-- table: ([a-z0-9_ ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def renewed(text: str) -> str:
    """Return a page with the tables of today's results. Raises KeyError for a name that no table has."""
    return _PLACE.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", text)


def main() -> int:
    """Write the tables, or say which are not current."""
    asked = Options(__doc__, write=(False, "replace what is not current")).parse_args()
    stale = []
    for name in PAGES:
        page = ROOT / name
        text = page.read_text()
        new = renewed(text)
        told = [before[2] for before, after in zip(_PLACE.finditer(text), _PLACE.finditer(new), strict=True)
                if before[0] != after[0]]  # fmt: skip
        stale += [f"{name}: table {table!r} is not that of the results" for table in told]
        if asked.write:
            page.write_text(new)
    missing = TABLES.keys() - {found[2] for name in PAGES for found in _PLACE.finditer((ROOT / name).read_text())}
    stale += [f"table {table!r} stands on no page" for table in sorted(missing)]
    if not asked.write:
        print("\n".join([*stale, "run `python tests/benchmarks/tables.py --write`"] if stale else ["all current"]))
    return 1 if stale and not asked.write else 0


if __name__ == "__main__":
    sys.exit(main())
