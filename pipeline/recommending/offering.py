"""From events and a release to three tables: customer -> items, customer -> customers, item -> items."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..errors import InputError
from ..index.opened import OpenedRelease
from ..keys import SHORT, key_of
from ..release.beside import recommend_folder
from ..storage import Store
from .answered import Answered
from .baskets import baskets_of
from .config import RecommendConfig
from .dealing import Unknown, deal
from .events import EventTable
from .fellows import ProfileFile, Profiles, fellows, profiles_of
from .fusing import offers
from .lists import Asking, NeighbourLists, find_lists
from .spreading import Spread
from .tables import Counts, Summary, Table, TableFile, TableWriter, check_same, read_summary, write_summary

_SPARE = 64  # items of each list beyond those that are fused: as many a customer may have had of them
_TEXT = pa.large_string()
_ENDS: dict[Table, tuple[str, str]] = {
    "customer_items": ("customer", "item_id"),
    "customer_customers": ("customer", "other"),
    "item_items": ("item_id", "other"),
}
_SCHEMAS: dict[Table, pa.Schema] = {
    table: pa.schema([(who, pa.string()), ("rank", pa.int32()), (what, pa.string()), ("score", pa.float64())])
    for table, (who, what) in _ENDS.items()
}


@dataclass(frozen=True, slots=True)
class Recommended:
    """What was written, or found there already. place: the folder's URL."""

    summary: Summary
    place: str
    done_before: bool


def default_folder(release_id: str, key: str) -> str:
    """Return the folder, on the release's own store, of what was asked by this key."""
    return recommend_folder(release_id, key[:SHORT])


def recommend(
    release: OpenedRelease, events: EventTable, config: RecommendConfig, store: Store, out: Store | None = None
) -> Recommended:
    """Write the three tables and their summary, which is written last; the same question again finds them.

    store: the release's own; out: a folder that holds nothing else, else one beside the release (`default_folder`).
    What is held at a time does not grow with the events: they are dealt into buckets on the disk for temporary files.
    Ranges of items, buckets and shards of customers are Ray tasks where this process is connected to Ray.
    Raises InputError for events that cannot be read or of which none is of an item of the release, ConfigError for a
    folder that holds other recommendations.
    """
    key = _key(release, events, config)
    target, folder = (out, "") if out is not None else (store, default_folder(release.manifest.release_id, key))
    place = f"{target.url.rstrip('/')}/{folder}".rstrip("/")
    found = read_summary(target, folder)
    if found is not None:
        return Recommended(check_same(found, key, place), place, done_before=True)
    with tempfile.TemporaryDirectory(prefix="codebooks-recommend-") as scratch:
        spread = Spread(store, f"recommend-{key[:SHORT]}")
        work = _Work(release, events, config, target, folder, Path(scratch), spread)
        counts, files = work.done()
    summary = Summary(
        key=key,
        release_id=release.manifest.release_id,
        model_id=release.manifest.model_id,
        metric=release.manifest.metric,
        events=events.uri,
        settings=config,
        counts=counts,
        files=tuple(files),
    )
    return Recommended(write_summary(target, folder, summary), place, done_before=False)


def _key(release: OpenedRelease, events: EventTable, config: RecommendConfig) -> str:
    asked = [[file.uri, file.token] for file in events.files]
    return key_of([1, release.manifest.release_id, asked, config.model_dump()])


@dataclass(frozen=True, slots=True)
class _Work:
    """One run over all events; its files lie in `scratch` until it ends."""

    release: OpenedRelease
    events: EventTable
    config: RecommendConfig
    target: Store
    folder: str
    scratch: Path
    spread: Spread

    def done(self) -> tuple[Counts, list[TableFile]]:
        """Write all tables; return what became of the events, and the files."""
        item_ids = pa.array(self.release.items.item_ids(), _TEXT)
        dealt = deal(self.events, item_ids, self.scratch)
        self._check(dealt.unknown)
        lists, item_files = self._items(item_ids, dealt.asked)
        writer = self._writer("customer_items")
        profiles = ProfileFile(self.scratch)
        names: list[pa.Array] = [pa.array([], _TEXT)]
        without = repeated = trimmed = 0
        shared = _Offering(self.release, lists, self.config, len(item_ids))
        for found in self.spread(_offered, shared, dealt.tables(), len(dealt.buckets)):
            without += found.without
            repeated, trimmed = repeated + found.repeated, trimmed + found.trimmed
            names.append(found.customers)
            writer.add(_rows(found.offers, found.customers, item_ids, "customer_items"))
            profiles.append(found.profiles)
        customers = pa.concat_arrays(names)
        alone, fellow_files = self._fellows(profiles, customers, len(item_ids))
        unknown = dealt.unknown
        counts = Counts(
            events=self.events.rows,
            repeated=repeated,
            unknown_events=unknown.rows,
            unknown_items=len(unknown.items),
            unknown_first=tuple(unknown.first),
            customers=len(customers) - without,
            customers_without=without,
            trimmed=trimmed,
            alone=alone - without,
        )
        return counts, [*writer.close(), *fellow_files, *item_files]

    def _check(self, unknown: Unknown) -> None:
        if self.events.rows == 0:
            raise InputError(f"{self.events.uri} holds no events")
        if unknown.rows == self.events.rows:
            raise InputError(
                f"none of the {unknown.rows:,} events in {self.events.uri} is of an item of "
                f"{self.release.manifest.release_id}; they name for example {', '.join(map(repr, unknown.first))}: "
                "name the column that holds the catalogue's item_id with --item"
            )

    def _items(self, item_ids: pa.Array, asked: np.ndarray) -> tuple[NeighbourLists, list[TableFile]]:
        writer = self._writer("item_items")

        def answered(answers: Answered) -> None:
            writer.add(_rows(answers, item_ids, item_ids, "item_items"))

        asking = Asking(self.release, asked, self.config.depth + _SPARE, self.config.top)
        lists = find_lists(asking, self.scratch / "lists.i32", answered, self.spread)
        return lists, writer.close()

    def _fellows(self, profiles: ProfileFile, customers: pa.Array, num_items: int) -> tuple[int, list[TableFile]]:
        """Return how many customers nobody is like, and the files."""
        writer, with_fellows = self._writer("customer_customers"), 0
        for found in fellows(profiles.mapped(), num_items, self.config.top, self.spread):
            with_fellows += len(np.unique(found.who))
            writer.add(_rows(found, customers, customers, "customer_customers"))
        return len(customers) - with_fellows, writer.close()

    def _writer(self, table: Table) -> TableWriter:
        return TableWriter(self.target, self.folder, table, _SCHEMAS[table])


@dataclass(frozen=True, slots=True)
class _Offering:
    """What buckets of customers share."""

    release: OpenedRelease
    lists: NeighbourLists
    config: RecommendConfig
    num_items: int


@dataclass(frozen=True, slots=True)
class _Offered:
    """What one bucket gives: its customers, what they are offered and stand for, and what `Counts` says of them."""

    customers: pa.Array
    offers: Answered
    profiles: Profiles
    without: int
    repeated: int
    trimmed: int


def _offered(shared: _Offering, events: pa.Table) -> _Offered:
    config = shared.config
    baskets = baskets_of(events, shared.num_items, half_life_s=config.half_life_s, most_items=config.most_items)
    return _Offered(
        customers=pa.array(baskets.customers, _TEXT),
        offers=offers(shared.release, shared.lists, baskets, config),
        profiles=profiles_of(shared.lists, baskets),
        without=int(np.count_nonzero(np.diff(baskets.starts) == 0)),
        repeated=baskets.repeated,
        trimmed=baskets.trimmed,
    )


def _rows(answers: Answered, who: pa.Array, what: pa.Array, table: Table) -> pa.Table:
    columns = [
        who.take(pa.array(answers.who)),
        pa.array(answers.places),
        what.take(pa.array(answers.what)),
        pa.array(answers.scores),
    ]
    return pa.table(columns, names=_SCHEMAS[table].names)
