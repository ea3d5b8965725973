"""A night in small, as `doctor --try` runs it: one batch of the demo's pictures, one step, on a store of its own."""

from __future__ import annotations

import io
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from ..images.render import render_products
from ..models.bundle import BUNDLES
from ..storage import Store
from ..storage.config import StoreConfig
from .settings import NightSettings

_MODEL_ID = re.compile(r"\b[0-9a-f]{64}\b")
_CATEGORIES = ("first", "second")


def small_config(folder: str) -> dict[str, Any]:
    """Return the plain values of a small model's config whose store is a folder of this machine."""
    return {
        "store": {"url": folder},
        "catalogue": {"source": folder},
        "images": {"size": 32},
        "model": {"kind": "vae", "latent_dim": 8, "channels": [8, 16]},
        "train": {"batch_size": 32},
        "encode": {"actors": 1},
    }


def in_small(values: dict[str, Any], scratch: dict[str, Any]) -> dict[str, Any]:
    """Return a config's plain values with what is learned, fetched and encoded cut down to one batch.

    scratch: the section `store` of the trial, on which `catalogue.parquet` lies.
    """
    source = f"{scratch['url']}/catalogue.parquet"
    train = values["train"] | {"epochs": 1, "validation": 0.0, "split_by": None, "keep": "last", "milestones": []}
    if train["schedule"] == "milestones":
        train["schedule"] = "cosine"
    catalogue = {"source": source, "item_id": "item_id", "image": "image", "category": "category"}
    return values | {"store": scratch, "catalogue": catalogue, "train": train}


def small_catalogue(asked: NightSettings) -> bytes:
    """Return a table of one batch of the demo's pictures, of two categories."""
    count, side = max(asked.train.batch_size, 2), max(asked.images.size, 32)
    pictures = [photo for _, photo in render_products(count, seed=0, size=(side, side))]
    table = pa.table(
        {
            "item_id": [f"try-{number:06d}" for number in range(count)],
            "image": pa.array(pictures, pa.binary()),
            "category": [_CATEGORIES[number % 2] for number in range(count)],
        }
    )
    written = io.BytesIO()
    parquet.write_table(table, written)
    return written.getvalue()


def copy_bundles(asked: NightSettings, standing: Store, scratch: Store) -> None:
    """Copy the bundles that the model is made of, or that its training begins with, to the store of the trial."""
    named = _MODEL_ID.findall(f"{asked.model.model_dump_json()} {asked.train.init_from}")
    for model_id in sorted(set(named)):
        for entry in standing.list(f"{BUNDLES.folder}/{model_id}/"):
            scratch.put(entry.name, standing.get(entry.name))


@contextmanager
def on_scratch(asked: NightSettings, values: dict[str, Any], standing: StoreConfig) -> Iterator[dict[str, Any]]:
    """Yield a night's plain values in small, on a folder of its store's `runs/`, which is deleted at the end.

    values: the config's; standing: its section `store`.
    """
    place, store = f"runs/doctor-{uuid.uuid4().hex[:12]}", standing.open()
    scratch = StoreConfig(**{**standing.model_dump(), "url": f"{standing.url.rstrip('/')}/{place}"})
    try:
        there = scratch.open()
        copy_bundles(asked, store, there)
        there.put("catalogue.parquet", small_catalogue(asked))
        yield in_small(values, scratch.model_dump())
    finally:
        for entry in list(store.list(f"{place}/")):
            store.delete(entry.name)
