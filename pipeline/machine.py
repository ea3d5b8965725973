"""What this machine has that a refresh needs: Python, packages, FAISS, torch, Ray, memory and disk."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .findings import Finding
from .index.faiss_module import faiss_wheels, load_faiss
from .storage.urls import scheme_of

_GIB = 2**30
_LEAST_DISK = 5 * _GIB
_LEAST_MEMORY = 4 * _GIB
_CGROUP = Path("/sys/fs/cgroup")


def check_machine() -> Iterator[Finding]:
    """Look at Python and the packages."""
    for check in (check_python, check_packages, check_faiss, check_torch, check_ray):
        yield from check()


def check_python() -> Iterator[Finding]:
    """Python's version and where the program runs from."""
    # An older Python than 3.11 does not get this far: pip refuses it.
    where = f"{platform.system()} {platform.machine()}, {sys.executable}"
    yield Finding("ok", "python", f"{platform.python_version()} on {where}")


def check_packages() -> Iterator[Finding]:
    """The packages of the base install (must) and of the extra `run` (needed to refresh), with their least versions."""
    try:
        required = importlib.metadata.requires("visual-codebooks") or []
    except importlib.metadata.PackageNotFoundError:
        mend = "run `pip install -e '.[run,cpu]'` in the checkout"
        yield Finding("warn", "packages", "visual-codebooks itself is not installed, so versions are not known", mend)
        return
    for extra, level in (("", "fail"), ("run", "warn")):
        problems = [problem for line in required if (problem := _package_problem(line, extra))]
        name = "packages" if not extra else f"packages [{extra}]"
        if not problems:
            yield Finding("ok", name, "all there, new enough")
        elif level == "fail":
            yield Finding(
                "fail", name, "; ".join(problems), "pip install 'visual-codebooks[cpu]'", ConfigError.exit_code
            )
        else:
            mend = "needed for demo, plan and refresh: pip install 'visual-codebooks[run,cpu]'"
            yield Finding("warn", name, "; ".join(problems), mend)


def check_faiss() -> Iterator[Finding]:
    """Exactly one FAISS wheel, and it imports."""
    try:
        faiss = load_faiss()
    except ConfigError as error:
        yield Finding("fail", "faiss", str(error), "", ConfigError.exit_code)
        return
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    yield Finding("ok", "faiss", f"{', '.join(faiss_wheels())} {faiss.__version__}, sees {gpus} GPUs")


def check_torch() -> Iterator[Finding]:
    """Torch's version and the GPUs that it sees."""
    torch = installed("torch")
    if torch is None:
        yield Finding(
            "warn", "torch", "not installed", "needed to train and encode: pip install 'visual-codebooks[run]'"
        )
    elif torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        yield Finding(
            "ok", "torch", f"{torch.__version__}, CUDA {torch.version.cuda}, {len(names)} GPUs: {', '.join(names)}"
        )
    elif torch.version.cuda and shutil.which("nvidia-smi"):
        mend = "update the NVIDIA driver, or install the torch of its CUDA version"
        yield Finding(
            "warn", "torch", f"{torch.__version__} is built for CUDA {torch.version.cuda} and sees no GPU", mend
        )
    else:
        yield Finding("ok", "torch", f"{torch.__version__}, no GPU: training and encoding run on the CPU")


def check_ray() -> Iterator[Finding]:
    """Ray's version and which cluster it would use."""
    ray = installed("ray")
    if ray is None:
        yield Finding("warn", "ray", "not installed", "needed to train and encode: pip install 'visual-codebooks[run]'")
        return
    address = os.environ.get("RAY_ADDRESS")
    where = f"RAY_ADDRESS is {address}" if address else "a local cluster is started when needed"
    yield Finding("ok", "ray", f"{ray.__version__}, {where}")


def check_resources(store_url: str | None) -> Iterator[Finding]:
    """Processors, memory, and free disk where files are kept; store_url: None where no store is known."""
    memory = _available_memory()
    shown = "unknown" if memory is None else f"{memory / _GIB:.1f} GiB available"
    if memory is not None and memory < _LEAST_MEMORY:
        mend = "lower encode.actors, train.batch_size and cluster.object_store_memory_mb, or use a larger machine"
        yield Finding("warn", "memory", f"{shown}, {os.cpu_count()} CPUs", mend)
    else:
        yield Finding("ok", "memory", f"{shown}, {os.cpu_count()} CPUs")
    for name, folder in _folders(store_url):
        free = shutil.disk_usage(folder).free
        text = f"{free / _GIB:.1f} GiB free at {folder}"
        if free < _LEAST_DISK:
            yield Finding("warn", f"disk ({name})", text, "free some space, or choose another folder")
        else:
            yield Finding("ok", f"disk ({name})", text)


def _package_problem(requirement: str, extra: str) -> str:
    """Return what is wrong with one line of the package's own requirements, "" when nothing or it is of no concern."""
    wanted, _, marker = requirement.partition(";")
    of_extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
    match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*(?:>=\s*([0-9.]+))?", wanted.strip())
    if match is None or (of_extra[1] if of_extra else "") != extra:
        return ""
    name, least = match[1], match[2]
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is missing"
    return f"{name} is {found}, needed is {least}" if least and _numbers(found) < _numbers(least) else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def usable_cores() -> int:
    """Return how many cores this process may use: of the machine, of its affinity, of its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _CGROUP / "cpu.max"
    with suppress(OSError, ValueError):  # no container, or one of the older kind
        allowed, _, period = quota.read_text().partition(" ")
        cores = min(cores, -(-int(allowed) // int(period)))  # "max" is no number
    return max(1, cores)


def installed(name: str) -> Any:
    """Return a package, None where it cannot be imported."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _available_memory() -> int | None:
    psutil = installed("psutil")
    return None if psutil is None else int(psutil.virtual_memory().available)


def _folders(store_url: str | None) -> Iterator[tuple[str, Path]]:
    places = {"temporary files": Path(os.environ.get("TMPDIR", "/tmp"))}  # noqa: S108  looked at, not written to
    if store_url is not None and not scheme_of(store_url):
        places["store"] = Path(store_url)
    for name, place in places.items():
        there = next((folder for folder in (place, *place.parents) if folder.is_dir()), None)
        if there is not None:
            yield name, there
