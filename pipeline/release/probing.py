"""What `doctor` asks of a store: does it keep what the rest relies on, how far is its clock, what is on the channel?"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

from ..findings import Finding
from ..storage import Store, check_shows_writes, check_write_once, store_clock
from .channel import read_head
from .format import check_store

_CLOCK_S = 300.0


def probe_store(store: Store, channel: str) -> Iterator[Finding]:
    """Yield what is found on writing, reading, listing, deleting and writing once, under a name of our own.

    Raises what the store raises where it cannot do one of them, ConfigError where it is no write-once store.
    """
    folder = f"runs/doctor-{uuid.uuid4().hex[:12]}/"
    check_write_once(store, f"{folder}probe")
    check_shows_writes(store, folder)
    try:
        clock = store_clock(store, f"{folder}clock")
    finally:
        store.delete(f"{folder}clock")
    yield Finding("ok", "store", f"{store.url}: write, read, list, delete and write-once work")
    off = abs((datetime.now(UTC) - clock).total_seconds())
    if off > _CLOCK_S:
        yield Finding(
            "warn", "clock", f"this machine and the store differ by {off:,.0f} s", "set this machine's clock (NTP)"
        )
    known = check_store(store)
    head = read_head(store, channel) if known else None
    current = f"current release {head.release_id} (number {head.number})" if head else "no release yet"
    yield Finding("ok", "channel", f"{channel}: {current}")
