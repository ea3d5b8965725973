"""Following a job to its end: its log as it is written, the object that it answers, the code that it ended with."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

from pipeline.errors import CodebooksError, ConfigError, NotFound, Unavailable
from pipeline.stopping import STOPPING
from pipeline.storage.secrets import masked_for_people

# What every answer of a command holds (`codebooks COMMAND --json`).
_ANSWER = {"run", "release", "published", "reason"}
_LOGGED = '{"time": '
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_SILENCE_S = 180.0  # of a head that does not answer; one with a store of its own is back in less
_LOOK_S = 10.0
_PAUSE_S = 2.0
_BY_SIGNAL = 128


class Job(Protocol):
    """What is read of Ray's JobDetails."""

    status: Any
    driver_exit_code: int | None
    error_type: str | None
    message: str | None


class Watched(Protocol):
    """What is asked of a cluster's dashboard; see `dashboard.Dashboard`."""

    address: str
    client: Any

    def job(self, submission_id: str) -> Any: ...

    def stop(self, submission_id: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Ending:
    """How a job ended. exit_code: its own, or that of what became of it; answer: its JSON object, {} without one."""

    exit_code: int
    text: str
    answer: Mapping[str, Any] = field(default_factory=dict)


class Log:
    """Passes a job's log on, line by line, and keeps its answer out of it.

    A log that is read again from its beginning, after a connection was lost, goes on where it stopped.
    """

    def __init__(self, write: Callable[[str], Any]) -> None:
        self.answer: dict[str, Any] = {}
        self._write = write
        self._shown = self._read = 0
        self._rest = ""

    def restart(self) -> None:
        """Say that the log comes from its beginning again."""
        self._read = 0

    def feed(self, text: str) -> None:
        """Take a piece of the log."""
        fresh = text[max(0, self._shown - self._read) :]
        self._read += len(text)
        self._shown = max(self._shown, self._read)
        *lines, self._rest = (self._rest + fresh).split("\n")
        for line in lines:
            self._line(line)

    def end(self) -> None:
        """Say that nothing more comes."""
        if self._rest:
            self._line(self._rest)
        self._rest = ""

    def _line(self, line: str) -> None:
        found = _answer_in(line)
        if found is not None:
            self.answer = found
        elif line.startswith(_LOGGED):  # of `--log json`: an object already, which ours would only wrap
            (sys.__stderr__ or sys.stderr).write(line + "\n")
        else:
            self._write(masked_for_people(line) + "\n")


def follow(dashboard: Watched, submission_id: str, *, ask: Callable[[str], bool] | None) -> Ending:
    """Pass a job's log on to standard error until it ends, and return how.

    ask: puts a question to the person at the terminal, None where there is none. Ctrl-C asks whether the job shall stop
    too; without a person, and on SIGTERM, it goes on. Raises Unavailable when the cluster is silent for three minutes
    or has forgotten the job, KeyboardInterrupt on SIGTERM.
    """
    log = Log(sys.stderr.write)
    while True:
        try:
            with _interrupts():
                job = asyncio.run(_until_it_ends(dashboard, submission_id, log))
                return ending_of(job, log.answer)
        except KeyboardInterrupt:
            if STOPPING.requested:
                sys.stderr.write(f"job {submission_id} goes on at {dashboard.address}\n")
                raise
            if not _shall_stop(submission_id, ask):
                return Ending(
                    Unavailable.exit_code,
                    f"job {submission_id} goes on at {dashboard.address}; the same command follows it",
                )
            dashboard.stop(submission_id)
            sys.stderr.write(f"job {submission_id} is told to stop; it has 30 seconds to let go of its run\n")


def ending_of(job: Job, answer: Mapping[str, Any]) -> Ending:
    """Return how a job ended: with its own exit code where its command got that far."""
    status, code = _status(job), job.driver_exit_code
    said = masked_for_people(" ".join((job.message or "").split()))[:500]
    if status == "SUCCEEDED":
        return Ending(0, f"the job is done: {answer.get('reason', 'its log has no answer')}", answer)
    if status == "STOPPED":
        return Ending(
            Unavailable.exit_code,
            "the job was stopped; the same command with the same --run goes on from there",
            answer,
        )
    if code is None:
        bad = job.error_type == "RUNTIME_ENV_SETUP_FAILURE"
        number = ConfigError.exit_code if bad else Unavailable.exit_code
        return Ending(
            number, f"the job's process did not run to its end ({job.error_type or 'no reason'}): {said}", answer
        )
    if code < 0 or code > _BY_SIGNAL:
        number = -code if code < 0 else code - _BY_SIGNAL
        return Ending(Unavailable.exit_code, f"the job's process was killed by {_name_of(number)}; try again", answer)
    if code in range(1, 7):
        return Ending(code, f"the job ended with exit code {code}: {answer.get('reason', said)}", answer)
    return Ending(CodebooksError.exit_code, f"the job's process ended with {code}: {said}", answer)


async def _until_it_ends(dashboard: Watched, submission_id: str, log: Log) -> Any:
    """Show the log and return the job once it has ended; a connection that is lost is made again."""
    answered, waits = time.monotonic(), False
    while True:
        try:
            log.restart()
            async for piece in _pieces(dashboard, submission_id):
                answered = time.monotonic()
                if piece is not None:
                    log.feed(piece)
            job = await asyncio.to_thread(dashboard.job, submission_id)
        except NotFound as error:
            raise Unavailable(
                f"the cluster at {dashboard.address} does not know job {submission_id} any more: its head was started "
                "anew; submit again, the run of this name goes on where it was"
            ) from error
        except (Unavailable, OSError, RuntimeError) as error:
            silent = time.monotonic() - answered
            if silent > _SILENCE_S:
                raise Unavailable(
                    f"the cluster at {dashboard.address} has not answered for {silent:.0f} s ({error}); the same "
                    "command with the same --run follows the job if it goes on, and else begins where it was"
                ) from error
        else:
            answered = time.monotonic()
            if _status(job) in _ENDED:
                log.end()
                return job
            if _status(job) == "PENDING" and not waits:
                waits = True
                sys.stderr.write(f"job {submission_id} waits for the cluster: {masked_for_people(job.message or '')}\n")
        await asyncio.sleep(_PAUSE_S)


async def _pieces(dashboard: Watched, submission_id: str) -> AsyncIterator[str | None]:
    """Yield the log from its beginning until the server closes it, None whenever it is quiet and the job goes on.

    Raises what the dashboard does where it is quiet because nobody is there any more.
    """
    if _status(await asyncio.to_thread(dashboard.job, submission_id)) == "PENDING":
        return  # without a log yet
    tail = dashboard.client.tail_job_logs(submission_id)
    task = asyncio.ensure_future(anext(tail))
    try:
        while True:
            await asyncio.wait({task}, timeout=_LOOK_S)
            if not task.done():
                if _status(await asyncio.to_thread(dashboard.job, submission_id)) in _ENDED:
                    return
                yield None
                continue
            try:
                yield task.result()
            except StopAsyncIteration:
                return
            task = asyncio.ensure_future(anext(tail))
    finally:
        task.cancel()
        await asyncio.wait({task})
        await tail.aclose()


def _answer_in(line: str) -> dict[str, Any] | None:
    """Return the JSON object of a command that a line is, None for any other line."""
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.keys() >= _ANSWER else None


def _status(job: Job) -> str:
    return str(getattr(job.status, "value", job.status))


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _shall_stop(submission_id: str, ask: Callable[[str], bool] | None) -> bool:
    if ask is None:
        return False
    try:
        return ask(f"\nstop job {submission_id} on the cluster too? [y/N] ")
    except KeyboardInterrupt:
        return False


@contextmanager
def _interrupts() -> Iterator[None]:
    """Let Ctrl-C only interrupt: the question that follows must not be cut short by the time limit of stopping."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGINT, interrupt)
    except ValueError:  # not in the main thread, which alone gets signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
