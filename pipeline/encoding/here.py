"""Shards in this process, one after the other, without Ray; a photo that kills its process kills this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .actors import make_worker
from .config import EncodeJob
from .shards import Shard, ShardResult

OnResult = Callable[[ShardResult, int, int], None]


def run_shards_here(
    shards: Iterable[Shard],
    job: EncodeJob,
    *,
    on_result: OnResult | None = None,
    check: Callable[[], None] = lambda: None,
) -> list[ShardResult]:
    """Run shards with the worker that actors have and return their results in number order; as `driver.run_shards`."""
    todo = sorted(shards, key=lambda shard: shard.number)
    worker, results = make_worker(job), list[ShardResult]()
    for shard in todo:
        results.append(worker(shard))
        check()
        if on_result is not None:
            on_result(results[-1], len(results), len(todo))
    return results
