"""Where an encoding's time goes: stage by stage in one worker, and which processes work beside the actors."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import psutil
import pyarrow as pa
from watched import of_each

from pipeline import parts
from pipeline.encoding import EncodeJob, build_shards, decoding, make_worker


class CpuBeside:
    """CPU seconds of this process and of Ray's, by what they are, between `begin` and `end`."""

    def __init__(self) -> None:
        self._before: dict[tuple[int, str], float] = {}
        self._after: dict[tuple[int, str], float] = {}

    def begin(self) -> None:
        self._before = cpu_seconds()

    def end(self) -> None:
        self._after = cpu_seconds()

    def spent(self) -> dict[str, float]:
        """Return the CPU seconds of each kind of process, those of a hundredth of a second and more."""
        spent: Counter[str] = Counter()
        for who, seconds in self._after.items():
            spent[who[1]] += seconds - self._before.get(who, 0.0)
        return {name: round(seconds, 2) for name, seconds in spent.most_common() if seconds >= 0.01}


def cpu_seconds() -> dict[tuple[int, str], float]:
    """Return the CPU seconds of this process and of all below it, by their numbers and what they are."""
    return dict(of_each(lambda process: ((process.pid, kind_of(process)), sum(process.cpu_times()[:2]))))


def kind_of(process: psutil.Process) -> str:
    """Return what a process is: the driver, which is this one, Ray's actors, a part of Ray, or a program."""
    if process.pid == os.getpid():
        return "driver"
    command = " ".join(process.cmdline()) or process.name()
    for sign in ("MapWorker", "raylet", "gcs_server", "dashboard", "monitor", "log_monitor", "runtime_env"):
        if sign in command.split(" ")[0] or f"/{sign}" in command:
            return "actors" if sign == "MapWorker" else sign
    return command.split(" ")[0].rsplit("/", 1)[-1][:40]


@contextmanager
def _timed(owner: Any, name: str, label: str, spent: Counter[str]) -> Iterator[None]:
    real = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return real(*args, **kwargs)
        finally:
            spent[label] += time.perf_counter() - began

    with patch.object(owner, name, timed):
        yield


def stages_of(plan: pa.Table, job: EncodeJob) -> dict[str, float]:
    """Return milliseconds a photo of each stage of one worker in this process; reading runs beside decoding."""
    worker = make_worker(job)
    assert worker.encoder is not None
    shards = build_shards(plan, transform_id=job.transform_id, model_id=job.model_id, precision="fp32")
    worker.rehearse(shards[0])  # so that the first photos do not pay for what is made once
    spent: Counter[str] = Counter()
    with ExitStack() as stack:
        for owner, name, label in (
            (worker.decoder.reader, "read", "read (beside the others)"),
            (decoding, "decode_each", "decode"),
            (decoding, "digest_of", "digest of the bytes"),
            (decoding, "_pixels_table", "table of pixels"),
            (parts.pq, "write_table", "Parquet and zstd"),
            (parts, "digest_of", "digest of the parts"),
            (type(job.store), "put_if_absent", "write and fsync"),
            (type(worker.encoder), "__call__", "model"),
        ):
            stack.enter_context(_timed(owner, name, label, spent))
        began = time.perf_counter()
        for shard in shards:
            worker(shard)
        spent["all"] = time.perf_counter() - began
    return {label: round(1000 * seconds / plan.num_rows, 3) for label, seconds in spent.most_common()}
