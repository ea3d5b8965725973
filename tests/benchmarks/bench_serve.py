"""Hot swap under load: `codebooks serve` in its own processes, asked at a fixed rate while its channel moves on.

Releases of random latents are written beforehand, so that only opening them competes with the answers. Requests are
sent when they are due, however late others are (an open loop), and their seconds count from then. Every 50th answer is
compared with the reader's own for the release that the answer names.

    python tests/benchmarks/bench_serve.py --swaps 24 --rate 200 --json tests/benchmarks/results/serve.json
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from beside import release_maker
from options import Given, Options
from record import ROOT, made_on, tell
from timing import alone_ms, quantiles

from pipeline.reader import open_release
from pipeline.release import publish, read_head
from pipeline.storage import Store, open_store

CONNECTIONS = 32
CHECKED = 50


def write_releases(store: Store, maker: Any, items: int, number: int) -> None:
    """Write releases on the channel `nights`; the first one is put on `stable` too."""
    rng = np.random.default_rng(0)
    for night in range(number):
        means = rng.normal(size=(items, maker.DIM)).astype(np.float32)
        photos = [maker.Photo(f"sku-{n:06d}", f"s3://p/{n}.jpg", 0, means[n]) for n in range(items)]
        maker.make_release(store, photos, run=f"night-{night:03d}", channel="nights")


def move_on(store: Store, night: int) -> None:
    """Put a release of `nights` on `stable`."""
    entry = json.loads(store.get(f"channels/nights/{night + 1:012d}.json"))
    head = read_head(store, "stable")
    publish(
        store,
        "stable",
        expected_head=0 if head is None else head.number,
        release_id=entry["release_id"],
        manifest_sha256=entry["manifest_sha256"],
        run=entry["run"],
        attempt=1,
    )


@dataclass
class Load:
    """How it went. seconds: (when a request was due, how long it took); failed: by status or error."""

    seconds: list[tuple[float, float]] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    releases: Counter[str] = field(default_factory=Counter)
    checked: list[dict[str, Any]] = field(default_factory=list)


async def asked(port: int, item: str, free: asyncio.Queue[Any], load: Load, due: float) -> None:
    """Ask for one item's neighbours over a kept connection."""
    pair = await free.get()
    try:
        reader, writer = pair or await asyncio.open_connection("127.0.0.1", port)
        pair = (reader, writer)
        writer.write(f"GET /similar/{item}?k=10 HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.lower().split("\r\n")
        status = head.split()[1]
        length = next((int(line.split(":")[1]) for line in lines if line.startswith("content-length")), None)
        if length is None:  # Ray's proxy, as long as nothing is deployed behind it
            load.failed[status] += 1
            pair = None
            return
        body = await reader.readexactly(length)
        load.seconds.append((due, time.perf_counter() - due))
        if status != "200":
            load.failed[status] += 1
            return
        answer = json.loads(body)
        load.releases[answer["release_id"]] += 1
        if len(load.seconds) % CHECKED == 0:
            load.checked.append(answer)
    except (OSError, asyncio.IncompleteReadError) as error:
        load.failed[type(error).__name__] += 1
        pair = None
    finally:
        free.put_nowait(pair)


async def run_load(port: int, store: Store, options: Given, load: Load) -> tuple[float, float]:
    """Ask at the rate; return when the first swap began and when the last had time to end."""
    free: asyncio.Queue[Any] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        free.put_nowait(None)
    rng = np.random.default_rng(1)
    calm, every = options.calm, options.every
    total = calm * 2 + options.swaps * every
    began = time.perf_counter()
    tasks: set[asyncio.Task[None]] = set()
    moved = 0
    for number in range(int(total * options.rate)):
        due = began + number / options.rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        if moved < options.swaps and due >= began + calm + moved * every:
            moved += 1
            tasks.add(asyncio.create_task(asyncio.to_thread(move_on, store, moved)))
        item = f"sku-{rng.integers(options.items):06d}"
        task = asyncio.create_task(asked(port, item, free, load, due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return began + calm, began + calm + options.swaps * every


def told(taken_ms: list[float]) -> dict[str, float]:
    """Return p50, p99 and the longest, in milliseconds."""
    return {**quantiles(taken_ms), "max_ms": round(max(taken_ms, default=float("nan")), 2)}


def bare(store: Store, items: int) -> dict[str, float]:
    """Return the reader's own seconds in this process, nothing else running in it."""
    release, rng = open_release(store.url), np.random.default_rng(2)
    asked = [f"sku-{number:06d}" for number in rng.integers(items, size=1000)]
    return told(alone_ms(lambda item: release.similar(item, 10), asked))


def main() -> None:
    parser = Options(
        __doc__, items=5000, dim=64, rate=200.0, swaps=24, every=(2.0, "seconds between two moves of the channel"),
        calm=(10.0, "seconds before the first and after the last"), workers=2, json=Path,
    )  # fmt: skip
    parser.add_argument("--on", choices=("processes", "ray"), default="processes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        store = open_store(f"{folder}/store")
        write_releases(store, release_maker(options.dim, 50_000), options.items, options.swaps + 1)
        move_on(store, 0)
        tell(measured(store, options), options.json)


def measured(store: Store, options: Given) -> dict[str, Any]:
    """Serve, ask, stop; return what was seen."""
    port = 18417
    command = [sys.executable, "-m", "jobs", "serve", f"store={store.url}", "--port", str(port)]
    command += ["--workers", str(options.workers), "--poll-s", "0.5", "--on", options.on]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}) as server:
        load = Load()
        try:
            asyncio.run(ready(port))
            alone = bare(store, options.items)
            first, last = asyncio.run(run_load(port, store, options, load))
        finally:
            server.send_signal(signal.SIGTERM)
    wrong = 0
    opened = {name: open_release(store.url, release_id=name) for name in {each["release_id"] for each in load.checked}}
    for answer in load.checked:
        near = [(each.item_id, each.score) for each in opened[answer["release_id"]].similar(answer["item_id"], 10)]
        wrong += near != [(row["item_id"], row["score"]) for row in answer["neighbours"]]
    phases = {
        "before": [1e3 * taken for due, taken in load.seconds if due < first],
        "during": [1e3 * taken for due, taken in load.seconds if first <= due < last],
        "after": [1e3 * taken for due, taken in load.seconds if due >= last],
    }
    return {
        **made_on(""),
        "on": options.on,
        "items": options.items,
        "dim": options.dim,
        "workers": options.workers,
        "rate": options.rate,
        "requests": len(load.seconds) + sum(load.failed.values()),
        "failed": dict(load.failed),
        "swaps": options.swaps,
        "releases_seen": len(load.releases),
        "checked": len(load.checked),
        "wrong": wrong,
        "exit_code": server.returncode,
        **{phase: told(taken) for phase, taken in phases.items()},
        "reader_alone": alone,
    }


async def ready(port: int) -> None:
    """Wait until the service answers."""
    for _ in range(600):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.1)
            continue
        free: asyncio.Queue[Any] = asyncio.Queue()
        free.put_nowait(None)
        load = Load()
        writer.close()
        await asked(port, "sku-000000", free, load, time.perf_counter())
        if not load.failed:
            return
        await asyncio.sleep(0.2)
    raise SystemExit("the service did not become ready")


if __name__ == "__main__":
    main()
