"""One release with its files in the cache: what every query of the reader runs on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import ConfigError, InputError, IntegrityError, NotFound, UnknownItem
from ..forks import FreshLock, never_freed, renewed_in_children
from ..parts import read_part_rows
from ..release import Delisted, FileEntry, Manifest
from ..release.absent import Absences, Refusal
from ..release.manifest import SPACE
from ..schema import pixels_column
from ..storage import Store
from ..storage.cache import FileCache
from .filters import RowFilter
from .gather import latents_table
from .groups import GroupHits, nearest_groups
from .item_files import ItemFiles
from .items import ItemTable, stored_item_id
from .kinds import check_readable
from .latents import LatentArrays, Rows
from .metrics import metric_named
from .photo import PhotoEncoder
from .segments import index_of
from .sids import FACT, SidTable
from .space import Space, rotated_table, space_of

SID_PREFIX = "sid_prefix"  # the condition of `where` that semantic IDs answer


@dataclass(frozen=True, slots=True)
class StoredPhoto:
    """One photo of an item. token: the version of its file; pixels_part, pixels_row: where its pixels are kept, None
    where they are not."""

    uri: str
    view: int
    token: str
    pixels_part: str | None
    pixels_row: int | None


@dataclass(frozen=True, slots=True)
class _Masked:
    delisted: Delisted = field(default_factory=Delisted)
    numbers: Rows = field(default_factory=lambda: np.empty(0, np.int64))


def _opened_again(store: Store, cache: FileCache, manifest: Manifest, delisted: Delisted) -> OpenedRelease:
    opened = OpenedRelease(store, cache, manifest, None)
    opened.mask(delisted)
    return opened


class OpenedRelease:
    """An open release; immutable but for what is delisted, and safe to use from several threads and in forked children.

    A child shares the parent's tables and its mapped index; what threads of the parent served is made anew there.
    """

    def __init__(self, store: Store, cache: FileCache, manifest: Manifest, expect_model: str | None) -> None:
        """Fetch, open and check the release's files.

        Raises IntegrityError when a digest, a row count, the metric or the model does not fit, InputError for a
        release that a newer version of this library made.
        """
        if expect_model is not None and manifest.model_id != expect_model:
            raise IntegrityError(
                f"release {manifest.release_id} holds latents of the model {manifest.model_id}, expected "
                f"{expect_model}: vectors of two models must not be compared; open a release of that model, or encode "
                "your vectors anew"
            )
        try:
            metric_named(manifest.metric)
        except ConfigError as error:
            raise InputError(
                f"release {manifest.release_id} cannot be opened: {error}; upgrade visual-codebooks"
            ) from error
        check_readable(manifest.index_kind, manifest.release_id)
        self.manifest = manifest
        self._store, self._cache = store, cache
        files = manifest.files_of("items")
        self._item_files = ItemFiles((self._fetch(entry) for entry in files), files[0].name)
        self.items = ItemTable(self._item_files.described())
        self.index = index_of(manifest, self._fetch, self._item_files.columns)
        self._absences = Absences(store, cache, manifest)
        self._masked = _Masked()
        self._check()
        self._encoding, self._reading = FreshLock(), FreshLock()
        self._sids: SidTable | None = None
        self._encoder: PhotoEncoder | None = None
        renewed_in_children(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as what it was opened with; the process at the other end maps the files from its own cache."""
        return _opened_again, (self._store, self._cache, self.manifest, self._masked.delisted)

    def renew_after_fork(self) -> None:
        """Forget the encoder, whose session's threads stay with the parent; the next query by photo makes its own."""
        if self._encoder is not None:
            never_freed(self._encoder)
            self._encoder = None

    def _fetch(self, entry: FileEntry) -> str:
        return str(self._cache.fetch(self._store, entry.name, size=entry.bytes, sha256=entry.sha256))

    def _check(self) -> None:
        """Raise IntegrityError when the files do not fit each other or the manifest."""
        release, rows = self.manifest.release_id, self.items.num_rows
        # Segments hold dead rows too, and were each held against its own entry.
        files = () if self.manifest.segmented else ("index", "features")
        for role in ("items", *(role for role in files if role in ("index", *self.manifest.files))):
            entries = self.manifest.files_of(role)
            said = None if any(entry.rows is None for entry in entries) else sum(entry.rows or 0 for entry in entries)
            found = rows if role == "items" else self.index.rows
            if found != rows or (said is not None and said != found):
                raise IntegrityError(
                    f"{entries[0].name} has {found:,} rows, the manifest says {said}, the items {rows:,}: release "
                    f"{release} is damaged; roll the channel back"
                )
        if rows == 0:
            return
        chosen = np.linspace(0, rows - 1, num=min(rows, 64), dtype=np.int64)
        stored = self.index.features_of(chosen)
        fits = self.index.metric.width is not None or self.index.latent_dim == self.manifest.latent_dim
        again = self.index.metric.item_features(self.index.latents(chosen)) if fits else stored
        if not fits or again.shape != stored.shape or not np.allclose(again, stored, rtol=1e-4, atol=1e-5):
            raise IntegrityError(
                f"the index of release {release} holds {stored.shape[1]} features that are not those of "
                f"{self.manifest.metric!r} over {self.manifest.latent_dim} dimensions; roll the channel back"
            )

    def mask(self, delisted: Delisted) -> None:
        """Show no item that is delisted, from the next question on, and those again that no longer are."""
        if delisted is self._masked.delisted:
            return
        found = (self.items.find(item_id) for item_id in delisted.why)
        numbers = np.array(sorted(item for item in found if item is not None), np.int64)
        self._masked = _Masked(delisted, numbers)  # one reference: a query sees all of it or nothing

    @property
    def masked(self) -> Rows:
        """The numbers of the release's items that are delisted, in order."""
        return self._masked.numbers

    def shown(self, item_ids: Sequence[str]) -> list[str]:
        """Return those of some item_ids that are not delisted, in order."""
        why = self._masked.delisted.why
        return [item_id for item_id in item_ids if item_id not in why]

    def holds(self, item_id: Any) -> bool:
        """Return whether the release holds an item and shows it. Raises ConfigError for what is no key."""
        text = stored_item_id(item_id)
        return text not in self._masked.delisted.why and self.items.find(text) is not None

    def find(self, item_id: Any) -> int:
        """Return an item's number. Raises UnknownItem, ConfigError for what is no key."""
        text = stored_item_id(item_id)
        item = self.items.find(text)
        if item is None:
            raise self._absences.error(text)
        why = self._masked.delisted.why.get(text)
        if why is not None:
            raise UnknownItem(f"item {text!r} is delisted {why}; `codebooks delist --undo` shows it again")
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
        *,
        exactly: bool = False,
    ) -> list[GroupHits]:
        """Return the k items nearest to every owner of queries, as numbers; see `nearest_groups`.

        exactly: score every item that may answer, whatever the index is.
        """
        index = self.index.exactly() if exactly else self.index
        allowed = self._allowed(where) if where else None
        left_out = np.concatenate([np.asarray(exclude, np.int64), self._masked.numbers])
        return nearest_groups(index, queries, owners, k, self.items.groups, allowed=allowed, exclude=left_out)

    def scores(self, queries: LatentArrays, owners: Rows, items: Sequence[int]) -> NDArray[np.float64]:
        """Return the exact score of each owner of queries with each item, float64 [owners, items]: of the best pair."""
        rows = [self.items.rows_of(item) for item in items]
        firsts = np.cumsum([0, *(len(own) for own in rows[:-1])])
        pairs = self.index.metric.exact(queries, self.index.latents(np.concatenate(rows)))
        best = np.full((int(owners.max()) + 1, len(items)), -np.inf)
        np.maximum.at(best, owners, np.maximum.reduceat(pairs, firsts, axis=1))
        return best

    def _allowed(self, where: Mapping[str, Any]) -> RowFilter:
        """Return the rows that fit `where`; `sid_prefix` asks for the first codes, where no attribute has this name."""
        if SID_PREFIX not in where or SID_PREFIX in self.items.attributes.names:
            return self.items.filter(where)
        inside = np.zeros(len(self.items), np.bool_)
        inside[self.sids().items(where[SID_PREFIX])] = True
        others = {name: condition for name, condition in where.items() if name != SID_PREFIX}
        return RowFilter(inside[self.items.groups.numbers] & self.items.fitting(others))

    def sids(self) -> SidTable:
        """Return the semantic IDs of all items, read at the first call. Raises ConfigError where there are none."""
        with self._reading:
            if self._sids is None:
                paths = [self._fetch(entry) for entry in self._table("semantic_ids")]
                self._sids = SidTable(paths, self.manifest.inputs[FACT], self.items.item_ids())
            return self._sids

    def table(self, role: str) -> pa.Table:
        """Return one of the release's further tables (`vectors`, `sid_map`, ...). Raises ConfigError without it."""
        paths = [self._fetch(entry) for entry in self._table(role)]
        return pa.concat_tables(pq.read_table(pa.memory_map(path)) for path in paths)

    def _table(self, role: str) -> tuple[FileEntry, ...]:
        if role not in self.manifest.files:
            asked = "semantic_ids" if role.startswith(("sid_", "semantic")) else f"tables.{role}"
            raise ConfigError(
                f"release {self.manifest.release_id} has no table {role}; whoever runs the refresh switches it on with "
                f"{asked}"
            )
        return self.manifest.files[role]

    def named(self, answer: GroupHits) -> Iterator[tuple[str, float, dict[str, Any]]]:
        """Yield (item_id, score, attributes) of an answer's items."""
        for item, score in zip(answer.groups.tolist(), answer.scores.tolist(), strict=True):
            yield self.items.item_id(item), score, self.items.attributes_of(item)

    def latents(self, item_ids: Sequence[Any]) -> pa.Table:
        """Return the latents of items, one row a photo, in the order asked. Raises UnknownItem, ConfigError.

        Where the release is rotated into the space of another bundle, the means are too, and there are no variances.
        """
        rows = [self.items.rows_of(self.find(item_id)) for item_id in item_ids]
        wanted = np.concatenate([np.empty(0, np.int64), *rows])
        columns = ["item_id", "uri", "view", "latents_part", "latents_row"]
        places = self._item_files.rows(wanted, columns)
        found, space = latents_table(places, self._fetch_part, dim=self.manifest.latent_dim), self._space()
        return found if space is None else rotated_table(found, space)

    def _space(self) -> Space | None:
        """Return the rotation that the release's vectors have been through, None where they are the model's own."""
        if SPACE not in self.manifest.files:
            return None
        entry = self.manifest.file(SPACE)
        return space_of(Path(self._fetch(entry)).read_bytes(), entry.name, self.manifest.latent_dim)

    def photos(self, item_id: Any) -> list[StoredPhoto]:
        """Return an item's photos, in the order of its rows. Raises UnknownItem, ConfigError."""
        columns = [field.name for field in fields(StoredPhoto)]
        found = self._item_files.rows(self.items.rows_of(self.find(item_id)), columns)
        return [StoredPhoto(**row) for row in found.to_pylist()]

    def rows(self, wanted: Rows, columns: Sequence[str]) -> pa.Table:
        """Return these rows of the items table, in this order."""
        return self._item_files.rows(wanted, columns)

    def pixels(self, item_id: Any) -> NDArray[np.uint8] | None:
        """Return the first of an item's photos that is kept, uint8 RGB [size, size, 3]. Raises UnknownItem."""
        pictures = (self.pixels_of(photo) for photo in self.photos(item_id))
        return next((picture for picture in pictures if picture is not None), None)

    def pixels_of(self, photo: StoredPhoto) -> NDArray[np.uint8] | None:
        """Return a photo as the model sees it, uint8 RGB [size, size, 3]; None where its pixels are not kept."""
        if photo.pixels_part is None or photo.pixels_row is None:
            return None
        try:
            row = np.array([photo.pixels_row], np.int64)
            kept = read_part_rows(self._store, photo.pixels_part, row, [pixels_column(0)])
        except NotFound:  # pixels live by age, and not as long as releases do
            return None
        data = np.frombuffer(kept[pixels_column(0)][0].as_py() or b"", np.uint8)
        size = math.isqrt(len(data) // 3)
        return data.reshape(size, size, 3) if size else None

    def refusals(self, item_id: Any) -> list[Refusal]:
        """Return which photos of an item this release and those before it had in quarantine, newest first."""
        return self._absences.refusals(stored_item_id(item_id))

    def _fetch_part(self, name: str) -> str:
        part = next((part for part in self.manifest.parts if part.name == name), None)
        if part is None:
            raise IntegrityError(f"items of {self.manifest.release_id} names {name}, its manifest does not")
        return str(self._cache.fetch(self._store, name, size=part.bytes, sha256=part.sha256))

    def encoder(self) -> PhotoEncoder:
        """Return the release's own encoder of photos; errors as `PhotoEncoder`."""
        with self._encoding:
            if self._encoder is None:
                codes = "codes" in self.index.metric.needs
                self._encoder = PhotoEncoder(self._store, self._cache, self.manifest, codes=codes, space=self._space())
            return self._encoder
