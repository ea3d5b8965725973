"""The loader against what it promises: coverage, equal batches, repetition to the bit, seeking, bounded memory."""

from __future__ import annotations

import errno
import io
import os
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError, IntegrityError
from pipeline.models.base import Batch
from pipeline.parts import read_part
from pipeline.schema import pixels_schema
from pipeline.storage import Store, open_store
from pipeline.training import PartRows, PixelLoader
from pipeline.training.dealing import Piece, cut, deal
from pipeline.training.part_cache import PartCache, PartReader, cache_folder
from pipeline.training.part_rows import inputs_digest

SIZE = 4
GROUP = 7  # rows per row group, so that parts have several


def photo(part: int, row: int) -> np.ndarray:
    """Pixels [H, W, 3] that say which photo they are: red holds the part, green and blue the row."""
    out = np.zeros((SIZE, SIZE, 3), np.uint8)
    out[..., 0] = part
    out[..., 1] = row // 256
    out[..., 2] = row % 256
    out[0, 1] = (1, 2, 3)  # tells height from width
    return out


def identities(given: Batch) -> list[tuple[int, int]]:
    """Return (part, row) of every photo of a batch."""
    batch = given.images
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous()
    assert batch.shape[1:] == (3, SIZE, SIZE)
    assert batch[:, :, 0, 1].tolist() == [[1, 2, 3]] * len(batch)
    corner = batch[:, :, 2, 3].tolist()
    return [(red, 256 * green + blue) for red, green, blue in corner]


def write_parts(store: Store, counts: list[int], living: float = 1.0) -> list[PartRows]:
    """Write parts of so many rows, of which a share lives; a row that does not live has no pixels."""
    rng = np.random.default_rng(0)
    pixels = []
    for part, count in enumerate(counts):
        lives = rng.random(count) < living
        rows = [photo(part, row).tobytes() if lives[row] else None for row in range(count)]
        text = [str(row) for row in range(count)]
        columns = {"item_id": text, "uri": text, "token": text, "pixels": pa.array(rows, pa.binary(SIZE * SIZE * 3))}
        table = pa.table(
            [columns.get(field.name, pa.nulls(count, field.type)) for field in pixels_schema(SIZE)],
            schema=pixels_schema(SIZE),
        )
        sink = io.BytesIO()
        pq.write_table(table, sink, row_group_size=GROUP)
        name = f"pixels/t/{part:03d}.parquet"
        store.put(name, sink.getvalue())
        pixels.append(PartRows(name, np.flatnonzero(lives).astype(np.int32)))
    return pixels


def memory_store() -> Store:
    return open_store(f"memory://{uuid.uuid4().hex}")


def loader_over(reader: PartReader, pixels: Sequence[PartRows], **asked: int) -> PixelLoader:
    wanted = {"batch_size": 4, "rank": 0, "world_size": 1, "seed": 0, "window_parts": 2, **asked}
    return PixelLoader(reader, pixels, **wanted)


def epoch_of(loader: PixelLoader, epoch: int = 0) -> list[list[tuple[int, int]]]:
    start = epoch * loader.steps_per_epoch
    return [identities(batch) for batch in loader.batches(start, start + loader.steps_per_epoch)]


class CountingReader(PartReader):
    """Notes what is read."""

    def __init__(self, cache: PartCache, image_size: int) -> None:
        super().__init__(cache, image_size)
        self.rows: list[tuple[str, int]] = []

    def read_into(self, name, rows, out, at, number=0):
        self.rows.append((name, len(rows)))
        super().read_into(name, rows, out, at, number)


@pytest.fixture
def store() -> Store:
    return memory_store()


@pytest.fixture
def reader(store: Store, tmp_path: Path) -> CountingReader:
    return CountingReader(PartCache(store, tmp_path / "cache"), SIZE)


class FakeReader(PartReader):
    """Makes pixels up, so that properties can be tried on many inputs."""

    def __init__(self) -> None:
        self.image_size = SIZE

    def read_into(self, name, rows, out, at, number=0):
        for row, place in zip(rows, at, strict=True):
            out[place] = photo(int(name), int(row)).transpose(2, 0, 1)


def category_of(count: int) -> np.ndarray:
    """Categories of a part's first rows: of ten rows, eight 2, one 3, one 0 (none)."""
    return np.array([3 if row % 10 == 4 else 0 if row % 10 == 7 else 2 for row in range(count)], np.int32)


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=7).filter(lambda counts: sum(counts) >= 5),
    world_size=st.integers(1, 5),
    batch_size=st.integers(1, 9),
    window_parts=st.integers(1, 4),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
)
@settings(max_examples=60)
def test_every_epoch_covers_every_row_in_equal_batches(counts, world_size, batch_size, window_parts, seed, epoch):
    pixels = [PartRows(f"{part}", np.arange(count, dtype=np.int32)) for part, count in enumerate(counts)]
    asked = {"batch_size": batch_size, "world_size": world_size, "seed": seed, "window_parts": window_parts}
    seen: Counter[tuple[int, int]] = Counter()
    steps = -(-sum(counts) // (batch_size * world_size))
    for rank in range(world_size):
        loader = loader_over(FakeReader(), pixels, rank=rank, **asked)
        batches = epoch_of(loader, epoch)
        assert [len(batch) for batch in batches] == [batch_size] * steps == [batch_size] * loader.steps_per_epoch
        assert batches == epoch_of(loader_over(FakeReader(), pixels, rank=rank, **asked), epoch)
        seen.update(name for batch in batches for name in batch)
    assert set(seen) == {(part, row) for part, count in enumerate(counts) for row in range(count)}
    # Rows are repeated only to fill the last batches.
    assert sum(seen.values()) - len(seen) == steps * batch_size * world_size - sum(counts)


@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(lambda counts: sum(counts) >= 3),
    world_size=st.integers(1, 3),
    batch_size=st.integers(1, 7),
    balance=st.booleans(),
    data=st.data(),
)
@settings(max_examples=60)
def test_seeking_equals_skipping(counts, world_size, batch_size, balance, data):
    pixels = [
        PartRows(f"{part}", np.arange(count, dtype=np.int32), category_of(count)) for part, count in enumerate(counts)
    ]
    rank = data.draw(st.integers(0, world_size - 1))
    asked = {"batch_size": batch_size, "world_size": world_size, "rank": rank, "balance": balance}
    loader = loader_over(FakeReader(), pixels, **asked)
    whole = [identities(batch) for batch in loader.batches(0, 3 * loader.steps_per_epoch)]
    assert len(whole) == 3 * loader.steps_per_epoch
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    assert [identities(batch) for batch in loader.batches(start, stop)] == whole[start:stop]
    # A loader that has read nothing yet, too: a resumed training's.
    fresh = loader_over(FakeReader(), pixels, **asked)
    assert [identities(batch) for batch in fresh.batches(start, stop)] == whole[start:stop]


@given(
    counts=st.lists(st.integers(0, 100), min_size=1, max_size=12),
    world_size=st.integers(1, 6),
    seed=st.integers(0, 9),
)
def test_dealt_shares_are_level_and_disjoint(counts, world_size, seed):
    order = np.random.default_rng(seed).permutation(len(counts)).tolist()
    held = deal([Piece(part, 0, counts[part]) for part in order], world_size)
    lengths = [sum(map(len, pieces)) for pieces in held]
    assert max(lengths) - min(lengths) <= 1
    dealt = [(piece.part, row) for pieces in held for piece in pieces for row in range(piece.start, piece.stop)]
    assert len(dealt) == len(set(dealt)) == sum(counts)


def test_equal_parts_are_dealt_whole_to_every_world_size_th_rank():
    order = [3, 0, 5, 1, 4, 2]
    held = deal([Piece(part, 0, 10) for part in order], 2)
    assert [[piece.part for piece in pieces] for pieces in held] == [order[0::2], order[1::2]]


def test_fewer_parts_than_ranks_are_split_by_rows():
    held = deal(cut([10, 2]), 4)
    assert [sum(map(len, pieces)) for pieces in held] == [3, 3, 3, 3]


def test_only_living_rows_are_read_from_the_store(store, reader):
    pixels = write_parts(store, [30, 5, 16], living=0.6)
    seen = {name for batch in epoch_of(loader_over(reader, pixels)) for name in batch}
    assert seen == {(part, int(row)) for part, living in enumerate(pixels) for row in living.rows}


@pytest.mark.parametrize("asked", [{"threads": 3}, {"for_gpu": True}, {"threads": 3, "for_gpu": True}])
def test_threads_and_a_gpus_layout_give_the_same_photos(store, reader, tmp_path, asked):
    pixels = write_parts(store, [20, 13, 9, 30], living=0.8)
    plain = loader_over(reader, pixels, batch_size=8)
    other = loader_over(PartReader(PartCache(store, tmp_path / "other"), SIZE, **asked), pixels, batch_size=8)
    for left, right in zip(plain.batches(0, 12), other.batches(0, 12), strict=True):
        assert torch.equal(left.images, right.images)
        if asked.get("for_gpu") and len(right.images) > 1:
            lies = right.images.is_contiguous(memory_format=torch.channels_last)
            assert lies or right.images.is_contiguous(), "joined of two windows"
    assert any(
        batch.images.is_contiguous(memory_format=torch.channels_last) == bool(asked.get("for_gpu"))
        for batch in other.batches(0, 1)
    )


def test_a_local_store_is_read_in_place_and_gives_the_same_batches(store, reader, tmp_path):
    local = open_store(str(tmp_path / "store"))
    write_parts(local, [30, 5, 16])
    pixels = write_parts(store, [30, 5, 16])
    beside = PartReader(PartCache(local, tmp_path / "unused"), SIZE)
    assert epoch_of(loader_over(beside, pixels)) == epoch_of(loader_over(reader, pixels))
    assert not (tmp_path / "unused").exists()


def test_seeds_epochs_and_ranks_have_orders_of_their_own(store, reader):
    pixels = write_parts(store, [40, 40])
    first = epoch_of(loader_over(reader, pixels))
    assert first != epoch_of(loader_over(reader, pixels), epoch=1)
    assert first != epoch_of(loader_over(reader, pixels, seed=1))
    rows = [row for batch in first for _, row in batch]
    assert rows != sorted(rows)


def test_rows_of_a_window_are_mixed_and_windows_are_not(store, reader):
    pixels = write_parts(store, [20, 20, 20, 20])
    parts = [part for batch in epoch_of(loader_over(reader, pixels, window_parts=2)) for part, _ in batch]
    assert len(set(parts[:40])) == len(set(parts[40:])) == 2
    assert set(parts[:40]).isdisjoint(parts[40:])
    assert len(set(parts[:20])) == 2


def test_seeking_reads_no_window_before(store, reader):
    pixels = write_parts(store, [20] * 6)
    loader = loader_over(reader, pixels, window_parts=2, batch_size=5)
    assert len(list(loader.batches(loader.steps_per_epoch - 1, loader.steps_per_epoch))) == 1
    assert sum(count for _, count in reader.rows) == 5


def test_at_most_two_windows_are_read_ahead(store, reader):
    pixels = write_parts(store, [20] * 8)
    batches = loader_over(reader, pixels, window_parts=2, batch_size=5).batches(0, 32)
    next(batches)
    batches.close()
    assert sum(count for _, count in reader.rows) <= 80


def test_a_part_is_fetched_once(store, tmp_path, monkeypatch):
    pixels = write_parts(store, [20] * 3)
    fetched: list[str] = []
    get = type(store).get
    monkeypatch.setattr(type(store), "get", lambda self, name, **range_: fetched.append(name) or get(self, name))
    cache = PartCache(store, tmp_path / "cache")
    for rank in range(2):
        loader = loader_over(PartReader(cache, SIZE), pixels, rank=rank, world_size=2)
        assert len(list(loader.batches(0, 3 * loader.steps_per_epoch))) == 3 * loader.steps_per_epoch
    assert sorted(fetched) == [part.part for part in pixels]
    cache.remove()
    assert not (tmp_path / "cache").exists()


def test_a_full_cache_keeps_nothing_and_still_reads(store, tmp_path):
    pixels = write_parts(store, [20] * 3)
    folder = tmp_path / "cache"
    cache = PartCache(store, folder, limit_bytes=0)
    kept = PartCache(store, tmp_path / "other")
    assert epoch_of(loader_over(PartReader(cache, SIZE), pixels)) == epoch_of(
        loader_over(PartReader(kept, SIZE), pixels)
    )
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("trouble", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_or_quota_is_a_full_cache(store, tmp_path, monkeypatch, trouble):
    pixels = write_parts(store, [20] * 3)
    kept = epoch_of(loader_over(PartReader(PartCache(store, tmp_path / "other"), SIZE), pixels))

    def full(path, data):
        raise OSError(trouble, "no room")

    monkeypatch.setattr(Path, "write_bytes", full)
    folder = tmp_path / "cache"
    assert epoch_of(loader_over(PartReader(PartCache(store, folder), SIZE), pixels)) == kept
    assert list(folder.iterdir()) == []


def test_a_machines_variable_limits_the_cache(store, tmp_path, monkeypatch):
    pixels = write_parts(store, [20] * 3)
    monkeypatch.setenv("CODEBOOKS_TRAIN_CACHE_GIB", "0")
    assert epoch_of(loader_over(PartReader(PartCache(store, tmp_path / "cache"), SIZE), pixels))
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.setenv("CODEBOOKS_TRAIN_CACHE_GIB", "1")
    assert epoch_of(loader_over(PartReader(PartCache(store, tmp_path / "cache"), SIZE), pixels))
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_a_training_that_reads_its_cache_keeps_its_folder(store, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.storage.cache.tempfile.gettempdir", lambda: str(tmp_path))
    pixels = write_parts(store, [20])
    cache = PartCache(store, cache_folder("long"))
    with cache.path(pixels[0].part):
        pass
    os.utime(tmp_path / f"visual-codebooks-{os.getuid()}" / "training" / "long", (0, 0))
    with cache.path(pixels[0].part) as path:
        cache_folder("new")
        assert path.exists()


@pytest.mark.parametrize(
    "name", ["runs/night/config.yaml", "pixels/t/../x.parquet", "/etc/x.parquet", "pixels/x.parquet"]
)
def test_a_part_is_nothing_but_a_part(store, tmp_path, name):
    with pytest.raises(IntegrityError, match="is named as a part"):
        epoch_of(loader_over(PartReader(PartCache(store, tmp_path), SIZE), [PartRows(name, np.arange(9, dtype="i4"))]))
    with pytest.raises(IntegrityError, match="is named as a part"):
        read_part(store, name)


def test_abandoned_cache_folders_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.storage.cache.tempfile.gettempdir", lambda: str(tmp_path))
    old, young = cache_folder("old"), cache_folder("young")
    monkeypatch.setattr("pipeline.training.part_cache._STALE_S", -1.0)
    assert cache_folder("new").is_dir()
    assert not old.exists()
    assert not young.exists()


@pytest.mark.parametrize(
    ("rows", "size", "message"),
    [([0, 99], SIZE, "row 99"), ([0, 1], SIZE + 1, "expected 5 x 5 x 3"), (None, SIZE, "refused")],
)
def test_parts_that_do_not_fit_are_named(store, tmp_path, rows, size, message):
    pixels = write_parts(store, [30], living=0.5 if rows is None else 1.0)
    asked = PartRows(pixels[0].part, np.array(range(30) if rows is None else rows, np.int32))
    loader = loader_over(PartReader(PartCache(store, tmp_path / "cache"), size), [asked], batch_size=2)
    with pytest.raises(IntegrityError, match=message) as raised:
        list(loader.batches(0, 1))
    assert pixels[0].part in str(raised.value)


def test_fewer_photos_than_workers_is_an_error(reader):
    with pytest.raises(InputError, match="2 photos cannot feed 3"):
        loader_over(reader, [PartRows("p", np.arange(2, dtype=np.int32))], world_size=3)


def test_the_inputs_digest_follows_categories_and_held_out_rows():
    rows = np.arange(3, dtype=np.int32)
    no = np.zeros(3, np.bool_)
    kinds = [
        [PartRows("a", rows)],
        [PartRows("a", rows, rows)],
        [PartRows("a", rows, rows[::-1].copy())],
        [PartRows("a", rows, None, no)],
        [PartRows("a", rows, None, ~no)],
        [PartRows("a", rows, rows, no)],
    ]
    assert len({inputs_digest(kind) for kind in kinds}) == len(kinds)
    assert inputs_digest([PartRows("a", rows, rows.astype(np.int64))]) == inputs_digest(kinds[1])


def test_the_inputs_digest_follows_rows_and_names():
    one = [PartRows("a", np.arange(3, dtype=np.int32))]
    assert inputs_digest(one) == inputs_digest([PartRows("a", np.arange(3, dtype=np.int64))])
    assert inputs_digest(one) != inputs_digest([PartRows("a", np.arange(4, dtype=np.int32))])
    assert inputs_digest(one) != inputs_digest([PartRows("b", np.arange(3, dtype=np.int32))])
