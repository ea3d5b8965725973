"""How a process treats the web hosts it asks: connections at once, the pace a host wants, hosts that are silent."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from ..errors import HostSilent, NoAnswer
from .addresses import Address
from .retry import Retry, retrying

Answer = TypeVar("Answer")
CONNECTIONS = 16
SILENT_S = 300.0  # how long a host that gave no answer is not asked again
_PAUSES_S = 600.0  # what single photos may pause a host for altogether
_CROWDED = 0.05  # share of answers 429 or 503 above which the host means everybody, not single photos
_MEMORY = 50  # answers that the share is an average over
_COUNTED = 1000  # of the last requests, to measure the pace by
_LEAST_RATE = 0.5  # requests a second
_CLIMB_S = 60.0  # in which a lowered pace is back at where it was


@dataclass(slots=True)
class Traffic:
    """Requests to one host: heads; looks (GETs of one byte or none, for a token); reads; bytes_read; refusals (answers
    429 and 503); paused_s: seconds that the host asked everybody to wait."""

    heads: int = 0
    looks: int = 0
    reads: int = 0
    bytes_read: int = 0
    refusals: int = 0
    paused_s: float = 0.0


@dataclass
class Host:
    """One host as all threads of this process see it.

    At most `connections` requests run at once. An answer 429 or 503 stops everybody for as long as `Retry-After` says,
    and where such answers are more than a twentieth it halves the pace, which then climbs back by equal steps. One
    photo that is told to wait while others are served pauses them for ten minutes at most over all such photos.
    looks: how tokens are asked for here, None while that is unknown.
    """

    address: Address
    connections: int = CONNECTIONS
    clock: Callable[[], float] = time.monotonic
    looks: str | None = None
    traffic: Traffic = field(default_factory=Traffic)

    def __post_init__(self) -> None:
        self._turn = threading.Condition()
        self._open = 0
        self._begun: deque[float] = deque(maxlen=_COUNTED)
        self._paused_until = self._next_at = 0.0
        self._lowered_at = float("-inf")
        self._rate = self._peak = 0.0  # requests a second; 0: as many as the connections carry
        self._share = 0.0
        self._answered_at = float("-inf")
        self._silent_until, self._silent_why = 0.0, ""

    @property
    def rate(self) -> float:
        """Requests a second that the host is sent now; 0: as many as the connections carry."""
        return self._rate

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a free connection and the host's pace, then hold one. Raises HostSilent."""
        with self._turn:
            while True:
                now = self.clock()
                if now < self._silent_until:
                    raise HostSilent(f"{self._silent_why}; not asked again for {self._silent_until - now:.0f} s")
                wait = max(self._paused_until, self._next_at) - now
                if self._open < self.connections and wait <= 0:
                    break
                self._turn.wait(wait if wait > 0 else None)
            self._open += 1
            self._begun.append(now)
            self._next_at = now + 1 / self._rate if self._rate else 0.0
        try:
            yield
        finally:
            with self._turn:
                self._open -= 1
                self._turn.notify_all()

    def answered(self) -> None:
        """Note an answer that is no request to slow down."""
        with self._turn:
            self._answered_at = self.clock()
            self._share -= self._share / _MEMORY
            if self._rate:
                self._rate += self._peak / _CLIMB_S / self._rate
                if self._rate > 2 * self._peak:
                    self._rate = 0.0

    def refused(self, after_s: float, begun: float, patience_s: float) -> None:
        """Note an answer 429 or 503 to a request begun at `begun`; after_s: what Retry-After says, 0 without it.

        A host that asks for more than a photo's patience is not asked again before then.
        """
        with self._turn:
            now = self._answered_at = self.clock()
            self.traffic.refusals += 1
            self._share += (1 - self._share) / _MEMORY
            crowded = self._share > _CROWDED
            if crowded and begun > self._lowered_at:  # one halving for all requests that were under way
                self._lowered_at = now
                self._peak = self._rate or self._measured(now)
                self._rate = max(_LEAST_RATE, self._peak / 2)
            if after_s > patience_s:
                until = now + min(after_s, SILENT_S)
                self._silence(f"{self.address[1]} asks to be left alone for {after_s:.0f} s", until)
            elif crowded or self.traffic.paused_s < _PAUSES_S:
                until = max(self._paused_until, now + after_s)
                self.traffic.paused_s += until - max(self._paused_until, now)
                self._paused_until = until
            self._turn.notify_all()

    def ask(self, request: Callable[[], Answer], policy: Retry) -> Answer:
        """Return what a request gives, trying again while it fails for a while only.

        Raises HostSilent at once, for this and all other photos, after a photo has used up its tries while the host
        answered nobody.
        """
        begun = self.clock()
        try:
            return retrying(request, policy, asked=lambda error: getattr(error, "after_s", 0.0))
        except NoAnswer as error:
            with self._turn:
                if self._answered_at < begun:
                    self._silence(str(error), self.clock() + SILENT_S)
            raise

    def _silence(self, why: str, until: float) -> None:
        self._silent_why, self._silent_until = why, until
        self._turn.notify_all()

    def _measured(self, now: float) -> float:
        """Return how many requests were begun within the last second: that was too much, not a long average."""
        return max(2 * _LEAST_RATE, float(sum(now - begun <= 1.0 for begun in self._begun)))


class Hosts:
    """The hosts that this process has asked."""

    def __init__(self, connections: int = CONNECTIONS) -> None:
        self.connections = connections
        self._lock = threading.Lock()
        self._known: dict[Address, Host] = {}

    def of(self, address: Address) -> Host:
        """Return what is known of a host."""
        with self._lock:
            return self._known.setdefault(address, Host(address, self.connections))

    def traffic(self) -> dict[str, Traffic]:
        """Return the requests to each host, by `host:port`."""
        with self._lock:
            return {f"{host.address[1]}:{host.address[2]}": host.traffic for host in self._known.values()}
