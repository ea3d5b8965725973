"""A function over many tasks: side by side where this process is connected to Ray, else one after another here.

What all tasks share may be as large as the catalogue. Its arrays are never packed: each is a file in a folder of the
run on the store, which a process maps from the store's own disk or, where the store is elsewhere, from its machine's
cache. So what a task holds is what it reads of them, and what it makes.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import pickle
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

from .errors import CodebooksError
from .keys import digest_of
from .storage import MemoryStore, Store
from .storage.cache import FileCache, default_folder
from .workers import explained

Task = TypeVar("Task")
Answer = TypeVar("Answer")
Shared = TypeVar("Shared")

_PACKED = 1 << 16  # bytes of an array that still travels with the task
_PIECE = 32 << 20
_TRIES = 3  # of a task whose process or machine is lost, after the first


@dataclass(frozen=True, slots=True)
class Kept:
    """A file that waits on the store; digest: the sha256 of its bytes."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Scratch:
    """A folder of a run on the store, of this mapping alone: what tasks share and what they have made.

    `expire` takes it where a process that was killed has left it, as it takes checkpoints.
    """

    store: Store
    folder: str

    @classmethod
    def of_run(cls, store: Store, run: str, tasks: int) -> Scratch | None:
        """Return the folder for so many tasks; None where they are done here.

        That is where there is only one, this process is not connected to Ray, or no other process can see the store.
        """
        if tasks < 2 or isinstance(store, MemoryStore) or _connected() is None:
            return None
        return cls(store, f"runs/{run}/scratch/{uuid4().hex[:12]}/")

    def keep(self, what: str, data: bytes | memoryview) -> Kept:
        """Write bytes under a name of their own; a task that is done once more writes the same ones."""
        digest = hashlib.sha256()
        for start in range(0, len(data), _PIECE):
            digest.update(data[start : start + _PIECE])
        kept = Kept(f"{self.folder}{what}-{digest.hexdigest()[:12]}", len(data), digest.hexdigest())
        self.store.put_if_absent(kept.name, data)
        return kept

    def forget(self, files: Iterable[Kept]) -> None:
        """Delete files that nobody asks for any more, here too; what cannot be deleted now is left for `expire`."""
        different = {kept.name: kept.digest for kept in files}
        with suppress(CodebooksError):
            for name in different:
                self.store.delete(name)
        with suppress(CodebooksError):
            here = _here()
            for digest in different.values():
                here.drop(digest)


def mapped_file(store: Store, kept: Kept) -> memoryview:
    """Return a file's bytes, mapped: of the store's own disk, else of this machine's cache, which checks them."""
    with store.open(kept.name) as handle, suppress(io.UnsupportedOperation):  # no file of this machine
        return memoryview(mmap.mmap(handle.fileno(), kept.size, access=mmap.ACCESS_READ))
    path = _here().fetch(store, kept.name, size=kept.size, sha256=kept.digest)
    with path.open("rb") as handle:
        return memoryview(mmap.mmap(handle.fileno(), kept.size, access=mmap.ACCESS_READ))


def _here() -> FileCache:
    """Return where files of scratch lie on this machine: beside releases, whose room they do not take."""
    return FileCache(default_folder() / "scratch")


@dataclass(frozen=True, slots=True)
class Laid:
    """What tasks share, as it travels. head: the packed rest of it; files: its large arrays, in their order."""

    store: Store
    head: bytes
    files: tuple[Kept, ...]

    @classmethod
    def of(cls, shared: Any, scratch: Scratch, dumps: Callable[..., bytes]) -> Laid:
        """Lay the large arrays of something on the store. dumps: as `pickle.dumps`."""
        files: list[Kept] = []

        def lay(buffer: pickle.PickleBuffer) -> bool:
            with buffer.raw() as view:
                if view.nbytes < _PACKED:
                    return True  # packed with the rest
                files.append(scratch.keep(f"shared-{len(files)}", view))
            return False

        head = dumps(shared, protocol=5, buffer_callback=lay)
        return cls(scratch.store, head, tuple(files))

    def opened(self) -> Any:
        """Return what is shared, its large arrays mapped; of a process's last one the same object again."""
        key = digest_of(self.head) + "".join(kept.name for kept in self.files)
        if key not in _OPENED:
            _OPENED.clear()
            _OPENED[key] = pickle.loads(self.head, buffers=[mapped_file(self.store, kept) for kept in self.files])  # noqa: S301 - by Ray, from the driver
        return _OPENED[key]


_OPENED: dict[str, Any] = {}


def mapped(
    function: Callable[[Task], Answer], tasks: Sequence[Task], *, task_bytes: int, while_doing: str, stays: str
) -> list[Answer]:
    """Return what a function gives of each task, in their order.

    Each is a Ray task, side by side with the others, where this process is connected to Ray, else one after another is
    done here. task_bytes: what one holds, so that a machine takes no more than it has memory for. while_doing, stays:
    as in `explained`, whose errors are raised.
    """
    ray = _connected()
    if ray is None or not tasks:
        return [function(task) for task in tasks]
    remote = _remote(ray, function, task_bytes)
    try:
        found: list[Answer] = ray.get([remote.remote(task) for task in tasks])
    except ray.exceptions.RayError as error:
        raise explained(error, while_doing, stays=stays) from error
    return found


def mapped_in_turn(
    function: Callable[[Shared, Task], Answer],
    shared: Shared,
    tasks: Iterable[Task],
    *,
    scratch: Scratch | None,
    task_bytes: int,
    while_doing: str,
) -> Iterator[Answer]:
    """Yield what a function gives of what all tasks share and each of them, in their order.

    scratch: where `shared` is laid for Ray tasks; None: all is done here, one after another. A task is made when it is
    sent, and few are at a time, so that neither they nor their answers are held together. task_bytes: what one holds
    besides what it maps. while_doing: as in `explained`, whose errors are raised; a task whose process is lost is done
    again before.
    """
    if scratch is None:
        yield from (function(shared, task) for task in tasks)
        return
    ray = _connected()
    dumps = pickle.dumps if ray is None else ray.cloudpickle.dumps
    laid = Laid.of(shared, scratch, dumps)
    try:
        yield from _in_turn(_Bound(function, laid), tasks, task_bytes=task_bytes, while_doing=while_doing)
    finally:
        scratch.forget(laid.files)


@dataclass(frozen=True, slots=True)
class _Bound:
    """A function with what its tasks share, as it travels."""

    function: Callable[[Any, Any], Any]
    laid: Laid

    def __call__(self, task: Any) -> Any:
        return self.function(self.laid.opened(), task)


def _in_turn(bound: _Bound, tasks: Iterable[Any], *, task_bytes: int, while_doing: str) -> Iterator[Any]:
    ray: Any = _connected()
    remote = _remote(ray, _done, task_bytes)
    at_once = max(2, int(ray.cluster_resources().get("CPU", 0.0)))
    waiting: deque[Any] = deque()
    try:
        held = ray.put(bound)
        for task in tasks:
            waiting.append(remote.remote(held, task))
            if len(waiting) >= 2 * at_once:
                yield ray.get(waiting.popleft())
        while waiting:
            yield ray.get(waiting.popleft())
    except ray.exceptions.RayError as error:
        raise explained(error, while_doing, stays="nothing of the table is kept") from error
    finally:
        for one in waiting:  # whoever stopped asking wants no more of them
            ray.cancel(one, force=False)


def _done(bound: _Bound, task: Any) -> Any:
    return bound(task)


def _connected() -> Any:
    """Return Ray where this process is connected to a cluster, else None."""
    ray: Any = sys.modules.get("ray")
    return ray if ray is not None and ray.is_initialized() else None


def _remote(ray: Any, function: Callable[..., Any], task_bytes: int) -> Any:
    """Return a function as a Ray task; more memory than any machine has is asked of the largest, not for ever."""
    most = max((node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
    return ray.remote(num_cpus=1, memory=int(min(task_bytes, most)), max_retries=_TRIES)(function)
