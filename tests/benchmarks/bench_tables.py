"""The tables of a release as other engines read them, and the neighbours of a million items.

`engines`: nights of a small shop, of which the last has every table there is; each table is read by pyarrow, by DuckDB
and by Polars, each in an environment that holds it, and must be the same, value by value; the SQL of the READMEs of
pipeline/release and pipeline/tables runs word for word in an environment that holds DuckDB alone; every row of
`neighbours` is what the reader's `similar` answers. `neighbours`: that table of --items photos of real latents (drawn
again with a jitter), an index of cells: seconds and memory, answers equal to the index's own, and recall.

    python -m venv A && A/bin/pip install duckdb;  python -m venv B && B/bin/pip install polars
    python tests/benchmarks/bench_tables.py --data ../shared/data --duckdb A/bin/python --polars B/bin/python
        --json results/tables.json [--items 1000000] [--only engines,neighbours]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bench_faults import _stages_here
from bench_index import ROOT, components, drawn_again, peak_mb, truth_of
from made_on import made_on
from PIL import Image

from jobs.__main__ import main as main_here
from pipeline.index import IndexConfig, LatentArrays, build_index
from pipeline.reader import open_release
from pipeline.release import read_manifest
from pipeline.storage import open_store
from pipeline.tables.neighbours import neighbour_files

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
    here = _stages_here()
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
        with redirect_stdout(io.StringIO()) as said:
            code = main_here(words)
        assert code == 0, said.getvalue()
        releases.append(str(json.loads(said.getvalue())["release"]))
    return releases


def engines(options: argparse.Namespace) -> dict[str, Any]:
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


def neighbours(options: argparse.Namespace) -> dict[str, Any]:
    train, _ = components(options.data / "fashion-mnist", 10, 64)
    latents = drawn_again(train, options.items, 0.1)
    config = IndexConfig(kind="ivf_sq8", metric="cosine", threads=1, target_recall=0.95)
    cpu = time.process_time()
    built = build_index(LatentArrays(mean=latents), config)
    spent = time.process_time() - cpu
    ids = pa.array([f"sku-{number:07d}" for number in range(options.items)])
    items = pa.table({"item_id": pa.chunked_array([ids])})
    before = peak_mb()
    cpu, start, rows, size = time.process_time(), time.perf_counter(), 0, 0
    asked = np.sort(np.random.default_rng(3).choice(options.items, 200, replace=False))
    listed: dict[int, list[int]] = {}
    for file in neighbour_files(items, built.index, TOP):
        table = pq.read_table(pa.BufferReader(file.data), columns=["item_id", "neighbour_id"])
        own = np.array([int(key[4:]) for key in table["item_id"].unique().to_pylist()])
        for row in asked[(asked >= own[0]) & (asked <= own[-1])].tolist():
            at = TOP * (row - int(own[0]))
            listed[row] = [int(key[4:]) for key in table["neighbour_id"].slice(at, TOP).to_pylist()]
        rows, size = rows + table.num_rows, size + len(file.data)
        print(f"{rows:,} rows after {time.process_time() - cpu:.0f} s", flush=True)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - start
    exact = truth_of(latents, latents[asked], np.arange(options.items))
    own_answers = built.index.search(built.index.latents(asked), TOP + 1).ids
    same = sum([one for one in answer.tolist() if one != row][:TOP] == listed[row]
               for row, answer in zip(asked.tolist(), own_answers, strict=True))  # fmt: skip
    hits = sum(len(set(near[near != row][:9].tolist()) & set(listed[row][:10]))
               for row, near in zip(asked.tolist(), exact, strict=True))  # fmt: skip
    return {"items": options.items, "top": TOP, "kind": "ivf_sq8", "reported_recall": round(built.recall, 4),
            "index_cpu_s": round(spent), "table_cpu_s": round(cpu), "table_wall_s": round(wall), "rows": rows,
            "bytes": size, "peak_mb": round(peak_mb()), "peak_before_mb": round(before), "sample": len(asked),
            "sample_equal_to_the_index": same, "sample_recall_at_9": round(hits / (9 * len(asked)), 4)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--duckdb", help="the Python of an environment with DuckDB alone")
    parser.add_argument("--polars", help="the Python of an environment with Polars")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--only", default="engines,neighbours")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    said = made_on("one thread, shared with other work")
    result = json.loads(options.json.read_text()) if options.json.exists() else {"results": {}}
    for part in options.only.split(","):
        result["results"][part] = {**{"engines": engines, "neighbours": neighbours}[part](options), **said}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(result["results"][part], indent=1), flush=True)


if __name__ == "__main__":
    main()
