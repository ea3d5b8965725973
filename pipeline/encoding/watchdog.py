"""Says while shards run what does not move: actors that have no machine yet, and shards that take much too long."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Mapping
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from ..boards import Standing
from ..workers import find_room
from .seats import Seats
from .shards import Shard

_log = logging.getLogger(__name__)

_LOOK_S = 15.0
_WAIT_S = 45.0  # for a first actor before anything is said; then as often
_SLOW_S, _TIMES = 300.0, 10.0  # a shard is slow after so long, and after so many times what one usually takes
_ASK_S = 10.0


class Watchdog(threading.Thread):
    """Looks at the board of begun shards; what it says are warnings, it stops nothing.

    shards: by number; done: the numbers of those that have ended, which its owner fills.
    """

    def __init__(self, begins: Any, shards: Mapping[int, Shard], done: Collection[int], seats: Seats) -> None:
        super().__init__(name="encode-watchdog", daemon=True)
        self._begins = begins
        self._shards = shards
        self._done = done
        self._seats = seats
        self._over = threading.Event()
        self._began = self._said = time.monotonic()
        self._told: dict[int, float] = {}

    def run(self) -> None:
        """Look until `stop`."""
        while not self._over.wait(_LOOK_S):
            self.look()

    def stop(self) -> None:
        """Look no more."""
        self._over.set()

    def look(self) -> None:
        """Say what does not move now."""
        board = self._board()
        if board is None:
            return
        if not board.begun:
            self._say_what_is_waited_for()
        for number, seconds, where in self._slow(board):
            if seconds >= 2 * self._told.get(number, 0.0):
                self._told[number] = seconds
                usual = f"; one usually takes {board.usual_s:.0f} s" if board.usual_s else ""
                _log.warning(
                    "encode: %s has been worked on for %.0f s on %s%s", self._named(number), seconds, where, usual
                )

    def slowest(self) -> str:
        """Return in words which shard has been worked on the longest, "" where that is not known."""
        board = self._board()
        open_now = [] if board is None else [each for each in board.open if each[0] not in self._done]
        if not open_now:
            return "no shard was begun" if board is not None and not board.begun else ""
        number, seconds, where = max(open_now, key=lambda each: each[1])
        return f"{self._named(number)} has been worked on for {seconds:.0f} s on {where}"

    def _board(self) -> Standing | None:
        try:
            found: Standing = ray.get(self._begins.standing.remote(), timeout=_ASK_S)
        except (RayActorError, GetTimeoutError):
            return None
        return found

    def _slow(self, board: Standing) -> list[tuple[int, float, str]]:
        limit = max(_SLOW_S, _TIMES * board.usual_s)
        return [each for each in board.open if each[0] not in self._done and each[1] > limit]

    def _say_what_is_waited_for(self) -> None:
        now = time.monotonic()
        if min(now - self._began, now - self._said) < _WAIT_S:
            return
        self._said = now
        room, seats = find_room(), self._seats
        grows = "an autoscaler may start more" if room.grows else "nothing starts more of them"
        _log.warning(
            "encode: after %.0f s none of %d actors of %g CPU and %g GPU runs yet; the %d machines that are up have "
            "%g CPU and %g GPU, %s",
            now - self._began, seats.least, seats.cpus, seats.gpus, room.machines, room.cpus, sum(room.gpus), grows,
        )  # fmt: skip

    def _named(self, number: int) -> str:
        shard = self._shards.get(number)
        if shard is None or not shard.photos.num_rows:
            return f"shard {number}"
        items = shard.photos["item_id"]
        return f"shard {number} of {len(items):,} photos, items {items[0].as_py()!r} to {items[-1].as_py()!r},"
