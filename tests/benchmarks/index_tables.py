"""The generated tables of metrics, indexes and releases: bench_metrics.py, bench_divergence.py and others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from table_cells import table

from pipeline.index.kinds import KINDS

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
    rows = []
    for at, first in enumerate(next(iter(found.values()))["rows"]):
        rows.append([f"`{first['metric']}`", "" if first["mask"] == "none" else f"`{first['mask']}`"])
        for row in (own["rows"][at] for own in found.values()):
            rows[-1] += [spread(row["knn"]), "" if row["mask"] == "none" else spread(row["to_no_mask"]["knn"]),
                         spread(row["precision_at_10"]), spread(row["map_at_r"])]  # fmt: skip
    told = [
        f"`{model}`: {own['dims']} numbers, {own['epochs']} epochs, {len(own['train_cpu_s'])} seeds, "
        f"{own['queries']:,} photos asked of {own['gallery']:,}."
        for model, own in found.items()
    ]
    return table(heads, rows, " ".join(told))


def effort_of(row: Results) -> str:
    """Return what a kind was tuned to."""
    return ", ".join(f"{name} {value}" for name, value in row["effort"].items()) or "none"


def speed_table(found: Results) -> str:
    """Return exact KL search beside torch."""
    own, rows = found["speed"], []
    for way in ("elementwise", "product"):
        for asked in ("one", "batch_of_64"):
            if row := own.get(f"{way}_{asked}"):
                low, high = row["ratio_range"]
                rows.append([f"torch, {way}", asked.replace("_", " "), f"{row['ours_ms']:.1f}",
                             f"{row['torch_ms']:.1f}", f"{row['ratio_median']:.2f}", f"{low:.2f} to {high:.2f}",
                             f"{row['overlap_at_10']:.3f}"])  # fmt: skip
    heads = ["beside", "asked", "ours, ms a query", "torch, ms a query", "ratio", "of all pairs", "same ten"]
    return table(heads, rows, f"{own['rows']:,} items of {own['dims']} numbers, {own['pairs']} pairs.")


def gaussians_table(found: Results) -> str:
    """Return every kind of index over Gaussians, held to the truth of the open benchmark."""
    heads = ["metric", "mask", "kind", "bytes an item", "effort", "reported", "recall@10", "CPU ms, batch",
             "CPU ms, alone", "build, CPU s"]  # fmt: skip
    rows = []
    for row in found["kinds"]:
        rows.append([f"`{row['metric']}`", "" if row["mask"] == "none" else f"`{row['mask']}`", f"`{row['kind']}`"])
        if "refused" in row:
            rows[-1] += ["refused", *["–"] * 6]
            continue
        rows[-1] += [f"{row['bytes_per_item']:.0f}", effort_of(row), f"{row['reported_recall']:.3f}",
                     f"{row['recall_at_10']:.3f} ± {row['recall_se']:.3f}", f"{row['batch_cpu_ms']:.2f}",
                     f"{row['alone_cpu_ms']:.2f}",
                     f"{row['build_cpu_s']:.0f}"]  # fmt: skip
    own = found["set"]
    return table(heads, rows, f"{own['items']:,} items of {own['dims']} numbers, {own['queries']:,} queries.")


def autofaiss_table(found: Results) -> str:
    """Return our choice of a kind beside autofaiss's."""
    heads = ["", "index", "MB", "exact vectors beside, MB", "recall@10", "queries/s", "p50 ms", "p99 ms", "build, s",
             "of the processor"]  # fmt: skip
    rows = []
    for name, title in (("ours", "`index.kind: auto`"), ("autofaiss", "autofaiss 2.18.0")):
        own = found[name]
        effort = own["parameters"]
        told = effort if isinstance(effort, str) else ", ".join(f"{each} {value}" for each, value in effort.items())
        rows.append([title, f"`{own['key']}`, {told}", f"{own['bytes'] / 1e6:.1f}",
                     f"{own.get('features_bytes', 0) / 1e6:.1f}", f"{own['recall_at_10']:.3f}", f"{own['qps']:,.0f}",
                     f"{own['p50_ms']:.2f}", f"{own['p99_ms']:.2f}", f"{own['build_s']:.0f}",
                     f"{own['build_cpu_s']:.0f}"])  # fmt: skip
    told = (
        f"{found['rows']:,} vectors of {found['dim']} numbers, {found['memory_mb']:g} MB, {found['queries']:,} "
        f"held-out queries; queries/s of ours by theirs, pair by pair: {found['qps_ratio'][0]:.0f} "
        f"({found['qps_ratio'][1]:.0f} to {found['qps_ratio'][2]:.0f})."
    )
    return table(heads, rows, told)


def million_table(found: Results, smaller: Results) -> str:
    """Return every kind of index over drawn-again rows, beside the recall over the true ones."""
    heads = ["kind", "effort", "bytes a photo", "`features` beside", "reported", "new photos",
             "of the 60,000 true ones", "CPU ms a query", "p50 ms", "p99 ms", "build, CPU s",
             "peak memory of the build, MB (before)"]  # fmt: skip
    before = {row["kind"]: row["filters"]["all"] for row in smaller["kinds"] if "refused" not in row}
    rows = []
    for row in found["kinds"]:
        if "refused" in row:
            rows.append([f"`{row['kind']}`", "refused", *["–"] * 10])
            continue
        own, true = row["filters"]["all"], before.get(row["kind"])
        rows.append([
            f"`{row['kind']}`", effort_of(row), f"{row['bytes_per_item']:.0f}", f"{row['features_bytes_per_item']:.0f}",
            f"{row['reported_recall']:.3f}", f"{own['recall']:.3f}", f"{true['recall']:.3f}" if true else "–",
            f"{own['cpu_ms_in_batch']:.2f}", f"{own['p50_ms']:.1f}", f"{own['p99_ms']:.1f}",
            f"{row['build_cpu_s']:.0f}", f"{row['peak_build_mb']:,} ({row['before_build_mb']:,})",
        ])  # fmt: skip
    return table(heads, rows)


def kinds_table(found: Results) -> str:
    """Return every kind of index over 60,000 real latents, with what a photo costs and what its file asks for."""
    heads = ["kind", "bytes a photo", "`features` beside", "filters", "FAISS from", "mapped", "effort", "reported",
             "new photos", "half", "queries/s", "p50 ms", "p99 ms", "build, CPU s"]  # fmt: skip
    rows = []
    for row in found["kinds"]:
        if "refused" in row:
            rows.append([f"`{row['kind']}`", "refused", *["–"] * 12])
            continue
        kind, own = KINDS[row["kind"]], row["filters"]
        yes = ["yes" if each else "no" for each in (row["features_bytes_per_item"], kind.filters, kind.mmap)]
        rows.append([
            f"`{row['kind']}`", f"{row['bytes_per_item']:.0f}", yes[0], yes[1], ".".join(map(str, kind.lowest_faiss)),
            yes[2], effort_of(row), f"{row['reported_recall']:.3f}", f"{own['all']['recall']:.3f}",
            f"{own['50 %']['recall']:.3f}", f"{own['all']['qps']:,.0f}", f"{own['all']['p50_ms']:.2f}",
            f"{own['all']['p99_ms']:.1f}", f"{row['build_cpu_s']:.0f}",
        ])  # fmt: skip
    return table(heads, rows)


def segments_table(found: Results) -> str:
    """Return a first night, a night of 1 % churn and a full build beside it, by kind and size."""
    heads = ["kind", "night", "rows written", "index, processor s (clock)", "gather before it", "peak memory, MiB",
             "of it no file's", "bytes a photo", "effort", "reported", "photos in no index find"]  # fmt: skip
    nights = {"first": "first of {}", "second": "1 % churn", "second-full": "full build of the same"}
    rows = []
    for own in found.values():
        for key, title in nights.items():
            night, index, gather = own[key], own[key]["index"], own[key]["gather"]
            others = night["found_by_others"]
            rows.append([
                f"`{own['kind']}`", title.format(f"{own['rows']:,}"), f"{night['rows_written']:,}",
                f"{index['cpu_s']:.0f} ({index['s']:.0f})", f"{gather['cpu_s']:.0f} ({gather['s']:.0f})",
                f"{index['peak_mib']:,}", f"{index['peak_anon_mib']:,}", f"{night['bytes_per_item']:.0f}",
                effort_of(night), f"{night['recall_low']:.3f}", f"{others['recall']:.3f} ± {others['se']:.3f}",
            ])  # fmt: skip
    return table(heads, rows)


def segment_readers_table(found: Results) -> str:
    """Return one builder of the largest segment, and two readers that map all of them, a column a kind and size."""
    columns = list(found.values())

    def both(cell: Callable[[Results], str]) -> list[str]:
        return [", ".join(cell(reader) for reader in own["readers"]) for own in columns]

    def memory(name: str) -> list[str]:
        return both(lambda reader: f"{reader['memory_mib'][name]:,}")

    builders = [own["builder"] for own in columns]
    rows = [
        ["one builder: its segment and features, MiB", *(f"{own['mib'] + own['features_mib']}" for own in builders)],
        ["held at most, beside these", *(
            f"{own['segment']['peak_mib'] - own['mib'] - own['features_mib']}" for own in builders
        )],
        ["a reader opens the release, s (processor s)", *both(
            lambda reader: f"{reader['open']['s']:.1f} ({reader['open']['cpu_s']:.1f})"
        )],
        ["resident after searching all, MiB", *memory("Rss")],
        ["of it files that both map", *memory("Shared_Clean")],
        ["its part by `Pss`", *memory("Pss")],
        ["of it no file's", *memory("Pss_Anon")],
        ["a query alone, median (p99), ms", *both(lambda reader: f"{reader['p50_ms']:.1f} ({reader['p99_ms']:.0f})")],
        ["asked for the first time", *both(
            lambda reader: "{p50_ms:.1f} ({p99_ms:.0f})".format(**reader["paging_in"])
        )],
        ["queries/s, 200 at once", *both(lambda reader: f"{reader['qps']:.0f}")],
    ]  # fmt: skip
    return table(["", *(f"`{own['kind']}`, {own['rows']:,}" for own in columns)], rows)


def filters_table(found: Results) -> str:
    """Return recall, short answers and p99 of every kind by the share of rows that a filter leaves."""
    measured = [row for row in found["kinds"] if "refused" not in row]
    shares = list(measured[0]["filters"])
    rows = []
    for row in measured:
        own = row["filters"]
        cells = [f"{own[share]['recall']:.3f}, {own[share]['p99_ms']:.1f}" for share in shares]
        counts = [str(sum(own[share][name] for share in shares)) for name in ("short", "excluded")]
        rows.append([f"`{row['kind']}`", *cells, *counts])
    heads = ["kind", *(f"{share}: recall, p99 ms" for share in shares), "short answers", "excluded returned"]
    return table(heads, rows)


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
    return table(
        ["", *found], [[name, *(f"{own.get(key, 0):,}" for own in found.values())] for name, key in rows.items()]
    )


def engines_table(found: Results) -> str:
    """Return which engine read each table as it is."""
    own = found["engines"]
    return table(["table", "rows", "columns", *own["versions"]], [
        [f"`{role}`", str(told["rows"]), str(told["columns"]),
         *("as it is" if told[engine] else "otherwise" for engine in ("pyarrow", "duckdb", "polars"))]
        for role, told in own["tables"].items()
    ])  # fmt: skip


def spaces_table(found: Results) -> str:
    """Return what every kind reports of real spaces, and what photos that are in none find."""
    rows = []
    for space, own in found.items():
        for row in own["rows"]:
            rows.append([f"`{space}`", f"{own['items']:,}", f"`{row['kind']}`"])
            if "refused" in row:
                rows[-1] += ["refused", *["–"] * 3]
            else:
                told = f"{row['found']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
                rows[-1] += [effort_of(row), f"{row['reported']:.3f}", told, "yes" if row["short"] else "no"]
    return table(["space", "items", "kind", "effort", "reported", "found by held-out photos", "below"], rows)
