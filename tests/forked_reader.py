"""Questions to a release in forked children, in a process of its own: `python forked_reader.py STORE_URL`.

Prints one JSON object: for each way of forking, how many children answered right, wrongly, or not within their time.
FAISS must have more than one thread here (OMP_NUM_THREADS), else nothing could hang.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import faiss
import numpy as np

from pipeline.reader import Release, open_release

WAIT_S, SHORT_WAIT_S = 60.0, 3.0
DIM = 6


def answers(release: Release) -> list[list[str]]:
    """One answer by item, forty at once by vector (FAISS then multiplies matrices), one with a filter, one of none."""
    vectors = np.random.default_rng(0).normal(size=(40, DIM))
    found = [release.similar("sku-001", k=5), *release.search(vectors, k=5)]
    found.append(release.similar("sku-002", k=5, where={"category": "Shoes"}))
    try:
        release.similar("nobody")
    except KeyError as error:
        return [[near.item_id for near in answer] for answer in found] + [[str(error)]]
    raise AssertionError("an item that is nowhere was found")


def forked(task: Callable[[], bool], wait_s: float = WAIT_S) -> str:
    pid = os.fork()
    if pid == 0:
        os._exit(0 if task() else 1)
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return "right" if status == 0 else "wrong"
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hung"


RELEASE = open_release(sys.argv[1])
EXPECTED = answers(RELEASE)


def right() -> bool:
    return answers(RELEASE) == EXPECTED


def plain() -> list[str]:
    return [forked(right) for _ in range(3)]


def grandchild() -> list[str]:
    return [forked(lambda: right() and forked(right) == "right" and right())]


def thread() -> list[str]:
    """A thread that the child starts has every processor."""

    def ask() -> bool:
        found: list[bool] = []
        mine = threading.Thread(target=lambda: found.append(right() and faiss.omp_get_max_threads() > 1))
        mine.start()
        mine.join()
        return found == [True]

    return [forked(ask)]


def busy() -> list[str]:
    """Searches, refreshes and questions for unknown items are under way in other threads of the parent."""
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answers(RELEASE)

    def swap() -> None:
        while not stop.is_set():
            RELEASE.refresh()

    threads = [threading.Thread(target=work) for work in (ask, ask, swap)]
    for each in threads:
        each.start()
    found = [forked(lambda: right() and not RELEASE.refresh()) for _ in range(12)]
    stop.set()
    for each in threads:
        each.join()
    return found


def held() -> list[str]:
    """Every lock is held that a thread of the parent might hold."""
    opened = RELEASE._now()
    locks = [RELEASE._opening, opened._encoding, opened.items._lock, opened._absences._lock]
    for lock in locks:
        lock.__enter__()
    found = [forked(lambda: right() and not RELEASE.refresh())]
    for lock in locks:
        lock.__exit__(None, None, None)
    return found


def again(_: int) -> bool:
    return right()


def pool() -> list[str]:
    with multiprocessing.get_context("fork").Pool(2) as workers:
        return ["right" if one else "wrong" for one in workers.map_async(again, range(6)).get(WAIT_S)]


def futures() -> list[str]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as workers:
        waiting = [workers.submit(again, number) for number in range(6)]
        return ["right" if one.result(WAIT_S) else "wrong" for one in waiting]


def as_before() -> list[str]:
    """Negative control: a child with as many threads as its parent."""

    def ask() -> bool:
        faiss.omp_set_num_threads(4)
        return right()

    return [forked(ask, SHORT_WAIT_S)]


if __name__ == "__main__":
    assert faiss.omp_get_max_threads() > 1
    ways = (plain, grandchild, thread, busy, held, pool, futures, as_before)
    outcomes = {way.__name__: way() for way in ways}
    print(json.dumps({way: {one: found.count(one) for one in set(found)} for way, found in outcomes.items()}))
