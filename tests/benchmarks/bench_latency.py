"""Whether encoding waits for an object store that takes 20 ms for every GET: SeaweedFS behind a proxy that waits.

    python tests/benchmarks/bench_latency.py [--get-ms 20] [--count N] [--pairs N] [--json FILE]

The server is a process of its own (see faulty_store.py; `CODEBOOKS_WEED` names its program), so is the proxy, which
sends each request on so much later. Runs with and without the wait alternate on one Ray cluster, through the same
proxy. Rates are of what follows the first result of each actor. All share the cores of one machine, server and proxy
too, which in a cluster have their own; so it is the ratio that says something. `one_request_at_a_time` is a reader that
waits for each answer before it asks again, the other end of the scale.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from bench_encode import through_ray
from encode_photos import added_plan, make_job, start_ray
from faulty_store import KEY, SECRET, WeedServer
from made_photos import make_photo
from options import Given, Options
from record import made_on, tell

from pipeline.encoding import assign_shards
from pipeline.storage import Files, S3Store, StorageOptions

PHOTOS = 500


def late(behind: int, delay: float, port: Any) -> None:
    """Serve a port that passes what it is asked to another one, `delay` seconds later, and answers as they come."""

    async def passed(source: asyncio.StreamReader, sink: asyncio.StreamWriter, wait: float) -> None:
        while data := await source.read(1 << 18):
            if wait:
                await asyncio.sleep(wait)
            sink.write(data)
            await sink.drain()
        sink.close()

    async def met(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", behind)
        await asyncio.gather(passed(reader, back, delay), passed(there, writer, 0.0), return_exceptions=True)

    async def serve() -> None:
        server = await asyncio.start_server(met, "127.0.0.1", 0)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


def measure(options: Given, folder: Path, server: WeedServer) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    store = S3Store(server.url, StorageOptions(endpoint=f"http://127.0.0.1:{server.port}"))
    for number in range(PHOTOS):
        store.put(f"photos/{number:03d}.jpg", make_photo(generator))
    context, proxies, files = multiprocessing.get_context("spawn"), [], []
    for delay in (0.0, options.get_ms / 1000):
        port = context.Queue()
        proxies.append(context.Process(target=late, args=(server.port, delay, port), daemon=True))
        proxies[-1].start()
        files.append(Files(StorageOptions(endpoint=f"http://127.0.0.1:{port.get(timeout=30)}")))
    uris = [f"{server.url}/photos/{n % PHOTOS:03d}.jpg" for n in range(options.count)]
    job = make_job(folder, files[0], size=64, model="vae", actors=2)
    plan = assign_shards(added_plan(uris), image_size=64, shard_rows=options.rows)
    pairs = []
    for number in range(options.pairs):
        two = [through_ray(plan, replace(job, files=source), 2) for source in files[:: 1 if number % 2 == 0 else -1]]
        pairs.append(two if number % 2 == 0 else two[::-1])
        print([round(run.steady) for run in pairs[-1]], file=sys.stderr, flush=True)
    began = time.monotonic()
    for uri in uris[:100]:
        files[1].fetch(uri)
    alone = 100 / (time.monotonic() - began)
    for proxy in proxies:
        proxy.terminate()
    return {
        "get_ms": options.get_ms, "photos": options.count, "rows": options.rows, "pairs": options.pairs,
        "fetch_threads": job.encode.fetch_threads,
        "without_per_s": [round(run.steady) for run, _ in pairs], "with_per_s": [round(run.steady) for _, run in pairs],
        "ratio": round(float(np.median([run.steady / base.steady for base, run in pairs])), 3),
        "whole_run_ratio": round(float(np.median([base.seconds / run.seconds for base, run in pairs])), 3),
        "one_request_at_a_time_per_s": round(alone, 1),
    }  # fmt: skip


def main() -> None:
    options = Options(__doc__, get_ms=20.0, count=8_000, rows=500, pairs=3, json=Path).parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    with tempfile.TemporaryDirectory() as name:
        server = WeedServer(Path(name) / "weed", "bench-latency")
        try:
            start_ray(cpus=4)
            found = {**made_on(), **measure(options, Path(name), server)}
        finally:
            ray.shutdown()
            server.stop()
    tell(found, options.json)


if __name__ == "__main__":
    main()
