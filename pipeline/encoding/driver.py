"""Shards through Ray Data: one shard = one block = one part; photos never pass through the driver."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
from ray.exceptions import RayError, UserCodeException

from ..boards import BeginCounter
from ..errors import CodebooksError, Unavailable
from ..workers import explained, find_room, helper
from .config import EncodeConfig, EncodeJob
from .opened import result_of
from .seats import Seats, plan_decoders, plan_seats
from .shards import Shard, ShardResult
from .stages import ShardActor, Stage, block_of
from .suspects import Place, most_killers, settle_suspect
from .watchdog import Watchdog

if TYPE_CHECKING:
    from ray.data import DataContext  # loaded where it is used: every encoding process imports this module

_log = logging.getLogger(__name__)

# How often a shard is begun whose actor dies (a lost node, memory, a crash in native code). Ray Data begins it again
# for ever, and a photo that crashes the decoder's native code would keep a night busy; so begins are counted. A shard
# that was begun more often is set aside as a suspect, which harms no innocent photo: see `suspects.settle_suspect`.
MOST_BEGINS = 2
# Shards at once in an actor: while one is encoded the next is fetched and decoded, and the last one is written.
_AT_ONCE = 2
OnResult = Callable[[ShardResult, int, int], None]


def run_shards(
    shards: Iterable[Shard],
    job: EncodeJob,
    *,
    on_result: OnResult | None = None,
    check: Callable[[], None] = lambda: None,
) -> list[ShardResult]:
    """Run shards on the Ray cluster this process is connected to and return their results in number order.

    on_result(result, done, total) is called in this process as each shard ends, in any order, and check() then and
    whenever a shard is worked on again; what they raise stops the run. Parts that are written stay, so the same call
    again does only what is left. Shards whose actors die again and again come last, one by one, and photos that kill
    their process are refused in their parts. Raises what an actor raised where that is a CodebooksError (Unavailable,
    IntegrityError, ...), Unavailable when nothing ends in `encode.no_progress_s`, ConfigError when no node has the GPU
    that an actor asks for.
    """
    todo = {shard.number: shard for shard in shards}
    if not todo:
        return []
    photos = sum(shard.photos.num_rows for shard in todo.values())
    room = find_room()
    seats = plan_seats(job.encode, len(todo), photos, room)
    # Photos that are only decoded have no second stage.
    decoders = plan_decoders(job.encode, seats, len(todo), photos, room) if job.model_id is not None else None
    # What `auto` came to: the actors have to know.
    job = replace(job, encode=job.encode.model_copy(update={"gpus_per_actor": seats.gpus}))
    results: dict[int, ShardResult] = {}
    suspects: set[int] = set()

    def ended(result: ShardResult) -> None:
        if result.number in results:  # an actor that died after its answer was on the way
            return
        results[result.number] = result
        check()
        if on_result is not None:
            on_result(result, len(results), len(todo))

    from ray.data import DataContext

    # closing: when something is raised in here the actors are stopped now, not when the generator is collected.
    stream = _stream(todo, job, seats, decoders, results)
    with DataContext.current(_context(job.encode)), closing(stream) as rows:
        for row in rows:
            if row["suspect"] is not None:
                suspects.add(row["suspect"])
            else:
                ended(_result_of(row))
    convicted, most = 0, most_killers(photos)
    for number in sorted(suspects - results.keys()):
        result, found = settle_suspect(todo[number], Place(job, seats.cpus, seats.gpus, check), most=most - convicted)
        convicted += found
        ended(result)
    if missing := sorted(todo.keys() - results.keys()):
        raise CodebooksError(
            f"Ray ended without an answer for {len(missing)} of {len(todo)} shards (first: {missing[0]}); run again, "
            "finished parts are kept"
        )
    return [results[number] for number in sorted(results)]


def _stream(
    todo: Mapping[int, Shard], job: EncodeJob, seats: Seats, decoders: Seats | None, done: Collection[int]
) -> Generator[dict[str, Any]]:
    """Yield the rows that actors return, as they come.

    decoders: who fetches and decodes, None where the encoding actors do. done: the shards that have ended.
    """
    import ray.data
    from ray.data import ActorPoolStrategy
    from ray.data.exceptions import ExecutionTimeoutError

    # Without their photos, which travel as the blocks.
    headers = {number: replace(shard, photos=shard.photos.schema.empty_table()) for number, shard in todo.items()}
    blocks = [block_of(shard) for shard in todo.values()]
    begins = helper(BeginCounter, restarts=-1).remote()
    # Not `from_arrow`, which has workers look at every block before anything else begins.
    dataset = ray.data.from_blocks(blocks)
    stages: list[tuple[Stage, Seats]] = [("whole", seats)]
    if decoders is not None:
        stages = [("pixels", decoders), ("latents", seats)]
    for stage, seat in stages:
        dataset = dataset.map_batches(
            ShardActor,
            fn_constructor_args=(job, stage, headers if stage != "latents" else {}, begins, MOST_BEGINS),
            batch_size=1,  # a block; Ray asks for a number where there are GPUs
            batch_format="pyarrow",
            # As many in flight as an actor works on: one more would wait behind them while others have nothing to do.
            compute=ActorPoolStrategy(
                min_size=seat.least,
                max_size=seat.most,
                max_tasks_in_flight_per_actor=_AT_ONCE,
                max_concurrent_calls_per_actor=_AT_ONCE,
                enable_true_multi_threading=True,
            ),
            num_cpus=seat.cpus,
            num_gpus=seat.gpus or None,
        )
    watchdog = Watchdog(begins, todo, done, seats)
    watchdog.start()
    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from cast("pa.Table", batch).drop_columns("opened").to_pylist()
    except ExecutionTimeoutError as error:
        raise Unavailable(
            f"no shard ended in {job.encode.no_progress_s} seconds (encode.no_progress_s; {watchdog.slowest()}): "
            f"{error}; finished parts are kept, run again"
        ) from error
    except UserCodeException:  # not a CodebooksError, so a mistake in our own code: as it is, with its traceback
        raise
    except RayError as error:
        raise explained(error, "encoding", stays="finished parts are kept") from error
    finally:
        watchdog.stop()


def _context(config: EncodeConfig) -> DataContext:
    from ray.data import DataContext

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = config.no_progress_s
    context.target_max_block_size = None  # a shard's pixels are one value, however long
    # A pool in which every actor has its one shard is full; by Ray's own measure it would never grow.
    context.autoscaling_config = replace(context.autoscaling_config, actor_pool_util_upscaling_threshold=1.0)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return context


def _result_of(row: dict[str, Any]) -> ShardResult:
    """Return the result in an actor's row, or raise the error in it."""
    if row["error"] is not None:
        error: CodebooksError = pickle.loads(row["error"])  # noqa: S301 - written a moment ago by our own actor
        raise error
    return result_of(row["result"])
