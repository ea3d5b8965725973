"""What processes hold in memory while they work, and how long their steps take. Linux tells it, in /proc."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil

Told = TypeVar("Told")


def held(name: str, pid: int | str = "self") -> int:
    """Return a line of a process's memory in bytes: VmRSS, VmHWM (its peak), RssAnon (what is no file's)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def forget_peak() -> None:
    """Let this process's peak begin anew; a child begins with its parent's."""
    Path("/proc/self/clear_refs").write_text("5")


def shared_mib() -> dict[str, int]:
    """Return what this process holds, alone and with others, in MiB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    memory = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith("kB")}
    return {name: round(memory[name] / 1024) for name in ("Rss", "Pss", "Pss_Anon", "Pss_File", "Shared_Clean")}


def of_each(ask: Callable[[psutil.Process], Told], pid: int | None = None) -> list[Told]:
    """Return what is asked of a process, by default this one, and of all below it; not of those that have ended."""
    found = []
    try:
        first = psutil.Process(pid)
        processes = [first, *first.children(recursive=True)]
    except psutil.Error:
        return found
    for process in processes:
        try:
            found.append(ask(process))
        except psutil.Error:
            continue
    return found


class Looking(threading.Thread):
    """Looks at something every so many seconds, until it is stopped."""

    def __init__(self, every_s: float) -> None:
        super().__init__(daemon=True)
        self._every_s, self._over = every_s, threading.Event()

    def look(self) -> None:
        raise NotImplementedError

    def run(self) -> None:
        while not self._over.wait(self._every_s):
            self.look()

    def stop(self) -> None:
        self._over.set()
        self.join()


class _Anonymous(Looking):
    """Notes the most memory of no file that this process holds, in bytes."""

    def __init__(self) -> None:
        super().__init__(0.05)
        self.most = held("RssAnon")

    def look(self) -> None:
        self.most = max(self.most, held("RssAnon"))


class Watched:
    """What was measured of this process, step by step."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {"import_mib": round(held("VmRSS") / 2**20)}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        looking = _Anonymous()
        forget_peak()
        looking.start()
        began, worked = time.monotonic(), time.process_time()
        yield
        seconds, cpu = time.monotonic() - began, time.process_time() - worked
        looking.stop()
        mib = {"peak": held("VmHWM"), "peak_anon": looking.most, "left": held("VmRSS")}
        memory = {f"{what}_mib": round(size / 2**20) for what, size in mib.items()}
        self.found[name] = {"s": round(seconds, 2), "cpu_s": round(cpu, 2), **memory}
        print(f"  {name}: {self.found[name]}", file=sys.stderr, flush=True)
