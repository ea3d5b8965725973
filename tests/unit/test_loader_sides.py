"""The loader's two sides: held-out rows for validation only, and training rows with every category equally often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.models.base import Batch
from pipeline.training import PartRows, PixelLoader
from pipeline.training.part_cache import PartReader

SIZE = 2


class FakeReader(PartReader):
    """Makes pixels up that say which photo they are: red holds the part, green and blue the row."""

    def __init__(self) -> None:
        self.image_size = SIZE
        self.read: list[str] = []

    def read_into(self, name, rows, out, at, number=0):
        self.read.append(name)
        out[at] = np.stack([np.full(len(rows), int(name)), rows // 256, rows % 256], 1)[:, :, None, None]


def identities(batch: Batch) -> list[tuple[int, int]]:
    """Return (part, row) of every photo of a batch."""
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous()
    return [(red, 256 * green + blue) for red, green, blue in batch.images[:, :, 1, 1].tolist()]


def loader_over(reader: PartReader, pixels: Sequence[PartRows], **asked: int) -> PixelLoader:
    wanted = {"batch_size": 4, "rank": 0, "world_size": 1, "seed": 0, "window_parts": 2, **asked}
    return PixelLoader(reader, pixels, **wanted)


def epoch_of(loader: PixelLoader) -> list[list[tuple[int, int]]]:
    return [identities(batch) for batch in loader.batches(0, loader.steps_per_epoch)]


def category_of(count: int) -> np.ndarray:
    """Categories of a part's first rows: of ten rows, eight 2, one 3, one 0 (none)."""
    return np.array([3 if row % 10 == 4 else 0 if row % 10 == 7 else 2 for row in range(count)], np.int32)


def test_held_out_rows_leave_too_few_photos():
    rows = np.arange(5, dtype=np.int32)
    with pytest.raises(InputError, match=r"0 photos are left for 1 training workers, as 5 are held out"):
        loader_over(FakeReader(), [PartRows("p", rows, None, np.ones(5, np.bool_))])


@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(lambda counts: sum(counts) >= 12),
    world_size=st.integers(1, 4),
    batch_size=st.integers(1, 9),
    share=st.sampled_from([0.0, 0.1, 0.5]),
    balance=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=60)
@pytest.mark.slow
def test_held_out_rows_are_validated_once_and_never_trained_on(counts, world_size, batch_size, share, balance, seed):
    rng = np.random.default_rng(seed)
    pixels, aside = [], set()
    for part, count in enumerate(counts):
        rows = 2 * np.arange(count, dtype=np.int32)
        mask = rng.random(count) < share
        mask[:2] = False  # a few to train on
        pixels.append(PartRows(f"{part}", rows, category_of(count), mask))
        aside |= {(part, int(row)) for row in rows[mask]}
    if sum(counts) - len(aside) < world_size:
        return
    trained: Counter[tuple[int, int]] = Counter()
    validated: Counter[tuple[int, int]] = Counter()
    shares = []
    for rank in range(world_size):
        asked = {"batch_size": batch_size, "world_size": world_size, "rank": rank, "balance": balance}
        loader = loader_over(FakeReader(), pixels, **asked)
        assert loader.num_held_out == len(aside)
        assert loader.num_photos == sum(counts) - len(aside)
        batches = list(loader.validation())
        assert all(len(batch.images) == batch_size for batch in batches[:-1])
        assert all(0 < len(batch.images) <= batch_size for batch in batches[-1:])
        shares.append(sum(len(batch.images) for batch in batches))
        validated.update(name for batch in batches for name in identities(batch))
        trained.update(name for batch in epoch_of(loader) for name in batch)
        assert [identities(batch) for batch in loader.validation()] == [identities(batch) for batch in batches]
        for batch in [*batches, *loader.batches(0, loader.steps_per_epoch)]:
            assert batch.condition.dtype == torch.int64
            asked_rows = [row // 2 for _, row in identities(batch)]
            assert batch.condition.tolist() == category_of(31)[asked_rows].tolist()
    assert validated == Counter(aside)
    assert max(shares) - min(shares) <= 1
    assert not set(trained) & aside
    if not balance:
        assert set(trained) == {(part, 2 * row) for part, count in enumerate(counts) for row in range(count)} - aside


def test_held_out_rows_are_read_part_by_part():
    pixels = []
    for part, count in enumerate([30, 5, 16]):
        rows = np.arange(count, dtype=np.int32)
        pixels.append(PartRows(f"{part}", rows, None, rows % 3 == 0))
    expected = [(part, int(row)) for part, one in enumerate(pixels) for row in one.rows[one.held_out]]
    reader = FakeReader()
    batches = list(loader_over(reader, pixels).validation())
    assert [name for batch in batches for name in identities(batch)] == expected
    assert all(batch.condition is None for batch in batches)
    assert reader.read == ["0", "1", "2"]
    # A rank reads only the parts in which its stretch lies.
    reader = FakeReader()
    first = list(loader_over(reader, pixels, world_size=3).validation())
    assert [name for batch in first for name in identities(batch)] == expected[:6]
    assert reader.read == ["0"]


def test_nothing_held_out_is_no_validation():
    loader = loader_over(FakeReader(), [PartRows("0", np.arange(9, dtype=np.int32))])
    assert loader.num_held_out == 0
    assert list(loader.validation()) == []


def test_parts_without_categories_beside_others_have_none():
    rows = np.arange(8, dtype=np.int32)
    pixels = [PartRows("0", rows), PartRows("1", rows, np.full(8, 5, np.int32))]
    for batch in loader_over(FakeReader(), pixels).batches(0, 4):
        assert batch.condition.tolist() == [5 if part else 0 for part, _ in identities(batch)]
    assert next(loader_over(FakeReader(), pixels[:1]).batches(0, 1)).condition is None


def imbalanced() -> list[PartRows]:
    """Six parts of 500 rows: 90 % of category 2, the rest of nine others."""
    rng = np.random.default_rng(0)
    category = [np.where(rng.random(500) < 0.9, 2, rng.integers(3, 12, 500)).astype(np.int32) for _ in range(6)]
    return [PartRows(f"{part}", np.arange(500, dtype=np.int32), rows) for part, rows in enumerate(category)]


@pytest.mark.parametrize("world_size", [1, 3])
def test_balanced_batches_are_uniform(world_size):
    """Against a loader that draws every photo once, whose batches are of the most common category."""
    shares, least, most = {}, {}, {}
    for balance in (True, False):
        asked = {"batch_size": 100, "world_size": world_size, "balance": balance, "window_parts": 3}
        loaders = [loader_over(FakeReader(), imbalanced(), rank=rank, **asked) for rank in range(world_size)]
        assert {loader.steps_per_epoch for loader in loaders} == {30 // world_size}
        counts = np.array(
            [
                np.bincount(batch.condition, minlength=12)[2:]
                for loader in loaders
                for batch in loader.batches(0, 2 * loader.steps_per_epoch)
            ]
        )  # [batches of all ranks in two epochs, categories]
        shares[balance], least[balance], most[balance] = counts.mean(0), counts.min(), counts.max()
    assert shares[True].tolist() == [10.0] * 10  # every category exactly 300 times an epoch
    assert least[True] > 0
    assert most[True] < 28  # 10 expected, spread 3
    assert 88 < shares[False][0] < 92
    assert most[False] > 90
    assert least[False] == 0


def test_a_rare_category_of_one_part_is_spread_over_the_epoch_within_bounded_memory():
    """200 rows of one part are drawn 2,000 times: no window may hold them all, and no long stretch be without."""
    counts = [200] * 19 + [200]
    pixels = [
        PartRows(f"{part}", np.arange(count, dtype=np.int32), np.full(count, 2 + (part == 19), np.int32))
        for part, count in enumerate(counts)
    ]
    loaded: list[int] = []

    class Reader(FakeReader):
        def read_into(self, name, rows, out, at, number=0):
            loaded.append(len(out))
            out[at] = 0

    loader = loader_over(Reader(), pixels, batch_size=100, window_parts=4, balance=True)
    conditions = torch.cat([batch.condition for batch in loader.batches(0, loader.steps_per_epoch)])
    assert int((conditions == 3).sum()) == 2000
    assert max(loaded) <= 4 * 200
    rare = (conditions == 3).reshape(4, 1000).sum(1)
    assert rare.min() > 150
    assert rare.max() < 850
