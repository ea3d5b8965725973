"""Shards through Ray Data: one shard = one block = one part; photos never pass through the driver."""

from __future__ import annotations

import json
import logging
import math
import pickle
import socket
import time
import traceback
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import ray
from pydantic import BaseModel
from ray.exceptions import GetTimeoutError, RayActorError, RayError, UserCodeException

from ..boards import BeginCounter
from ..errors import CodebooksError, ConfigError, Unavailable
from ..parts import FoundPart, PartFile
from ..workers import KeptRecords, explained, helper
from .actors import ShardWorker, make_worker
from .config import EncodeConfig, EncodeJob
from .shards import Shard, ShardResult, Unanswered
from .suspects import Place, most_killers, settle_suspect

if TYPE_CHECKING:
    from ray.data import DataContext  # loaded where it is used: every encoding process imports this module

_log = logging.getLogger(__name__)

# How often a shard is begun whose actor dies (a lost node, memory, a crash in native code). Ray Data begins it again
# for ever, and a photo that crashes the decoder's native code would keep a night busy; so begins are counted. A shard
# that was begun more often is set aside as a suspect, which harms no innocent photo: see `suspects.settle_suspect`.
MOST_BEGINS = 2
# Below this share of a CPU for each of its threads an actor only takes time from the others.
_LEAST_SHARE = 0.5

_COUNT_S = 30.0  # how long an actor waits for the counter
_NUMBER = "_shard"
OnResult = Callable[[ShardResult, int, int], None]


@dataclass(frozen=True, slots=True)
class Seats:
    """How many actors run and how many logical CPUs each asks for."""

    actors: int
    cpus: float


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
    seats = plan_seats(job.encode, len(todo), ray.cluster_resources())  # type: ignore[no-untyped-call]
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
    with DataContext.current(_context(job.encode)), closing(_stream(list(todo.values()), job, seats)) as rows:
        for row in rows:
            if row["suspect"] is not None:
                suspects.add(row["suspect"])
            else:
                ended(_result_of(row))
    convicted, most = 0, most_killers(sum(shard.photos.num_rows for shard in todo.values()))
    for number in sorted(suspects - results.keys()):
        result, found = settle_suspect(todo[number], Place(job, seats.cpus, check), most=most - convicted)
        convicted += found
        ended(result)
    if missing := sorted(todo.keys() - results.keys()):
        raise CodebooksError(
            f"Ray ended without an answer for {len(missing)} of {len(todo)} shards (first: {missing[0]}); run again, "
            "finished parts are kept"
        )
    return [results[number] for number in sorted(results)]


def plan_seats(config: EncodeConfig, shards: int, resources: dict[str, float]) -> Seats:
    """Return how many actors to start on a cluster with these `resources` and how many CPUs each asks for.

    At least one CPU (half of a single one) stays free for Ray Data's own tasks: with none it waits for ever and says
    nothing. Where the actors do not fit, each asks for a part of a CPU, then there are fewer of them. A cluster that
    reports no CPU yet starts its nodes on demand and is asked for what the config says. Raises ConfigError when it has
    no GPU for an actor.
    """
    actors = min(config.actors, shards)
    if config.gpus_per_actor:
        gpus = resources.get("GPU", 0.0)
        fit = math.floor(gpus / config.gpus_per_actor)
        if fit < 1 and resources.get("CPU"):
            raise ConfigError(
                f"encode.gpus_per_actor is {config.gpus_per_actor} and the cluster has {gpus:g} GPUs; "
                "set it to 0 to encode on CPUs"
            )
        actors = min(actors, max(1, fit))
    cpus = resources.get("CPU", 0.0)
    if not cpus:
        return Seats(actors, float(config.threads))
    free = max(cpus - 1.0, cpus / 2)
    if actors * config.threads <= free:
        return Seats(actors, float(config.threads))
    seated = max(1, min(actors, math.floor(free / (config.threads * _LEAST_SHARE))))
    share = math.floor(free / seated * 100) / 100
    _log.info(
        "encode.actors is %d of %d threads and the cluster has %g CPUs: %d actors of %g CPUs",
        config.actors, config.threads, cpus, seated, share,
    )  # fmt: skip
    return Seats(seated, max(0.01, min(share, float(config.threads))))


class _BlockActor:
    """Unpacks a block into its shard; what it returns is one small row, whatever the shard's size."""

    def __init__(self, job: EncodeJob, headers: dict[int, Shard], begins: Any, most_begins: int) -> None:
        self.job = job
        self.headers = headers
        self.begins = begins
        self.most_begins = most_begins
        self.worker: ShardWorker | None = None
        self.said = KeptRecords()

    def __call__(self, block: pa.Table) -> pa.Table:
        try:
            shard = self._shard(block)
            if self._is_suspect(shard):
                return _row(suspect=shard.number)
            # Here and not in the constructor: Ray hides what a constructor raises behind the death of its actor.
            self.worker = self.worker or make_worker(self.job)
            began = time.monotonic()
            result = self.worker(shard)
            result = replace(
                result,
                node=socket.gethostname(),
                seconds=round(time.monotonic() - began, 3),
                said=self.said.taken(),
            )
        except CodebooksError as error:
            # As a row: raised through Ray it would arrive without its class, hence without its exit code.
            error.add_note(f"in an encoding actor:\n{traceback.format_exc()}")
            return _row(error=pickle.dumps(error))
        except MemoryError:
            return _row(suspect=shard.number)
        return _row(result=_text_of(result))

    def _is_suspect(self, shard: Shard) -> bool:
        try:
            begun = ray.get(self.begins.begin.remote(shard.number), timeout=_COUNT_S)
        except (RayActorError, GetTimeoutError):
            return False  # without the counter it is not known how often, which is no reason to stop
        return bool(begun > self.most_begins)

    def _shard(self, block: pa.Table) -> Shard:
        numbers = set(block[_NUMBER].to_pylist())
        if len(numbers) != 1:
            raise RuntimeError(f"Ray Data mixed shards {sorted(numbers)} in one block")
        header = self.headers[numbers.pop()]
        photos = block.select(header.photos.column_names).cast(header.photos.schema).combine_chunks()
        return replace(header, photos=photos)


def _stream(shards: list[Shard], job: EncodeJob, seats: Seats) -> Generator[dict[str, Any]]:
    """Yield the rows that actors return, as they come."""
    import ray.data
    from ray.data import ActorPoolStrategy
    from ray.data.exceptions import ExecutionTimeoutError

    # Without their photos, which travel as the blocks.
    headers = {shard.number: replace(shard, photos=shard.photos.schema.empty_table()) for shard in shards}
    blocks = [
        shard.photos.append_column(_NUMBER, pa.array([shard.number] * shard.photos.num_rows, pa.int32()))
        for shard in shards
    ]
    begins = helper(BeginCounter, restarts=-1).remote()
    dataset = ray.data.from_arrow(blocks).map_batches(
        _BlockActor,
        fn_constructor_args=(job, headers, begins, MOST_BEGINS),
        batch_size=None,
        batch_format="pyarrow",
        # One shard in flight an actor: a second one would wait behind a slow one while other actors have nothing to do.
        compute=ActorPoolStrategy(size=seats.actors, max_tasks_in_flight_per_actor=1),
        num_cpus=seats.cpus,
        num_gpus=job.encode.gpus_per_actor or None,
    )
    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from cast("pa.Table", batch).to_pylist()
    except ExecutionTimeoutError as error:
        raise Unavailable(
            f"no shard ended in {job.encode.no_progress_s} seconds (encode.no_progress_s): {error}; finished parts are "
            "kept, run again"
        ) from error
    except UserCodeException:  # not a CodebooksError, so a mistake in our own code: as it is, with its traceback
        raise
    except RayError as error:
        raise explained(error, "encoding", stays="finished parts are kept") from error


def _context(config: EncodeConfig) -> DataContext:
    from ray.data import DataContext

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = config.no_progress_s
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return context


def _row(*, result: str | None = None, error: bytes | None = None, suspect: int | None = None) -> pa.Table:
    columns = [pa.array([result], pa.string()), pa.array([error], pa.binary()), pa.array([suspect], pa.int32())]
    return pa.table(columns, names=["result", "error", "suspect"])


def _text_of(result: ShardResult) -> str:
    fields = {name: getattr(result, name) for name in ShardResult.__slots__}
    return json.dumps({n: v.model_dump() if isinstance(v, BaseModel) else v for n, v in fields.items()})


def _result_of(row: dict[str, Any]) -> ShardResult:
    """Return the result in an actor's row, or raise the error in it."""
    if row["error"] is not None:
        error: CodebooksError = pickle.loads(row["error"])  # noqa: S301 - written a moment ago by our own actor
        raise error
    fields = json.loads(row["result"])
    for name in ("pixels", "latents"):
        if (found := fields[name]) is not None:
            fields[name] = (PartFile if "sha256" in found else FoundPart).model_validate(found)
    fields["said"] = tuple(fields["said"])
    fields["unanswered"] = tuple(Unanswered(*photo) for photo in fields["unanswered"])
    return ShardResult(**fields)
