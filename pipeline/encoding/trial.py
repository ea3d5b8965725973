"""One shard in a process of its own, whose end is seen from outside: what a Ray actor cannot tell of its own death.

Starting Python with all that encoding imports takes seconds. So that is done once, in a process that computes nothing
and therefore may be forked safely: a fork for every shard, and for every trial of photos that are suspected.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, Literal, cast

from ..errors import CodebooksError, Unavailable
from .actors import make_worker
from .bisecting import Death
from .config import EncodeJob
from .shards import Shard, ShardResult

_ROOT = str(Path(__file__).resolve().parents[2])
# Our packages come from where this process has them, whatever lies in its current folder.
_NEST = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from pipeline.encoding.trial import fork_as_asked; "
    "fork_as_asked()"
)
_LATER = ("pandas", "pyarrow.dataset", "PIL.Image")  # what libraries import when first used, here before any fork
_SHORTEST_S, _LONGEST_S = 0.001, 0.02  # between two looks at a fork
_ASKED, _ANSWER = "asked", "answer"

# write: do a shard's whole work; rehearse: only what could kill a process, and write nothing.
Task = Literal["write", "rehearse"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a shard that was tried: its result where it was to be written, how its process died, or an error.

    All are None where the photos were only rehearsed and the process lived.
    """

    result: ShardResult | None = None
    death: Death | None = None
    error: CodebooksError | None = None


def try_shard(job: EncodeJob, shard: Shard, task: Task) -> Outcome:
    """Work on a shard in a process of its own and return what became of it.

    Raises Unavailable when the process does not end within `encode.no_progress_s`.
    """
    return _nest().tried(job, shard, task)


def death_of(code: int) -> Death:
    """Return what an exit code of a process that gave no answer tells; negative: the signal that ended it."""
    if code == -signal.SIGKILL:
        return Death("out_of_memory", "it was killed by SIGKILL, as the kernel does when memory runs out")
    if code < 0:
        known = {number.value: number.name for number in signal.Signals}
        return Death("crashed", f"it was ended by {known.get(-code, f'signal {-code}')}")
    return Death("crashed", f"it ended with exit code {code}")


def main(name: str) -> None:
    """Do what `_outcome_of` asks, in a process that was forked for it; name: the folder of question and answer."""
    _end_with_parent()
    folder = Path(name)
    job, shard, task = pickle.loads((folder / _ASKED).read_bytes())  # noqa: S301 - written by `_outcome_of`
    aside = folder / f"{_ANSWER}.aside"
    aside.write_bytes(pickle.dumps(_outcome(job, shard, task)))
    aside.rename(folder / _ANSWER)


def _outcome(job: EncodeJob, shard: Shard, task: Task) -> Outcome:
    try:
        worker = make_worker(job)
        if task == "write":
            return Outcome(result=worker(shard))
        worker.rehearse(shard)
        return Outcome()
    except CodebooksError as error:
        error.add_note(f"in an encoding process:\n{traceback.format_exc()}")
        return Outcome(error=error)
    except MemoryError as error:
        return Outcome(death=Death("out_of_memory", f"it could not get memory: {error}"))
    except Exception:  # noqa: BLE001 - handed to the driver, which raises it: an exception is no death
        return Outcome(error=CodebooksError(f"an encoding process failed:\n{traceback.format_exc()}"))


def _end_with_parent() -> None:
    """End this process soon after the one that started it: nobody would read its answer."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _outcome_of(job: EncodeJob, shard: Shard, task: Task, started: Callable[[str], int]) -> Outcome:
    """Return what became of a shard in a process of its own.

    started: has a process call `main` with the folder that it is given, waits for its end and returns its exit code.
    """
    from ray import cloudpickle  # packs what Ray brought here; the child does without Ray

    with tempfile.TemporaryDirectory(prefix="visual-codebooks-trial-") as name:
        folder = Path(name)
        (folder / _ASKED).write_bytes(cloudpickle.dumps((job, shard, task)))  # type: ignore[no-untyped-call]
        code = started(name)
        answer = folder / _ANSWER
        if not answer.exists():
            return Outcome(death=death_of(code))
        outcome: Outcome = pickle.loads(answer.read_bytes())  # noqa: S301 - written a moment ago by our own process
        return outcome


class Nest:
    """The process that forks, started when it is first asked, and again when it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def tried(self, job: EncodeJob, shard: Shard, task: Task) -> Outcome:
        """Work on a shard in a fork and return what became of it, as `try_shard`. Raises Unavailable."""

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
                    raise Unavailable(
                        f"shard {shard.number} did not end in {job.encode.no_progress_s} seconds "
                        "(encode.no_progress_s); finished parts are kept, run again"
                    )
                said = answers.readline()
            if not said:
                self.close()
                raise Unavailable(
                    "the process that starts encoding processes has died, maybe of too little memory; finished parts "
                    "are kept, run again"
                )
            return int(said)

        return _outcome_of(job, shard, task, started)

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
                [sys.executable, "-c", _NEST, json.dumps([_ROOT, *sys.path])],
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
    """Fork a process for every folder named on standard input, which calls `main` with it; say its exit code.

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
