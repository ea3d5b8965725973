"""Telling how a run goes: metrics while it works and at its end, a message when it is over. Never at its cost.

What cannot be told is warned of and counted; a run's result and exit code know nothing of it.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version

from ..ends import EXIT_CODES, failure_of
from ..events import Finished, listening
from ..release import read_head
from ..storage.config import StoreConfig
from ..storage.secrets import masked_for_people
from .config import MonitorConfig
from .metrics import Success
from .sinks import Sink, sinks_of
from .state import Ended, Named, RunState, Standing
from .webhook import message, post

_log = logging.getLogger(__name__)
ALREADY = "this run has already published"
NO_CHANNEL = "none"  # of a sample, whose end must not stand for the catalogue's
UNCHANGED = "nothing to do"
_LEAST_WAIT_S = 0.1
_AGAIN_S = 2.0
_RETRIED_S = 6 * 3600.0  # how long after a night its scheduler may try it again


@contextmanager
def monitored(config: MonitorConfig, store: StoreConfig, *, run: str, command: str, channel: str) -> Iterator[None]:
    """Tell those that a config names how the run inside goes and how it ended; an error passes on as it is.

    channel: where it may publish; known from the beginning, since the first that is told has to be told better later.
    """
    if config.is_idle:
        yield
        return
    named = Named(run, command, channel, _version(), dict(config.metrics.labels))
    state = RunState(named, [sink.name for sink in sinks_of(config.metrics)])
    monitor = Monitor(config, store, state)
    with listening(state.note):
        monitor.start()
        try:
            yield
        except BaseException as error:
            failure = failure_of(error)
            reason = EXIT_CODES[failure.exit_code][0]
            finished = state.standing().finished  # a refusing gate has left a result
            release = failure.release or (finished.release if finished else None)
            details = finished.details if finished else {}
            monitor.end(
                Ended(time.time(), failure.exit_code, reason, published=False, release=release,
                      error=failure.text, details=details)
            )  # fmt: skip
            raise
        done = state.standing().finished or Finished(None, published=False, reason="done")
        monitor.end(
            Ended(time.time(), 0, done.reason, published=done.published, release=done.release, details=done.details)
        )


class Monitor:
    """Sends what a RunState knows: every few seconds from a thread of its own, then once at the end."""

    def __init__(self, config: MonitorConfig, store: StoreConfig, state: RunState) -> None:
        self._config, self._store, self._state = config, store, state
        # A lock a sink: its last state must not be overtaken by the one before.
        self._sinks = [(sink, threading.Lock()) for sink in sinks_of(config.metrics)]
        self._over = threading.Event()
        self._warned: set[str] = set()

    def start(self) -> None:
        """Begin to send; the first time at once, so that a run that dies early has been seen."""
        for sink, lock in self._sinks:
            thread = threading.Thread(target=self._repeat, args=(sink, lock), name=f"monitor-{sink.name}", daemon=True)
            thread.start()

    def end(self, ended: Ended) -> None:
        """Send the end to everybody at once, and wait `timeout_s` at most; what hangs then dies with the process."""
        self._over.set()
        try:
            self._end(ended)
        except Exception as error:  # noqa: BLE001  never at the run's cost
            self._failed("monitor", error)

    def _end(self, ended: Ended) -> None:
        deadline = time.monotonic() + self._config.timeout_s
        self._state.end(ended)
        standing = self._state.standing()
        found: list[Success] = []
        within(self._config.timeout_s / 2, [("store", lambda _: found.extend(self._success(standing)))], self._failed)
        success = found[0] if found else None
        work: list[tuple[str, Callable[[float], None]]] = [
            (sink.name, partial(self._last, sink, lock, success)) for sink, lock in self._sinks
        ]
        if self._config.webhook.url is not None:
            body = message(standing, store=self._store.url, links=self._config.links)
            work.append(("webhook", lambda left: post(self._config.webhook, body, timeout_s=left)))
        known = standing.failures
        within(deadline - time.monotonic(), work, self._failed)
        if self._state.standing().failures != known:  # the metrics say so too, where they can still be told
            sinks = [job for job in work if job[0] not in ("webhook", *self._warned)]
            within(_AGAIN_S, sinks, self._failed)

    def _success(self, standing: Standing) -> Iterator[Success]:
        """Yield what the channel's series say after a refresh that ended well; nothing leaves them as they are."""
        ended = standing.ended
        if standing.named.command != "refresh" or ended is None or ended.exit_code != 0:
            return
        if not (ended.published or ended.reason == UNCHANGED):  # a sample that is published nowhere
            return
        head = read_head(self._store.open(), standing.named.channel)
        if head is None:
            return
        if ended.reason != ALREADY:
            yield Success(ended.at, head)
        elif head.run == standing.named.run and ended.at - head.created.timestamp() < _RETRIED_S:
            # Its first attempt died before it could tell. A scheduler that gives every night one name gets nothing.
            yield Success(head.created.timestamp(), head)

    def _last(self, sink: Sink, lock: threading.Lock, success: Success | None, left: float) -> None:
        with lock:
            sink.tell(self._state.standing(), success, timeout_s=left)

    def _repeat(self, sink: Sink, lock: threading.Lock) -> None:
        while True:
            with lock:
                if self._over.is_set():
                    return
                try:
                    sink.tell(self._state.standing(), None, timeout_s=self._config.timeout_s / 2)
                except Exception as error:  # noqa: BLE001  never at the run's cost
                    self._failed(sink.name, error)
            if self._over.wait(self._config.metrics.every_s):
                return

    def _failed(self, sink: str, error: BaseException | None) -> None:
        """Count a failure, and warn of the first one of each sink and of every one at the end."""
        self._state.failed(sink)
        text = f"no answer in {self._config.timeout_s:g} s" if error is None else f"{error}"
        if sink not in self._warned or self._over.is_set():
            self._warned.add(sink)
            said = masked_for_people(f"warning: monitor: {sink} was not told: {text}; the run is not touched by it")
            sys.stderr.write(said + "\n")


def within(
    seconds: float,
    work: Sequence[tuple[str, Callable[[float], None]]],
    failed: Callable[[str, BaseException | None], None],
) -> None:
    """Do all of `work` side by side, each given the seconds left, and return after `seconds` whatever still hangs.

    failed(name, error) is called for what raised, with None for what hangs. The threads are daemons: an interpreter
    that ends does not wait for them.
    """
    deadline = time.monotonic() + seconds
    raised: dict[str, BaseException] = {}

    def do(name: str, job: Callable[[float], None]) -> None:
        try:
            job(max(_LEAST_WAIT_S, deadline - time.monotonic()))
        except BaseException as error:  # noqa: BLE001  reported below
            raised[name] = error

    threads = [(name, threading.Thread(target=do, args=(name, job), daemon=True)) for name, job in work]
    for _, thread in threads:
        thread.start()
    for name, thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            failed(name, None)
        elif name in raised:
            failed(name, raised[name])


def _version() -> str:
    try:
        return version("visual-codebooks")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
