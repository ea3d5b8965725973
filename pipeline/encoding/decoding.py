"""Photos of a shard to the rows of a pixels part: fetched once, decoded once for each size that is asked of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import CodebooksError, IntegrityError, PhotoRefused
from ..images import ImagesConfig, decode_each
from ..keys import digest_of
from ..schema import pixels_column, pixels_schema
from .shards import Killer

_log = logging.getLogger(__name__)

READ_ROWS = 256  # photos whose bytes are held at a time; while they are decoded the next ones are fetched

Pixels = npt.NDArray[np.uint8]


class Reader(Protocol):
    """What turns rows of photos into bytes; `catalogue.PhotoReader` is one."""

    def read(self, photos: pa.Table) -> list[bytes | PhotoRefused]:
        """Return each photo's bytes, or why it cannot be had, in order. Raises Unavailable on temporary failures."""


class PhotoDecoder:
    """Fetches and decodes the photos of a shard into the table of a pixels part.

    images: how photos become pixels, one config for each column of pixels; the limits are those of the first.
    """

    def __init__(self, reader: Reader, *images: ImagesConfig, threads: int = 1) -> None:
        self.reader = reader
        self.images = images
        self.threads = threads

    def __call__(self, photos: pa.Table, killers: Sequence[Killer] = ()) -> pa.Table:
        """Return the rows of `photos` with schema.pixels_schema; a refused photo has no pixels but a reason.

        One that any of the transforms refuses is refused. killers: rows that are refused without being touched. Raises
        Unavailable when a photo cannot be fetched for now.
        """
        count = photos.num_rows
        pixels = [np.zeros((count, images.size, images.size, 3), np.uint8) for images in self.images]
        digests: list[str | None] = [None] * count
        refusals: list[PhotoRefused | None] = [None] * count
        for killer in killers:
            refusals[killer.row] = killer.refusal
        with ThreadPoolExecutor(self.threads) as pool:
            for rows, answers in self._read(photos, [killer.row for killer in killers]):
                decoded = pool.map(self._decode, answers) if self.threads > 1 else map(self._decode, answers)
                for row, photo in zip(rows.tolist(), decoded, strict=True):
                    if isinstance(photo, PhotoRefused):
                        refusals[row] = photo
                        continue
                    digests[row] = photo[0]
                    for held, seen in zip(pixels, photo[1], strict=True):
                        held[row] = seen
        return _pixels_table(photos, digests, pixels, refusals)

    def _read(
        self, photos: pa.Table, untouched: list[int]
    ) -> Iterator[tuple[npt.NDArray[np.int64], list[bytes | PhotoRefused]]]:
        """Yield rows and what was read of them, one stretch ahead; embedded photos in the order of their files."""
        order = np.asarray(pc.sort_indices(photos, [("source", "ascending"), ("offset", "ascending")]), np.int64)
        order = order[~np.isin(order, untouched)]
        stretches = [order[start : start + READ_ROWS] for start in range(0, len(order), READ_ROWS)]
        if not stretches:
            return
        with ThreadPoolExecutor(1) as ahead:
            pending = ahead.submit(self.reader.read, photos.take(pa.array(stretches[0])))
            for number, rows in enumerate(stretches):
                answers = pending.result()
                if len(answers) != len(rows):
                    raise IntegrityError(f"the reader answered {len(answers)} of {len(rows)} photos")
                if number + 1 < len(stretches):
                    pending = ahead.submit(self.reader.read, photos.take(pa.array(stretches[number + 1])))
                yield rows, answers

    def _decode(self, answer: bytes | PhotoRefused) -> tuple[str, list[Pixels]] | PhotoRefused:
        if isinstance(answer, PhotoRefused):
            return answer
        try:
            return digest_of(answer), decode_each(answer, *self.images)
        except PhotoRefused as refused:
            return refused
        except (CodebooksError, ImportError):  # our mistake or a missing Pillow: every photo would be refused for it
            raise
        except Exception as error:  # noqa: BLE001 - one photo that crashes Pillow in a new way must not stop the night
            # Its text may quote bytes of the file, and a quarantine is published: it goes to this machine's log only.
            _log.warning("decode failed in a way that has no reason word yet: %s: %s", type(error).__name__, error)
            return PhotoRefused("decode", "broken", f"{type(error).__name__}, for which there is no reason word yet")


def pixel_array(table: pa.Table, size: int, number: int = 0) -> Pixels:
    """Return photos of a pixels table, uint8 [rows, size, size, 3], without a copy; refused rows hold anything.

    number: of the transform. Raises IntegrityError where the pixels are of another size.
    """
    column = table[pixels_column(number)].combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    width = size * size * 3
    if column.type != pa.binary(width):
        raise IntegrityError(f"the pixels part holds {column.type}, expected photos of {size} pixels a side")
    if not len(column):
        return np.empty((0, size, size, 3), np.uint8)
    values = np.frombuffer(column.buffers()[1], np.uint8, count=len(column) * width, offset=column.offset * width)
    return values.reshape(len(column), size, size, 3)


def without_pixels(table: pa.Table, first: int = 0) -> pa.Table:
    """Return a pixels table with the pixels of its `first` transforms only, by default of none."""
    spare = [name for name in table.column_names if name.startswith("pixels")][first:]
    return table.drop_columns(spare) if spare else table


def _pixels_table(
    photos: pa.Table, digests: list[str | None], pixels: Sequence[Pixels], refusals: list[PhotoRefused | None]
) -> pa.Table:
    usable = np.array([refusal is None for refusal in refusals], np.bool_)
    schema = pixels_schema(*(seen.shape[1] for seen in pixels))
    # From the arrays' own memory: one row of pixels is one value, a cleared bit in the first buffer is a null.
    bits = pa.py_buffer(np.packbits(usable, bitorder="little"))
    columns = [
        *(photos[name] for name in ("item_id", "uri", "token")),
        pa.array(digests, pa.string()),
        *(
            pa.Array.from_buffers(schema.field(pixels_column(number)).type, len(seen), [bits, pa.py_buffer(seen)])
            for number, seen in enumerate(pixels)
        ),
        pa.array([refusal and refusal.stage for refusal in refusals], pa.string()),
        pa.array([refusal and refusal.reason for refusal in refusals], pa.string()),
        pa.array([refusal and refusal.detail for refusal in refusals], pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=schema)
