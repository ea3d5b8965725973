"""Runs of a benchmark as processes of their own, one core and one thread each, and the file of their results."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from options import Given, Options
from record import DATA, RESULTS, ROOT, read, today, write_runs

CACHE = ROOT / ".cache" / "bench-models"
Task = tuple[str, int]  # a name and a seed


def model_options(text: str | None, catalogues: Iterable[str], results: str, *, stamps: bool = True) -> Options:
    """Return the options that the benchmarks of models share; results: name of the file in the cache; stamps: whether
    presets can be told what was measured.

    The hidden ones are those with which `side_by_side` calls a program again: one task, and where its result goes.
    """
    parser = Options(
        text,
        data=DATA,
        seeds="0,1,2",
        presets=(str, "names, or floors; all of the catalogue by default"),
        jobs=(1, "runs side by side, one core and one thread each"),
        limit=(int, "photos of each part, to see that it works"),
        epochs=(int, "instead of the presets'"),
        cache=CACHE,
        json=CACHE / results,
        table=(False, "only print what is in --json"),
        **({"stamp": (False, "only write what is in --json into the presets")} if stamps else {}),
    )
    parser.add_argument("--catalogue", choices=sorted(catalogues), default="fashion_mnist")
    return parser.hidden(one=str, out=str)


def parsed(parser: Options) -> Given:
    """Return the options; `--table` without anything measured on this machine shows the committed results."""
    asked = parser.parse_args()
    if asked.table and not asked.json.exists():
        asked.json = RESULTS / f"{Path(parser.prog).stem.removeprefix('bench_')}.json"
    return asked


def record_all(
    program: Path,
    asked: Given,
    passed: Sequence[str],
    facts: Mapping[Task, dict[str, Any]],
    say: Callable[[dict[str, Any]], str],
) -> int:
    """Run tasks and write every result into asked.json when it is there; return how many failed.

    passed: options that the program is called with again. facts: what is known of each task. say: a few words about a
    result.
    """
    failed = 0
    given = {key: getattr(asked, key) for key in passed}
    for task, found in side_by_side(program, list(facts), given, asked.jobs):
        if isinstance(found, RuntimeError):
            failed += 1
            print(found, flush=True)
            continue
        about = {**facts[task], "limit": asked.limit, "jobs": asked.jobs, "date": today()}
        write_runs(asked.json, [*read(asked.json), *({**about, **result} for result in found)])
        for result in found:
            print(f"{result.get('name', task[0])}, seed {task[1]}: {say(result)}", flush=True)
    return failed


def record_presets(
    program: Path,
    tasks: Sequence[Task],
    digests: Mapping[str, str],
    asked: Given,
    say: Callable[[dict[str, Any]], str],
) -> int:
    """Record what is measured of presets; digests: of what decides a preset's results."""
    facts = {
        (name, seed): {"preset": name, "seed": seed, "digest": digests[name], "catalogue": asked.catalogue}
        for name, seed in tasks
    }
    return record_all(program, asked, ("data", "catalogue", "cache", "limit", "epochs"), facts, say)


def stamp_preset(name: str, text: str) -> None:
    """Write what was measured of a preset into the second line of its file."""
    path = ROOT / "jobs" / "presets" / f"{name}.yaml"
    command, _, *rest = path.read_text().splitlines()
    path.write_text("\n".join([command, f"# Measured, {text}; see tests/benchmarks/README.md.", *rest]) + "\n")


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
