"""What runs in the processes of Ray Data: a shard's whole work in one, or its pixels in one and its latents in another.

One shard = one block of one row = one part. Its photos, and between the two stages its pixels, are one value of the
row, so nothing cuts or mixes them; pixels go from process to process, never through the driver.
"""

from __future__ import annotations

import pickle
import socket
import threading
import time
import traceback
from dataclasses import replace
from typing import Any, Literal

import pyarrow as pa
import ray
from ray.exceptions import GetTimeoutError, RayActorError

from ..errors import CodebooksError
from ..workers import KeptRecords
from .actors import ShardWorker, make_worker
from .config import EncodeJob
from .opened import Opened, pack_table, text_of, unpack_table
from .shards import Shard, ShardResult

_COUNT_S = 30.0  # how long an actor waits for the counter
Stage = Literal["whole", "pixels", "latents"]


class ShardActor:
    """Turns blocks into small rows of what became of their shards; several threads call it at once.

    stage: `whole` makes pixels and latents; `pixels` hands the pixels on; `latents` takes them, and passes on what was
    settled before. headers: the shards without their photos, which travel as the blocks. begins: counts the begins of
    each; a shard begun more often than `most_begins` is answered as a suspect.
    """

    def __init__(self, job: EncodeJob, stage: Stage, headers: dict[int, Shard], begins: Any, most_begins: int) -> None:
        self._job = job
        self._stage = stage
        self._headers = headers
        self._begins = begins
        self._most_begins = most_begins
        self._worker: ShardWorker | None = None
        self._lock = threading.Lock()
        self._said = KeptRecords()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return one row."""
        number = _only(block["number"].to_pylist())
        if self._stage == "latents" and block["opened"].null_count:
            return block
        try:
            if self._is_suspect(number):
                return row(number, suspect=number)
            worker, began = self._made_worker(), time.monotonic()
            if self._stage == "latents":
                made: ShardResult | Opened = Opened.unpack(block["opened"][0])
            else:
                made = worker.open(self._shard(number, block))
            if isinstance(made, Opened) and self._stage == "pixels":
                return row(number, opened=replace(made, result=self._noted(made.result, began)).pack())
            result = worker.encode(made) if isinstance(made, Opened) else made
        except CodebooksError as error:
            # As a row: raised through Ray it would arrive without its class, hence without its exit code.
            error.add_note(f"in an encoding actor:\n{traceback.format_exc()}")
            return row(number, error=pickle.dumps(error))
        except MemoryError:
            return row(number, suspect=number)
        self._begins.end.remote(number)
        return row(number, result=text_of(self._noted(result, began)))

    def _noted(self, result: ShardResult, began: float) -> ShardResult:
        """Return a result with who did it, in which time, and what was logged meanwhile, the first stage's before."""
        seconds = round(result.seconds + time.monotonic() - began, 3)
        return replace(result, node=socket.gethostname(), seconds=seconds, said=(*result.said, *self._said.taken()))

    def _made_worker(self) -> ShardWorker:
        # Not in the constructor: Ray hides what a constructor raises behind the death of its actor.
        with self._lock:
            self._worker = self._worker or make_worker(self._job, encodes=self._stage != "pixels")
        return self._worker

    def _is_suspect(self, number: int) -> bool:
        begin = self._begins.begin.remote(number, socket.gethostname(), self._stage)
        try:
            begun = ray.get(begin, timeout=_COUNT_S)
        except (RayActorError, GetTimeoutError):
            return False  # without the counter it is not known how often, which is no reason to stop
        return bool(begun > self._most_begins)

    def _shard(self, number: int, block: pa.Table) -> Shard:
        return replace(self._headers[number], photos=unpack_table(block["photos"][0]))


def block_of(shard: Shard) -> pa.Table:
    """Return the block that a shard travels as."""
    return pa.table({"number": pa.array([shard.number], pa.int32()), "photos": pack_table(shard.photos)})


def _only(numbers: list[int]) -> int:
    if len(numbers) != 1:
        raise RuntimeError(f"Ray Data mixed shards {numbers} in one block")
    return numbers[0]


def row(
    number: int,
    *,
    result: str | None = None,
    error: bytes | None = None,
    suspect: int | None = None,
    opened: pa.Array | None = None,
) -> pa.Table:
    """Return what an actor says of a shard: its result, the error it met, that it is suspect, or its pixels."""
    columns = {
        "number": pa.array([number], pa.int32()),
        "result": pa.array([result], pa.string()),
        "error": pa.array([error], pa.binary()),
        "suspect": pa.array([suspect], pa.int32()),
        "opened": pa.nulls(1, pa.large_binary()) if opened is None else opened,
    }
    return pa.table(columns)
