"""How many requests are worked on and waited for, and for how long: what is more is refused at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ..errors import RequestRefused
from .config import ServeConfig
from .counting import Counts

T = TypeVar("T")


class Door:
    """A bounded pool of threads behind a bounded queue.

    A place is taken before a request's body is read, so bodies in memory are bounded too, and is kept until the work
    has really ended: a search that nobody waits for any more still occupies its thread.
    """

    def __init__(self, config: ServeConfig, counts: Counts) -> None:
        self._config, self._counts = config, counts
        self._pool = ThreadPoolExecutor(config.threads, thread_name_prefix="search")
        self._places = config.threads + config.queue

    def enter(self) -> Place:
        """Return a place for one request. Raises RequestRefused 429 when all are taken."""
        if self._places == 0:
            self._counts.add("refused_busy")
            raise RequestRefused(
                429,
                f"{self._config.threads} searches are under way and {self._config.queue} requests wait, which is all "
                "that this process takes; try again in a second, or give `codebooks serve` more --workers or --queue",
            )
        self._places -= 1
        self._counts.add("requests_in_flight")
        return Place(self, asyncio.get_running_loop().time() + self._config.timeout_s)

    def leave(self) -> None:
        """Give a place back."""
        self._places += 1
        self._counts.add("requests_in_flight", -1)

    def close(self) -> None:
        """Wait for the work under way and take no more."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def run(self, work: Callable[[], T], place: Place) -> T:
        """Return what `work` returns on a thread. Raises RequestRefused 503 when the request's time is over."""
        loop = asyncio.get_running_loop()
        future = self._pool.submit(work)
        place.handed_on = True
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self.leave))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), place.ends - loop.time())
        except TimeoutError:
            self._counts.add("timeouts")
            raise RequestRefused(503, self._late("its answer was not ready")) from None

    async def body(self, parts: AsyncIterator[bytes], place: Place) -> bytes:
        """Return a request's body. Raises RequestRefused 413 for a longer one than allowed, 408 for a slow one."""
        held = bytearray()
        try:
            async with asyncio.timeout_at(place.ends):
                async for part in parts:
                    held += part
                    self.check_length(len(held))
        except TimeoutError:
            self._counts.add("timeouts")
            raise RequestRefused(408, self._late(f"{len(held):,} bytes of its body had come")) from None
        return bytes(held)

    def check_length(self, length: int) -> None:
        """Raise RequestRefused 413 for a body of more bytes than allowed."""
        if length > self._config.max_body:
            raise RequestRefused(
                413,
                f"the body has {length:,} bytes or more, and {self._config.max_body:,} are taken at most; send fewer "
                "vectors at once or a smaller photo, or give `codebooks serve` a larger --max-body",
            )

    def _late(self, state: str) -> str:
        return (
            f"after {self._config.timeout_s:g} seconds {state}; ask for less at once, try again, or give "
            "`codebooks serve` a larger --timeout-s"
        )


class Place:
    """One request's place. ends: when its time is over, by the event loop's clock."""

    def __init__(self, door: Door, ends: float) -> None:
        self._door, self.ends = door, ends
        self.handed_on = False  # to a thread's work, which gives it back when it has ended

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.handed_on:
            self._door.leave()
