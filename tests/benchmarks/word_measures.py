"""What a codebook's codes are worth as words: of photos, of groups of photos, and of customers who bought several.

Customers are made up: each likes two categories and has bought five known photos of either. They are asked for products
(the 20 nearest held-out photos) and for other customers (the nearest one). Latents are compared by their mean, words by
the text of all that was bought.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from model_measures import Photos
from numpy.typing import NDArray
from options import Given
from quality_measures import bundle_of, photos_of

from pipeline.evaluation.baselines import model_latents
from pipeline.evaluation.quality import label_quality
from pipeline.evaluation.spaces import model_codes
from pipeline.evaluation.spread import unit_rows
from pipeline.evaluation.words import cluster_quality, fitted_words
from pipeline.models import Model, load_bundle
from pipeline.storage import open_store

Float32 = NDArray[np.float32]
MODELS = ("vqvae", "vqvae2", "vae")  # the last one's latents are no codes
GROUPED = 5000  # photos that are put into groups
CUSTOMERS, LIKED, BOUGHT, OFFERED = 500, 2, 5, 20


@dataclass(frozen=True)
class Way:
    """A way to compare photos: rows of known and of held-out ones, and the row of what a customer has bought."""

    name: str
    known: Float32
    held: Float32
    together: Callable[[NDArray[np.int64]], Float32]


@dataclass(frozen=True)
class Customer:
    """What a customer likes and the known photos that were bought."""

    likes: tuple[str, ...]
    rows: NDArray[np.int64]


def words(seed: int, asked: Given) -> list[dict[str, Any]]:
    """Return a row for each way to compare photos."""
    folder, bank, held = photos_of(asked)
    rng = np.random.default_rng(seed)
    customers = made_up(bank, rng)
    chosen = np.sort(rng.permutation(len(bank.items))[:GROUPED])
    results = []
    for name in MODELS:
        model_id, _ = bundle_of(f"{name}_{asked.catalogue}", seed, asked, folder, bank)
        model = load_bundle(open_store(str(asked.cache)), model_id).model
        for way in ways(name, model, bank, held):
            quality = label_quality(way.known, bank.categories, bank.groups, way.held, held.categories, seed=0)
            groups = cluster_quality(way.known[chosen], np.asarray(bank.categories)[chosen], seed=seed)
            results.append({
                "name": way.name, "dims": way.known.shape[1], **quality.numbers(), "purity": groups.purity,
                "purity_chance": groups.chance, "nmi": groups.nmi, **asked_for(way, customers, held),
            })  # fmt: skip
    return results


def ways(name: str, model: Model, bank: Photos, held: Photos) -> Iterator[Way]:
    """Yield a model's latents and, of one with codes, its words: by counts alone, weighted, weighted and of regions."""
    known, found = (model_latents(model, photos.pixels) for photos in (bank, held))
    yield Way(
        f"{name}: latents", known, found, lambda rows: unit_rows(unit_rows(known[rows]).mean(axis=0, keepdims=True))[0]
    )
    if not model.num_latent_codes:
        return
    levels, others = (model_codes(model, photos.pixels) for photos in (bank, held))
    for told, regions, weighted in (("counts", 1, False), ("TF-IDF", 1, True), ("TF-IDF of 3 x 3 regions", 3, True)):
        fitted = fitted_words(levels, regions=regions)
        counts, theirs = fitted.counts(levels), fitted.counts(others)
        scaled = fitted.vectors if weighted else unit_rows

        def together(
            rows: NDArray[np.int64], counts: Float32 = counts, scaled: Callable[[Float32], Float32] = scaled
        ) -> Float32:
            return scaled(counts[rows].sum(axis=0, keepdims=True))[0]

        yield Way(f"{name}: words, {told}", scaled(counts), scaled(theirs), together)


def made_up(bank: Photos, rng: np.random.Generator) -> list[Customer]:
    """Return customers whose categories are drawn evenly; of each bought photo no other customer has it too."""
    names = np.asarray(bank.categories)
    left = {name: rng.permutation(np.flatnonzero(names == name)).tolist() for name in np.unique(names).tolist()}
    customers = []
    for _ in range(CUSTOMERS):
        enough = [name for name, rows in left.items() if len(rows) >= BOUGHT]
        if len(enough) < LIKED:
            break
        likes = tuple(sorted(rng.choice(enough, LIKED, replace=False).tolist()))
        rows = [left[name].pop() for name in likes for _ in range(BOUGHT)]
        customers.append(Customer(likes, np.asarray(rows)))
    return customers


def asked_for(way: Way, customers: list[Customer], held: Photos) -> dict[str, float]:
    """Return how often products offered are of the categories a customer likes, and the nearest customer likes both.

    liked: share of the offered. least: share of the less frequent of the two categories, at most a half. fellow: share
    of customers whose nearest other one likes the same two, among those of whom there is another.
    """
    profiles = np.stack([way.together(customer.rows) for customer in customers])
    products = np.asarray(held.categories)
    nearest = np.argsort(-(profiles @ unit_rows(way.held).T), axis=1, kind="stable")[:, :OFFERED]
    shares = np.array([
        [np.mean(products[rows] == name) for name in customer.likes]
        for customer, rows in zip(customers, nearest, strict=True)
    ])  # fmt: skip
    alike = profiles @ profiles.T
    np.fill_diagonal(alike, -np.inf)
    likes = [customer.likes for customer in customers]
    fellows = [
        likes[row] == likes[other] for row, other in enumerate(alike.argmax(axis=1)) if likes.count(likes[row]) > 1
    ]
    return {
        "liked": float(shares.sum(axis=1).mean()),
        "least": float(shares.min(axis=1).mean()),
        "fellow": float(np.mean(fellows)),
    }
