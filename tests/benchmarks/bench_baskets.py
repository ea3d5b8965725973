"""Baskets of two categories: what fusion, the barycentre and the centroid of their products find among the nearest 20.

Customers are made up: each had three products of one category and none, one or three of another. A release of their
catalogue is asked as any reader asks it: by `similar_to_many` of each kind, and, as many do by hand, by one `search`
with the mean of the products' latents. Latents are real photos' PCA of 64 numbers, of pixels and of gradients (HOG).

    python tests/benchmarks/bench_baskets.py [--photos 2000] [--baskets 60] [--write]
"""

from __future__ import annotations

import csv
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from beside import release_maker
from numpy.typing import NDArray
from options import Options
from PIL import Image
from record import DATA, RESULTS, made_on, memory, write

from pipeline.evaluation.baselines import hog_features
from pipeline.index import IndexConfig, fusion
from pipeline.reader import Neighbour, Release, open_release
from pipeline.storage import open_store

DIM, OFFERED, FEW = 64, 20, 60  # categories of fewer photos have not enough to offer
SIZES = ((3, 3), (3, 1), (3, 0))  # products of the one category and of the other
WAYS: dict[str, Callable[[Release, list[str]], list[Neighbour]]] = {
    "rrf": lambda release, basket: release.similar_to_many(basket, k=OFFERED),
    "rrf with 60": lambda release, basket: _with_constant(release, basket, 60),
    "min": lambda release, basket: release.similar_to_many(basket, k=OFFERED, fusion="min"),
    "soft_min": lambda release, basket: release.similar_to_many(basket, k=OFFERED, fusion="soft_min"),
    "barycentre": lambda release, basket: release.similar_to_many(basket, k=OFFERED, fusion="barycentre"),
    "centroid": lambda release, basket: _of_centroid(release, basket),  # noqa: PLW0108  it stands below
}


@dataclass(frozen=True)
class Shop:
    """Photos of a catalogue: pixels uint8 [n, size, size, 3], and the category of each."""

    name: str
    pixels: NDArray[np.uint8]
    categories: list[str]


def shops(photos: int) -> Iterator[Shop]:
    """Yield the catalogues that lie beside this checkout."""
    if (DATA / "fashion-mnist" / "test.parquet").exists():
        table = pq.read_table(DATA / "fashion-mnist" / "test.parquet").slice(0, photos)
        pictures = [_opened(data, 28) for data in table["image"].to_pylist()]
        yield Shop("fashion_mnist", np.stack(pictures), table["category"].cast("string").to_pylist())
    if (DATA / "clothing" / "catalogue.csv").exists():
        with (DATA / "clothing" / "catalogue.csv").open() as file:
            rows = list(csv.DictReader(file))
        counts = {name: sum(row["category"] == name for row in rows) for name in {row["category"] for row in rows}}
        rows = [row for row in rows if counts[row["category"]] >= FEW and row["category"] != "Not sure"][:photos]
        pictures = [_opened((DATA / "clothing" / row["image"]).read_bytes(), 48) for row in rows]
        yield Shop("clothing", np.stack(pictures), [row["category"] for row in rows])


def spaces(shop: Shop) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the names of latents and them, float32 [n, 64]."""
    yield "pixels, PCA-64", _reduced(shop.pixels.reshape(len(shop.pixels), -1).astype(np.float32))
    yield "HOG, PCA-64", _reduced(hog_features(shop.pixels))


def baskets(shop: Shop, count: int) -> list[tuple[str, str, list[int]]]:
    """Return (a category, another, rows): as many of the one as of the other, drawn with a fixed seed."""
    rng = np.random.default_rng(0)
    names = np.asarray(shop.categories)
    drawn = []
    for _ in range(count):
        one, other = rng.choice(np.unique(names), 2, replace=False).tolist()
        rows = [rng.choice(np.flatnonzero(names == name), SIZES[0][0], replace=False) for name in (one, other)]
        drawn.append((one, other, np.concatenate(rows).tolist()))
    return drawn


def measure(shop: Shop, latents: NDArray[np.float32], asked: list[tuple[str, str, list[int]]]) -> list[dict[str, Any]]:
    """Return a row for each size of basket and way.

    first, second: mean share of the category of three and of the other in the top 20; least: of the rarer of the two,
    basket by basket, with its standard error; third: of all others; both: share of baskets of which either category
    has at least two products. Without products of the other these are of chance, but for first and third.
    """
    maker = release_maker(DIM)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"{folder}/store")
        photos = [maker.Photo(f"sku-{n:05d}", f"u/{n}", 0, latents[n], shop.categories[n]) for n in range(len(latents))]
        maker.make_release(store, photos, index=IndexConfig(metric="cosine"))
        release = open_release(store.url, cache_dir=f"{folder}/cache")
        for first, second in SIZES:
            for way, ask in WAYS.items():
                shares = np.array([
                    _shares(ask(release, [f"sku-{row:05d}" for row in found[:first] + found[3 : 3 + second]]), one, two)
                    for one, two, found in asked
                ])  # fmt: skip
                rows.append({
                    "basket": f"{first} + {second}", "way": way, "first": shares[:, 0].mean(),
                    "second": shares[:, 1].mean(), "least": shares.min(axis=1).mean(),
                    "least_se": shares.min(axis=1).std(ddof=1) / len(shares) ** 0.5,
                    "third": 1.0 - shares.sum(axis=1).mean(), "both": (shares >= 2 / OFFERED).all(axis=1).mean(),
                })  # fmt: skip
    return [{name: value if isinstance(value, str) else round(float(value), 4) for name, value in row.items()}
            for row in rows]  # fmt: skip


def _shares(answer: list[Neighbour], one: str, other: str) -> tuple[float, float]:
    names = [near.attributes["category"] for near in answer]
    return names.count(one) / OFFERED, names.count(other) / OFFERED


def _with_constant(release: Release, basket: list[str], constant: int) -> list[Neighbour]:
    """Return what fusion finds with another constant than ours."""
    ours, fusion.RRF_K = fusion.RRF_K, constant
    try:
        return release.similar_to_many(basket, k=OFFERED)
    finally:
        fusion.RRF_K = ours


def _of_centroid(release: Release, basket: list[str]) -> list[Neighbour]:
    """Return what one search with the mean of the latents finds, without the basket's own products."""
    means = np.stack(release.latents(basket)["mean"].to_pylist())
    found = release.search(means.mean(axis=0), k=OFFERED + len(basket))[0]
    return [near for near in found if near.item_id not in basket][:OFFERED]


def _opened(data: bytes, size: int) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as picture:
        picture.draft("RGB", (size, size))
        return np.asarray(picture.convert("RGB").resize((size, size), Image.Resampling.BOX))


def _reduced(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    centred = (rows - rows.mean(axis=0)).astype(np.float64)
    if len(centred) < centred.shape[1]:  # the same numbers from the smaller of the two matrices of products
        values, sides = np.linalg.eigh(centred @ centred.T)
        return np.ascontiguousarray((sides * np.sqrt(np.maximum(values, 0)))[:, ::-1][:, :DIM], np.float32)
    _, directions = np.linalg.eigh(centred.T @ centred)
    return np.ascontiguousarray(centred @ directions[:, ::-1][:, :DIM], np.float32)


def main() -> None:
    keeping = (False, "keep the results in results/baskets.json")
    options = Options(__doc__, photos=2000, baskets=60, write=keeping).parse_args()
    began, runs = time.process_time(), []
    for shop in shops(options.photos):
        asked = baskets(shop, options.baskets)
        for name, latents in spaces(shop):
            rows = measure(shop, latents, asked)
            runs.append({"catalogue": shop.name, "photos": len(latents), "latents": name, "rows": rows})
            for row in rows:
                print(shop.name, name, *row.values(), flush=True)
            if options.write:
                about = {"cpu_s": round(time.process_time() - began, 1), "baskets": options.baskets}
                write(RESULTS / "baskets.json", {**made_on(memory()), **about, "runs": runs})
    print(f"{time.process_time() - began:.1f} CPU seconds")


if __name__ == "__main__":
    main()
