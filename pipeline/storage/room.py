"""How much of a disk a cache may take: what was asked for, else a share of what is free for this process."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import ConfigError

_SHARE = 4  # a cache that was given no limit leaves three quarters of what is free to others
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})
_MOUNTS = Path("/proc/self/mounts")
_CGROUPS = Path("/proc/self/cgroup")
_CGROUP_ROOT = Path("/sys/fs/cgroup")


def asked_bytes(gib: float | None, variable: str) -> int | None:
    """Return a limit of a cache in bytes: `gib`, else what the environment variable says, else None.

    Raises ConfigError for what is no number of GiB from 0 on.
    """
    name = variable if gib is None else "cache_gib"
    text = (os.environ.get(variable) or None) if gib is None else gib
    if text is None:
        return None
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if isinstance(text, bool) or not math.isfinite(value) or value < 0:
        raise ConfigError(f"{name} is {text!r}; give the GiB that the cache may take, for example 20")
    return int(value * 2**30)


def default_bytes(folder: Path, *, held: int, most: int) -> int:
    """Return the limit of a cache that was given none: at most `most`, and a quarter of what it could come to hold.

    folder: the cache's, which is there; held: bytes that lie in it now.
    """
    return min(most, (held + free_bytes(folder)) // _SHARE)


def free_bytes(folder: Path) -> int:
    """Return how much this process can still write into a folder.

    That is what its file system gives to users other than root (project quotas are counted in), and for a folder in
    memory no more than what is left of the memory of this process's control groups, whose pages such files are. A
    container's limit of ephemeral storage cannot be seen from inside: set the cache's own limit there.
    """
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if _file_system(folder) in _IN_MEMORY:
        free = min(free, _memory_left())
    return free


def _file_system(folder: Path) -> str:
    """Return the type of the file system that holds a folder, "" where this system does not tell."""
    path, best = os.path.realpath(folder), ("", "")
    try:
        lines = _MOUNTS.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        where, kind = line.split(" ")[1:3]
        where = where.encode().decode("unicode_escape") if "\\" in where else where
        inside = path == where or path.startswith(where.rstrip("/") + "/")
        if inside and len(where) >= len(best[0]):  # of several on one place the last one is seen
            best = (where, kind)
    return best[1]


def memory_limit() -> int:
    """Return how much memory this process may come to hold: what its machine has, or less by its control groups."""
    has = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([has, *(most for most, _ in _memory_groups())])


def _memory_left() -> int:
    """Return the least memory that a control group above this process has left; a huge number when none is limited."""
    return min([2**62, *(max(0, most - now) for most, now in _memory_groups())])


def _memory_groups() -> Iterator[tuple[int, int]]:
    """Yield (limit, used) of every limited control group above this process, in bytes."""
    try:
        lines = _CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, limit, used = _CGROUP_ROOT, "memory.max", "memory.current"
        if controllers:
            root, limit, used = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        # In a container the path is often that of the host, while its own group is mounted as the root.
        for group in {root, *_upwards(root, path)}:
            most, now = _number(group / limit), _number(group / used)
            if most is not None and now is not None:
                yield most, now


def _upwards(root: Path, path: str) -> list[Path]:
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [root.joinpath(*parts[:count]) for count in range(len(parts) + 1)]


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # `max`: no limit
