"""Which gate stops which bad night, and that honest nights pass: all gates at their defaults, on real small catalogues.

    python tests/benchmarks/bench_bad_nights.py [--data ../shared/data] [--items 2000] [--nights 30] [--json FILE]

Ten bad nights and some kinds of them, each after the same honest one: Fashion-MNIST's first photos (without --data
rendered products), their 32 principal components; of a VQ-VAE for the codebook. Then honest nights one after the
other: one in a hundred items leaves and another comes, five photos are taken anew; then a season in one week: a fifth
of the catalogue leaves and things of other categories come. Exit 1 where a bad night passes, is not stopped by the
gate that is meant for it, or an honest one is stopped. `--table` prints what the committed results hold.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bad_nights as bad
import pytest
from options import Options
from record import DATA, RESULTS, made_on, write
from table_cells import table as cells_of

PHOTOS = ["model.kind=descriptor", "model.features=pixels", "model.grey=true", "model.read_out={dims: 32}",
          "images.size=28", "train.validation=0", "train.when=missing"]  # fmt: skip
CODES = ["model.kind=vqvae", "model.channels=[16, 32]", "model.quantizer={kind: ema, num_codes: 64, code_dim: 8}",
         "images.size=28", "train.epochs=3", "train.batch_size=64", "train.validation=0",
         "train.when=missing"]  # fmt: skip
PARTS = ["bad", "honest", "season"]

Spoils = Callable[[bad.Shop], None]
Breaks = Callable[[pytest.MonkeyPatch], None]
# What happens, which gate is meant for it, what of the catalogue and of the code is spoilt.
NIGHTS: list[tuple[str, str, Spoils | None, Breaks | None]] = [
    ("index scrambled", "max_drop.photo_recall", None, bad.scrambled_index),
    ("bundle swapped", "max_drop.photo_recall", None, bad.swapped_bundle),
    ("30 % of items missing", "max_rise.removed_share", bad.missing, None),
    ("5 % of photos corrupt", "max_rise.quarantine_share", bad.corrupt, None),
    ("10 % replaced by one placeholder", "max_rise.largest_identical_share", bad.placeholder, None),
    ("categories shuffled", "max_drop.category_knn", bad.shuffled_categories, None),
    ("a category rotated by 90 degrees", "max.drift_changed_auc", bad.rotated, None),
    ("brightness halved by a new camera, 15 % taken anew", "max.drift_changed_auc", bad.new_camera, None),
    ("brightness halved by a new camera, 10 % new", "max.drift_auc", bad.new_camera_for_newcomers, None),
    ("keys re-assigned", "max.rekeyed_share", bad.reassigned, None),
]


def told(name: str, found: dict[str, Any], began: float, meant: str | None) -> dict[str, Any]:
    """Return a night as it is written down and print it."""
    verdicts = found.get("verdicts", [])
    refused = [{key: v[key] for key in ("check", "category", "value", "limit", "parent", "margin")} | {
        "examples": v["examples"][:3]} for v in verdicts if not v["passed"]]  # fmt: skip
    stopped = [v["check"] for v in refused]
    values = {v["check"]: [v["value"], v["parent"], v["margin"]] for v in verdicts if v["category"] is None}
    right = meant in stopped if meant else not stopped and found["published"]
    row = {"night": name, "meant": meant, "exit_code": found["exit_code"], "refused": refused, "values": values,
           "right": right, "seconds": round(time.monotonic() - began, 1)}  # fmt: skip
    print(f"{'ok ' if right else 'NOT'} {name}: exit {found['exit_code']}, {', '.join(stopped) or 'passed'}"
          f" ({row['seconds']} s)", flush=True)  # fmt: skip
    return row


def tried(shop: bad.Shop, number: int, name: str, meant: str | None, spoil: Spoils | None, broken: Breaks | None,
          *words: str) -> dict[str, Any]:  # fmt: skip
    """Return a night after the shop's own, which leaves no trace in it."""
    began = time.monotonic()
    with shop.tried() as tonight:
        bad.churn(tonight, len(tonight.rows) // 100, len(tonight.rows) // 100, 0)
        if spoil is not None:
            spoil(tonight)
        return told(name, tonight.night(f"bad-{number}", *words, broken=broken), began, meant)


def spoilt(shop: bad.Shop, codes: bad.Shop) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the bad nights, and beside them such as differ only in that nothing is spoilt, each with which it is."""
    for number, (name, meant, spoil, broken) in enumerate(NIGHTS):
        yield "bad", tried(shop, number, name, meant, spoil, broken)
    yield "honest", tried(shop, 98, "a night after the same parent, nothing spoilt", None, None, None)
    codes.night("first")
    again = ("--retrain", "train.seed=1")
    meant, broken = "min.code_perplexity", bad.collapsed_codebook
    yield "bad", tried(codes, 20, "codebook collapsed", meant, None, broken, *again)
    yield "honest", tried(codes, 21, "another bundle of codes, trained as it should be", None, None, None, *again)


def honest(shop: bad.Shop, nights: int) -> Iterator[dict[str, Any]]:
    """Yield nights of one percent churn, and a week in which a fifth of the catalogue is another season's."""
    kinds = sorted({category for _, category in shop.rows.values()})
    for number in range(nights):
        began, few = time.monotonic(), max(1, len(shop.rows) // 100)
        bad.churn(shop, few, few, 5)
        yield told(f"1 % churn, night {number + 1}", shop.night(f"honest-{number:02d}"), began, None)
    each = len(shop.rows) // 5 // 7
    for day in range(7):
        began = time.monotonic()
        bad.season(shop, kinds[day % len(kinds)], kinds[(day + 3) % len(kinds)], each)
        yield told(f"season, day {day + 1}", shop.night(f"season-{day}"), began, None)


def season_at_once(shop: bad.Shop) -> dict[str, Any]:
    """Return a night in which a fifth of the catalogue leaves and things of three other categories come."""
    began, kinds = time.monotonic(), sorted({category for _, category in shop.rows.values()})
    for number in range(3):
        bad.season(shop, kinds[number], kinds[number + 3 if len(kinds) > 5 else -1], len(shop.rows) // 15)
    return told("a season in one night", shop.night("season-at-once"), began, None)


def table(found: dict[str, Any]) -> str:
    """Return gate x night in Markdown: what the gate that is meant found, and which others refused."""
    rows = []
    for row in found["bad"]:
        own = [v for v in row["refused"] if v["check"] == row["meant"]]
        others = dict.fromkeys(v["check"] for v in row["refused"] if v["check"] != row["meant"])
        numbers = ", ".join("-" if own[0][key] is None else f"{own[0][key]:.3g}" for key in
                            ("value", "parent", "limit", "margin")) if own else "passed"  # fmt: skip
        rows.append([row["night"], row["meant"] or "none", numbers, ", ".join(others) or "-"])
    stopped = [row["night"] for row in found["honest"] if not row["right"]]
    told = (
        f"{len(found['honest'])} honest nights, {len(stopped)} stopped{': ' + ', '.join(stopped) if stopped else ''}."
    )
    return cells_of(["night", "meant for it", "value, parent, limit, margin", "refused too"], rows, told)


def main() -> int:
    parser = Options(
        __doc__, data=DATA, items=2000, nights=30, json=(Path, "a file for results; by default those beside this one"),
        table=(False, "only print what is in --json"),
    )  # fmt: skip
    parser.add_argument("--only", choices=PARTS, help="a part of it, in a file of its own")
    asked = parser.parse_args()
    parts = PARTS if asked.only is None else [asked.only]
    place = asked.json or RESULTS / f"{asked.only or 'bad'}_nights.json"
    if asked.table:
        held = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*_nights.json"))]
        print(table({kind: [row for each in held for row in each.get(kind, [])] for kind in ("bad", "honest")}))
        return 0
    data = asked.data if (asked.data / "fashion-mnist" / "train.parquet").exists() else None
    found: dict[str, Any] = {
        **made_on(""), "python": platform.python_version(), "items": asked.items,
        "catalogue": "fashion-mnist" if data else "rendered", "bad": [], "honest": [],
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="bad-nights-") as folder:
        shop = bad.open_shop(Path(folder) / "shop", data, asked.items, PHOTOS)
        shop.night("first")
        bad.churn(shop, asked.items // 100, asked.items // 100, 5)
        shop.night("second")
        if "bad" in parts:
            codes = bad.open_shop(Path(folder) / "codes", data, asked.items // 2, CODES)
            for kind, row in spoilt(shop, codes):
                found[kind].append(row)
                write(place, found)
        if "season" in parts:
            with shop.tried() as tonight:
                found["honest"].append(season_at_once(tonight))
            write(place, found)
        if "honest" in parts:
            for row in honest(shop, asked.nights):
                found["honest"].append(row)
                write(place, found)
    print(table(found))
    return 0 if all(row["right"] for row in [*found["bad"], *found["honest"]]) else 1


if __name__ == "__main__":
    sys.exit(main())
