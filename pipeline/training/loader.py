"""The deterministic loader: which photo is in which batch follows from (seed, epoch, world size, inputs) alone.

Every epoch the parts are permuted and dealt out, rank r taking parts r, r + world_size, ... of the permutation. Parts
differ in rows and may be fewer than ranks, so what a rank then holds above its equal share of all rows is handed, as
stretches of whole parts' shuffled rows, to the ranks below theirs. Hence every rank has the same number of batches,
which is the same in every epoch, and no rank starves; a rank repeats some of its own rows to fill its last batch.
A rank's rows are shuffled within windows of a few parts, so memory is bounded for any catalogue, and a batch is found
without reading what came before its window.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..keys import digest_of, key_of
from ..models.base import Batch
from .part_cache import PartReader

# Separate streams of random numbers for the three shuffles of one (seed, epoch).
_PARTS, _ROWS, _WINDOW = range(3)


@dataclass(frozen=True, slots=True)
class PixelRows:
    """A pixels part (full name on the store) and its living rows, int32 and ascending.

    category: the condition row of each living row (`models.base.condition_of`), or None where no category is known.
    held_out: whether each living row is for validation only; None: none is.
    """

    part: str
    rows: NDArray[np.int32]
    category: NDArray[np.int32] | None = None
    held_out: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch [start, stop) of the shuffled rows of part number `part`."""

    part: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def split(self, head: int) -> tuple[Piece, Piece]:
        """Return the first `head` rows and the rest."""
        cut = self.start + min(head, len(self))
        return Piece(self.part, self.start, cut), Piece(self.part, cut, self.stop)


@dataclass(frozen=True, slots=True)
class Segment:
    """The stretch [start, stop) of a window's shuffled rows; `window` and `pieces` name the window."""

    epoch: int
    window: int
    pieces: tuple[Piece, ...]
    start: int
    stop: int


def inputs_digest(pixels: Sequence[PixelRows]) -> str:
    """Return a digest of which rows of which parts are trained on."""
    return key_of([[part.part, digest_of(part.rows.astype("<i4").tobytes())] for part in pixels])


def deal(counts: Sequence[int], order: Sequence[int], world_size: int) -> list[list[Piece]]:
    """Deal parts to ranks in this order, then level: every rank holds an equal share of all rows, to within one.

    counts: living rows of each part.
    """
    total = sum(counts)
    shares = [total // world_size + (rank < total % world_size) for rank in range(world_size)]
    held: list[list[Piece]] = [[] for _ in range(world_size)]
    spare: list[Piece] = []
    for rank, share in enumerate(shares):
        for number in order[rank::world_size]:
            head, rest = Piece(number, 0, counts[number]).split(share - sum(map(len, held[rank])))
            held[rank] += [head] if len(head) else []
            spare += [rest] if len(rest) else []
    spare.reverse()
    for rank, share in enumerate(shares):
        while (missing := share - sum(map(len, held[rank]))) > 0:
            head, rest = spare.pop().split(missing)
            held[rank].append(head)
            spare += [rest] if len(rest) else []
    return held


class PixelLoader:
    """One rank's batches. batch_size: photos a batch of this rank; steps_per_epoch: batches of every rank an epoch.

    Raises InputError when there are fewer photos than ranks.
    """

    def __init__(
        self,
        reader: PartReader,
        pixels: Sequence[PixelRows],
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        window_parts: int,
    ) -> None:
        self._pixels = sorted((part for part in pixels if len(part.rows)), key=lambda part: part.part)
        self._counts = [len(part.rows) for part in self._pixels]
        self._has_categories = any(part.category is not None for part in pixels)
        self.num_photos = sum(self._counts)
        if self.num_photos < world_size:
            raise InputError(
                f"{self.num_photos} photos cannot feed {world_size} training workers; add photos or lower train.workers"
            )
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
        return _regroup(self._windows(self._segments(start, stop)), self._batch_size)

    def _windows(self, segments: Iterator[Segment]) -> Generator[Batch]:
        """Yield the photos of segments; one thread reads the next while one is consumed, so two are in memory."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="pixels") as thread:
            upcoming = (thread.submit(self.load, segment) for segment in segments)
            coming = next(upcoming, None)
            while coming is not None:
                window = coming.result()
                coming = next(upcoming, None)
                yield window

    def load(self, segment: Segment) -> Batch:
        """Return the photos of a segment in training order."""
        parts, places = self._places_of(segment)
        size = self._reader.image_size
        out = np.empty((len(places), 3, size, size), np.uint8)
        condition = torch.zeros(len(places), dtype=torch.int64) if self._has_categories else None
        for number in np.unique(parts):
            at = np.flatnonzero(parts == number)
            part = self._pixels[number]
            self._reader.read_into(part.part, part.rows[places[at]], out, at)
            if condition is not None and part.category is not None:
                condition[torch.from_numpy(at)] = torch.from_numpy(part.category[places[at]].astype(np.int64))
        return Batch(torch.from_numpy(out), condition)

    def _places_of(self, segment: Segment) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return, of every photo of a segment, the part's number and which of that part's living rows it is."""
        parts, places = [], []
        for piece in segment.pieces:
            shuffled = self._rng(segment.epoch, _ROWS, piece.part).permutation(self._counts[piece.part])
            places.append(shuffled[piece.start : piece.stop])
            parts.append(np.full(len(piece), piece.part, np.int64))
        total = sum(map(len, segment.pieces))
        order = self._rng(segment.epoch, _WINDOW, self._rank, segment.window).permutation(total)
        chosen = order[segment.start : segment.stop]
        return np.concatenate(parts)[chosen], np.concatenate(places)[chosen]

    def _segments(self, start: int, stop: int) -> Iterator[Segment]:
        """Yield, in training order, the stretches of windows that steps start..stop - 1 need."""
        for epoch in range(start // self.steps_per_epoch, -(-stop // self.steps_per_epoch)):
            order = self._rng(epoch, _PARTS).permutation(len(self._counts)).tolist()
            pieces = deal(self._counts, order, self._world_size)[self._rank]
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

    def _rng(self, epoch: int, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, epoch, *stream])


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
    return Batch(batch.images[start:stop], None if batch.condition is None else batch.condition[start:stop])


def _joined(first: Batch, second: Batch) -> Batch:
    images = torch.cat([first.images, second.images])
    if first.condition is None or second.condition is None:
        return Batch(images)
    return Batch(images, torch.cat([first.condition, second.condition]))


def _copied(batch: Batch) -> Batch:
    return Batch(batch.images.clone(), None if batch.condition is None else batch.condition.clone())
