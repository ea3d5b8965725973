"""Pixel parts as local files: each is fetched once per machine, and kept while the disk has room."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from ..errors import IntegrityError
from ..parts import check_part_name, readable
from ..schema import pixels_column
from ..storage import Store
from ..storage.cache import temporary_folder
from ..storage.room import asked_bytes, default_bytes

DEFAULT_MAX_BYTES = 100 << 30
_VARIABLE = "CODEBOOKS_TRAIN_CACHE_GIB"
_STALE_S = 3 * 86_400  # a folder that no training has touched for so long was left by a killed one


class PartCache:
    """Local files of parts. Parts of a store on this machine's disk are read where they lie.

    folder: shared by all workers of a machine. limit_bytes: how much it may hold; None: the environment variable
    CODEBOOKS_TRAIN_CACHE_GIB of the machine, else 100 GiB, and a quarter at most of what is free for this process. A
    part beyond that, or for which the disk has no room after all, is fetched for each use and read from memory.
    """

    def __init__(self, store: Store, folder: Path, *, limit_bytes: int | None = None) -> None:
        self._store = store
        self._folder = folder
        filesystem, root = store.arrow_filesystem()
        self._local_root = Path(root) if isinstance(filesystem, fs.LocalFileSystem) else None
        if self._local_root is None:
            folder.mkdir(parents=True, exist_ok=True)
        self._limit = asked_bytes(None, _VARIABLE) if limit_bytes is None else limit_bytes

    @contextmanager
    def path(self, name: str) -> Iterator[Path | pa.BufferReader]:
        """Lend the local file of a part, or its bytes. Raises NotFound, Unavailable, IntegrityError on another name."""
        check_part_name(name)
        if self._local_root is not None:
            path = self._local_root / name
            self._store.stat(name)  # NotFound with the store's own words
            yield path
            return
        path = self._folder / f"{sha256(name.encode()).hexdigest()[:32]}.parquet"
        if path.exists():
            self._touch()
            yield path
            return
        data = self._store.get(name)
        if self._kept(path, data):
            del data
            yield path
        else:
            yield pa.BufferReader(data)

    def remove(self) -> None:
        """Delete the folder and all that is cached in it."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _kept(self, path: Path, data: bytes) -> bool:
        """Write a part into the folder and return whether there was room."""
        self._folder.mkdir(parents=True, exist_ok=True)
        used = self._used()
        if self._limit is None:
            self._limit = default_bytes(self._folder, held=used, most=DEFAULT_MAX_BYTES)
        if used + len(data) > self._limit:
            return False
        aside = self._folder / f"{path.name}.{os.getpid()}.{time.monotonic_ns()}"
        try:
            aside.write_bytes(data)
            # Atomic: another worker of this machine may have fetched the same part, with the same bytes.
            aside.replace(path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):  # others have filled the disk, or a quota is used up
                return False
            raise
        return True

    def _touch(self) -> None:
        with suppress(OSError):  # the folder's time says that a training still reads it
            os.utime(self._folder)

    def _used(self) -> int:
        return sum(entry.stat().st_size for entry in os.scandir(self._folder) if entry.name.endswith(".parquet"))


def cache_folder(name: str) -> Path:
    """Return this user's cache folder for one training on this machine, and delete those long abandoned."""
    base = temporary_folder("training")
    for other in base.iterdir():
        if other.name != name and time.time() - other.stat().st_mtime > _STALE_S:
            shutil.rmtree(other, ignore_errors=True)
    folder = base / name
    folder.mkdir(exist_ok=True)
    os.utime(folder)
    return folder


class PartReader:
    """Reads chosen rows of pixel parts into channel-first arrays.

    image_size: height and width in pixels, 0 where no pixels are wanted; others: those of the further sizes that the
    parts hold. features: what reads what a teacher says of the same photos, where they have one. threads: parts that
    are unpacked at once. for_gpu: photos shall lie in pinned memory with the channels last, as a GPU takes them, so
    that sending them there is nothing but a copy.
    """

    others: tuple[int, ...] = ()
    features: FeatureReader | None = None
    threads: int = 1
    for_gpu: bool = False

    def __init__(
        self,
        cache: PartCache,
        image_size: int,
        *others: int,
        features: FeatureReader | None = None,
        threads: int = 1,
        for_gpu: bool = False,
    ) -> None:
        self.image_size, self.others = image_size, others
        self.features = features
        self.threads, self.for_gpu = threads, for_gpu
        self._cache = cache

    def blind(self) -> PartReader:
        """Return a reader of features alone."""
        return PartReader(self._cache, 0, features=self.features, threads=self.threads)

    def read_into(
        self, name: str, rows: NDArray[np.int32], out: NDArray[np.uint8], at: NDArray[np.int64], number: int = 0
    ) -> None:
        """Copy the pixels of `rows` of a part to out[at], out uint8 [n, 3, H, W]; number: which of the sizes.

        Only row groups that hold asked rows are read, one at a time. Raises IntegrityError when the part has no such
        rows, pixels of another size, or a refused photo among them.
        """
        for column, wanted, places in _stretches(self._cache, name, pixels_column(number), rows, at):
            out[places] = _view(column, out.shape[-1], name, wanted).transpose(0, 3, 1, 2)


def _view(column: pa.ChunkedArray, size: int, name: str, rows: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Return pixels uint8 [n, size, size, 3] of some rows of a row group."""
    width = size * size * 3
    if column.type != pa.binary(width):
        raise IntegrityError(f"{name} holds pixels of type {column.type}, expected {size} x {size} x 3 bytes a row")
    chunk = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if chunk.null_count:
        refused = rows[~chunk.is_valid().to_numpy(zero_copy_only=False)[rows]]
        if len(refused):
            raise IntegrityError(f"{name} has no pixels in row {refused[0]} of a row group: the photo was refused")
    # The Arrow buffer itself, not a copy.
    flat = np.frombuffer(chunk.buffers()[1], np.uint8, len(chunk) * width, chunk.offset * width)
    return flat.reshape(len(chunk), size, size, 3)[rows]


class FeatureReader:
    """Reads what a teacher says of photos, the `mean` of its latents parts; numbers: how many a photo, D."""

    def __init__(self, cache: PartCache, numbers: int) -> None:
        self.numbers = numbers
        self._cache = cache

    def read_into(self, name: str, rows: NDArray[np.int32], out: NDArray[np.float32], at: NDArray[np.int64]) -> None:
        """Copy the features of `rows` of a latents part to out[at], out float32 [n, D].

        Raises IntegrityError when the part has no such rows or features of another length.
        """
        for column, wanted, places in _stretches(self._cache, name, "mean", rows, at):
            if not pa.types.is_fixed_size_list(column.type) or column.type.list_size != self.numbers:
                raise IntegrityError(f"{name} holds latents of type {column.type}, expected {self.numbers} numbers")
            chunk = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
            flat = chunk.flatten().to_numpy(zero_copy_only=False)
            out[places] = flat.reshape(len(chunk), self.numbers)[wanted]


def _stretches(
    cache: PartCache, name: str, column: str, rows: NDArray[np.int32], at: NDArray[np.int64]
) -> Iterator[tuple[pa.ChunkedArray, NDArray[np.int32], NDArray[np.int64]]]:
    """Yield, of each row group that holds some of `rows`, the column, which of its rows, and where of `at` they go."""
    order = np.argsort(rows, kind="stable")
    rows, at = rows[order], at[order]
    with readable(name), cache.path(name) as path, pq.ParquetFile(path, memory_map=isinstance(path, Path)) as part:
        first = 0
        for group in range(part.metadata.num_row_groups):
            last = first + part.metadata.row_group(group).num_rows
            low, high = np.searchsorted(rows, [first, last])
            if high > low:
                found = part.read_row_group(group, columns=[column], use_threads=False).column(column)
                yield found, rows[low:high] - first, at[low:high]
            first = last
        if len(rows) and (rows[-1] >= first or rows[0] < 0):
            raise IntegrityError(f"{name} has {first} rows, but row {rows[-1]} is named as a living one")
