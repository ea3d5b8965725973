"""What a forked child has to renew: locks that a thread of its parent may have held, and what such threads served.

Only the thread that called `fork` lives on in the child. Immutable data (tables, mapped files) are as they were and
stay shared with the parent; a lock that another thread held is held for ever, and a pool of threads never answers.
"""

from __future__ import annotations

import ctypes
import os
import threading
from types import TracebackType
from typing import Protocol
from weakref import WeakSet


class Renewable(Protocol):
    """An object that a child may go on using once it has been told of the fork."""

    def renew_after_fork(self) -> None:
        """Take fresh locks and let go of what the parent's threads served. Runs inside `fork`: no I/O, no waiting."""


_living: WeakSet[Renewable] = WeakSet()


def renewed_in_children(thing: Renewable) -> None:
    """Have `thing.renew_after_fork()` called in every child and child's child forked while it lives; it is not kept."""
    _living.add(thing)


def never_freed(thing: object) -> None:
    """Keep what threads of the parent served, even when this child ends: freeing it would wait for these threads.

    The library that made it has globals too, whose C++ destructors wait in the same way when the process ends. Handlers
    of `exit` run in reverse order, so the one set here ends the process, with its own status, before they do.
    """
    global _ends_at_once  # noqa: PLW0603  once a process
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
    libc = ctypes.CDLL(None)
    if _ends_at_once != os.getpid() and hasattr(libc, "on_exit"):  # glibc's; elsewhere a child may end by os._exit
        _ends_at_once = os.getpid()
        libc.on_exit(libc._exit, None)


_ends_at_once: int | None = None  # the process whose end runs no C++ destructors


class FreshLock:
    """A lock for `with` that every forked child finds free, whoever held it in the parent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        renewed_in_children(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def renew_after_fork(self) -> None:
        self._lock = threading.Lock()


def _renew() -> None:
    for thing in list(_living):
        thing.renew_after_fork()


os.register_at_fork(after_in_child=_renew)
