"""An index of segments: a first night, a night of 1 % churn beside a full build, one builder, and readers that map it.

N photos whose latents are Fashion-MNIST's 60,000 principal components drawn again with a little jitter (--data), else
generated ones; cosine. They lie in parts on a store in a local folder, as an encoding leaves them; a step is a process
of its own and does what the index stage of a refresh does (gather the latents of all items, build, tune, measure, in
one process, without Ray). `anon` is memory that the kernel cannot take back; the peak counts mapped files too. A reader
asks each query twice: `paging_in` the first time, when pages may come from the disk.

    python tests/benchmarks/bench_segments.py --data ../shared/data/fashion-mnist --rows 1000000 --json results.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from bench_index import truth_of
from drawn_releases import (
    MODEL,
    PART_ROWS,
    base_of,
    drawn,
    met,
    named,
    publish,
    release_of,
    rows_of,
    write_latents,
)
from options import Given, Options
from record import kept, made_on, tell, write
from steps import begun, ended
from timing import alone_ms, quantiles
from watched import Watched, shared_mib

from pipeline.index import IndexConfig, LatentArrays, SearchIndex, gather_latents, nightly_index
from pipeline.index.fitted import fit
from pipeline.index.segments import SegmentTask, build_segment, in_order_of_parts
from pipeline.parts import PartFile
from pipeline.reader import open_release
from pipeline.release import read_manifest
from pipeline.storage import open_store
from pipeline.storage.cache import FileCache

K, CHURN, QUERIES = 10, 0.01, 200
BESIDE = "cd" * 32  # the model of the full build beside, which must find no segment of the first


def prepare(folder: Path, rows: int) -> None:
    """Write the parts of two nights, and their items."""
    store, tables = open_store(str(folder / "store")), []
    parts = []
    for number, start in enumerate(range(0, rows, PART_ROWS)):
        ids = named(np.arange(start, min(start + PART_ROWS, rows)))
        part = write_latents(store, ids, drawn(folder, len(ids), number), f"first-{number:05d}")
        tables.append(rows_of(ids, part.name))
        parts.append(part)
    first = pa.concat_tables(tables).unify_dictionaries()
    rng, changing = np.random.default_rng(99), int(CHURN * rows)
    touched = rng.permutation(rows)[: 3 * changing // 4]
    changed, gone = np.sort(touched[: changing // 2]), touched[changing // 2 :]
    new = np.concatenate([changed, np.arange(rows, rows + changing // 4)])
    kept = np.ones(rows, np.bool_)
    kept[changed], kept[gone] = False, False
    tables = [first.filter(pa.array(kept))]
    for number, start in enumerate(range(0, len(new), PART_ROWS)):
        ids = named(new[start : start + PART_ROWS])
        part = write_latents(store, ids, drawn(folder, len(ids), 7000 + number), f"second-{number:05d}")
        tables.append(rows_of(ids, part.name))
        parts.append(part)
    second = pa.concat_tables(tables).unify_dictionaries()
    second = second.take(pc.sort_indices(second["item_id"]))
    for name, table in (("first", first), ("second", second)):
        pq.write_table(table, folder / f"{name}.parquet")
    (folder / "parts.json").write_text(json.dumps([part.model_dump() for part in parts]))


def items_of(folder: Path, night: str) -> pa.Table:
    return pq.read_table(folder / f"{night}.parquet", read_dictionary=["latents_part"])


def build(folder: Path, night: str, config: IndexConfig, *, full: bool = False) -> dict[str, Any]:
    """Do what the index stage of a night does, and write the release; full: without a parent, apart from the others."""
    store, watched = open_store(str(folder / "store")), Watched()
    parent = read_manifest(store, release_of("first")) if night == "second" and not full else None
    items, model = items_of(folder, night), BESIDE if full else MODEL
    with watched.step("gather"):
        latents = gather_latents(store, items, columns=config.needs)
    cache = FileCache(folder / ("cache-full" if full else "cache"))
    with watched.step("index"):
        made = nightly_index(store, items, latents, config, model_id=model, parent=parent, cache=cache)
    parameters = made.built.parameters
    watched.found |= {
        "rows": items.num_rows, "recall": made.built.recall, "segments": parameters.get("segments", 1),
        "carried": parameters.get("segments_carried", 0), "rows_written": parameters.get("rows_written", len(latents)),
        "bytes_per_item": round(sum(segment.size for segment in made.built.segments) / items.num_rows, 1),
        "effort": {name: parameters[name] for name in ("candidates", "nprobe", "ef_search") if name in parameters},
        "recall_low": made.built.recall_low, "found_by_others": found_by_others(made.built.index, latents, folder),
    }  # fmt: skip
    if night == "second":
        queries = LatentArrays(drawn(folder, 100, 4242))
        hits = made.built.index.search(queries, K)
        ids = np.array(made.items["item_id"].take(pa.array(hits.ids.reshape(-1))).to_pylist()).reshape(hits.ids.shape)
        np.savez(folder / f"answers-{'full' if full else 'churn'}.npz", ids=ids, scores=hits.scores)
    if not full:
        parts = [PartFile.model_validate(part) for part in json.loads((folder / "parts.json").read_text())]
        known = set(made.items["latents_part"].unique().to_pylist())
        own = [part for part in parts if part.name in known]
        publish(store, made, own, night, None if night == "first" else release_of("first"))
    return watched.found


def found_by_others(index: SearchIndex, latents: LatentArrays, folder: Path) -> dict[str, float]:
    """Return the recall of photos that are in no index, as they are, with its standard error."""
    others = np.load(folder / "others.npy")
    truth = truth_of(latents.mean, others, np.arange(len(latents)))
    ids = index.search(LatentArrays(others), K).ids
    shared = [len(np.intersect1d(*pair)) / K for pair in zip(ids, truth, strict=True)]
    return {"recall": round(float(np.mean(shared)), 4), "se": round(float(np.std(shared) / len(shared) ** 0.5), 4)}


def one_builder(folder: Path, config: IndexConfig) -> dict[str, Any]:
    """Build one segment of as many rows as there can be, alone, under a model of its own."""
    store, watched, model = open_store(str(folder / "store")), Watched(), "ef" * 32
    items = items_of(folder, "first").slice(0, config.segment_rows).select(["item_id", "latents_part", "latents_row"])
    sample = LatentArrays(drawn(folder, 100_000, 5))
    fitted = fit(store, model, config.kind, sample, config, rows=items.num_rows)
    rows = items.take(pa.array(in_order_of_parts(items, np.arange(items.num_rows))))
    del sample, items
    with watched.step("segment"):
        made = build_segment(SegmentTask(store, model, rows, fitted, config))
    beside = 0 if made.features is None else made.features.bytes
    watched.found |= {"rows": made.rows, "mib": round(made.size / 2**20), "features_mib": round(beside / 2**20)}
    return watched.found


def read(folder: Path, *, wait: Callable[[], None]) -> dict[str, Any]:
    """Open the last release as a service does and ask; `wait` lasts until the other process has asked too."""
    watched = Watched()
    opened_folder = str(folder / "cache")
    with watched.step("open"):
        release = open_release(str(folder / "store"), release_id=release_of("second"), cache_dir=opened_folder)
    index, queries = release.opened.index, LatentArrays(drawn(folder, QUERIES, 4243))
    index.search(queries.take(np.s_[:1]), K)

    def alone() -> dict[str, float]:
        asked = alone_ms(lambda number: index.search(queries.take(np.s_[number : number + 1]), K), range(QUERIES))
        return quantiles(asked)

    watched.found |= {"paging_in": alone(), **alone()}
    began = time.perf_counter()
    index.search(queries, K)
    watched.found["qps"] = round(QUERIES / (time.perf_counter() - began), 1)
    wait()
    watched.found["memory_mib"] = shared_mib()
    wait()
    return watched.found


def child(options: Given, folder: Path, step: str) -> subprocess.Popen[str]:
    words = ["--rows", options.rows, "--kind", options.kind, "--segment-rows", options.segment_rows]
    return begun(__file__, *words, "--folder", folder, "--step", step)


def one_step(options: Given) -> dict[str, Any]:
    folder = Path(options.folder)
    config = IndexConfig(kind=options.kind, segment_rows=options.segment_rows, queries=200, threads=1, gpu="never")
    if options.step == "prepare":
        prepare(folder, options.rows)
        return {}
    if options.step == "builder":
        return one_builder(folder, config)
    if options.step.startswith("read"):
        return read(folder, wait=met(folder, int(options.step[-1])))
    return build(folder, options.step.removesuffix("-full"), config, full=options.step.endswith("-full"))


def same_answers(folder: Path) -> dict[str, Any]:
    """Return how far the answers after the churn are those of the full build."""
    left, right = (np.load(folder / f"answers-{name}.npz") for name in ("churn", "full"))
    shared = [len(set(a) & set(b)) / K for a, b in zip(left["ids"].tolist(), right["ids"].tolist(), strict=True)]
    apart = float(np.abs(left["scores"] - right["scores"]).max())
    return {"overlap_at_10": round(float(np.mean(shared)), 5), "largest_score_difference": apart}


def run(options: Given, folder: Path) -> dict[str, Any]:
    if not (folder / "base.npy").exists():
        base, others = base_of(options.data, QUERIES)
        np.save(folder / "others.npy", others)
        np.save(folder / "base.npy", base)
    found: dict[str, Any] = {}
    for step in ("prepare", "builder", "first", "second", "second-full"):
        done = folder / f"done-{step}.json"
        if not done.exists():
            print(f"{step}:", file=sys.stderr, flush=True)
            done.write_text(json.dumps(ended(child(options, folder, step))))
        found[step] = json.loads(done.read_text())
    found["answers"] = same_answers(folder)
    for turn in folder.glob("turn-*"):
        turn.unlink()
    readers = [child(options, folder, f"read-{number}") for number in (0, 1)]
    found["readers"] = [ended(reader) for reader in readers]
    del found["prepare"]
    churn, full = (found[step]["index"]["s"] for step in ("second", "second-full"))
    found["full_by_churn"] = round(full / churn, 2)
    return found


def main() -> None:
    parser = Options(
        __doc__, data=(str, "the folder of Fashion-MNIST as Parquet; without it latents are generated"),
        rows=1_000_000, segment_rows=200_000, kind="flat",
        json=(Path, "a results file; measurements of other sizes and kinds in it stay"),
        work=(Path, "the folder of the store; it stays, and a run that broke off goes on there"),
    )  # fmt: skip
    options = parser.hidden(folder=str, step=str).parse_args()
    if options.step:
        print(json.dumps(one_step(options)))
        return
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
        found = run(options, options.work)
    else:
        with tempfile.TemporaryDirectory(prefix="segments-") as folder:
            found = run(options, Path(folder))
    found |= {
        "rows": options.rows, "segment_rows": options.segment_rows, "kind": options.kind,
        **made_on("one thread, shared with other work"),
        "latents": "Fashion-MNIST drawn again with jitter" if options.data else "generated",
    }  # fmt: skip
    tell(found, None)
    if options.json:
        write(options.json, {**kept(options.json, {}), f"{options.kind}, {options.rows:,}": found})


if __name__ == "__main__":
    main()
