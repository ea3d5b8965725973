"""Finished files of a table, from when they are made until the release is written."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa

from ..errors import IntegrityError
from ..keys import digest_of
from ..mapping import Kept, Scratch
from ..release import ReleaseFile

_IN_MEMORY = 64 << 20  # bytes of finished files, before they go to a temporary one


class Waiting(NamedTuple):
    """A release's file that waits on the store; suffix, rows: as `ReleaseFile` has them."""

    kept: Kept
    suffix: str
    rows: int | None


def waiting(scratch: Scratch | None, role: str, file: ReleaseFile) -> ReleaseFile | Waiting:
    """Return a file as it goes from a task to the driver: itself where it was made here, else where it waits."""
    return file if scratch is None else Waiting(scratch.keep(role, file.data), file.suffix, file.rows)


def packed(table: pa.Table) -> pa.Buffer:
    """Return a table as Arrow's stream: of a slice's own rows, where a pickle has the whole."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def unpacked(data: pa.Buffer | bytes) -> pa.Table:
    """Return the table of a stream, whose bytes it holds."""
    return pa.ipc.open_stream(data).read_all()


class Pieces:
    """Files of a table in their order, each read once; what was made here waits in memory, or in a temporary file."""

    def __init__(self, scratch: Scratch | None) -> None:
        """scratch: where files wait that Ray tasks have made."""
        self._scratch = scratch
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY, prefix="tables-")  # noqa: SIM115 - by `__del__`
        self._places: list[tuple[int, int, ReleaseFile] | Waiting] = []

    def __del__(self) -> None:
        self._file.close()

    def add(self, file: ReleaseFile | Waiting) -> None:
        """Keep the next file."""
        if isinstance(file, Waiting):
            self._places.append(file)
            return
        start = self._file.tell()
        self._file.write(file.data)
        self._places.append((start, len(file.data), file._replace(data=b"")))

    @property
    def waiting(self) -> tuple[Waiting, ...]:
        """Those that lie on the store."""
        return tuple(one for one in self._places if isinstance(one, Waiting))

    def files(self) -> Iterator[ReleaseFile]:
        """Yield each file; one on the store goes when the next is asked for, since it is the release's by then."""
        for place in self._places:
            if isinstance(place, Waiting):
                yield self._taken(place)
                self._forget(place.kept)
                continue
            start, size, file = place
            self._file.seek(start)
            yield file._replace(data=self._file.read(size))

    def _taken(self, place: Waiting) -> ReleaseFile:
        if self._scratch is None:
            raise AssertionError("only tasks leave files on the store")
        data = self._scratch.store.get(place.kept.name)
        if digest_of(data) != place.kept.digest:
            raise IntegrityError(
                f"{place.kept.name} on {self._scratch.store.url} is not what a task wrote there: it has the sha256 "
                f"{digest_of(data)}, expected {place.kept.digest}; run again"
            )
        return ReleaseFile(data, place.suffix, place.rows)

    def _forget(self, kept: Kept) -> None:
        if self._scratch is not None:
            self._scratch.forget([kept])
