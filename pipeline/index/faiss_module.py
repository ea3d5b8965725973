"""The only import of FAISS, after a check that exactly one of its wheels is installed.

faiss-cpu and the faiss-gpu wheels install the same module `faiss`; with two of them the files of one overwrite the
other's, and what then happens depends on the order of installation, up to a crash of the interpreter.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import ConfigError

_WHEEL = re.compile(r"faiss(-cpu.*|-gpu.*)?")


def faiss_wheels() -> list[str]:
    """Return the names of the installed distributions that provide the module `faiss`, sorted."""
    # A distribution whose metadata was half deleted has no name.
    named = [str(distribution.metadata["Name"] or "") for distribution in importlib.metadata.distributions()]
    return sorted({name for name in (re.sub(r"[-_.]+", "-", raw).lower() for raw in named) if _WHEEL.fullmatch(name)})


def of_numpy(index: Any, method: str) -> Any:
    """Return a method of a FAISS index as FAISS has it.

    Whoever imports faiss.contrib.torch_utils in this process, as some libraries do, gets another `search`, without
    `params`, and a `reconstruct_n` that gives tensors.
    """
    return getattr(index, f"{method}_numpy", getattr(index, method))


@functools.cache
def load_faiss() -> Any:
    """Return the module `faiss`. Raises ConfigError when no wheel, or more than one, is installed."""
    wheels = faiss_wheels()
    if len(wheels) > 1:
        raise ConfigError(
            f"{len(wheels)} FAISS wheels are installed ({', '.join(wheels)}) and they overwrite each other's files; "
            f"run `pip uninstall -y {' '.join(wheels)}`, then install one of the extras: "
            "`pip install 'visual-codebooks[cpu]'` or `pip install 'visual-codebooks[gpu]'`"
        )
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        if not wheels:
            raise ConfigError(
                "FAISS is not installed; install one of the extras: `pip install 'visual-codebooks[cpu]'`, or "
                "`pip install 'visual-codebooks[gpu]'` on a machine with CUDA"
            ) from error
        remedy = f"reinstall it with `pip install --force-reinstall --no-deps {wheels[0]}`"
        if "undefined symbol" in str(error):
            extra = "gpu" if "gpu" in wheels[0] else "cpu"
            remedy = (
                "the libraries beside it are of other versions than it was built with; "
                f"`pip install 'visual-codebooks[{extra}]'` takes those that go together"
            )
        raise ConfigError(f"{wheels[0]} is installed but cannot be imported ({error}); {remedy}") from error


def faiss_version() -> tuple[int, ...]:
    """Return the installed FAISS's version, its first three numbers."""
    return tuple(int(part) for part in str(load_faiss().__version__).split(".")[:3])


def linking_threads() -> int | None:
    """Return how many threads may link a graph so that the same rows give the same bytes; None: as many as there are.

    One with FAISS before 1.15.1, where the links that several threads make differ from build to build.
    """
    return 1 if faiss_version() < (1, 15, 1) else None


@contextmanager
def faiss_threads(threads: int | None) -> Iterator[None]:
    """Run FAISS with this many OpenMP threads (None: as it is), then put the process's setting back.

    The thread in which a forked child began has one, whatever is asked.
    """
    faiss = load_faiss()
    before = faiss.omp_get_max_threads()
    if threads is not None and threading.get_ident() != _began_in:
        faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


_began_in: int | None = None  # the thread that a forked child began in; None in a process that was not forked


def _one_thread_after_fork() -> None:
    # The wheels' OpenMP (GNU libgomp) keeps a pool of threads for each thread that ever searched, and does not notice
    # that fork took the pool's threads away: the next parallel region waits for them for ever, even for one query, and
    # a newly opened index does too. With one thread it never asks the pool. The setting is this thread's own: threads
    # that the child starts itself get pools of their own and use all processors as before.
    global _began_in  # noqa: PLW0603
    set_threads = getattr(sys.modules.get("faiss"), "omp_set_num_threads", None)  # whoever imported it
    if set_threads is not None:
        set_threads(1)
        _began_in = threading.get_ident()


os.register_at_fork(after_in_child=_one_thread_after_fork)
