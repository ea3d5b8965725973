"""Tables by ranges of items: the same bytes here and as tasks that travel, and the rows of one whole table."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import mapping
from pipeline.catalogue import changes_between
from pipeline.errors import IntegrityError
from pipeline.index import IndexConfig, LatentArrays, build_index, gather_latents, nightly_index
from pipeline.index import space as space_module
from pipeline.index.space import Space
from pipeline.keys import digest_of
from pipeline.mapping import Kept, Laid, Scratch, mapped_file
from pipeline.release import FileEntry, Manifest, ReleaseFile
from pipeline.release import tables as release_tables
from pipeline.schema import changes_schema
from pipeline.storage import Store, open_store
from pipeline.storage.cache import FileCache
from pipeline.tables import (
    Makers,
    Night,
    SemanticIdsConfig,
    TablesConfig,
    changes,
    further_tables,
    neighbours,
    night,
    night_changes,
    vectors,
)
from pipeline.tables import codebook_table as codebook_module
from pipeline.tables.codebook_table import CodebookFound, CodeLevel, codebook_table
from pipeline.tables.config import CodebookTableConfig
from pipeline.tables.neighbours import neighbour_tables

K, MODEL = 3, "ab" * 32
Travel = Callable[[], None]


def roundtrip(given: Any) -> Any:
    return pickle.loads(pickle.dumps(given))


@pytest.fixture
def travel(monkeypatch: pytest.MonkeyPatch) -> Travel:
    """Call to have ranges done as tasks are, everything packed on its way, in this process."""

    def in_turn(bound: Any, tasks: Any, **_: Any) -> Iterator[Any]:
        mapping._OPENED.clear()
        for task in tasks:
            yield roundtrip(roundtrip(bound)(roundtrip(task)))

    def of_run(store: Store, run: str, tasks: int) -> Scratch | None:
        return Scratch(store, f"runs/{run}/scratch/here/") if tasks > 1 else None

    def on() -> None:
        monkeypatch.setattr(mapping, "_in_turn", in_turn)
        monkeypatch.setattr(mapping, "_connected", lambda: None)
        monkeypatch.setattr(Scratch, "of_run", of_run)
        monkeypatch.setattr(mapping, "_PACKED", 64)

    return on


@dataclass(frozen=True)
class Catalogue:
    store: Store
    items: pa.Table
    latents: LatentArrays
    folder: Path

    def night(self, config: IndexConfig, space: Space | None = None) -> Night:
        latents = self.latents if space is None else space.rotated(self.latents)
        cache = FileCache(self.folder / "cache")
        made = nightly_index(self.store, self.items, latents, config, model_id=MODEL, parent=None, cache=cache)
        index, metric = made.built.index, made.built.index.metric.name
        none = changes_schema().empty_table()
        return Night("run", MODEL, metric, self.items, latents, index, none, None, "category", space=space)

    def tables(
        self, night: Night, capacity: int | None = None
    ) -> tuple[dict[str, list[ReleaseFile]], dict[str, float]]:
        sids = SemanticIdsConfig(levels=(3, 8), capacity=capacity)
        makers = Makers(lambda *_: pytest.fail("k-means needs no training"), lambda: ())
        made = further_tables(self.store, night, TablesConfig(vectors=True, neighbours=K), sids, makers)
        files = {role: list(held) for role, held in made.files.items() if not isinstance(held, tuple)}
        return files, made.measures


@pytest.fixture
def catalogue(maker: Any, tmp_path: Path) -> Catalogue:
    return catalogue_on(maker, str(tmp_path / "store"), tmp_path)


def catalogue_on(maker: Any, url: str, folder: Path) -> Catalogue:
    store = open_store(url)
    photos = sorted(maker.some_photos(50, most=3), key=lambda photo: (photo.item_id, photo.view))
    order = np.random.default_rng(1).permutation(len(photos))  # parts that hold no range of items
    names = [part.name for part in maker.write_parts(store, [photos[at] for at in order], MODEL, "n1")]
    places = np.argsort(order)
    items = maker.items_table(photos, names)
    for name, column in (
        ("latents_part", pa.array([names[place // maker.PART_ROWS] for place in places.tolist()])),
        ("latents_row", pa.array(places % maker.PART_ROWS)),
    ):
        at = items.schema.get_field_index(name)
        items = items.set_column(at, items.schema.field(name), column.cast(items.schema.field(name).type))
    return Catalogue(store, items, gather_latents(store, items), folder)


def small_files(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    for module in (release_tables, vectors, neighbours, changes):
        monkeypatch.setattr(module, "FILE_ROWS", rows)


def whole(files: list[ReleaseFile]) -> pa.Table:
    return pa.concat_tables([pq.read_table(pa.BufferReader(file.data)) for file in files])


def turned(dim: int) -> Space:
    return Space(np.linalg.qr(np.random.default_rng(2).normal(size=(dim, dim)))[0])


@pytest.mark.parametrize(
    ("config", "rotated"),
    [
        (IndexConfig(metric="l2"), True),
        (IndexConfig(metric="cosine", segment_rows=50), False),
    ],
    ids=["kept space", "segments"],
)
def test_ranges_that_travel_give_the_bytes_of_here_and_the_rows_of_one(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, travel: Travel, config: IndexConfig, *, rotated: bool
) -> None:
    monkeypatch.setattr(space_module, "BLOCK", 16)
    monkeypatch.setattr(vectors, "BLOCK", 16)
    dim = catalogue.latents.mean.shape[1]
    asked = catalogue.night(config, turned(dim) if rotated else None)
    one, measures = catalogue.tables(asked, capacity=4)
    assert {len(files) for files in one.values()} == {1}
    small_files(monkeypatch, 21)
    here, _ = catalogue.tables(asked, capacity=4)
    travel()
    there, said = catalogue.tables(asked, capacity=4)
    assert there == here
    assert said == measures
    assert [len(there[role]) for role in ("vectors", "semantic_ids", "neighbours")] == [3, 3, 8]
    for role, files in there.items():
        assert whole(files).equals(whole(one[role])), role
    assert list(catalogue.store.list("runs/")) == [], "whatever waited has been written"


def test_the_codes_of_a_model_are_counted_by_ranges_of_parts(
    maker: Any, monkeypatch: pytest.MonkeyPatch, travel: Travel, tmp_path: Path
) -> None:
    generator = np.random.default_rng(4)
    photos = [replace(photo, codes=generator.integers(12, size=9)) for photo in maker.some_photos(60)]
    store = open_store(str(tmp_path))
    names = [part.name for part in maker.write_parts(store, photos, MODEL, "n1")]
    items = maker.items_table(photos, names)
    items = items.take(pa.array(generator.permutation(items.num_rows)))
    levels = [
        CodeLevel(name, generator.normal(size=(12, 4)).astype(np.float32), cells)
        for name, cells in (("top", np.arange(3)), ("bottom", np.arange(3, 9)))
    ]

    def counted() -> CodebookFound:
        return codebook_table(store, items, levels, CodebookTableConfig(groups=3), "category", run="run")

    one = counted()
    assert len(names) > 2
    monkeypatch.setattr(codebook_module, "_TASK_PHOTOS", maker.PART_ROWS + 5)  # of some parts two, of others one
    tasks: list[int] = []
    count = codebook_module._counted
    monkeypatch.setattr(codebook_module, "_counted", lambda *given: tasks.append(len(given[1])) or count(*given))
    assert counted() == one
    assert len(tasks) > 1
    assert sum(tasks) == len(names)
    monkeypatch.setattr(codebook_module, "_counted", count)
    travel()
    assert counted() == one
    few = [CodeLevel(level.name, level.vectors[:11], level.cells) for level in levels]
    with pytest.raises(IntegrityError, match="latents hold the code 11; the model has 11"):
        codebook_table(store, items, few, CodebookTableConfig(), None, run="run")


@pytest.mark.s3
def test_what_tasks_share_on_s3_is_mapped_from_this_machines_cache(
    maker: Any, monkeypatch: pytest.MonkeyPatch, travel: Travel, s3_server: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bucket = s3_server.make_bucket("table-ranges")
    local, remote = (catalogue_on(maker, url, tmp_path) for url in (str(tmp_path / "store"), bucket))
    small_files(monkeypatch, 30)
    config = IndexConfig(metric="l2")
    here, measures = local.tables(local.night(config), capacity=4)
    fetched: list[Path] = []
    fetch = FileCache.fetch

    def seen(cache: FileCache, *given: Any, **named: Any) -> Path:
        fetched.append(fetch(cache, *given, **named))
        return fetched[-1]

    tonight = remote.night(config)
    monkeypatch.setattr(FileCache, "fetch", seen)
    travel()
    monkeypatch.setattr(mapping, "_PACKED", 600)  # fewer files to fetch than those tests have that ask no server
    there, said = remote.tables(tonight, capacity=4)
    assert (there, said) == (here, measures)
    scratch = [path for path in fetched if "scratch" in path.parts]
    assert len({path.name for path in scratch}) > 3
    assert {path.parts[-4:-2] for path in scratch} == {("visual-codebooks", "scratch")}, "no release gives way to it"
    assert list(remote.store.list("runs/")) == []
    assert not any(path.exists() for path in scratch), "nothing of it is left on this machine"
    # Whoever changes what waits there is found out, on its way to a task and on its way to the release.
    made = vectors.night_vectors(remote.store, tonight)
    name = next(entry.name for entry in remote.store.list("runs/run/scratch/"))
    remote.store.put(name, bytes(len(remote.store.get(name))))
    with pytest.raises(IntegrityError, match="it was changed after it was written"):
        made.found.vectors[:]
    with pytest.raises(IntegrityError, match="is not what a task wrote there"):
        list(made.files)


def parent_of(store: Store, items: pa.Table, metric: str, made: dict[str, list[ReleaseFile]]) -> Manifest:
    """Write a night's items and tables, and return them as the next night's parent."""
    held = {"items": [ReleaseFile(release_tables.write_table(items), ".parquet", items.num_rows)], **made}
    files = {}
    for role, given in held.items():
        names = [f"releases/one/{role}-{number}.parquet" for number in range(len(given))]
        for name, file in zip(names, given, strict=True):
            store.put_if_absent(name, file.data)
        files[role] = tuple(
            FileEntry(name=name, bytes=len(file.data), sha256=digest_of(file.data), rows=file.rows)
            for name, file in zip(names, given, strict=True)
        )
    return Manifest.model_construct(
        release_id="one", files=files, model_id=MODEL, metric=metric, index_kind="flat", parts=(),
        config={"tables": {"neighbours": K}}, inputs={},
    )  # fmt: skip


def two_nights(maker: Any) -> tuple[list[pa.Table], list[pa.Table]]:
    """Return (items, quarantine) of a night, then of the next one, which has many items more in one place."""
    photos = sorted(maker.some_photos(40), key=lambda photo: (photo.item_id, photo.view))
    more = [replace(photo, item_id=photo.item_id.replace("sku-", "sku-017-")) for photo in photos]
    ends = [replace(photos[0], item_id=name) for name in ("a-first", "zz-last")]
    kept = [photo for number, photo in enumerate(photos) if number % 7]
    altered = [replace(photo, category="Boots") if number % 6 == 0 else photo for number, photo in enumerate(kept)]
    before, now = (maker.items_table(sorted(one, key=lambda photo: (photo.item_id, photo.view)), ["p"] * 99)
                   for one in (photos, [*altered, *more, *ends]))  # fmt: skip
    tokens = [f"other-{token}" if row % 5 == 0 else token for row, token in enumerate(now["token"].to_pylist())]
    now = now.set_column(now.schema.get_field_index("token"), now.schema.field("token"), [tokens])
    refused = [(f"sku-{number:03d}", f"u/{number}", "decode", "empty") for number in range(40)]
    tables = (maker.quarantine_table(rows, "run") for rows in (refused[::3], refused[::2]))
    return list(zip([before, now], tables, strict=True))  # type: ignore[return-value]


def test_changes_found_by_ranges_are_those_of_whole_tables(
    maker: Any, monkeypatch: pytest.MonkeyPatch, travel: Travel, tmp_path: Path
) -> None:
    (before, was_refused), (now, refused) = two_nights(maker)
    store = open_store(str(tmp_path))
    whole_one, first = changes_between(now, refused, before, was_refused), changes_between(now, refused, None, None)
    small_files(monkeypatch, 17)
    written = list(release_tables.table_files(before))
    parent = parent_of(store, pa.table({}), "l2", {"items": written})
    ends = [(ids[0].as_py(), ids[-1].as_py()) for ids in (whole([file])["item_id"] for file in written)]
    assert any(last == following for (_, last), (following, _) in pairwise(ends)), "an item lies in two files"
    ranges: list[int] = []
    find = changes._ranges

    def found(given: Manifest | None = parent, refused_before: pa.Table | None = was_refused) -> pa.Table:
        ranges.clear()
        made = night_changes(store, "run", now, refused, given, refused_before)
        assert list(store.list("runs/")) == []
        return made

    def counted(ids: pa.ChunkedArray, files: Any) -> Iterator[Any]:
        for edges in find(ids, files):
            start, stop = changes._rows(ids, *edges)
            ranges.append(stop - start)
            yield edges

    assert set(whole_one["change"].to_pylist()) == {"added", "removed", "changed", "relabelled", "quarantined"}
    monkeypatch.setattr(changes, "_ranges", counted)
    for on in (lambda: None, lambda: None, travel):
        on()
        assert found() == whole_one
        assert len(ranges) > len(written), "and more where many are new"
        assert max(ranges) < 2 * 17
        assert found(None, None) == first
        monkeypatch.setattr(changes, "_told", lambda _: None)  # then: of files whose footers say nothing
    bytes_of = [[file.data for file in release_tables.table_files(one)] for one in (found(), whole_one)]
    assert bytes_of[0] == bytes_of[1]
    # The known wrong version, which leaves an item's first photos to the range that the file before is of, is another.
    with monkeypatch.context() as wrong:
        wrong.setattr(
            changes._File, "reaches", lambda file, low, high: low in (None, file.first) and file.first != high
        )
        assert found() != whole_one
    store.put(parent.files["items"][1].name, b"other")
    with pytest.raises(IntegrityError, match="it was changed after it was published"):
        found()


@pytest.mark.s3
def test_lists_that_stand_are_carried_over_on_s3_as_on_a_disk(
    maker: Any, monkeypatch: pytest.MonkeyPatch, travel: Travel, s3_server: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small_files(monkeypatch, 40)
    urls, found = [str(tmp_path / "store"), s3_server.make_bucket("table-carried")], []
    for url in urls:
        catalogue = catalogue_on(maker, url, tmp_path)
        store, first = catalogue.store, catalogue.night(IndexConfig(metric="l2"))
        if url.startswith("s3:"):
            travel()
            monkeypatch.setattr(mapping, "_PACKED", 600)
        one = {role: list(files) for role, files in neighbour_tables(store, first, K).files.items()}
        altered = first.items.slice(5, 2).select(["item_id", "uri"])
        named = altered.append_column("change", pa.array(["changed"] * 2)).cast(changes_schema())
        second = neighbour_tables(
            store, replace(first, changes=named, parent=parent_of(store, first.items, first.metric, one)), K
        )
        two = {role: list(files) for role, files in second.files.items()}
        assert {role: whole(files) for role, files in two.items()} == {
            role: whole(files) for role, files in one.items()
        }
        assert 0 < second.measures[neighbours.ANEW] < 0.1
        assert [entry.name for entry in store.list("runs/")] == []
        found.append((two, second.measures))
    assert found[0] == found[1]


def test_a_travelled_index_searches_with_the_effort_that_was_set(travel: Travel, tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    latents = LatentArrays(generator.normal(size=(5000, 8)).astype(np.float32))
    queries = latents.take(np.s_[:50])
    config = IndexConfig(metric="l2", kind="hnsw", m=4, ef_construction=8, queries=50, target_recall=0.9)
    index = build_index(latents, config).index
    scratch = Scratch(open_store(str(tmp_path)), "runs/run/scratch/here/")
    travel()
    answers = []
    for effort in (10, 400):
        index.planner.set_effort("ef_search", effort)
        found = Laid.of(index, scratch, pickle.dumps).opened().search(queries, 10)
        assert np.array_equal(found.ids, index.search(queries, 10).ids)
        answers.append(found.ids)
    assert not np.array_equal(*answers), "the effort tells"
    with pytest.raises(TypeError, match="send the plain one"):
        pickle.dumps(index.exactly())


def test_what_is_shared_lies_in_files_and_is_mapped_not_packed(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    numbers, texts = np.arange(100_000), pa.array([f"sku-{number}" for number in range(50_000)])
    laid = Laid.of(
        {"numbers": numbers, "texts": texts, "few": np.arange(5)}, Scratch(store, "runs/r/scratch/x/"), pickle.dumps
    )
    assert len(laid.head) < 2000
    assert sum(kept.size for kept in laid.files) >= numbers.nbytes + texts.nbytes - 8
    opened = laid.opened()
    assert opened is laid.opened()
    assert np.array_equal(opened["numbers"], numbers)
    assert opened["texts"].equals(texts)
    assert not opened["numbers"].flags.owndata
    other = Kept(laid.files[0].name, laid.files[0].size, "0" * 64)
    assert bytes(mapped_file(store, other)[:8]) == bytes(8)  # this machine's disk is read where it lies


def test_a_file_that_is_another_when_it_is_taken_is_refused(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, travel: Travel
) -> None:
    small_files(monkeypatch, 21)
    travel()
    made = vectors.night_vectors(catalogue.store, catalogue.night(IndexConfig(metric="l2")))
    name = next(entry.name for entry in catalogue.store.list("runs/run/scratch/"))
    catalogue.store.put(name, b"other")
    with pytest.raises(IntegrityError, match="is not what a task wrote there"):
        list(made.files)


def test_codes_beyond_the_nearest_have_lengths_of_their_own(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, travel: Travel
) -> None:
    """The known wrong version, which takes the lengths of the nearest codes for those of the given ones, is another."""
    asked = catalogue.night(IndexConfig(metric="l2"))
    small_files(monkeypatch, 21)
    travel()
    right, _ = catalogue.tables(asked, capacity=4)
    rows = whole(right["semantic_ids"])
    assert rows["codes"].to_pylist() != rows["nearest_codes"].to_pylist()
    monkeypatch.setattr(night, "norms_of", lambda vectors, found, given, books: found.norms)
    wrong, _ = catalogue.tables(asked, capacity=4)
    assert whole(wrong["semantic_ids"])["residual_norm"] != rows["residual_norm"]
