"""A catalogue whose index is of segments, changed and published night by night."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.index import (
    IndexConfig,
    LatentArrays,
    NightIndex,
    gather_latents,
    nightly_index,
)
from pipeline.parts import PartFile
from pipeline.reader import Release, open_release
from pipeline.release import (
    Manifest,
    publish,
    read_head,
    read_manifest,
    write_release,
)
from pipeline.storage import Store, open_store
from pipeline.storage.cache import FileCache

ROWS, K = 25, 7  # rows of a segment
MODEL = "ab" * 32


@dataclass
class Nights:
    """A catalogue on a store, changed and published night by night. where: of each living photo its part and row."""

    maker: Any
    store: Store
    cache: Path
    config: IndexConfig
    where: dict[str, tuple[Any, PartFile, int]] = field(default_factory=dict)
    last: Manifest | None = None
    count: int = 0

    def change(self, put: list[Any], gone: list[str] = []) -> None:  # noqa: B006 - only read
        """Write parts of photos that are new or other than before, and forget those that are gone."""
        self.count += 1
        parts = self.maker.write_parts(self.store, put, MODEL, f"n{self.count}")
        for at, photo in enumerate(put):
            self.where[photo.uri] = photo, parts[at // self.maker.PART_ROWS], at % self.maker.PART_ROWS
        for uri in gone:
            del self.where[uri]

    def items(self) -> tuple[pa.Table, LatentArrays, list[PartFile]]:
        ordered = sorted(self.where.values(), key=lambda held: (held[0].item_id, held[0].view))
        items = self.maker.items_table([held[0] for held in ordered], [""] * len(ordered))
        names, rows = [held[1].name for held in ordered], [held[2] for held in ordered]
        for name, values in (("latents_part", names), ("latents_row", rows)):
            at = items.schema.get_field_index(name)
            items = items.set_column(at, items.schema.field(name), pa.array(values).cast(items.schema.field(name).type))
        parts = list({held[1].name: held[1] for held in ordered}.values())
        return items, gather_latents(self.store, items, columns=self.config.needs), parts

    def index(self) -> NightIndex:
        items, latents, _ = self.items()
        cache = FileCache(self.cache)
        return nightly_index(self.store, items, latents, self.config, model_id=MODEL, parent=self.last, cache=cache)

    def publish(self) -> Manifest:
        made, parts = self.index(), self.items()[2]
        built, run = made.built, f"night-{self.count}"
        tables = {"quarantine": self.maker.quarantine_table([], run), "changes": self.maker.changes_table([])}
        tables["items"] = made.items
        written = write_release(
            self.store,
            release_id=f"{run}-0123456789ab",
            files={name: (self.maker.table_bytes(table), ".parquet", table.num_rows) for name, table in tables.items()}
            | built.files(),
            segments=built.shared_files(),
            release_key="0123456789ab" + "0" * 52,
            run=run,
            attempt=1,
            parent=None if self.last is None else self.last.release_id,
            model_id=MODEL,
            model_kind="vae",
            latent_dim=self.maker.DIM,
            transform_id="cd" * 8,
            metric=built.index.metric.name,
            index_kind=built.kind,
            index_parameters=built.parameters,
            parts=tuple(parts),
            code_version="test",
        )
        head = read_head(self.store, "stable")
        publish(
            self.store,
            "stable",
            expected_head=0 if head is None else head.number,
            release_id=written.manifest.release_id,
            manifest_sha256=written.manifest_sha256,
            run=run,
            attempt=1,
        )
        self.last = read_manifest(self.store, written.manifest.release_id)
        return self.last

    def open(self) -> Release:
        return open_release(self.store.url, cache_dir=self.cache)


def nights(maker: Any, folder: Path, **index: Any) -> Nights:
    asked = {"segment_rows": ROWS, "metric": "l2", "queries": 40, "threads": 1, **index}
    return Nights(maker, open_store(str(folder / "store")), folder / "cache", IndexConfig(**asked))


def photos_of(maker: Any, items: int, *, seed: int, first: int = 0) -> list[Any]:
    """Photos of items sku-<first>, ..., with log_var and codes, some of them copies of others."""
    rng = np.random.default_rng(seed)
    made = []
    for photo in maker.some_photos(items, seed=seed, most=2):
        number = first + int(photo.item_id[4:])
        mean = made[-1].mean if made and rng.random() < 0.05 else photo.mean
        made.append(
            replace(
                photo,
                item_id=f"sku-{number:04d}",
                uri=f"s3://photos/{number}/{photo.view}.jpg",
                mean=mean,
                log_var=rng.normal(-1.0, 0.5, maker.DIM).astype(np.float32),
                codes=rng.integers(0, 8, 6),
            )
        )
    return made


def some_change(maker: Any, held: Nights, seed: int) -> None:
    """Add, change and remove a few photos, by a seed."""
    rng = np.random.default_rng(seed)
    living = sorted(held.where)
    gone = rng.choice(living, int(rng.integers(0, 15)), replace=False).tolist()
    changed = [uri for uri in rng.choice(living, 8, replace=False).tolist() if uri not in gone]
    again = [replace(held.where[uri][0], mean=rng.normal(size=maker.DIM).astype(np.float32)) for uri in changed]
    held.change([*again, *photos_of(maker, int(rng.integers(0, 25)), seed=seed, first=1000 * seed)], gone)
