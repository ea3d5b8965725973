"""Machines of a cluster on one: each in a network, mount, process, host name and IPC namespace of its own.

Needs root and `ip`, `nsenter`, `unshare`. A machine sees the kernel, the operating system's files, this Python
environment and what is named in `shows`, all read-only; the checkout, the home folder, `/tmp` and `/dev/shm` of this
machine are absent there, empty and its own. Nothing is added to the root network namespace.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
PREFIX = os.environ.get("CLUSTER_PREFIX", "cbn")  # of network namespaces; two at once need two
# $1: folder that keeps what is shown; then `hide FOLDER`, `show FOLDER`, `seed FROM TO`, `--`, the command.
_ENTER = """
set -e
keep=/mnt; mount -t tmpfs none $keep; n=0; shows=(); hides=(); froms=(); tos=()
while [ "$1" != -- ]; do
  case $1 in
    show) mkdir $keep/$n; mount --rbind "$2" $keep/$n; shows[n]=$2; n=$((n+1)); shift 2;;
    hide) hides+=("$2"); shift 2;;
    seed) froms+=("$keep/s${#froms[@]}"); cp -r "$2" "$keep/s$((${#froms[@]}-1))"; tos+=("$3"); shift 3;;
  esac
done; shift
for d in "${hides[@]}"; do mount -t tmpfs -o mode=1777 none "$d"; done
mount -t tmpfs -o size=2g none /dev/shm
for i in "${!shows[@]}"; do
  d=${shows[i]}; mkdir -p "$d"; mount --rbind $keep/$i "$d"; mount -o remount,bind,ro "$d"
done
for i in "${!froms[@]}"; do mkdir -p "$(dirname "${tos[i]}")"; cp -r "${froms[i]}" "${tos[i]}"; done
umount -l $keep; hostname "$MACHINE"; cd /tmp; exec "$@"
"""


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} gave {done.returncode}: {done.stderr.strip()}")


class Network:
    """A switch and so many machines on it, 10.99.0.10 and up; as a context manager everything is gone at its end."""

    def __init__(self, machines: int, work: Path, *, shows: Sequence[Path] = ()) -> None:
        self.work = work
        self.shows = shows
        self.machines = [Machine(self, number) for number in range(machines)]

    def __enter__(self) -> Self:
        self._take_down()
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        _run("ip", "netns", "add", f"{PREFIX}sw")
        _run("ip", "-n", f"{PREFIX}sw", "link", "add", "name", "br0", "type", "bridge")
        _run("ip", "-n", f"{PREFIX}sw", "link", "set", "br0", "up")
        for machine in self.machines:
            space, port = machine.space, f"p{machine.number}"
            _run("ip", "netns", "add", space)
            _run("ip", "-n", f"{PREFIX}sw", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
            _run("ip", "-n", f"{PREFIX}sw", "link", "set", port, "master", "br0", "up")
            _run("ip", "-n", space, "addr", "add", f"{machine.ip}/24", "dev", "eth0")
            _run("ip", "-n", space, "link", "set", "eth0", "up")
            _run("ip", "-n", space, "link", "set", "lo", "up")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for machine in self.machines:
            machine.kill()
        self._take_down()

    def _take_down(self) -> None:
        for name in (f"{PREFIX}sw", *(machine.space for machine in self.machines)):
            if (Path("/run/netns") / name).exists():
                _run("ip", "netns", "del", name)


@dataclass
class Process:
    """A command on a machine: its wrapper here, which ends with it, and where its output goes."""

    wrapper: subprocess.Popen[bytes]
    log: Path

    def text(self) -> str:
        """Return what it has written so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


@dataclass
class Machine:
    """One machine. ip: its address. processes: what was started on it, each in a process namespace of its own."""

    network: Network
    number: int
    processes: list[Process] = field(default_factory=list)

    @property
    def space(self) -> str:
        """Return the name of its network namespace."""
        return f"{PREFIX}{self.number}"

    @property
    def ip(self) -> str:
        """Return its address."""
        return f"10.99.0.{10 + self.number}"

    def start(self, name: str, *command: str, seeds: Sequence[tuple[Path, str]] = (), **variables: str) -> Process:
        """Start a command that sees this machine's files alone. seeds: (file or folder here, where it lies there)."""
        log = self.network.work / f"{name}.log"
        words: list[str] = []
        for path in (Path(sys.prefix), Path(sys.base_prefix), *self.network.shows):
            words += ["show", str(path)]
        for folder in _hidden():
            words += ["hide", str(folder)]
        for source, target in seeds:
            words += ["seed", str(source), target]
        inside = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        home = {"HOME": "/root", "PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
        # Niceness 0: Ray's own 15 for workers is for a machine that they share with the node's other processes alone.
        steady = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
        steady["MACHINE"] = f"machine{self.number}"
        wrapper = subprocess.Popen(
            [
                "nsenter",
                f"--net=/run/netns/{self.space}",
                *inside,
                "bash",
                "-c",
                _ENTER,
                "enter",
                *words,
                "--",
                *command,
            ],
            env={**home, **steady, **variables},
            stdin=subprocess.DEVNULL,
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.processes.append(Process(wrapper, log))
        return self.processes[-1]

    def kill(self) -> None:
        """Cut its power: SIGKILL to everything on it."""
        for process in self.processes:
            for child in children(process.wrapper.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)  # the first process of its namespace: the kernel ends the others
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.wrapper.pid, signal.SIGKILL)
            process.wrapper.wait()
        self.processes.clear()

    def cable(self, *, plugged: bool) -> None:
        """Pull the network cable, or put it back."""
        _run("ip", "-n", f"{PREFIX}sw", "link", "set", f"p{self.number}", "up" if plugged else "down")

    def ask(self, url: str, *, timeout_s: float = 5.0) -> Any:
        """Return the JSON that a web address answers to this machine, None when nothing does."""
        command = ["nsenter", f"--net=/run/netns/{self.space}", "curl", "-sf", "-m", str(timeout_s), url]
        done = subprocess.run(command, capture_output=True, text=True)
        try:
            return json.loads(done.stdout) if done.returncode == 0 else None
        except ValueError:
            return None


def wait_until(what: str, seen: Callable[[], Any], *, limit_s: float, every_s: float = 0.2) -> float:
    """Return the seconds until something was seen. Raises TimeoutError."""
    began = time.monotonic()
    while not seen():
        if time.monotonic() - began > limit_s:
            raise TimeoutError(f"after {limit_s:g} s: {what}")
        time.sleep(every_s)
    return time.monotonic() - began


def made_on() -> dict[str, str]:
    """Return what a result says of when, of which code and on what it was measured."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, all machines on it, others at work beside them"
    return {"date": datetime.now(UTC).date().isoformat(), "machine": machine, "commit": commit.strip()}


def children(pid: int) -> list[int]:
    """Return the processes that a process has started: of a wrapper the first one of its namespace."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (OSError, ValueError):
        return []


def _hidden() -> list[Path]:
    """Return the folders of this machine that others do not have: the checkout, the package, home, scratch."""
    folders = {ROOT, Path.home(), Path("/tmp"), Path("/var/tmp")}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        said = importlib.metadata.distribution("visual-codebooks").read_text("direct_url.json")
        if said and (url := json.loads(said).get("url", "")).startswith("file://"):
            folders.add(Path(url.removeprefix("file://")))
    folders |= {Path(word) for word in os.environ.get("CLUSTER_HIDES", "").split(":") if word}
    outer = {folder for folder in folders if folders.isdisjoint(folder.parents)}
    return sorted(folder for folder in outer if folder.is_dir())
