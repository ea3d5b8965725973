"""Who holds an attempt of a run: a process, told from all others of its machine, and whether it still lives."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

_PROC = Path("/proc/self/stat")  # Linux; elsewhere psutil of the extra `run` answers


class AttemptRecord(BaseModel):
    """Who began an attempt. pid_started tells a process from a later one of the same pid."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempt: int
    host: str
    boot_id: str
    pid: int
    pid_started: str
    created: datetime

    def is_dead(self) -> bool:
        """Return whether this machine can tell that the holder has died; False where it cannot know."""
        if self.host != socket.gethostname() or self.boot_id != _boot_id():
            return False
        return _process_started(self.pid) != self.pid_started


def this_process(attempt: int) -> AttemptRecord:
    """Return the record with which this process begins an attempt."""
    pid = os.getpid()
    return AttemptRecord(
        attempt=attempt,
        host=socket.gethostname(),
        boot_id=_boot_id(),
        pid=pid,
        pid_started=_process_started(pid) or "unknown",
        created=datetime.now(UTC),
    )


def _boot_id() -> str:
    """Return what is the same for two processes exactly when one sees the pid of the other since the same boot."""
    if _PROC.exists():
        # Two containers of one machine may share its host name, but a pid means another process in each of them.
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    import psutil

    return str(round(psutil.boot_time()))


def _process_started(pid: int) -> str | None:
    """Return when a process started, by this machine's own count, or None when there is no living process."""
    if _PROC.exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        fields = stat.rpartition(")")[2].split()  # after the command name, which may hold anything
        state, started = fields[0], fields[19]
        return None if state in "ZX" else started  # a killed process whose parent has not looked yet is dead too
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.NoSuchProcess:
        return None
