"""Reading releases: product keys in, product keys out. `open_release` is all that a recommender team imports.

Works with the base install and FAISS; neither ray nor torch is needed. Only a query by photo needs the encoder:
onnxruntime and Pillow, from the extra `run`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from .errors import ConfigError, InputError, IntegrityError, NotFound
from .index import (
    FUSIONS,
    METRICS,
    GroupHits,
    ItemTable,
    LatentArrays,
    load_faiss,
    nearest_groups,
    open_index,
    reciprocal_ranks,
)
from .index.gather import latents_table, read_rows
from .index.latents import Float32, Float64, Rows
from .index.photo import PhotoEncoder
from .index.search import RowFilter
from .release import Manifest, read_head, read_manifest
from .release.absent import Absences
from .release.format import check_store
from .schema import ITEMS_VERSION, attribute_fields
from .storage import StorageOptions, Store, open_store
from .storage.cache import FileCache

_RRF_DEPTH = 100  # items of each separate answer that rank fusion looks at, at least


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One item of an answer. score: larger is nearer; attributes: of the item's first photo, null is None."""

    item_id: str
    score: float
    attributes: dict[str, Any]


def open_release(
    store_url: str,
    *,
    channel: str = "stable",
    release_id: str | None = None,
    expect_model: str | None = None,
    options: StorageOptions | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Release:
    """Open the current release of a channel, or the one named by `release_id` (`channel` is then not looked at).

    store_url: s3://bucket/prefix or a local path. expect_model: the model_id that the caller's own vectors come from; a
    release of another model is refused. cache_dir: where files are kept, shared by all processes (about 50 GiB at most,
    those not used for longest go first); None: `$XDG_CACHE_HOME/visual-codebooks` or `~/.cache/visual-codebooks`.
    Raises NotFound when there is no such release, IntegrityError when a digest, a row count, the metric or the model
    does not fit, ConfigError when FAISS is not installed as it should be.
    """
    load_faiss()
    store = open_store(store_url, options)
    check_store(store)
    return Release(store, FileCache(cache_dir), channel=channel, release_id=release_id, expect_model=expect_model)


class Release:
    """An open release; every method may be called from several threads at once, also during `refresh`.

    A query runs on the release that was current when it began. Its vectors come from the index, which stores what it
    searches (see `Metric.recover`), so queries by item read nothing from the store; `latents` reads the parts.
    """

    def __init__(
        self,
        store: Store,
        cache: FileCache,
        *,
        channel: str,
        release_id: str | None = None,
        expect_model: str | None = None,
    ) -> None:
        """Use `open_release`."""
        self._store, self._cache = store, cache
        self._expect_model = expect_model
        self._refreshing = Lock()
        self.channel = channel if release_id is None else None  # None: pinned to one release
        if release_id is None:
            self._opened = self._open_head(channel)
        else:
            self._opened = _Opened(store, cache, read_manifest(store, release_id), expect_model)

    @property
    def manifest(self) -> Manifest:
        """The manifest of the release that queries now run on."""
        return self._opened.manifest

    @property
    def release_id(self) -> str:
        """The id of the release that queries now run on."""
        return self._opened.manifest.release_id

    @property
    def model_id(self) -> str:
        """The model whose latents the release holds."""
        return self._opened.manifest.model_id

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._opened.items)

    def __contains__(self, item_id: object) -> bool:
        """Return whether the release holds an item."""
        return isinstance(item_id, str) and self._opened.items.find(item_id) is not None

    def item_ids(self) -> list[str]:
        """Return every item's key, in order."""
        return self._opened.items.item_ids()

    def attributes(self, item_id: str) -> dict[str, Any]:
        """Return an item's attributes. Raises UnknownItem."""
        opened = self._opened
        return opened.items.attributes_of(opened.find(item_id))

    def similar(self, item_id: str, k: int = 10, *, where: Mapping[str, Any] | None = None) -> list[Neighbour]:
        """Return the k items nearest to an item, nearest first, never the item itself; ties by item_id.

        All photos of the item ask, and an item's score is its best pair of photos. where: {attribute: value}, a list
        means any, {"min": a, "max": b} a range with both ends; nulls never match. Fewer than k come back only when
        there are no more. Raises UnknownItem, saying whether the item is quarantined, delisted or was never seen, and
        ConfigError for an unknown attribute.
        """
        opened = self._opened
        item = opened.find(item_id)
        owners = np.zeros(len(opened.items.rows_of(item)), np.int64)
        return opened.nearest(opened.vectors([item]), owners, k, where, exclude=[item])[0]

    def similar_to_many(
        self,
        item_ids: Sequence[str],
        k: int = 10,
        *,
        fusion: str = "rrf",
        weights: Sequence[float] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[Neighbour]:
        """Return the k items nearest to several items together, none of these among them.

        fusion: `rrf` asks for each item apart (max(100, 10 k) neighbours) and sums weight / (60 + rank), which serves
        mixed baskets; `min` takes an item's best score to any of them; `barycentre` asks once with the weighted middle
        of the items (each the middle of its photos), for items of one kind. weights: one positive number an item;
        `min` takes none. Scores are rank sums for `rrf`, else the metric's. Raises UnknownItem, ConfigError.
        """
        opened = self._opened
        shares = _checked_basket(item_ids, fusion, weights)
        items = [opened.find(item_id) for item_id in item_ids]
        counts = [len(opened.items.rows_of(item)) for item in items]
        vectors = opened.vectors(items)
        if fusion == "rrf":
            owners = np.repeat(np.arange(len(items)), counts)
            depth = max(_RRF_DEPTH, 10 * _checked_k(k))
            answers = opened.answers(vectors, owners, depth, where, exclude=items)
            return opened.named(reciprocal_ranks(answers, shares, k))
        if fusion == "barycentre":
            vectors = opened.index.metric.barycentre(vectors, np.repeat(shares / counts, counts))
        return opened.nearest(vectors, np.zeros(len(vectors), np.int64), k, where, exclude=items)[0]

    def search(
        self, vectors: ArrayLike | LatentArrays, k: int = 10, *, where: Mapping[str, Any] | None = None
    ) -> list[list[Neighbour]]:
        """Return the k nearest items of every vector, one list a vector.

        vectors: float [q, d], rows of latents of the release's own model; one vector [d] counts as [1, d]. Vectors of
        another model give meaningless answers where the dimension happens to fit: pass `expect_model` to
        `open_release`. Raises ConfigError for another dimension or values that are not finite.
        """
        queries = vectors if isinstance(vectors, LatentArrays) else LatentArrays(mean=_matrix(vectors))
        return self._opened.nearest(queries, np.arange(len(queries)), k, where)

    def similar_photo(
        self, data: bytes, k: int = 10, *, where: Mapping[str, Any] | None = None, category: Any = None
    ) -> list[Neighbour]:
        """Return the k items nearest to a photo, given as the bytes of its file; category, errors as `encode_photo`."""
        opened = self._opened
        vectors = LatentArrays(mean=opened.encoder(data, category))
        return opened.nearest(vectors, np.zeros(1, np.int64), k, where)[0]

    def encode_photo(self, data: bytes, *, category: Any = None) -> Float32:
        """Return the mean of a photo's latents, float32 [1, d], by the release's own encoder (ONNX, on the CPU).

        category: what the photo shows, as in the catalogue's column; a model that is told categories encodes with it.
        None (not known) and a category that the model never met are encoded too; other models do not look at it.
        Raises PhotoRefused for bytes that are no usable photo, ConfigError when onnxruntime or Pillow is missing,
        IntegrityError when the stored encoder is gone or not the one that the manifest lists.
        """
        return self._opened.encoder(data, category)

    def latents(self, item_ids: Sequence[str]) -> pa.Table:
        """Return the latents of items, one row a photo, in the order asked; the parts that hold them are fetched whole.

        Columns: item_id, uri, view, mean [d], and log_var [d] or codes [h * w] where the model has them. Raises
        UnknownItem.
        """
        return self._opened.latents(item_ids)

    def refresh(self) -> bool:
        """Move to the channel's head and return whether it had moved; a pinned release never moves.

        Queries under way finish on the release they began on. On any error this release stays open as it is.
        """
        if self.channel is None:
            return False
        with self._refreshing:
            opened = self._open_head(self.channel, current=self._opened)
            moved = opened is not self._opened
            self._opened = opened  # one reference: a query sees the old release or the new one, whole
            return moved

    def _open_head(self, channel: str, current: _Opened | None = None) -> _Opened:
        head = read_head(self._store, channel)
        if head is None:
            raise NotFound(
                f"channel {channel!r} on {self._store.url} has no release yet; run `codebooks refresh`, or name "
                "another channel"
            )
        if current is not None and head.release_id == current.manifest.release_id:
            return current
        manifest = read_manifest(self._store, head.release_id, expect_sha256=head.manifest_sha256)
        return _Opened(self._store, self._cache, manifest, self._expect_model)


class _Opened:
    """One release with its files in the cache; immutable."""

    def __init__(self, store: Store, cache: FileCache, manifest: Manifest, expect_model: str | None) -> None:
        if expect_model is not None and manifest.model_id != expect_model:
            raise IntegrityError(
                f"release {manifest.release_id} holds latents of the model {manifest.model_id}, expected "
                f"{expect_model}: vectors of two models must not be compared; open a release of that model, or encode "
                "your vectors anew"
            )
        foreign = [part.name for part in manifest.parts if not part.name.startswith(f"latents/{manifest.model_id}/")]
        if foreign:
            raise IntegrityError(f"{manifest.release_id} names the part {foreign[0]}, not of its own model")
        if manifest.metric not in METRICS:
            raise InputError(
                f"release {manifest.release_id} uses the metric {manifest.metric!r}, this version knows "
                f"{', '.join(METRICS)}; upgrade visual-codebooks"
            )
        self.manifest = manifest
        self._store, self._cache = store, cache
        self._items_path = self._fetch("items")
        self.items = self._read_items()
        self.index = open_index(self._fetch("index"), manifest.metric)
        self._absences = Absences(store, manifest)
        self._check()

    def _fetch(self, role: str) -> str:
        entry = self.manifest.files.get(role)
        if entry is None:
            raise IntegrityError(f"release {self.manifest.release_id} has no file of the role {role!r}")
        return str(self._cache.fetch(self._store, entry.name, size=entry.bytes, sha256=entry.sha256))

    def _read_items(self) -> ItemTable:
        schema = pq.read_schema(self._items_path)
        version = int((schema.metadata or {}).get(b"schema", b"1"))
        if version > ITEMS_VERSION:
            raise InputError(
                f"{self.manifest.files['items'].name} has the schema version {version}, this version reads up to "
                f"{ITEMS_VERSION}; upgrade visual-codebooks"
            )
        columns = ["item_id", *(field.name for field in attribute_fields(schema))]
        return ItemTable(pq.read_table(self._items_path, columns=columns))

    def _check(self) -> None:
        """Raise IntegrityError when the files do not fit each other or the manifest."""
        release, rows = self.manifest.release_id, self.items.num_rows
        for role in ("items", "index"):
            entry = self.manifest.files[role]
            found = rows if role == "items" else self.index.rows
            if found != rows or (entry.rows is not None and entry.rows != found):
                raise IntegrityError(
                    f"{entry.name} has {found:,} rows, the manifest says {entry.rows}, the items {rows:,}: release "
                    f"{release} is damaged; roll the channel back"
                )
        if rows == 0:
            return
        sample = self.index.latents(np.linspace(0, rows - 1, num=min(rows, 64), dtype=np.int64))
        again = self.index.metric.item_features(sample)
        if sample.mean.shape[1] != self.manifest.latent_dim or not np.allclose(again, sample.mean, atol=1e-5):
            raise IntegrityError(
                f"the index of release {release} holds {sample.mean.shape[1]} features that are not those of "
                f"{self.manifest.metric!r} over {self.manifest.latent_dim} dimensions; roll the channel back"
            )

    def find(self, item_id: str) -> int:
        item = self.items.find(item_id)
        if item is None:
            raise self._absences.error(item_id)
        return item

    def vectors(self, items: Sequence[int]) -> LatentArrays:
        """Return the latents of all photos of items, in order, as the index has them."""
        return self.index.latents(np.concatenate([self.items.rows_of(item) for item in items]))

    def answers(
        self,
        queries: LatentArrays,
        owners: Rows,
        k: int,
        where: Mapping[str, Any] | None,
        exclude: Sequence[int] = (),
    ) -> list[GroupHits]:
        allowed: RowFilter | None = self.items.filter(where) if where else None
        return nearest_groups(
            self.index,
            queries,
            owners,
            _checked_k(k),
            self.items.groups,
            allowed=allowed,
            exclude=np.asarray(exclude, np.int64),
        )

    def nearest(
        self,
        queries: LatentArrays,
        owners: Rows,
        k: int,
        where: Mapping[str, Any] | None,
        exclude: Sequence[int] = (),
    ) -> list[list[Neighbour]]:
        return [self.named(answer) for answer in self.answers(queries, owners, k, where, exclude)]

    def named(self, answer: GroupHits) -> list[Neighbour]:
        pairs = zip(answer.groups.tolist(), answer.scores.tolist(), strict=True)
        return [Neighbour(self.items.item_id(item), score, self.items.attributes_of(item)) for item, score in pairs]

    def latents(self, item_ids: Sequence[str]) -> pa.Table:
        rows = [self.items.rows_of(self.find(item_id)) for item_id in item_ids]
        wanted = np.concatenate([np.empty(0, np.int64), *rows])
        places = read_rows(self._items_path, wanted, ["item_id", "uri", "view", "latents_part", "latents_row"])
        return latents_table(places, self._fetch_part, dim=self.manifest.latent_dim)

    def _fetch_part(self, name: str) -> str:
        part = next((part for part in self.manifest.parts if part.name == name), None)
        if part is None:
            raise IntegrityError(f"items of {self.manifest.release_id} names {name}, its manifest does not")
        return str(self._cache.fetch(self._store, name, size=part.bytes, sha256=part.sha256))

    @cached_property
    def encoder(self) -> PhotoEncoder:
        return PhotoEncoder(self._store, self._cache, self.manifest)


def _checked_k(k: Any) -> int:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ConfigError(f"k is {k!r}; it must be a whole number of at least 1")
    return int(k)


def _checked_basket(item_ids: Sequence[str], fusion: str, weights: Sequence[float] | None) -> Float64:
    """Return one weight an item."""
    if isinstance(item_ids, str) or len(item_ids) == 0:
        raise ConfigError(f"item_ids is {item_ids!r}; give a list of at least one item_id")
    if fusion not in FUSIONS:
        raise ConfigError(f"unknown fusion {fusion!r}; one of {', '.join(FUSIONS)}")
    if weights is None:
        return np.ones(len(item_ids))
    if fusion == "min":
        raise ConfigError("fusion 'min' takes the nearest of the items and has no use for weights; leave them out")
    shares = np.asarray(weights, np.float64)
    if shares.shape != (len(item_ids),) or not (np.isfinite(shares) & (shares > 0)).all():
        raise ConfigError(f"weights are {list(weights)!r}; give one positive number for each of {len(item_ids)} items")
    return shares


def _matrix(vectors: ArrayLike) -> Float32:
    matrix = np.asarray(vectors, np.float32)
    if matrix.ndim not in (1, 2):
        raise ConfigError(f"vectors of shape {list(matrix.shape)}; pass rows [q, d], or one vector [d]")
    return np.atleast_2d(matrix)
