"""The generated tables of metrics, indexes and releases: bench_metrics.py, bench_divergence.py and others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from table_cells import headed, line

Results = Mapping[str, Any]


def spread(values: Sequence[float]) -> str:
    """Return a mean with both ends of its interval."""
    mean, low, high = values
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def metrics_table(found: Results) -> str:
    """Return every metric and mask on the models of one catalogue."""
    heads = ["metric", "mask"]
    for model in found:
        heads += [f"`{model}`: k-NN %", "mask gives or costs", "P@10 %", "MAP@R %"]
    lines = headed(heads)
    for at, first in enumerate(next(iter(found.values()))["rows"]):
        cells = [f"`{first['metric']}`", "" if first["mask"] == "none" else f"`{first['mask']}`"]
        for own in found.values():
            row = own["rows"][at]
            cells += [spread(row["knn"]), "" if row["mask"] == "none" else spread(row["to_no_mask"]["knn"]),
                      spread(row["precision_at_10"]), spread(row["map_at_r"])]  # fmt: skip
        lines.append(line(cells))
    told = [
        f"`{model}`: {own['dims']} numbers, {own['epochs']} epochs, {len(own['train_cpu_s'])} seeds, "
        f"{own['queries']:,} photos asked of {own['gallery']:,}."
        for model, own in found.items()
    ]
    return "\n".join([*lines, "", " ".join(told)])


def speed_table(found: Results) -> str:
    """Return exact KL search beside torch."""
    own = found["speed"]
    lines = headed(["beside", "asked", "ours, ms a query", "torch, ms a query", "ratio", "of all pairs", "same ten"])
    for way in ("elementwise", "product"):
        for asked in ("one", "batch_of_64"):
            if f"{way}_{asked}" in own:
                row = own[f"{way}_{asked}"]
                low, high = row["ratio_range"]
                lines.append(line([f"torch, {way}", asked.replace("_", " "), f"{row['ours_ms']:.1f}",
                                   f"{row['torch_ms']:.1f}", f"{row['ratio_median']:.2f}", f"{low:.2f} to {high:.2f}",
                                   f"{row['overlap_at_10']:.3f}"]))  # fmt: skip
    return "\n".join([*lines, "", f"{own['rows']:,} items of {own['dims']} numbers, {own['pairs']} pairs."])


def million_table(found: Results, smaller: Results) -> str:
    """Return every kind of index over drawn-again rows, beside the recall over the true ones."""
    heads = ["kind", "effort", "bytes a photo", "`features` beside", "reported", "new photos",
             "of the 60,000 true ones", "CPU ms a query", "p50 ms", "p99 ms", "build, CPU s",
             "peak memory of the build, MB (before)"]  # fmt: skip
    lines = headed(heads)
    before = {row["kind"]: row for row in smaller["kinds"]}
    for row in found["kinds"]:
        all_rows = row["filters"]["all"]
        effort = ", ".join(f"{name} {value}" for name, value in row["effort"].items()) or "none"
        lines.append(line([
            f"`{row['kind']}`", effort, f"{row['bytes_per_item']:.0f}", f"{row['features_bytes_per_item']:.0f}",
            f"{row['reported_recall']:.3f}", f"{all_rows['recall']:.3f}",
            f"{before[row['kind']]['filters']['all']['recall']:.3f}", f"{all_rows['cpu_ms_in_batch']:.2f}",
            f"{all_rows['p50_ms']:.1f}", f"{all_rows['p99_ms']:.1f}", f"{row['build_cpu_s']:.0f}",
            f"{row['peak_build_mb']:,} ({row['before_build_mb']:,})"]))  # fmt: skip
    return "\n".join(lines)


def filters_table(found: Results) -> str:
    """Return recall, short answers and p99 of every kind by the share of rows that a filter leaves."""
    shares = list(found["kinds"][0]["filters"])
    lines = headed(["kind", *(f"{share}: recall, p99 ms" for share in shares), "short answers", "excluded returned"])
    for row in found["kinds"]:
        own = row["filters"]
        cells = [f"{own[share]['recall']:.3f}, {own[share]['p99_ms']:.1f}" for share in shares]
        counts = [str(sum(own[share][name] for share in shares)) for name in ("short", "excluded")]
        lines.append(line([f"`{row['kind']}`", *cells, *counts]))
    return "\n".join(lines)


def turmoil_table(found: Results) -> str:
    """Return what sixteen processes at once did to a store."""
    rows = {
        "seconds": "seconds", "calls to the disk, requests to S3": "calls", "of these failed": "calls_failed",
        "answers lost": "answers_lost", "entries of both logs": "entries", "gaps": "gaps",
        "numbers with two authors": "numbers_with_two_authors", "answers unlike the log": "answers_unlike_the_log",
        "readers' views looked through": "view", "of these after a swap": "moved",
        "pinned and leased releases read whole": "held_whole", "files marked": "marked_files",
        "sweeps": "sweeps", "files deleted": "swept_files", "releases left": "releases_left",
        "problems in these": "problems_left", "anything else wrong": "violations",
    }  # fmt: skip
    lines = headed(["", *found])
    lines += [line([name, *(f"{own.get(key, 0):,}" for own in found.values())]) for name, key in rows.items()]
    return "\n".join(lines)


def engines_table(found: Results) -> str:
    """Return which engine read each table as it is."""
    own = found["engines"]
    engines = ("pyarrow", "duckdb", "polars")
    lines = headed(["table", "rows", "columns", *(own["versions"])])
    for role, told in own["tables"].items():
        cells = ["as it is" if told[engine] else "otherwise" for engine in engines]
        lines.append(line([f"`{role}`", str(told["rows"]), str(told["columns"]), *cells]))
    return "\n".join(lines)


def spaces_table(found: Results) -> str:
    """Return what every kind reports of real spaces, and what photos that are in none find."""
    lines = headed(["space", "items", "kind", "effort", "reported", "found by held-out photos", "below"])
    for space, own in found.items():
        for row in own["rows"]:
            first = [f"`{space}`", f"{own['items']:,}", f"`{row['kind']}`"]
            if "refused" in row:
                lines.append(line([*first, "refused", *["–"] * 3]))
                continue
            effort = ", ".join(f"{name} {value}" for name, value in row["effort"].items()) or "none"
            told = f"{row['found']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
            lines.append(line([*first, effort, f"{row['reported']:.3f}", told, "yes" if row["short"] else "no"]))
    return "\n".join(lines)
