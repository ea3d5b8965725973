"""Tables of models, of bench_models.py, bench_quality.py and bench_yardsticks.py: a row each, mean ± over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from record import Run
from table_cells import Rows, shown, table

FLOOR = "HOG + PCA-64"  # what differences are told against
LABELS = {"knn": "k-NN", "knn_weighted": "k-NN 20, weighted", "probe": "probe", "precision_at_10": "P@10",
          "map_at_r": "MAP@R", "ndcg_at_10": "NDCG@10"}  # fmt: skip
SHORT = {"k-NN %": "knn", "P@10 %": "precision_at_10", "MAP@R %": "map_at_r"}
AHEAD = tuple(SHORT.values())
FACTORS = ("category", "colour", "pattern", "angle", "shade", "width")
NUISANCES = ("angle", "shade", "width", "view")
Ahead = Mapping[str, Mapping[str, Sequence[float]]]  # of a model and measure: mean, low, high, in points


# --- bench_models.py


def models_table(rows: Rows) -> str:
    """Return the table of trainings."""
    heads = ["model", "target", "numbers", "CPU minutes", "photos per CPU second", "k-NN %", "MSE", "SSIM", "detail",
             "active units or codes", "twins %", "code error", "drawn worst, best (MSE)"]  # fmt: skip
    return table(heads, [
        [name, own[0]["target"], str(own[0]["dims"]), shown(own, "train_cpu_s", 1 / 60),
         shown(own, "images_per_cpu_s", digits=0), shown(own, "knn", 100), shown(own, "mse", digits=4),
         shown(own, "ssim", digits=3), shown(own, "high_frequency", digits=2), used(own),
         shown(own, "codebook_near_duplicate_share", 100), shown(own, "codebook_quantisation_error", digits=3),
         extremes(own)]
        for name, own in rows.items()
    ])  # fmt: skip


def used(runs: list[Run]) -> str:
    """Return active units, or codes with their perplexity."""
    if "used_codes" in runs[0]:
        codes, perplexity = shown(runs, "used_codes", digits=0), shown(runs, "perplexity", digits=0)
        return f"{codes} of {runs[0]['num_codes']}, perplexity {perplexity}"
    if "active_units" in runs[0]:
        return f"{shown(runs, 'active_units', digits=0)} of {runs[0]['dims']}"
    return "–"


def extremes(runs: list[Run]) -> str:
    """Return the categories drawn worst and best."""
    if not runs[0].get("categories"):
        return "–"
    means = {name: np.mean([run["categories"][name] for run in runs]) for name in runs[0]["categories"]}
    worst, best = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    return f"{worst} {means[worst]:.4f}, {best} {means[best]:.4f}"


# --- bench_quality.py


def labels_table(rows: Rows, ahead: Ahead) -> str:
    """Return the table of measures by labels. ahead: how far models are above the floor by the same queries."""
    heads = ["model", "numbers", "CPU minutes", "photos per CPU second", *(f"{title} %" for title in LABELS.values()),
             f"k-NN, P@10, MAP@R above {FLOOR}"]  # fmt: skip
    return table(heads, [
        [name, str(own[0]["dims"]), shown(own, "train_cpu_s", 1 / 60), shown(own, "images_per_cpu_s", digits=0),
         *(with_interval(own, measure) for measure in LABELS), told_ahead(ahead.get(name))]
        for name, own in rows.items()
    ])  # fmt: skip


def with_interval(runs: list[Run], name: str) -> str:
    """Return a measure of labels in percent, and the 95 % interval of the first seed's queries."""
    low, high = (100 * min(runs, key=lambda run: int(run["seed"]))[f"{name}_{end}"] for end in ("low", "high"))
    return f"{shown(runs, name, 100)} ({low:.1f}–{high:.1f})"


def told_ahead(measures: Mapping[str, Sequence[float]] | None) -> str:
    """Return how far a model is above the floor, bold where the interval lies above zero; – where it is not known."""
    told = []
    for name in AHEAD if measures else ():
        mean, low, high = measures[name]
        mark = "**" if low > 0 else ""
        told.append(f"{mark}{mean:+.1f}{mark} ({low:+.1f} to {high:+.1f})")
    return "; ".join(told) or "–"


def own_ahead(run: Run, key: str = "ahead") -> str:
    """Return `told_ahead` of a run that holds the differences itself, as shares; key: ahead or gain."""
    known = {name: run[f"{key}_{name}"] for name in AHEAD if f"{key}_{name}" in run}
    return told_ahead({name: [100 * value for value in own] for name, own in known.items()})


def moves_table(rows: Rows) -> str:
    """Return the table of what moves latents."""
    heads = ["model", "effective rank", "unit spread", "logo items found %", "without logo %", "ahead %",
             "moved by edit", "still found %", *FACTORS]  # fmt: skip
    return table(heads, [
        [name, shown(own, "effective_rank_centred"), shown(own, "unit_spread", digits=2),
         shown(own, "rare_recall", 100), shown(own, "rare_plain_recall", 100), shown(own, "rare_ahead", 100),
         shown(own, "moved", digits=2), shown(own, "found", 100),
         *(shown(own, f"factor_{factor}", digits=2) for factor in FACTORS)]
        for name, own in rows.items()
    ])  # fmt: skip


# --- bench_yardsticks.py


def by_name(runs: Sequence[Run]) -> Rows:
    """Return runs by name, those of the lowest seed first."""
    rows: Rows = {}
    for run in sorted(runs, key=lambda run: int(run["seed"])):
        rows.setdefault(run["name"], []).append(run)
    return rows


def yardsticks_table(runs: Sequence[Run]) -> str:
    """Return the table of the yardsticks that ask for labels."""
    return table(["yardstick", "numbers", "epochs", "CPU minutes", *SHORT], [
        [name, str(own[0]["dims"]), shown(own, "epochs"), shown(own, "train_cpu_s", 1 / 60),
         *(shown(own, key, 100) for key in AHEAD)]
        for name, own in by_name(runs).items()
    ])  # fmt: skip


def words_table(runs: Sequence[Run]) -> str:
    """Return the table of codes as words."""
    keys = SHORT | {
        "purity %": "purity", "by chance %": "purity_chance", "NMI %": "nmi", "offered: of what is liked %": "liked",
        "of the one less offered %": "least", "nearest customer likes the same %": "fellow",
    }  # fmt: skip
    rows = by_name(runs).items()
    return table(
        ["compared by", "numbers", *keys],
        [[name, str(own[0]["dims"]), *(shown(own, key, 100) for key in keys.values())] for name, own in rows],
    )


def nuisance_table(runs: Sequence[Run]) -> str:
    """Return the table of purities, in brackets the 95 % interval of the first seed."""
    heads = ["space", "numbers", *(f"same design, other {name} %" for name in NUISANCES)]
    rows = [
        [name, str(own[0]["dims"]), *(with_interval(own, f"purity_{each}") for each in NUISANCES)]
        for name, own in by_name(runs).items()
    ]
    return table(heads, rows, f"By chance {shown(runs[:1], f'purity_{NUISANCES[0]}_chance', 100)} %.")


YARDSTICKS: dict[str, Any] = {"nuisance": nuisance_table, "words": words_table}  # the others share one table


def yardstick_tables(runs: Sequence[Run]) -> str:
    """Return the tables of yardsticks, of one catalogue."""
    plain = [run for run in runs if run["preset"] not in YARDSTICKS]
    parts = [yardsticks_table(plain)] if plain else []
    parts += [told(own) for name, told in YARDSTICKS.items() if (own := [run for run in runs if run["preset"] == name])]
    return "\n\n".join(parts)


# --- bench_folds.py


def folds_table(runs: Sequence[Run]) -> str:
    """Return the table of folds by contributor, in brackets the intervals of the first seed."""
    heads = ["model", "numbers", *SHORT, f"k-NN, P@10, MAP@R above {FLOOR}", "photos per CPU second", "licence",
             "old split: k-NN, P@10, MAP@R %"]  # fmt: skip
    return table(heads, [
        [name, str(own[0]["dims"]), *(with_interval(own, key) for key in AHEAD), own_ahead(own[0]),
         shown(own, "photos_per_cpu_s", digits=0), own[0]["licence"],
         " / ".join(shown(own, f"old_{key}", 100) for key in AHEAD)]
        for name, own in by_name(runs).items()
    ])  # fmt: skip


# --- bench_enlarged.py


def enlarged_table(runs: Sequence[Run]) -> str:
    """Return the table of Fashion-MNIST as a pretrained network sees it, in brackets the intervals."""
    heads = ["space", "numbers", *SHORT, f"k-NN, P@10, MAP@R above {FLOOR}", "photos per CPU second"]
    return table(heads, [
        [run["name"], str(run["dims"]), *(with_interval([run], key) for key in AHEAD), own_ahead(run),
         shown([run], "photos_per_cpu_s", digits=0)]
        for run in runs
    ])  # fmt: skip


def folds_moves_table(runs: Sequence[Run]) -> str:
    """Return the table of what moves the spaces of bench_folds, and below it the purities under nuisances."""
    return f"{moves_table(by_name(runs))}\n\n{nuisance_table(runs)}"


def tuned_table(runs: Sequence[Run]) -> str:
    """Return the table of a pretrained network that learns on, over the folds, in brackets the intervals."""
    above = {f"k-NN, P@10, MAP@R above {FLOOR}": "ahead", "above the network as it is": "gain"}
    return table(["network", *SHORT, *above, "CPU seconds of training"], [
        [run["name"], *(with_interval([run], key) for key in AHEAD), *(own_ahead(run, key) for key in above.values()),
         f"{run['train_cpu_s']:,.0f}"]
        for run in runs
    ])  # fmt: skip
