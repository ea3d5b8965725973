"""Shards on this machine without Ray, each in a process of its own: a photo that kills its process is found there."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .config import EncodeJob
from .shards import Shard, ShardResult
from .suspects import most_killers, settle_suspect
from .trial import Outcome, Task, try_shard

OnResult = Callable[[ShardResult, int, int], None]


def run_shards_apart(
    shards: Iterable[Shard],
    job: EncodeJob,
    *,
    on_result: OnResult | None = None,
    check: Callable[[], None] = lambda: None,
) -> list[ShardResult]:
    """Run shards one after the other, each in a process of its own, and return their results in number order.

    As `driver.run_shards`, whose stores and files have to be such that another process reads them: photos that kill
    their process are refused in their parts. Raises what the work raises, and Unavailable when a shard does not end
    within `encode.no_progress_s`.
    """
    todo = sorted(shards, key=lambda shard: shard.number)
    most, convicted, results = most_killers(sum(shard.photos.num_rows for shard in todo)), 0, list[ShardResult]()

    def try_it(shard: Shard, task: Task) -> Outcome:
        check()
        return try_shard(job, shard, task)

    for shard in todo:
        result, found = settle_suspect(shard, try_it, most=most - convicted)
        convicted += found
        results.append(result)
        check()
        if on_result is not None:
            on_result(result, len(results), len(todo))
    return results
