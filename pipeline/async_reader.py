"""The reader for services on an event loop: the same questions, awaited, on a bounded number of threads.

FAISS, Arrow and the encoder release the interpreter's lock while they work, so threads do answer side by side; what
they must not do is grow without a limit, or keep the loop waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

import pyarrow as pa
from numpy.typing import ArrayLike

from .errors import ConfigError, Unavailable
from .forks import FreshLock
from .index import LatentArrays
from .index.contents import ItemKey
from .index.latents import Float32
from .reader import Neighbour, Release, open_release

P = ParamSpec("P")
T = TypeVar("T")


class AsyncRelease:
    """An open release whose questions are awaited; arguments, answers and errors as those of `Release`.

    A question runs on the release that is current when its thread takes it up. One that is cancelled while it waits for
    a thread is never begun; one that runs is let run to its end, and its thread stays taken until then. `release` is
    the reader itself, for what does not block: `release_id`, `manifest`, `attributes` of what is open, `follow`.
    """

    def __init__(self, release: Release, *, threads: int = 2, waiting: int = 64) -> None:
        """threads: questions at once; waiting: those that may wait for a thread, more are refused (Unavailable)."""
        for name, value, least in (("threads", threads, 1), ("waiting", waiting, 0)):
            if isinstance(value, bool) or value < least:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least {least}")
        self.release = release
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="release")
        self._threads, self._waiting = threads, waiting
        self._taken, self._counting = 0, FreshLock()

    async def similar(self, item_id: ItemKey, k: int = 10, **how: Any) -> list[Neighbour]:
        """Await `Release.similar`."""
        return await self._run(self.release.similar, item_id, k, **how)

    async def similar_to_many(self, item_ids: Iterable[ItemKey], k: int = 10, **how: Any) -> list[Neighbour]:
        """Await `Release.similar_to_many`."""
        return await self._run(self.release.similar_to_many, item_ids, k, **how)

    async def search(self, vectors: ArrayLike | LatentArrays, k: int = 10, **how: Any) -> list[list[Neighbour]]:
        """Await `Release.search`."""
        return await self._run(self.release.search, vectors, k, **how)

    async def similar_photo(self, data: bytes, k: int = 10, **how: Any) -> list[Neighbour]:
        """Await `Release.similar_photo`."""
        return await self._run(self.release.similar_photo, data, k, **how)

    async def encode_photo(self, data: bytes, **how: Any) -> Float32:
        """Await `Release.encode_photo`."""
        return await self._run(self.release.encode_photo, data, **how)

    async def latents(self, item_ids: Iterable[ItemKey]) -> pa.Table:
        """Await `Release.latents`."""
        return await self._run(self.release.latents, item_ids)

    async def refresh(self) -> bool:
        """Await `Release.refresh`, on a thread beside those of the questions: fetching a release takes none of them."""
        return await asyncio.to_thread(self.release.refresh)

    async def aclose(self) -> None:
        """Take no more questions and wait for those under way."""
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)

    async def __aenter__(self) -> AsyncRelease:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _run(self, ask: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        with self._counting:
            if self._taken >= self._threads + self._waiting:
                raise Unavailable(
                    f"{self._threads} questions are under way and {self._waiting} wait, which is all that this release "
                    "takes; try again in a moment, or open it with more threads or a larger waiting"
                )
            self._taken += 1
        try:
            future = self._pool.submit(partial(ask, *given, **named))
        except BaseException:
            self._left()
            raise
        future.add_done_callback(lambda _: self._left())  # also of one that was cancelled before it began
        return await asyncio.wrap_future(future)

    def _left(self) -> None:
        with self._counting:
            self._taken -= 1


async def open_release_async(store_url: str, *, threads: int = 2, waiting: int = 64, **opening: Any) -> AsyncRelease:
    """Open a release on a thread, so that the loop goes on meanwhile; opening: as `open_release` takes it.

    threads, waiting: as `AsyncRelease`. Errors as `open_release`, ConfigError for numbers that cannot be.
    """
    release = await asyncio.to_thread(partial(open_release, store_url, **opening))
    return AsyncRelease(release, threads=threads, waiting=waiting)
