"""The deterministic loader: which photo is in which batch follows from (seed, epoch, world size, inputs) alone.

Every epoch the parts are permuted and dealt out, rank r taking parts r, r + world_size, ... of the permutation. Parts
differ in rows and may be fewer than ranks, so what a rank then holds above its equal share of all rows is handed, as
stretches of whole parts' shuffled rows, to the ranks below theirs. Hence every rank has the same number of batches,
which is the same in every epoch, and no rank starves; a rank repeats some of its own rows to fill its last batch.
A rank's rows are shuffled within windows of a few parts, so memory is bounded for any catalogue, and a batch is found
without reading what came before its window.

Held-out rows are in none of these batches; `validation` gives each of them once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..models.base import Batch
from ..models.conditions import NO_CATEGORY
from .dealing import Piece, cut, deal
from .part_cache import PartReader
from .part_rows import PartRows
from .row_draws import Balanced, EveryRow, Sampling

# Separate streams of random numbers for the three shuffles of one (seed, epoch).
_PARTS, _ROWS, _WINDOW = range(3)


@dataclass(frozen=True, slots=True)
class Segment:
    """The stretch [start, stop) of a window's shuffled rows; `window` and `pieces` name the window."""

    epoch: int
    window: int
    pieces: tuple[Piece, ...]
    start: int
    stop: int


class Loader(Protocol):
    """What the loop asks of one rank's batches; see `PixelLoader` for what each means."""

    num_held_out: int
    steps_per_epoch: int

    def batches(self, start: int, stop: int) -> Generator[Batch]:
        """Yield the batches of steps start..stop - 1, counted over all epochs, on the CPU."""

    def validation(self) -> Generator[Batch]:
        """Yield this rank's share of what is held out."""


class PixelLoader:
    """One rank's batches. batch_size: photos a batch of this rank; steps_per_epoch: batches of every rank an epoch.

    balance: every category is drawn equally often (see `row_draws.Balanced`), rows without one being a category too;
    categories mix as far as those of the parts of one window do. num_photos: photos to train on; num_held_out: photos
    for validation only. Raises InputError when there are fewer photos than ranks.
    """

    def __init__(
        self,
        reader: PartReader,
        pixels: Sequence[PartRows],
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        window_parts: int,
        balance: bool = False,
    ) -> None:
        ordered = sorted(pixels, key=lambda part: part.place)
        self._pixels = _side(ordered, held_out=False)
        self._held_out = _side(ordered, held_out=True)
        self._has_categories = any(part.category is not None for part in pixels)
        self.num_photos = sum(len(part.rows) for part in self._pixels)
        self.num_held_out = sum(len(part.rows) for part in self._held_out)
        if self.num_photos < world_size:
            raise InputError(_too_few(self.num_photos, self.num_held_out, world_size))
        self._sampling = _sampling(self._pixels, balance=balance, seed=seed)
        self._reader = reader
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self._seed = seed
        self._window_parts = window_parts
        self.steps_per_epoch = -(-self.num_photos // (batch_size * world_size))

    def batches(self, start: int, stop: int) -> Generator[Batch]:
        """Yield the batches of steps start..stop - 1, counted over all epochs: images contiguous, on the CPU.

        Conditions are there when any part's are known. A batch is a view into its window; it is not to be written to.
        """
        segments = self._segments(start, stop)
        return _regroup(_ahead(partial(self.load, segment) for segment in segments), self._batch_size)

    def validation(self) -> Generator[Batch]:
        """Yield this rank's share of the held-out photos in the parts' order, the last batch as long as it comes.

        Over all ranks every held-out photo comes once. Ranks may have unlike numbers of batches, or none.
        """
        return _regroup(_ahead(self._held_out_loads()), self._batch_size)

    def load(self, segment: Segment) -> Batch:
        """Return the photos of a segment in training order."""
        return self._read(self._pixels, *self._places_of(segment))

    def _read(self, pixels: Sequence[PartRows], parts: NDArray[np.int64], places: NDArray[np.int32]) -> Batch:
        """Return photos: of each the part's number and which of that part's living rows it is."""
        sizes, reader = (self._reader.image_size, *self._reader.others), self._reader.features
        seen = [_room_for(len(places), size, for_gpu=self._reader.for_gpu) for size in sizes]
        condition = np.zeros(len(places), np.int64) if self._has_categories else None
        features = np.empty((len(places), reader.numbers), np.float32) if reader else None

        def read_part(number: int) -> None:
            at = np.flatnonzero(parts == number)
            part = pixels[number]
            for size, out in enumerate(seen if sizes[0] else []):
                self._reader.read_into(part.part, part.rows[places[at]], out.numpy(), at, size)
            if condition is not None and part.category is not None:
                condition[at] = part.category[places[at]]
            if reader is not None and features is not None:
                reader.read_into(*_of_teacher(part, places[at]), features, at)

        numbers = np.unique(parts).tolist()
        if self._reader.threads == 1 or len(numbers) == 1:
            for number in numbers:
                read_part(number)
        else:  # unpacking and copying let other threads run
            with ThreadPoolExecutor(self._reader.threads, thread_name_prefix="parts") as pool:
                list(pool.map(read_part, numbers))
        images, *others = seen
        known = [None if values is None else torch.from_numpy(values) for values in (condition, features)]
        return Batch(images, known[0], features=known[1], others=tuple(others))

    def _places_of(self, segment: Segment) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Return, of every photo of a segment, the part's number and which of that part's living rows it is."""
        parts, places = [], []
        for piece in segment.pieces:
            drawn = self._sampling.places(segment.epoch, piece.part)
            shuffled = self._rng(segment.epoch, _ROWS, piece.part).permutation(drawn)
            places.append(shuffled[piece.start : piece.stop])
            parts.append(np.full(len(piece), piece.part, np.int64))
        total = sum(map(len, segment.pieces))
        order = self._rng(segment.epoch, _WINDOW, self._rank, segment.window).permutation(total)
        chosen = order[segment.start : segment.stop]
        return np.concatenate(parts)[chosen], np.concatenate(places)[chosen]

    def _segments(self, start: int, stop: int) -> Iterator[Segment]:
        """Yield, in training order, the stretches of windows that steps start..stop - 1 need."""
        for epoch in range(start // self.steps_per_epoch, -(-stop // self.steps_per_epoch)):
            pieces = self._pieces(epoch)
            size = self._window_parts
            windows = [tuple(pieces[first : first + size]) for first in range(0, len(pieces), size)]
            ends = np.cumsum([sum(map(len, window)) for window in windows]).tolist()
            begin = epoch * self.steps_per_epoch
            row = max(start - begin, 0) * self._batch_size
            last = min(stop - begin, self.steps_per_epoch) * self._batch_size
            while row < last:
                place = row % ends[-1]  # past its own rows a rank begins again with its first ones
                number = int(np.searchsorted(ends, place, side="right"))
                first = ends[number] - sum(map(len, windows[number]))
                length = min(ends[number] - place, last - row)
                yield Segment(epoch, number, windows[number], place - first, place - first + length)
                row += length

    def _pieces(self, epoch: int) -> list[Piece]:
        """Return this rank's pieces of an epoch, in training order."""
        whole = cut(self._sampling.counts(epoch), self._sampling.longest_piece)
        order = self._rng(epoch, _PARTS).permutation(len(whole))
        return deal([whole[number] for number in order], self._world_size)[self._rank]

    def _held_out_loads(self) -> Iterator[Callable[[], Batch]]:
        """Yield what reads this rank's held-out rows, an equal stretch of all of them, part by part."""
        begin = self.num_held_out * self._rank // self._world_size
        end = self.num_held_out * (self._rank + 1) // self._world_size
        before = 0
        for number, part in enumerate(self._held_out):
            low, high = max(begin - before, 0), min(end - before, len(part.rows))
            if low < high:
                places = np.arange(low, high, dtype=np.int32)
                yield partial(self._read, self._held_out, np.full(len(places), number, np.int64), places)
            before += len(part.rows)

    def _rng(self, epoch: int, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, epoch, *stream])


def _room_for(photos: int, size: int, *, for_gpu: bool) -> torch.Tensor:
    """Return memory for photos, uint8 [photos, 3, size, size]."""
    if not for_gpu:
        return torch.empty((photos, 3, size, size), dtype=torch.uint8)
    pinned = torch.cuda.is_available()  # without a GPU only the order of the bytes is that of one
    return torch.empty((photos, size, size, 3), dtype=torch.uint8, pin_memory=pinned).permute(0, 3, 1, 2)


def _side(pixels: Sequence[PartRows], *, held_out: bool) -> list[PartRows]:
    """Return the parts with their held-out rows only, or with the others only; no part without a row."""
    sides = (part.side(held_out=held_out) for part in pixels)
    return [part for part in sides if len(part.rows)]


def _of_teacher(part: PartRows, places: NDArray[np.int32]) -> tuple[str, NDArray[np.int32]]:
    """Return the latents part and the rows of it that are the features of some of a part's living rows."""
    if part.features is None:
        raise InputError(f"the model learns from a teacher's features, and there are none of the photos of {part.part}")
    return part.features.part, part.features.rows[places]


def _sampling(pixels: Sequence[PartRows], *, balance: bool, seed: int) -> Sampling:
    counts = [len(part.rows) for part in pixels]
    if not balance:
        return EveryRow(counts)
    missing = (np.full(count, NO_CATEGORY, np.int32) for count in counts)
    known = (part.category for part in pixels)
    return Balanced([none if rows is None else rows for rows, none in zip(known, missing, strict=True)], seed=seed)


def _too_few(photos: int, held_out: int, world_size: int) -> str:
    if held_out:
        return (
            f"{photos} photos are left for {world_size} training workers, as {held_out} are held out for validation; "
            "lower train.validation, or name another column in train.split_by"
        )
    return f"{photos} photos cannot feed {world_size} training workers; add photos or lower train.workers"


def _ahead(loads: Iterator[Callable[[], Batch]]) -> Generator[Batch]:
    """Yield what each of `loads` returns; one thread loads the next while one is consumed, so two are in memory."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="pixels") as thread:
        upcoming = (thread.submit(load) for load in loads)
        coming = next(upcoming, None)
        while coming is not None:
            window = coming.result()
            coming = next(upcoming, None)
            yield window


def _regroup(windows: Generator[Batch], size: int) -> Generator[Batch]:
    """Yield batches of exactly `size` photos from windows of any length; only the very last may be shorter."""
    rest: Batch | None = None
    for window in windows:
        begin, length = 0, len(window.images)
        if rest is not None:
            begin = min(size - len(rest.images), length)
            rest = _joined(rest, _stretch(window, 0, begin))
            if len(rest.images) < size:
                continue
            yield rest
        end = length - (length - begin) % size
        for first in range(begin, end, size):
            yield _stretch(window, first, first + size)
        # A copy, so that a few left-over rows do not keep their whole window in memory.
        rest = _copied(_stretch(window, end, length)) if end < length else None
    if rest is not None:
        yield rest


def _stretch(batch: Batch, start: int, stop: int) -> Batch:
    return batch.each(lambda values: values[start:stop])


def _joined(first: Batch, second: Batch) -> Batch:
    """Return two batches of one loader as one: what the first has, the second has too."""
    seen = (second.images, second.condition, second.features, *second.others)
    others = iter([values for values in seen if values is not None])
    return first.each(lambda values: torch.cat([values, next(others)]))


def _copied(batch: Batch) -> Batch:
    return batch.each(torch.clone)
