"""The pace of one host: what its threads share, by a clock that the test moves."""

from __future__ import annotations

import threading
import time

import pytest

from pipeline.errors import HostSilent
from pipeline.storage.hosts import Host, Hosts

ADDRESS = ("https", "cdn.example", 443)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def host(clock: Clock, connections: int = 16) -> Host:
    return Host(ADDRESS, connections, clock)


def serve(known: Host, clock: Clock, answers: int, per_second: float) -> None:
    for _ in range(answers):
        with known.turn():
            clock.now += 1 / per_second
        known.answered()


def test_connections_to_one_host_are_bounded() -> None:
    known = Host(ADDRESS, 3)
    together, most, lock = 0, 0, threading.Lock()
    meet = threading.Barrier(3, timeout=200)  # three come together, or it breaks

    def ask() -> None:
        nonlocal together, most
        with known.turn():
            with lock:
                together += 1
                most = max(most, together)
            meet.wait()
            with lock:
                together -= 1

    threads = [threading.Thread(target=ask) for _ in range(21)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 3


def test_one_answer_429_stops_every_thread_for_as_long_as_it_says() -> None:
    known = Host(ADDRESS, 8)
    begun = time.monotonic()
    known.refused(0.4, begun, patience_s=60)
    started: list[float] = []

    def ask() -> None:
        with known.turn():
            started.append(time.monotonic() - begun)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert min(started) >= 0.4
    assert max(started) < 200
    assert known.traffic.paused_s == pytest.approx(0.4, abs=0.05)
    assert known.rate == 0  # a single answer says nothing of the pace


def test_a_crowd_of_429s_halves_the_pace_once_and_it_climbs_back() -> None:
    clock = Clock()
    known = host(clock)
    serve(known, clock, 200, per_second=100)
    begun = clock.now
    clock.now += 0.01
    for _ in range(16):  # all that was under way comes back refused
        known.refused(0.0, begun, patience_s=60)
    assert known.rate == pytest.approx(50, rel=0.1)
    begun = clock.now + 0.01
    clock.now += 0.02
    for _ in range(16):
        known.refused(0.0, begun, patience_s=60)
    assert known.rate == pytest.approx(25, rel=0.1)  # requests at the new pace were refused too
    lowered = known.rate
    for _ in range(50):
        clock.now += 1 / known.rate
        known.answered()
    assert known.rate > lowered
    for _ in range(20_000):
        clock.now += 1 / (known.rate or 100)
        known.answered()
    assert known.rate == 0  # as many as the connections carry, as before


def test_the_pace_is_measured_where_it_was_too_much() -> None:
    clock = Clock()
    known = host(clock)
    serve(known, clock, 40, per_second=1)  # other hosts had their turns
    serve(known, clock, 20, per_second=40)
    begun = clock.now
    clock.now += 0.01
    for _ in range(8):
        known.refused(0.0, begun, patience_s=60)
    assert known.rate == pytest.approx(10, abs=1)


def test_requests_at_a_pace_are_spread() -> None:
    clock = Clock()
    known = host(clock)
    serve(known, clock, 100, per_second=10)
    begun = clock.now
    clock.now += 0.01
    for _ in range(16):
        known.refused(0.0, begun, patience_s=60)
    assert known.rate == pytest.approx(5, rel=0.2)
    with known.turn():
        pass
    waiting = threading.Thread(target=lambda: known.turn().__enter__(), daemon=True)
    waiting.start()
    waiting.join(0.02)
    assert waiting.is_alive()  # by the test's clock no time has passed since the last request


def test_photos_that_are_always_refused_pause_the_others_for_ten_minutes_at_most() -> None:
    clock = Clock()
    known = host(clock)
    for _ in range(200):  # one photo in fifty, each asking for half a minute
        serve(known, clock, 49, per_second=50)
        known.refused(30.0, clock.now, patience_s=60)
        clock.now += 30
    assert 570 <= known.traffic.paused_s <= 630
    assert known.rate == 0


def test_a_host_that_asks_for_longer_than_a_photo_waits_is_left_alone() -> None:
    clock = Clock()
    known = host(clock)
    known.refused(200.0, clock.now, patience_s=60)
    with pytest.raises(HostSilent, match="asks to be left alone for 200 s; not asked again for 200 s"), known.turn():
        pass
    clock.now += 201
    with known.turn():
        pass


def test_hosts_are_told_apart_by_scheme_name_and_port() -> None:
    hosts = Hosts()
    assert hosts.of(ADDRESS) is hosts.of(("https", "cdn.example", 443))
    assert hosts.of(ADDRESS) is not hosts.of(("https", "cdn.example", 8443))
    hosts.of(ADDRESS).traffic.heads += 2
    assert hosts.traffic()["cdn.example:443"].heads == 2
