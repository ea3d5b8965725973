"""Shards whose actors died: worked on again with nobody beside them, and the photos that are at fault left out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import pyarrow as pa
import ray
from ray.exceptions import LocalRayletDiedError, NodeDiedError, ObjectLostError, OutOfMemoryError, RayError
from ray.exceptions import WorkerCrashedError as WorkerDied

from ..errors import PhotoRefused, Unavailable
from ..workers import explained
from .bisecting import Death, find_killers
from .config import EncodeJob
from .shards import Killer, Shard, ShardResult
from .trial import Outcome, Task, try_shard

_log = logging.getLogger(__name__)

_ROUNDS = 3  # how often a shard is tried as a whole, its killers left out
_MOST_LOST = 3  # machines that may go away under one and the same trial
_LEAST_KILLERS, _KILLER_SHARE = 20, 0.01  # photos that may be convicted in one stage, at least, and of all

# Runs a shard in a process of its own, as `trial.try_shard`.
Try = Callable[[Shard, Task], Outcome]


def most_killers(photos: int) -> int:
    """Return how many of a stage's photos may be convicted before something else is to blame."""
    return max(_LEAST_KILLERS, int(photos * _KILLER_SHARE))


def settle_suspect(shard: Shard, try_it: Try, *, most: int) -> tuple[ShardResult, int]:
    """Return the result of a shard that has killed its actors, and how many of its photos were convicted for it.

    Convicted photos are refused in the shard's parts, which keep their names. Raises what the work raises,
    CodebooksError when the photos are not at fault, Unavailable when the shard dies and no photo alone does.
    """
    for _ in range(_ROUNDS):
        outcome = _tried(try_it, shard, "write")
        if outcome.result is not None:
            return outcome.result, len(shard.killers)
        shard = _convicted(shard, try_it, most=most)
    raise Unavailable(
        f"shard {shard.number} of {shard.photos.num_rows} photos, from item {shard.photos['item_id'][0].as_py()!r} on, "
        f"killed its process {_ROUNDS} times with no other beside it, and no photo alone does: together they need more "
        "memory than there is. Lower encode.shard_rows, encode.fetch_threads or encode.batch_size, or run again where "
        "memory is free; finished parts are kept"
    )


def _convicted(shard: Shard, try_it: Try, *, most: int) -> Shard:
    """Return the shard with the photos that kill their process among its killers."""
    known = {killer.row for killer in shard.killers}
    suspects = tuple(row for row in range(shard.photos.num_rows) if row not in known)

    def rehearse(rows: tuple[int, ...]) -> Death | None:
        photos = shard.photos.take(pa.array(rows, pa.int64())).combine_chunks()
        return _tried(try_it, replace(shard, photos=photos, killers=()), "rehearse").death

    found = find_killers(suspects, rehearse, most=most - len(known))
    for row, death in sorted(found.items()):
        item, uri = (shard.photos[name][row].as_py() for name in ("item_id", "uri"))
        _log.warning("item %r, photo %s is quarantined: %s: %s", item, uri, death.reason, death.detail)
    killers = [*shard.killers, *(Killer(row, _refusal(shard, death)) for row, death in found.items())]
    return replace(shard, killers=tuple(sorted(killers, key=lambda killer: killer.row)))


def _tried(try_it: Try, shard: Shard, task: Task) -> Outcome:
    outcome = try_it(shard, task)
    if outcome.error is not None:
        raise outcome.error
    return outcome


def _refusal(shard: Shard, death: Death) -> PhotoRefused:
    stage = "decode" if shard.from_pixels is None else "encode"
    return PhotoRefused(stage, death.reason, f"the process that worked on this photo alone died twice: {death.detail}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where trials run: a Ray task of as many CPUs and GPUs as an actor had, one at a time.

    check: called before each; what it raises ends them.
    """

    job: EncodeJob
    cpus: float
    gpus: float = 0.0
    check: Callable[[], None] = lambda: None

    def __call__(self, shard: Shard, task: Task) -> Outcome:
        """Try a shard. A machine that goes away is no death: the trial is made again, elsewhere.

        When machines go away again and again under the same few photos, they count as what killed them. Raises
        Unavailable, or CodebooksError as `workers.explained`.
        """
        # No retries by Ray: they would hide how the process died.
        remote = ray.remote(try_shard).options(num_cpus=self.cpus, num_gpus=self.gpus or None, max_retries=0)
        for _ in range(_MOST_LOST):
            self.check()
            try:
                outcome: Outcome = ray.get(remote.remote(self.job, shard, task))
            except OutOfMemoryError:
                return Outcome(death=Death("out_of_memory", "Ray's memory monitor killed it"))
            except (NodeDiedError, WorkerDied, LocalRayletDiedError, ObjectLostError) as error:
                _log.info("a trial of %d photos was lost with its machine: %s", shard.photos.num_rows, error)
                continue
            except RayError as error:
                raise explained(error, "encoding", stays="finished parts are kept") from error
            return outcome
        return Outcome(death=Death("crashed", f"its machine went away {_MOST_LOST} times under it"))
