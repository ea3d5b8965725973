"""Refresh real catalogues and measure: seconds per stage, photos/s, memory, k-NN of held-out items.

Fashion-MNIST's 60,000 embedded training pictures, and the clothing photos from a folder and from a real S3 server
process, one in five contributors held out. The k-NN protocol is cosine, k=10, unweighted majority, ties to the nearest;
the held-out photos are encoded by the bundle's ONNX encoder, as a recommender team would.

    python tests/benchmarks/bench_refresh.py --data ../shared/data --json refresh.json [--only fashion,clothing,s3]
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from beside import tests_module
from options import Options, absent, names_of
from record import DATA, ROOT, made_on, write

from pipeline.evaluation import knn_accuracy
from pipeline.reader import open_release
from pipeline.release import read_head, read_manifest
from pipeline.release.tables import read_table
from pipeline.storage import Store, open_store

DROPPED = {"Not sure", "Skip", "Other"}


def refresh(store: str, *arguments: str) -> dict[str, Any]:
    began = time.monotonic()
    command = [sys.executable, "-m", "jobs", "refresh", "--json", f"store={store}", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"exit {done.returncode}: {done.stdout}")
    return {**json.loads(done.stdout), "wall_s": round(time.monotonic() - began, 1)}


def accuracy(store: str, label: str, queries: Iterable[tuple[bytes, str]]) -> dict[str, float]:
    """Return the k-NN accuracy of held-out photos against the release's items."""
    release = open_release(store)
    ids = release.item_ids()
    table = release.latents(ids)
    labels = {item: str(release.attributes(item)[label]) for item in ids}
    bank = np.stack(table["mean"].to_numpy(zero_copy_only=False))
    bank_labels = np.asarray([labels[item] for item in table["item_id"].to_pylist()])
    photos, wanted = zip(*queries, strict=True)
    vectors = np.concatenate([release.encode_photo(photo) for photo in photos])
    found = knn_accuracy(bank, bank_labels, vectors, np.asarray(wanted), k=10)
    return {"knn_accuracy": round(float(found), 4), "bank": len(bank), "queries": len(vectors)}


def fashion(data: Path, work: Path) -> dict[str, Any]:
    store = str(work / "fashion-store")
    preset = ROOT / "jobs" / "presets" / "vae_fashion_mnist.yaml"
    source = f"catalogue.source={data / 'fashion-mnist' / 'train.parquet'}"
    result = refresh(store, "--config", str(preset), "--run", "night-1", source)
    test = pq.read_table(data / "fashion-mnist" / "test.parquet", columns=["image", "category"])
    queries = zip(test["image"].to_pylist(), test["category"].to_pylist(), strict=True)
    result["held_out"] = accuracy(store, "category", queries)
    result["again"] = refresh(store, "--config", str(preset), "--run", "night-2", source)
    return result


def clothing_rows(data: Path) -> list[dict[str, str]]:
    """Return the rows of the clothing photos whose category is one."""
    with (data / "clothing" / "catalogue.csv").open(newline="", encoding="utf-8") as handle:
        return [row for row in csv.DictReader(handle) if row["category"] not in DROPPED]


def split(data: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return the clothing rows of four in five contributors, and of the others."""
    rows = clothing_rows(data)
    held = [row for row in rows if zlib.crc32(row["sender_id"].encode()) % 5 == 0]
    kept = [row for row in rows if zlib.crc32(row["sender_id"].encode()) % 5 != 0]
    return kept, held


def held_out(data: Path, rows: Sequence[dict[str, str]]) -> Iterable[tuple[bytes, str]]:
    return (((data / "clothing" / row["image"]).read_bytes(), row["category"]) for row in rows)


def clothing_folder(data: Path, work: Path) -> dict[str, Any]:
    kept, held = split(data)
    for row in kept:
        target = work / "clothing" / row["category"] / Path(row["image"]).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(data / "clothing" / row["image"], target)
    store = str(work / "clothing-store")
    preset = ROOT / "jobs" / "presets" / "vae_clothing.yaml"
    arguments = ["--config", str(preset), f"catalogue.source={work / 'clothing'}", "catalogue.format=folder"]
    arguments += ["train.split_by=null"]  # a folder names no contributors
    result = refresh(store, *arguments, "--run", "night-1")
    result["held_out"] = accuracy(store, "category", held_out(data, held))
    result["again"] = refresh(store, *arguments, "--run", "night-2")
    return result


def clothing_s3(data: Path, work: Path) -> dict[str, Any]:
    moto = tests_module("moto_server")
    kept, held = split(data)
    with moto.MotoServer() as server, moto.aws_environment(server):
        bucket = server.make_bucket("bench-clothing")
        shop = open_store(f"{bucket}/shop")
        for row in kept:
            shop.put(row["image"], (data / "clothing" / row["image"]).read_bytes())
        shop.put("catalogue.csv", as_csv(kept))
        store = f"{bucket}/visual"
        preset = ROOT / "jobs" / "presets" / "vae_clothing.yaml"
        arguments = ["--config", str(preset), f"catalogue.source={bucket}/shop/catalogue.csv"]
        server.reset_counts()
        result = refresh(store, *arguments, "--run", "night-1")
        result["photo_gets"] = sum("/shop/images/" in path for _, path in server.count_gets())
        result["held_out"] = accuracy(store, "category", held_out(data, held))
        server.reset_counts()
        result["again"] = refresh(store, *arguments, "--run", "night-2")
        result["again"]["photo_gets"] = sum("/shop/images/" in path for _, path in server.count_gets())
        result["delta"] = delta(server, shop, store, arguments, kept, held, data)
    return result


def delta(
    server: Any, shop: Store, store: str, arguments: list[str], kept: list[dict[str, str]], held: list[dict[str, str]],
    data: Path,
) -> dict[str, Any]:  # fmt: skip
    """Change 1 % of the items, remove 1 %, add 1 %; return what the next refresh fetched and carried over."""
    share = len(kept) // 100
    changed, removed, added = kept[:share], kept[share : 2 * share], held[:share]
    before = {row["item_id"]: row for row in read_items(store)}
    for row, other in zip(changed, kept[-share:], strict=True):
        shop.put(row["image"], (data / "clothing" / other["image"]).read_bytes())
    for row in added:
        shop.put(row["image"], (data / "clothing" / row["image"]).read_bytes())
    shop.put("catalogue.csv", as_csv([*(row for row in kept if row not in removed), *added]))
    server.reset_counts()
    result = refresh(store, *arguments, "--run", "night-3")
    fetched = sorted(Path(path).name for _, path in server.count_gets() if "/shop/images/" in path)
    wanted = sorted(Path(row["image"]).name for row in [*changed, *added])
    after = {row["item_id"]: row for row in read_items(store)}
    touched = {row["item_id"] for row in [*changed, *removed, *added]}
    release = open_release(store)
    gone = {row["item_id"] for row in removed}
    found = {near.item_id for row in added for near in release.similar(row["item_id"], k=50)}
    result["check"] = {
        "photos_fetched": len(fetched),
        "exactly_those_wanted": fetched == wanted,
        "removed_items_left": len(gone & after.keys()) + len(gone & found),
        "untouched": len(before.keys() - touched),
        "untouched_rows_equal": sum(before[item] == after[item] for item in before.keys() - touched),
        "counts": result["counts"],
    }
    return result


def read_items(store: str) -> list[dict[str, Any]]:
    place = open_store(store)
    head = read_head(place, "stable")
    assert head is not None
    return list(read_table(place, read_manifest(place, head.release_id), "items").to_pylist())


def as_csv(rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def main() -> int:
    ways = {"fashion": fashion, "clothing": clothing_folder, "s3": clothing_s3}
    options = Options(__doc__, data=DATA, only=",".join(ways), json=Path).parse_args()
    names = names_of(options.only, ways, "catalogues")
    if absent(options.data):
        return 0
    results = {}
    with tempfile.TemporaryDirectory(prefix="refresh-") as folder:
        for name in names:
            results[name] = ways[name](options.data, Path(folder))
            shown = {
                key: results[name].get(key)
                for key in ("wall_s", "seconds", "photos_per_s", "peak_memory_mb", "measures", "held_out")
            }
            again = {key: results[name]["again"][key] for key in ("wall_s", "reason", "seconds")}
            print(f"{name}: {json.dumps(shown)}\n  again: {json.dumps(again)}", flush=True)
            if "delta" in results[name]:
                changes = {key: results[name]["delta"][key] for key in ("wall_s", "seconds", "check")}
                print(f"  delta: {json.dumps(changes)}", flush=True)
    if options.json:
        write(options.json, {**made_on(""), "results": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
