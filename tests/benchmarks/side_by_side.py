"""Runs of a benchmark as processes of their own, one core and one thread each, and the file of their results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
Task = tuple[str, int]  # a name and a seed


def add_place(parser: argparse.ArgumentParser) -> None:
    """Add the options with which `side_by_side` calls the program again: one task, and where its result goes."""
    for name in ("one", "out"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)


def side_by_side(
    program: Path, tasks: Sequence[Task], passed: Mapping[str, Any], jobs: int
) -> Iterator[tuple[Task, list[dict[str, Any]] | RuntimeError]]:
    """Yield every task with its results, or with what went wrong, as they end; `jobs` at a time.

    program: is called with --one NAME --seeds SEED --out FILE and `passed`, and writes a list of results into FILE.
    """
    free: queue.Queue[int | None] = queue.Queue()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    for place in range(jobs):
        free.put(cores[place % len(cores)] if cores else None)

    def run(task: Task) -> tuple[Task, list[dict[str, Any]] | RuntimeError]:
        core = free.get()
        try:
            return task, _run(program, task, passed, core)
        except RuntimeError as error:
            return task, error
        finally:
            free.put(core)

    with ThreadPoolExecutor(jobs) as pool:
        for future in as_completed([pool.submit(run, task) for task in tasks]):
            yield future.result()


def _run(program: Path, task: Task, passed: Mapping[str, Any], core: int | None) -> list[dict[str, Any]]:
    name, seed = task
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        options = [f"--{key}={value}" for key, value in passed.items() if value is not None]
        command = [sys.executable, str(program), *options, f"--one={name}", f"--seeds={seed}", f"--out={out}"]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        if core is not None and (taskset := shutil.which("taskset")):
            command = [taskset, "-c", str(core), *command]
        done = subprocess.run(command, env={**os.environ, **threads, **paths}, capture_output=True, text=True)
        if done.returncode or not out.exists():
            raise RuntimeError(f"{name}, seed {seed}: exit {done.returncode}\n{done.stderr[-3000:]}")
        return list(json.loads(out.read_text()))


def read(path: Path) -> list[dict[str, Any]]:
    """Return the results so far."""
    return list(json.loads(path.read_text())["runs"]) if path.exists() else []


def write(path: Path, runs: list[dict[str, Any]]) -> None:
    """Replace the file in one step: a killed benchmark leaves the old one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".new")
    facts = {"machine": platform.platform(), "torch": torch.__version__, "runs": runs}
    aside.write_text(json.dumps(facts, indent=1) + "\n")
    aside.replace(path)
