"""The tables of a release as other engines read them, and the neighbours of a million items.

`engines`: nights of a small shop, of which the last has every table there is; each table is read by pyarrow, by DuckDB
and by Polars, each in an environment that holds it, and must be the same, value by value; the SQL of the READMEs of
pipeline/release and pipeline/tables runs word for word in an environment that holds DuckDB alone; every row of
`neighbours` is what the reader's `similar` answers. `neighbours`: that table of --items photos of real latents (drawn
again with a jitter), made whole, then for a night that changed 1 %, removed 0.5 % and added 0.5 %: seconds, memory,
lists of a sample that are the reader's answers, their recall against all items scored exactly and, with --full, lists
equal to those of the same night made whole.

    python -m venv A && A/bin/pip install duckdb;  python -m venv B && B/bin/pip install polars
    python tests/benchmarks/bench_tables.py --data ../shared/data --duckdb A/bin/python --polars B/bin/python
        --json results/tables.json [--items 1000000] [--only engines,neighbours]
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from bench_index import components, drawn_again
from nights_here import answered, quick_stages
from options import NEEDED, Given, Options, absent, names_of
from PIL import Image
from record import DATA, ROOT, add, made_on, tell
from watched import held

from pipeline.index import BuiltIndex, Grouping, IndexConfig, LatentArrays, SearchIndex, build_index, nearest_groups
from pipeline.keys import digest_of
from pipeline.reader import open_release
from pipeline.release import Manifest, ReleaseFile, read_manifest
from pipeline.release.manifest import FileEntry
from pipeline.release.tables import write_table
from pipeline.storage import Store, open_store
from pipeline.tables import Night
from pipeline.tables.neighbours import neighbour_tables

TOP = 50
PRINTED = """
import json, sys
def plain(value):
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return [[key, plain(one)] for key, one in value.items()] if isinstance(value, dict) else value
def told(names, rows):
    print(json.dumps([list(names), [plain(row) for row in rows]], default=str))
"""
PROGRAMS = {
    "pyarrow": PRINTED + "import pyarrow.parquet as pq\ntable = pq.read_table(sys.argv[1])\n"
    "told(table.column_names, zip(*(column.to_pylist() for column in table.columns), strict=True))",
    "duckdb": PRINTED + "import duckdb\nfound = duckdb.sql(f\"SELECT * FROM '{sys.argv[1]}'\")\n"
    "told(found.columns, found.fetchall())",
    "polars": PRINTED + "import polars\ntable = polars.read_parquet(sys.argv[1])\ntold(table.columns, table.rows())",
}
FOLLOWED = """
import json, sys, duckdb
for statement in json.load(sys.stdin):
    found = duckdb.sql(statement)
print(json.dumps(found.fetchall(), default=str))
"""


def shop_of(folder: Path) -> list[str]:
    """Publish three nights in this process and return the releases' ids; together they have rows in every table."""
    here = quick_stages()
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "39.png").write_bytes(b"no picture")
    nights = ((range(18), "[4, 3]"), (range(3, 20), "[4, 3]"), (range(2, 19), "[5, 3]"))
    releases = []
    for night, (items, levels) in enumerate(nights):
        rows = "".join(f"item-{number:02d},{number}.png,{'ab'[number % 2]}\n" for number in items)
        rows += "".join(f"item-{number:02d},{number + 20}.png,a\n" for number in items if number % 2 == 0)
        rows += f"item-{items[0]:02d},39.png,a\n"
        (folder / "catalogue.csv").write_text("item_id,image,category\n" + rows)
        words = ["refresh", "--json", "--run", f"night-{night}", f"store={folder / 'store'}", *here.SMALL]
        words += [f"catalogue.source={folder / 'catalogue.csv'}", "catalogue.rows=photo", "catalogue.category=category"]
        words += [f"semantic_ids={{levels: {levels}}}", f"tables={{vectors: true, neighbours: {TOP}}}"]
        code, found = answered(words)
        assert code == 0, found
        releases.append(str(found["release"]))
    return releases


def engines(options: Given) -> dict[str, Any]:
    pythons = {"pyarrow": sys.executable, "duckdb": options.duckdb, "polars": options.polars}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        releases = shop_of(folder)
        store = open_store(str(folder / "store"))
        found: dict[str, Any] = {"tables": {}}
        for release in releases:
            for role, (entry,) in sorted(read_manifest(store, release).files.items()):
                if entry.name.endswith(".parquet"):
                    told = found["tables"].setdefault(role, {"rows": 0, **dict.fromkeys(pythons, True)})
                    path = str(folder / "store" / entry.name)
                    read = {engine: _output(python, PROGRAMS[engine], path) for engine, python in pythons.items()}
                    columns, rows = read["pyarrow"]
                    told |= {"rows": told["rows"] + len(rows), "columns": len(columns)}
                    told |= {engine: told[engine] and own == read["pyarrow"] for engine, own in read.items()}
        found["readme"] = {
            f"{page}, statement {number}": len(_followed(options.duckdb, folder / "store", statements))
            for page in ("release", "tables")
            for number, statements in enumerate(_statements(page))
        }
        reader = open_release(str(folder / "store"), cache_dir=folder / "cache")
        table = reader.table("neighbours").to_pylist()
        answers = [
            {"item_id": item, "rank": rank, "neighbour_id": near.item_id, "score": near.score}
            for item in reader.item_ids()
            for rank, near in enumerate(reader.similar(item, TOP), 1)
        ]
        found["neighbours_are_the_readers"] = table == answers
        versions = "import importlib.metadata as m, sys; print('{}', m.version('{}'))"
        found["versions"] = [
            subprocess.run(
                [python, "-c", versions.format(engine, engine)], capture_output=True, text=True
            ).stdout.strip()
            for engine, python in pythons.items()
        ]
    return found


def _output(python: str, program: str, *words: str) -> Any:
    done = subprocess.run(
        [python, "-c", program, *words], capture_output=True, text=True, env={"PATH": os.environ["PATH"]}
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout)


def _statements(page: str) -> Iterator[list[str]]:
    """Yield the statements of each SQL block of a README, after those of the page's first block, which it builds on."""
    text = (ROOT / "pipeline" / page / "README.md").read_text()
    blocks = [block.rstrip().rstrip(";").split(";\n") for block in re.findall(r"```sql\n(.*?)```", text, re.DOTALL)]
    for number, block in enumerate(blocks):
        yield [*(blocks[0] if number else []), *block]


def _followed(python: str, store: Path, statements: list[str]) -> list[Any]:
    """Return the rows of the last of some statements, run from inside the store's folder."""
    done = subprocess.run(
        [python, "-c", FOLLOWED], input=json.dumps(statements), capture_output=True, text=True, cwd=store,
        env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError("\n".join([*statements, done.stderr[-2000:]]))
    return list(json.loads(done.stdout))


def neighbours(options: Given) -> dict[str, Any]:
    """Two nights of --items items, 1 % of which change, 0.5 % go and 0.5 % come, and the second made in full too."""
    train, _ = components(options.data / "fashion-mnist", 10, 64)
    every = drawn_again(train, options.items + options.items // 200, 0.1)
    generator, store = np.random.default_rng(5), open_store("memory://bench-neighbours")
    gone, changed = np.split(
        generator.permutation(options.items)[: options.items // 50 * 3 // 4], [options.items // 200]
    )
    config = IndexConfig(kind=options.kind, metric="cosine", threads=1, target_recall=0.95)
    first = _night(store, "one", every, np.arange(options.items), config, None, np.empty(0, np.int64))
    told = {"items": options.items, "top": TOP, "kind": options.kind, "changed": len(changed), "removed": len(gone),
            "added": len(every) - options.items, "first_night": first.told}  # fmt: skip
    if options.kind != "flat":
        told["reported_recall"] = first.built.recall
    every[changed] += np.float32(0.3) * generator.standard_normal((len(changed), 64), np.float32)
    now = np.setdiff1d(np.arange(len(every)), gone)
    touched = np.concatenate([gone, changed, np.arange(options.items, len(every))])
    second = _night(store, "two", every, now, config, first.manifest, touched)
    told |= {"second_night": second.told, **second.measures}
    if options.full:
        whole = _night(store, "whole", every, now, config, None, touched, second.built)
        left, right = (_rows(store, one.manifest) for one in (second, whole))
        told["second_night_in_full"] = whole.told
        told["lists_equal_to_the_full_ones"] = bool(left.select([0, 1, 2]).equals(right.select([0, 1, 2])))
        told["largest_difference_of_a_score"] = float(
            np.abs(np.subtract(*(np.asarray(t["score"]) for t in (left, right)))).max()
        )
    asked = np.sort(generator.choice(len(now), 500, replace=False))
    table = _rows(store, second.manifest).filter(
        pc.is_in(pc.field("item_id"), pa.array([_key(now[row]) for row in asked]))
    )
    told["sample"] = len(asked)
    same, there, groups = 0, 0, Grouping(np.arange(len(now)))
    for at, row in enumerate(asked.tolist()):
        query, alone = second.index.latents(np.array([row])), np.zeros(1, np.int64)
        both = (
            nearest_groups(index, query, alone, TOP, groups, exclude=asked[[at]])[0].groups
            for index in (second.index, second.index.exactly())
        )
        reader, exact = ([_key(now[near]) for near in found] for found in both)
        held = table["neighbour_id"].slice(TOP * at, TOP).to_pylist()
        same, there = same + (held == reader), there + len({*held} & {*exact})
    told["sample_lists_equal_to_the_readers"] = same
    told["sample_recall"] = round(there / (TOP * len(asked)), 4)
    return told


@dataclass(frozen=True)
class _Made:
    manifest: Manifest
    built: BuiltIndex
    measures: dict[str, float]
    told: dict[str, Any]

    @property
    def index(self) -> SearchIndex:
        return self.built.index


def _key(number: int) -> str:
    return f"sku-{number:07d}"


def _night(
    store: Store,
    run: str,
    every: np.ndarray,
    now: np.ndarray,
    config: IndexConfig,
    parent: Manifest | None,
    touched: np.ndarray,
    built: BuiltIndex | None = None,
) -> _Made:
    """Make a night's table of the items `now`, whose latents are those of `every`, and keep it as the next's parent.

    built: the index of these items, where there is one.
    """
    latents = LatentArrays(mean=every[now])
    ids = pa.array([_key(number) for number in now.tolist()])
    part = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(len(now), np.int32)), pa.array(["latents/bench/one.parquet"])
    )
    items = pa.table({"item_id": ids, "uri": ids, "latents_part": part, "latents_row": pa.array(now.astype(np.int32))})
    changes = pa.table({"item_id": pa.array([_key(number) for number in touched.tolist()], pa.string()),
                        "change": pa.array(["changed"] * len(touched), pa.string())})  # fmt: skip
    cpu = time.process_time()
    built = built or build_index(latents, config)
    spent = time.process_time() - cpu
    night = Night(run, "bench", "cosine", items, latents, built.index, changes, parent)
    cpu, start, before = time.process_time(), time.perf_counter(), held("VmHWM")
    made = neighbour_tables(store, night, TOP)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - start
    files: dict[str, list[FileEntry]] = {}
    for role, given in [*made.files.items(), ("items", iter([ReleaseFile(write_table(items), ".parquet", len(now))]))]:
        for file in given:
            name = f"releases/{run}/{role}-{digest_of(file.data)[:12]}.parquet"
            store.put_if_absent(name, file.data)
            files.setdefault(role, []).append(
                FileEntry(name=name, bytes=len(file.data), sha256=digest_of(file.data), rows=file.rows)
            )
    manifest = Manifest.model_construct(
        release_id=run, files={role: tuple(entries) for role, entries in files.items()}, model_id="bench",
        metric="cosine", index_kind=built.kind, config={"tables": {"neighbours": TOP}}, latent_dim=64,
    )  # fmt: skip
    told = {"index_cpu_s": round(spent), "table_cpu_s": round(cpu), "table_wall_s": round(wall),
            "bytes": {role: sum(entry.bytes for entry in entries) for role, entries in files.items()},
            "peak_mb": round(held("VmHWM") / 1e6), "peak_before_mb": round(before / 1e6)}  # fmt: skip
    print(run, told, made.measures, flush=True)
    return _Made(manifest, built, made.measures, told)


def _rows(store: Store, manifest: Manifest) -> pa.Table:
    tables = [pq.read_table(pa.BufferReader(store.get(entry.name)), read_dictionary=["item_id", "neighbour_id"])
              for entry in manifest.files["neighbours"]]  # fmt: skip
    return pa.concat_tables(tables).unify_dictionaries()


def main() -> None:
    options = Options(
        __doc__, data=DATA, duckdb=(str, "the Python of an environment with DuckDB alone"),
        polars=(str, "the Python of an environment with Polars"), items=1_000_000, kind="flat",
        full=(False, "make the second night in full too, and compare"), only="engines,neighbours", json=NEEDED,
    ).parse_args()  # fmt: skip
    said, ways = made_on("one thread, shared with other work"), {"engines": engines, "neighbours": neighbours}
    for part in names_of(options.only, ways, "parts"):
        if part == "neighbours" and absent(options.data):
            continue
        name = part if part == "engines" else f"{part}, {options.items:,} items, {options.kind}"
        found = {**ways[part](options), **said}
        add(options.json, found, name)
        tell(found, None)


if __name__ == "__main__":
    main()
