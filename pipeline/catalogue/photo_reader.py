"""Fetching the bytes of photos, wherever they lie."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from ..errors import CodebooksError, IntegrityError, PhotoRefused
from ..keys import digest_of
from ..refusals import KEPT
from ..storage import Files
from ..storage.addresses import shown
from .addresses import photo_text
from .cells import decode_data_uri
from .config import CatalogueConfig
from .embedded import EmbeddedPhotos
from .failures import Failure, Failures

Fetched = bytes | PhotoRefused
_COLUMNS = ("uri", "signed_uri", "token", "source", "offset", "length")
# A line of JSON holds a photo as base64, four bytes for three, and other fields beside it.
_OTHER_FIELDS = 1 << 20
# Of a photo whose bytes come with another token than the plan's: one of several servers may be behind the others.
_TRIES = 2
_CALLS = 2  # of `read` at once that have all their threads: the shards that an encoding actor works on


class PhotoReader:
    """Reads photos of a catalogue, many at a time; safe to pickle to workers.

    threads: concurrent requests of one `read`, of which two may go on side by side. max_bytes: of one photo; a longer
    one is refused before it is read.
    """

    def __init__(
        self, files: Files, config: CatalogueConfig, threads: int = 16, *, max_bytes: int | None = None
    ) -> None:
        self._files = files
        self._config = config
        self._threads = threads
        self._max_bytes = max_bytes
        self._begin()

    def _begin(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._embedded = EmbeddedPhotos(self._files, self._config.image, self._max_bytes)
        self._failures = Failures(self._files)
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_files", "_config", "_threads", "_max_bytes")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def read(self, photos: pa.Table) -> list[Fetched]:
        """Return the bytes of each photo (schema.PHOTOS; one entry a row, in order), or why it is refused.

        Refusals have the stage `fetch` and a reason of `refusals.ASKED_REASONS`. Raises what `Failures.ask` does, when
        it is no photo's fault.
        """
        # A plan frozen by an earlier version has no signed addresses.
        asked = photos.select([name for name in _COLUMNS if name in photos.column_names]).to_pylist()
        fetched: list[Fetched | None] = [None] * len(asked)
        in_tables: dict[str, list[tuple[int, int]]] = {}
        single: list[int] = []
        for number, row in enumerate(asked):
            if row["source"] is not None and row["length"] is None:
                in_tables.setdefault(row["source"], []).append((row["offset"], number))
            else:
                single.append(number)
        for number, answer in zip(single, self._map(self._one, [asked[number] for number in single]), strict=True):
            fetched[number] = answer
        for source, places in in_tables.items():
            with self._lock:  # open tables and their cached rows are shared
                found = self._in_table(source, [offset for offset, _ in places])
            for (offset, number), data in zip(places, found, strict=True):
                lacking = _changed(f"row {offset + 1} of {source} holds no photo any more")
                fetched[number] = lacking if data is None else _verified(data, asked[number])
        return [answer if answer is not None else _changed("it was not read") for answer in fetched]

    def _map(self, read: Callable[[dict[str, Any]], Fetched], rows: list[dict[str, Any]]) -> list[Fetched]:
        if len(rows) < 2 or self._threads < 2:
            return [read(row) for row in rows]
        with self._lock:
            self._pool = self._pool or ThreadPoolExecutor(_CALLS * self._threads, thread_name_prefix="photos")
        # Each thread takes the next row when it is done with one: a task a row would cost more than a file's reading.
        found: dict[int, Fetched] = {}
        waiting, failed = iter(range(len(rows))), threading.Event()  # `next` of a range is one step for every thread

        def some() -> None:
            for number in waiting:
                if failed.is_set():
                    return
                try:
                    found[number] = read(rows[number])
                except BaseException:
                    failed.set()
                    raise

        for asked in [self._pool.submit(some) for _ in range(min(self._threads, len(rows)))]:
            asked.result()
        return [found[number] for number in range(len(rows))]

    def _one(self, row: dict[str, Any]) -> Fetched:
        fetched = self._failures.ask(row["source"] or row["uri"], lambda: self._bytes_of(row))
        return _refused(fetched) if isinstance(fetched, Failure) else _verified(fetched, row)

    def _bytes_of(self, row: dict[str, Any]) -> bytes:
        if row["source"] is None:
            return self._as_planned(row.get("signed_uri") or row["uri"], row["token"] or "")
        first, last = row["offset"], row["offset"] + row["length"]
        if not row["uri"].startswith("sha256:"):  # a member of a tar shard
            return self._files.fetch(row["source"], start=first, end=last, max_bytes=self._max_bytes).data
        most = None if self._max_bytes is None else self._max_bytes * 4 // 3 + _OTHER_FIELDS
        data = self._files.fetch(row["source"], start=first, end=last, max_bytes=most).data
        try:
            return decode_data_uri(photo_text(json.loads(data)[self._config.image]))
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"the line at byte {first} of {row['source']} holds no photo any more") from error

    def _as_planned(self, uri: str, token: str) -> bytes:
        """Return a photo's bytes. Raises IntegrityError when they come with another token than the plan has."""
        for _ in range(_TRIES):
            body = self._files.fetch(uri, max_bytes=self._max_bytes)
            if not body.differs(token):
                return body.data
        raise IntegrityError(
            f"{shown(uri)} is {' and '.join(body.tokens)}, and the plan saw {token}: it was replaced since; the next "
            "night takes it as it is then"
        )

    def _in_table(self, source: str, rows: list[int]) -> list[bytes | PhotoRefused | None]:
        found = self._failures.ask(source, lambda: self._rows_of(source, rows))
        return [_refused(found)] * len(rows) if isinstance(found, Failure) else found

    def _rows_of(self, source: str, rows: list[int]) -> list[bytes | PhotoRefused | None]:
        try:
            return list(self._embedded.read(source, rows))
        except (CodebooksError, MemoryError):
            raise
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            raise IntegrityError(f"{source} is not what the plan saw: {error}") from error


def _refused(failure: Failure) -> PhotoRefused:
    # A limit of `images` is the decoder's, whoever finds it passed: a part may say so.
    return PhotoRefused("decode" if failure.reason in KEPT else "fetch", failure.reason, failure.detail)


def _changed(detail: str) -> PhotoRefused:
    return PhotoRefused("fetch", "changed", detail)


def _verified(data: Fetched, row: dict[str, Any]) -> Fetched:
    """Hold the bytes against a token that is a digest; any other token says nothing about bytes."""
    token = row["token"] or ""
    if isinstance(data, PhotoRefused) or not token.startswith("sha256:") or token == f"sha256:{digest_of(data)}":
        return data
    return _changed(f"{row['uri']}: the bytes are not those the plan saw; the next run takes the new ones")
