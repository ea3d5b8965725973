"""Codes from latents parts, and their batches: every photo once an epoch, whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.errors import InputError
from pipeline.models.priors import build_prior
from pipeline.models.priors.pixelcnn import PixelCNNConfig
from pipeline.parts import write_part
from pipeline.schema import latents_schema
from pipeline.storage import open_store
from pipeline.training import Line, Loop, PartRows, TrainConfig
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.codes import Codes, CodesLoader, grid_of, read_codes
from pipeline.training.ranks import Ranks


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """The models are small: more threads only wait for each other."""
    torch.set_num_threads(1)


def numbered(number: int, *, held_out: int = 0, side: int = 2) -> Codes:
    """Return codes that name their photo, of which the last `held_out` are held out; the category is the photo too."""
    codes = np.repeat(np.arange(number, dtype=np.int32), side * side).reshape(number, side, side)
    return Codes(codes, np.arange(number, dtype=np.int32), np.arange(number) >= number - held_out)


def loader(codes: Codes, *, batch_size: int = 3, rank: int = 0, world_size: int = 1, seed: int = 0) -> CodesLoader:
    return CodesLoader(codes, batch_size=batch_size, rank=rank, world_size=world_size, seed=seed)


def photos(batches: object) -> list[list[int]]:
    return [batch.codes[:, 0, 0].tolist() for batch in batches]


def joined(lists: Iterable[list]) -> list:
    return list(chain.from_iterable(lists))


def test_every_photo_comes_once_an_epoch_and_a_few_fill_the_last_batch():
    made = loader(numbered(14, held_out=3))
    assert (made.num_photos, made.num_held_out, made.steps_per_epoch) == (11, 3, 4)
    first, second = photos(made.batches(0, 4)), photos(made.batches(4, 8))
    assert [len(batch) for batch in first + second] == [3] * 8
    for epoch in (joined(first), joined(second)):
        assert sorted(epoch[:11]) == list(range(11))
        assert epoch[11] == epoch[0]
    assert first != second
    assert first != photos(loader(numbered(14, held_out=3), seed=1).batches(0, 4))


def test_batches_are_found_from_any_step():
    made = loader(numbered(11))
    whole = photos(made.batches(0, 12))
    for start in range(12):
        assert photos(made.batches(start, 12)) == whole[start:]


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_step_has_the_same_photos_for_any_number_of_ranks(world_size: int):
    codes = numbered(21)
    one = photos(loader(codes, batch_size=4).batches(0, 12))
    parts = [
        photos(loader(codes, batch_size=4 // world_size, rank=rank, world_size=world_size).batches(0, 12))
        for rank in range(world_size)
    ]
    assert [joined(step) for step in zip(*parts, strict=True)] == one


def test_a_batch_has_no_pixels_and_its_own_categories():
    batch = next(loader(numbered(5)).batches(0, 1))
    assert batch.images.shape == (3, 3, 0, 0)
    assert batch.codes.dtype == batch.condition.dtype == torch.int64
    assert batch.condition.tolist() == batch.codes[:, 1, 1].tolist()
    assert next(loader(Codes(numbered(5).codes)).batches(0, 1)).condition is None


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_held_out_photos_come_once_over_all_ranks(world_size: int):
    codes = numbered(20, held_out=4)
    seen = [photos(loader(codes, rank=rank, world_size=world_size).validation()) for rank in range(world_size)]
    assert sorted(joined(joined(seen))) == [16, 17, 18, 19]


def test_too_few_photos():
    with pytest.raises(InputError, match=r"codes of 1 photos cannot feed 2 training workers \(3 are held out\)"):
        loader(numbered(4, held_out=3), world_size=2)


@pytest.mark.parametrize(("number", "side"), [(1, 1), (4, 2), (64, 8)])
def test_codes_fill_a_square(number: int, side: int):
    assert grid_of(number) == (side, side)


@pytest.mark.parametrize("number", [0, 2, 58, 63])
def test_codes_that_fill_no_square(number: int):
    with pytest.raises(InputError, match=rf"{number} codes.*two levels \(vqvae2\) are not read by priors yet"):
        grid_of(number)


def latents(store: object, name: str, codes: np.ndarray | None) -> str:
    """Write a latents part and return its name."""
    rows, number = (3, 0) if codes is None else codes.shape
    columns = [
        *([[f"{name}{row}" for row in range(rows)]] * 4),
        np.arange(rows, dtype=np.int32),
        pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(rows * 2, np.float32)), 2),
    ]
    if codes is not None:
        columns.append(pa.FixedSizeListArray.from_arrays(pa.array(codes.astype(np.int32).reshape(-1)), number))
    table = pa.Table.from_arrays(
        [pa.array(c) for c in columns], schema=latents_schema(2, log_var=False, num_codes=number)
    )
    return write_part(store, f"latents/model/{name}.parquet", table, key=name).name


def test_codes_are_read_from_latents_parts(tmp_path: Path):
    store = open_store(str(tmp_path))
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 9, (5, 4)), rng.integers(0, 9, (3, 4))
    parts = [
        PartRows(latents(store, "a", first), np.array([0, 2, 4], np.int32), np.array([2, 0, 3], np.int32)),
        PartRows(latents(store, "b", second), np.array([1], np.int32), held_out=np.array([True])),
    ]
    read = read_codes(store, parts)
    assert read.codes.dtype == np.int32
    assert read.grid == (2, 2)
    assert np.array_equal(read.codes, np.concatenate([first[[0, 2, 4]], second[[1]]]).reshape(4, 2, 2))  # row-major
    assert read.category.tolist() == [2, 0, 3, 0]
    assert read.held_out.tolist() == [False, False, False, True]
    assert len(read.side(held_out=True)) == 1
    bare = read_codes(store, [PartRows(parts[0].part, parts[0].rows)])
    assert bare.category is None
    assert bare.held_out is None
    assert len(bare.side(held_out=True)) == 0


def test_parts_without_codes_or_of_two_models_are_refused(tmp_path: Path):
    store = open_store(str(tmp_path))
    rows = np.array([0, 1], np.int32)
    four, nine = (latents(store, name, np.zeros((2, n), int)) for name, n in (("four", 4), ("nine", 9)))
    with pytest.raises(InputError, match="without codes"):
        read_codes(store, [PartRows(latents(store, "plain", None), rows)])
    with pytest.raises(InputError, match="different grids"):
        read_codes(store, [PartRows(four, rows), PartRows(nine, rows)])
    with pytest.raises(InputError, match="2 rows; row 2"):
        read_codes(store, [PartRows(four, np.array([2], np.int32))])
    with pytest.raises(InputError, match="no photos"):
        read_codes(store, [PartRows(four, rows[:0])])


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.slow
def test_a_prior_trains_to_the_same_bits_after_an_interruption(tmp_path: Path, accumulate: int):
    rng = np.random.default_rng(0)
    codes = Codes(
        rng.integers(0, 4, (60, 3, 3)).astype(np.int32), rng.integers(0, 4, 60).astype(np.int32), np.arange(60) >= 50
    )
    config = TrainConfig(
        epochs=4, batch_size=10, accumulate=accumulate, checkpoint_every_s=0, keep="best", ema_decay=0.9
    )
    store = open_store(str(tmp_path))

    def loop(folder: str, *, stop_after: int = 10**6) -> Loop:
        torch.manual_seed(0)
        prior = build_prior(
            PixelCNNConfig(width=8, layers=2, by_category=True), num_codes=4, grid=(3, 3), labels=("a", "b")
        )
        asked = iter(range(10**6))
        return Loop(
            prior,
            CodesLoader(codes, batch_size=10, rank=0, world_size=1, seed=0),
            config,
            checkpoints=Checkpoints(store, folder, Ranks(), identity={"folder": folder}, keep=2),
            line=Line(should_stop=lambda: next(asked) >= stop_after),
        )

    whole = loop("whole").run().state_dict()
    with pytest.raises(Exception, match="asked to stop"):
        loop("broken", stop_after=1).run()
    again = loop("broken").run().state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
