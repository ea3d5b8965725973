"""Shards on this machine without Ray, each in a process of its own: a photo that kills its process is found there.

Starting Python with all that encoding imports takes seconds. So that is done once, in a process that computes nothing
and therefore may be forked safely: a fork for every shard, and for every trial of photos that are suspected.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import IO, cast

from ..errors import Unavailable
from .config import EncodeJob
from .shards import Shard, ShardResult
from .suspects import most_killers, settle_suspect
from .trial import Outcome, Task, import_path, main, outcome_of, too_slow

_NEST = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from pipeline.encoding.apart import fork_as_asked; "
    "fork_as_asked()"
)
_LATER = ("pandas", "pyarrow.dataset", "PIL.Image")  # what libraries import when first used, here before any fork
_SHORTEST_S, _LONGEST_S = 0.001, 0.02  # between two looks at a fork
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
        return _nest().tried(job, shard, task)

    for shard in todo:
        result, found = settle_suspect(shard, try_it, most=most - convicted)
        convicted += found
        results.append(result)
        check()
        if on_result is not None:
            on_result(result, len(results), len(todo))
    return results


class Nest:
    """The process that forks, started when it is first asked, and again when it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def tried(self, job: EncodeJob, shard: Shard, task: Task) -> Outcome:
        """Work on a shard in a fork and return what became of it, as `trial.try_shard`. Raises Unavailable."""

        def started(folder: str) -> int:
            process = self._started()
            asks, answers = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
            try:
                asks.write(f"{folder}\n".encode())
            except BrokenPipeError:
                said = b""
            else:
                if not select.select([answers], [], [], job.encode.no_progress_s)[0]:
                    self.close()
                    raise too_slow(job, shard)
                said = answers.readline()
            if not said:
                self.close()
                raise Unavailable(
                    "the process that starts encoding processes has died, maybe of too little memory; finished parts "
                    "are kept, run again"
                )
            return int(said)

        return outcome_of(job, shard, task, started)

    def close(self) -> None:
        """End the process, and with it its fork."""
        if self._process is not None:
            self._process.kill()
            with self._process:  # closes its pipes and waits
                self._process = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = subprocess.Popen(  # noqa: S603 - this Python, our own module
                [sys.executable, "-c", _NEST, json.dumps(import_path())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
            )
        return self._process


@cache
def _nest() -> Nest:
    """Return this process's own, which lives as long."""
    nest = Nest()
    atexit.register(nest.close)
    return nest


def fork_as_asked() -> None:
    """Fork a process for every folder named on standard input, which calls `trial.main` with it; say its exit code.

    Ends when its own parent has ended. What a fork prints goes to standard error.
    """
    parent, answers = os.getppid(), os.dup(1)
    os.dup2(2, 1)
    for name in _LATER:
        with suppress(ImportError):
            import_module(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asks is interrupted too, and then ends this one
    for line in iter(sys.stdin.buffer.readline, b""):
        child = os.fork()
        if not child:
            _end_as_told(line.decode().rstrip("\n"))
        os.write(answers, f"{_end_of(child, parent)}\n".encode())


def _end_as_told(folder: str) -> None:
    """Do a fork's whole work and end it, without what the process it was forked from would do at its end."""
    code = 1
    try:
        main(folder)
        code = 0
    except BaseException:  # noqa: BLE001 - told by its exit code, as that of any other Python
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _end_of(child: int, parent: int) -> int:
    """Wait for a fork and return its exit code, negative: the signal that ended it. Ends this process with its parent.

    By looking again and again: a thread that waits would be one more thing that forks inherit.
    """
    wait = _SHORTEST_S
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if os.getppid() != parent:
            os._exit(1)  # the fork sees that and ends
        time.sleep(wait)
        wait = min(2 * wait, _LONGEST_S)
