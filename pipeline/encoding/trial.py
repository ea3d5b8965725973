"""One shard in a process of its own, whose end is seen from outside: what a Ray actor cannot tell of its own death."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import CodebooksError, Unavailable
from .actors import make_worker
from .bisecting import Death
from .config import EncodeJob
from .shards import Shard, ShardResult

_ROOT = str(Path(__file__).resolve().parents[2])
# Our packages come from where this process has them, whatever lies in its current folder.
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from pipeline.encoding.trial import main; main(sys.argv[2])"
)
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
    """Work on a shard in a fresh process and return what became of it.

    Raises Unavailable when the process does not end within `encode.no_progress_s`.
    """

    def started(folder: str) -> int:
        command = [sys.executable, "-c", _CHILD, json.dumps(import_path()), folder]
        try:
            return subprocess.run(  # noqa: S603 - this Python, our own module
                command, timeout=job.encode.no_progress_s, check=False
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise too_slow(job, shard) from error

    return outcome_of(job, shard, task, started)


def import_path() -> list[str]:
    """Return where a fresh Python finds our packages, and all that this process finds."""
    return [_ROOT, *sys.path]


def too_slow(job: EncodeJob, shard: Shard) -> Unavailable:
    """Return the error of a shard that does not end."""
    return Unavailable(
        f"shard {shard.number} did not end in {job.encode.no_progress_s} seconds (encode.no_progress_s); "
        "finished parts are kept, run again"
    )


def outcome_of(job: EncodeJob, shard: Shard, task: Task, started: Callable[[str], int]) -> Outcome:
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


def death_of(code: int) -> Death:
    """Return what an exit code of a process that gave no answer tells; negative: the signal that ended it."""
    if code == -signal.SIGKILL:
        return Death("out_of_memory", "it was killed by SIGKILL, as the kernel does when memory runs out")
    if code < 0:
        known = {number.value: number.name for number in signal.Signals}
        return Death("crashed", f"it was ended by {known.get(-code, f'signal {-code}')}")
    return Death("crashed", f"it ended with exit code {code}")


def main(name: str) -> None:
    """Do what `outcome_of` asks, in a process that was started for it; name: the folder of question and answer."""
    _end_with_parent()
    folder = Path(name)
    job, shard, task = pickle.loads((folder / _ASKED).read_bytes())  # noqa: S301 - written by `outcome_of`
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
