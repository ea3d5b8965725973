"""The table `neighbours` from night to night: what stands of the parent's, and that it is what a full one is."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import mapping
from pipeline.index import Grouping, IndexConfig, build_index, gather_latents, nearest_groups, planner
from pipeline.keys import digest_of
from pipeline.release import Manifest
from pipeline.release.manifest import FileEntry
from pipeline.schema import CHANGES
from pipeline.storage import MemoryStore
from pipeline.tables import Night, neighbours, standing
from pipeline.tables.neighbours import ANEW, MOVED, neighbour_tables
from pipeline.tables.standing import BEYOND_ROLE

K, MODEL = 5, "ab" * 32


@dataclass
class Nights:
    """Nights of a catalogue on a store in memory. photos: by uri, of which each has its part and row.

    An index is built once after each `change`.
    """

    maker: Any
    metric: str = "cosine"
    kind: str = "flat"
    cells: int | None = None  # that are looked into
    store: MemoryStore = field(default_factory=lambda: MemoryStore(f"memory://{uuid4()}"))
    photos: dict[str, Any] = field(default_factory=dict)
    parent: Manifest | None = None
    count: int = 0
    made: tuple[int, Any] = (0, None)  # the last night's index

    def change(self, generator: np.random.Generator, ids: list[int], gone: list[int] = []) -> None:  # noqa: B006
        """Give items new photos, one to three each, on a coarse grid so that scores tie; forget others."""
        self.count += 1
        self.photos = {uri: held for uri, held in self.photos.items() if int(held[0].item_id[4:]) not in [*ids, *gone]}
        put = []
        for number in ids:
            for view in range(generator.integers(1, 4)):
                mean = generator.integers(-2, 3, self.maker.DIM).astype(np.float32)
                spread = generator.integers(-1, 2, self.maker.DIM).astype(np.float32)
                uri = f"{number}/{view}/{self.count}"
                put.append(self.maker.Photo(f"sku-{number:03d}", uri, view, mean, log_var=spread))
        parts = self.maker.write_parts(self.store, put, MODEL, f"n{self.count}")
        for at, photo in enumerate(put):
            self.photos[photo.uri] = photo, parts[at // self.maker.PART_ROWS].name, at % self.maker.PART_ROWS
        self.changed = {f"sku-{number:03d}" for number in [*ids, *gone]}

    def night(self) -> tuple[Night, Any]:
        held = sorted(self.photos.values(), key=lambda one: (one[0].item_id, one[0].view))
        columns = {
            "item_id": [one[0].item_id for one in held],
            "uri": [one[0].uri for one in held],
            "latents_part": [one[1] for one in held],
            "latents_row": pa.array([one[2] for one in held], pa.int32()),
        }
        items = pa.table(columns)
        config = IndexConfig(metric=self.metric, kind=self.kind, queries=50)
        latents = gather_latents(self.store, items, columns=config.needs)
        if self.made[0] != self.count:
            self.made = self.count, build_index(latents, config)
        built = self.made[1]
        if self.cells is not None:
            built.index.planner.set_effort("nprobe", self.cells)
        changes = pa.table({"item_id": sorted(self.changed)}, schema=pa.schema([CHANGES.field("item_id")]))
        changes = changes.append_column("change", pa.array(["changed"] * len(changes), pa.string()))
        night = Night("run", MODEL, built.index.metric.name, items, latents, built.index, changes, self.parent)
        return night, built

    def publish(self) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """Make the tables, keep them as the next night's parent, and return the rows and the measures."""
        night, built = self.night()
        made = neighbour_tables(self.store, night, K)
        files, held = {}, {}
        items = pa.BufferOutputStream()
        pq.write_table(night.items, items)
        held["items"] = [(items.getvalue().to_pybytes(), night.items.num_rows)]
        held |= {role: [(file.data, file.rows) for file in given] for role, given in made.files.items()}
        for role, given in held.items():
            entries = []
            for data, rows in given:
                name = f"releases/n{self.count}/{role}-{digest_of(data)[:12]}.parquet"
                self.store.put_if_absent(name, data)
                entries.append(FileEntry(name=name, bytes=len(data), sha256=digest_of(data), rows=rows))
            files[role] = tuple(entries)
        self.parent = Manifest.model_construct(
            release_id=f"n{self.count}", files=files, model_id=MODEL, metric=night.metric, index_kind=built.kind,
            config={"tables": {"neighbours": K}}, format=2, parts=(), latent_dim=self.maker.DIM,
        )  # fmt: skip
        tables = [pq.read_table(pa.BufferReader(data)) for data, _ in held["neighbours"]]
        return pa.concat_tables(tables).to_pylist(), made.measures

    def full(self) -> list[dict[str, Any]]:
        night, _ = self.night()
        made = neighbour_tables(self.store, Night(**{**_fields(night), "parent": None}), K)
        return pa.concat_tables(
            [pq.read_table(pa.BufferReader(file.data)) for file in made.files["neighbours"]]
        ).to_pylist()


def _fields(night: Night) -> dict[str, Any]:
    return {name: getattr(night, name) for name in Night.__slots__}


def churned(nights: Nights, seed: int, count: int = 3) -> list[tuple[list[Any], list[Any], dict[str, float]]]:
    """Return of each of some nights of a random catalogue: the table, the full one, the measures."""
    generator = np.random.default_rng(seed)
    living = set(range(0, 80, 2))
    nights.change(generator, sorted(living))
    found = [(nights.publish()[0], nights.full(), {})]
    for _ in range(count):
        there = sorted(living)
        gone = generator.choice(there, generator.integers(0, 6), replace=False).tolist()
        others = sorted(set(there) - set(gone))
        changed = generator.choice(others, generator.integers(0, 4), replace=False).tolist()
        added = generator.choice(sorted(set(range(100)) - living), generator.integers(0, 6), replace=False).tolist()
        nights.change(generator, sorted({*changed, *added}), gone)
        living = living - set(gone) | set(added)
        rows, measures = nights.publish()
        found.append((rows, nights.full(), measures))
    return found


def by_hand(nights: Nights) -> dict[str, dict[str, float]]:
    """Return every item's score with every other, in float64, by the formula: of the best pair of photos."""
    photos = [one[0] for one in nights.photos.values()]
    mean, spread = (np.stack([getattr(one, name) for one in photos]).astype(np.float64) for name in ("mean", "log_var"))
    m, n, s, t = mean[:, None], mean[None], spread[:, None], spread[None]
    if nights.metric == "l2":
        scores = -np.sqrt(((m - n) ** 2).sum(-1))
    elif nights.metric == "cosine":
        lengths = np.linalg.norm(mean, axis=1)
        both = lengths[:, None] * lengths[None]
        scores = np.divide((m * n).sum(-1), both, out=np.zeros_like(both), where=both > 0)
    else:
        scores = -0.5 * (t - s + (np.exp(s) + (m - n) ** 2) / np.exp(t) - 1).sum(-1)
    best: dict[str, dict[str, float]] = {}
    for left, row in zip(photos, scores.tolist(), strict=True):
        of = best.setdefault(left.item_id, {})
        for right, score in zip(photos, row, strict=True):
            if right.item_id != left.item_id:
                of[right.item_id] = max(score, of.get(right.item_id, -np.inf))
    return best


def wrong(nights: Nights, rows: list[dict[str, Any]]) -> list[str]:
    """Return the items whose list is not what it is by hand: each score that of its pair, and none better left out."""
    lists: dict[str, list[Any]] = {}
    for row in rows:
        lists.setdefault(row["item_id"], []).append(row)
    scores = by_hand(nights)
    assert lists.keys() == scores.keys()
    found = []
    for item, own in lists.items():
        said = [row["score"] for row in own]
        pairs = [scores[item][row["neighbour_id"]] for row in own]
        best = sorted(scores[item].values(), reverse=True)[:K]
        if not (np.allclose(said, pairs, atol=1e-9) and len(said) == len(best) and np.allclose(said, best, atol=1e-9)):
            found.append(item)
    return found


def plain(rows: list[dict[str, Any]]) -> list[Any]:
    return [(row["item_id"], row["rank"], row["neighbour_id"]) for row in rows]


@pytest.mark.parametrize(("metric", "seed"), [("cosine", 1), ("l2", 2), ("kl", 3)])
@pytest.mark.slow
def test_what_stands_and_what_enters_is_the_full_table(
    maker: Any, monkeypatch: pytest.MonkeyPatch, metric: str, seed: int
) -> None:
    monkeypatch.setattr(neighbours, "FILE_ROWS", 7 * K)  # seven items a file
    monkeypatch.setattr(standing, "_COMPARED", 9)
    monkeypatch.setattr(standing, "_VALUES", 40)
    for module in (neighbours, standing):
        monkeypatch.setattr(module, "BEYOND", 3)
    nights = churned(Nights(maker, metric), seed)
    for rows, full, _ in nights:
        assert plain(rows) == plain(full)
        np.testing.assert_allclose([row["score"] for row in rows], [row["score"] for row in full], rtol=1e-12)
    shares = [measures[ANEW] for _, _, measures in nights[1:]]
    assert max(shares) < 0.7
    assert sum(shares) > 0


@pytest.mark.parametrize("metric", ["cosine", "l2", "kl"])
def test_lists_that_were_carried_are_those_by_hand(maker: Any, monkeypatch: pytest.MonkeyPatch, metric: str) -> None:
    nights, generator = Nights(maker, metric), np.random.default_rng(12)
    nights.change(generator, list(range(40)))
    assert not wrong(nights, nights.publish()[0])
    nights.change(generator, [3, 40, 41], [5, 6])
    parent = nights.parent
    rows, said = nights.publish()
    assert not wrong(nights, rows)
    assert 3 / 40 <= said[ANEW] < 0.5
    nights.parent = parent
    monkeypatch.setattr(standing, "_entered", lambda *_: [])
    assert len(wrong(nights, nights.publish()[0])) > 1, "negative control: nothing new enters"


def answers(nights: Nights) -> list[tuple[str, int, str]]:
    """Return what tonight's index answers of every item, as the reader asks it."""
    night, _ = nights.night()
    ids = night.items["item_id"].to_pylist()
    names = sorted(set(ids))
    numbers = np.array([names.index(one) for one in ids])
    found = []
    for number, name in enumerate(names):
        rows = np.flatnonzero(numbers == number)
        asked = night.index.latents(rows), np.zeros(len(rows), np.int64), K, Grouping(numbers)
        (hits,) = nearest_groups(night.index, *asked, exclude=np.array([number]))
        found += [(name, rank, names[group]) for rank, group in enumerate(hits.groups.tolist(), 1)]
    return found


@pytest.mark.parametrize("metric", ["cosine", "l2", "kl"])
@pytest.mark.slow
def test_the_table_of_an_index_that_misses_some_is_what_it_answers_every_night(
    maker: Any, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    monkeypatch.setattr(planner, "_SCAN_ROWS", 0)  # so that so few rows are not scored one by one
    nights, generator = Nights(maker, metric, "ivf_sq8", cells=1), np.random.default_rng(13)
    nights.change(generator, list(range(150)))
    nights.publish()
    nights.change(generator, [3, 150, 151], [5, 6])
    parent = nights.parent
    rows, said = nights.publish()
    assert plain(rows) == answers(nights)
    assert wrong(nights, rows), "it does miss some"
    assert said[ANEW] == 1.0
    assert 0.0 < said[MOVED] < 1.0
    assert nights.parent is not None
    assert BEYOND_ROLE not in nights.parent.files
    nights.parent = parent
    for module in (neighbours, standing):
        monkeypatch.setattr(module, "exact_lists", lambda *_: True)
    carried, said = nights.publish()
    assert said == {}, "an exact index follows another kind: nothing is kept"
    nights.parent = parent.model_copy(update={"index_kind": "flat"}) if parent else None
    carried, said = nights.publish()
    assert said[ANEW] < 0.5
    assert plain(carried) != answers(nights), "negative control: its lists kept, and what is new put in exactly"


def test_texts_are_looked_up_once_a_file_however_many_row_groups_it_has(
    maker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "FILE_ROWS", 20 * K)
    monkeypatch.setattr(neighbours, "_GROUP_ROWS", 7)  # each with a dictionary of its own
    nights, generator = Nights(maker), np.random.default_rng(14)
    nights.change(generator, list(range(40)))
    nights.publish()
    nights.change(generator, [3], [4])
    asked, look_up = [], standing.places_among

    def counted(texts: pa.ChunkedArray, values: pa.ChunkedArray) -> Any:
        asked.append(len(texts))
        return look_up(texts, values)

    monkeypatch.setattr(standing, "places_among", counted)
    rows, said = nights.publish()
    assert plain(rows) == plain(nights.full())
    assert said[ANEW] < 0.5
    assert asked == [40, 20, 40, 20, 40], "which items stand; of two files the owners, among their own, and the entries"


def test_moved_is_the_share_of_standing_lists_that_are_others(maker: Any) -> None:
    nights, generator = Nights(maker), np.random.default_rng(7)
    nights.change(generator, list(range(30)))
    before, said = nights.publish()
    assert said == {}
    nights.change(generator, [3, 40], [5])
    after, said = nights.publish()
    lists = [{}, {}]  # type: list[dict[str, list[str]]]
    for rows, found in zip((before, after), lists, strict=True):
        for row in rows:
            found.setdefault(row["item_id"], []).append(row["neighbour_id"])
    stood = sorted((lists[0].keys() & lists[1].keys()) - nights.changed)
    assert said[MOVED] == sum(lists[0][key] != lists[1][key] for key in stood) / len(stood)
    assert said[ANEW] == 2 / 30


@pytest.mark.usefixtures("walked")
def test_where_no_list_is_kept_moved_is_of_a_few_ranges(maker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "FILE_ROWS", 5 * K)
    monkeypatch.setattr(neighbours, "_COMPARED_FILES", 3)
    nights, generator = Nights(maker, kind="hnsw"), np.random.default_rng(7)
    nights.change(generator, list(range(40)))
    before, _ = nights.publish()
    nights.change(generator, [3, 12, 33], [])
    after, said = nights.publish()
    assert said[ANEW] == 1.0
    lists = [{}, {}]  # type: list[dict[str, list[str]]]
    for rows, found in zip((before, after), lists, strict=True):
        for row in rows:
            found.setdefault(row["item_id"], []).append(row["neighbour_id"])
    of_all, of_some = (
        [lists[0][key] != lists[1][key] for number, key in enumerate(lists[1]) if number // 5 in some and
         key not in nights.changed]
        for some in (range(8), (0, 3, 6))
    )  # fmt: skip
    assert said[MOVED] == sum(of_some) / len(of_some)
    assert said[MOVED] != sum(of_all) / len(of_all), "negative control"


@pytest.mark.parametrize(
    "other",
    [{"model_id": "other"}, {"metric": "l2"}, {"index_kind": "hnsw"}, {"config": {"tables": {"neighbours": 4}}}],
)
def test_another_model_metric_kind_or_length_makes_every_list_anew(maker: Any, other: dict[str, Any]) -> None:
    nights, generator = Nights(maker), np.random.default_rng(8)
    nights.change(generator, list(range(12)))
    nights.publish()
    assert nights.parent is not None
    nights.parent = nights.parent.model_copy(update=other)
    nights.change(generator, [3])
    assert nights.publish()[1] == {}


@pytest.mark.parametrize("rows", [7, 1000])
def test_latents_of_unchanged_items_that_lie_elsewhere_are_compared(
    maker: Any, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(standing, "_COMPARED", rows)  # compared at a time
    nights, generator = Nights(maker), np.random.default_rng(9)
    nights.change(generator, list(range(20)))
    nights.publish()
    held = sorted(nights.photos.values(), key=lambda one: one[0].uri)
    # Rewritten parts: the first item's numbers are others, which no change tells of; all others are copies.
    copies = [replace(one[0], mean=one[0].mean + (one[0].item_id == "sku-000")) for one in held]
    parts = maker.write_parts(nights.store, copies, MODEL, "copied")
    nights.photos = {
        photo.uri: (photo, parts[at // maker.PART_ROWS].name, at % maker.PART_ROWS) for at, photo in enumerate(copies)
    }
    nights.changed, nights.count = set(), 2
    rows, said = nights.publish()
    assert said[ANEW] == 1 / 20
    assert plain(rows) == plain(nights.full())


def test_a_parent_without_entries_beyond_its_table_is_gone_on_with(maker: Any) -> None:
    nights, generator = Nights(maker), np.random.default_rng(10)
    nights.change(generator, list(range(40)))
    nights.publish()
    assert nights.parent is not None
    files = {role: entries for role, entries in nights.parent.files.items() if role != BEYOND_ROLE}
    nights.parent = nights.parent.model_copy(update={"files": files})
    nights.change(generator, [3], [4])
    rows, said = nights.publish()
    assert plain(rows) == plain(nights.full())
    assert 2 / 39 < said[ANEW] < 0.7  # those that lost one, too


@pytest.mark.parametrize(("kind", "metric"), [("flat", "kl"), ("hnsw", "l2"), ("flat_codes", "cosine")])
def test_what_ranges_share_can_travel_to_another_process(
    maker: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, metric: str
) -> None:
    monkeypatch.setattr(neighbours, "FILE_ROWS", 7 * K)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where a store that is no disk has its files mapped
    nights, generator = Nights(maker, metric, kind), np.random.default_rng(11)
    nights.change(generator, list(range(30)))
    nights.publish()
    nights.change(generator, [3], [4])
    here = nights.full()

    def sent(function: Any, shared: Any, tasks: Any, **_: Any) -> Any:
        laid = mapping.Laid.of(shared, mapping.Scratch(nights.store, "runs/run/scratch/here/"), pickle.dumps)
        return [function(laid.opened(), task) for task in tasks]

    monkeypatch.setattr(mapping, "_PACKED", 64)
    monkeypatch.setattr(neighbours, "mapped_in_turn", sent)
    assert nights.full() == here
    assert plain(nights.publish()[0]) == plain(here)


def test_without_what_enters_it_is_another(maker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "_entered", lambda *_: [])
    assert any(plain(rows) != plain(full) for rows, full, _ in churned(Nights(maker), 1))
