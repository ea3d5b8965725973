"""A store whose clock a test sets, nights that write to it, and actors that take turns at every call to it.

Loaded by `conftest.py`; the fixture `expiring` is this module.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.keys import digest_of
from pipeline.parts import PartFile
from pipeline.release import WrittenRelease, publish, read_head, write_release
from pipeline.storage import Entry
from pipeline.storage.memory import SPACES, Held, MemoryStore

START = datetime(2026, 1, 1, tzinfo=UTC)


class ClockStore(MemoryStore):
    """A store in memory with a clock of its own; `before` is told each call and the name it is for."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        SPACES.pop(self._space, None)
        self.now = START
        self.before: Callable[[str, str], None] = lambda call, name: None

    def pass_days(self, days: float) -> None:
        self.now += timedelta(days=days)

    def size(self) -> int:
        return sum(len(held.data) for held in self._held.values())

    def names(self) -> set[str]:
        return set(self._held)

    def fetch(self, name: str, **limits: Any) -> Any:
        self.before("get", name)
        return super().fetch(name, **limits)

    def put(self, name: str, data: bytes | memoryview) -> None:
        self.before("put", name)
        self._held[name] = Held(bytes(data), self.now)

    def put_if_absent(self, name: str, data: bytes | memoryview) -> bool:
        self.before("put", name)
        mine = Held(bytes(data), self.now)
        return self._held.setdefault(name, mine) is mine

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[Entry]:
        self.before("list", prefix)
        return iter(list(super().list(prefix, after=after)))

    def stat(self, name: str) -> Entry:
        self.before("stat", name)
        return super().stat(name)

    def delete(self, name: str) -> None:
        self.before("delete", name)
        super().delete(name)


def part(store: ClockStore, name: str, data: bytes) -> PartFile:
    """Write a part unless it is there."""
    store.put_if_absent(name, data)
    held = store.get(name)
    return PartFile(name=name, bytes=len(held), rows=1, sha256=digest_of(held))


def plan(parts: list[str], *, parent: str | None, model: str = "m", transform: str = "t") -> bytes:
    """Return what expiry reads of a plan: the parts that are carried over, and in the metadata what was decided."""
    meta = {b"plan": json.dumps({"parent": parent, "model_id": model, "transform_id": transform}).encode()}
    table = pa.table(
        {"latents_part": pa.array(parts, pa.string()), "pixels_part": pa.array([None] * len(parts), pa.string())}
    )
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(meta), sink)
    return sink.getvalue()


def release(store: ClockStore, run: str, parts: list[PartFile], *, parent: str | None = None) -> WrittenRelease:
    """Write a release of these parts, with two files of its own."""
    return write_release(
        store,
        release_id=f"{run}-{digest_of(run.encode())[:12]}",
        files={"items": (f"items of {run}".encode() * 4, ".parquet", 1), "index": (run.encode() * 50, ".faiss", 1)},
        parts=tuple(parts), release_key="0" * 64, run=run, attempt=1, parent=parent, model_id="m", model_kind="vae",
        latent_dim=3, transform_id="t", metric="l2", index_kind="flat", code_version="0",
    )  # fmt: skip


def begin(store: ClockStore, run: str) -> None:
    store.put_if_absent(f"runs/{run}/attempts/1.json", b"{}")
    store.put(f"runs/{run}/heartbeats/1", b"{}")


def end(store: ClockStore, run: str) -> None:
    store.put_if_absent(f"runs/{run}/heartbeats/1.ended", b"{}")


def night(store: ClockStore, run: str, parts: list[PartFile], channel: str = "stable") -> WrittenRelease:
    """Do what a night does: begin, freeze a plan, write a release of parts, publish it, end."""
    begin(store, run)
    head = read_head(store, channel)
    store.put(f"runs/{run}/plan.parquet", plan([one.name for one in parts], parent=head.release_id if head else None))
    written = release(store, run, parts, parent=head.release_id if head else None)
    publish(
        store, channel, expected_head=head.number if head else 0, release_id=written.manifest.release_id,
        manifest_sha256=written.manifest_sha256, run=run, attempt=1,
    )  # fmt: skip
    end(store, run)
    return written


class Turns:
    """Threads of which one runs at a time, from one call to the store to the next; the seed says whose turn it is."""

    def __init__(self, store: ClockStore, rng: np.random.Generator, between: Callable[[], None]) -> None:
        self._store, self._rng, self._between = store, rng, between
        self._go: dict[threading.Thread, threading.Semaphore] = {}
        self._paused = threading.Semaphore(0)
        self._stopping = False
        self.errors: list[BaseException] = []
        store.before = self._pause

    def add(self, work: Callable[[], None]) -> None:
        def run() -> None:
            self._go[thread].acquire()
            try:
                work()
            except _Stopped:
                pass
            except BaseException as error:  # noqa: BLE001  told to the test
                self.errors.append(error)
            finally:
                del self._go[thread]
                self._paused.release()

        thread = threading.Thread(target=run, daemon=True)
        self._go[thread] = threading.Semaphore(0)
        thread.start()

    def run(self, steps: int) -> None:
        """Give so many turns, then stop everyone."""
        for _ in range(steps):
            if not self._go or self.errors:
                break
            self._turn(list(self._go)[int(self._rng.integers(len(self._go)))])
            self._between()
        self._stopping = True
        while self._go:
            self._turn(next(iter(self._go)))

    def _turn(self, thread: threading.Thread) -> None:
        self._go[thread].release()
        self._paused.acquire()

    def _pause(self, call: str, name: str) -> None:
        go = self._go.get(threading.current_thread())
        if go is None:  # of the test itself, or of a pool while its owner has the turn
            return
        self._paused.release()
        go.acquire()
        if self._stopping:
            raise _Stopped


class _Stopped(BaseException):
    """Ends an actor's thread."""
