"""Worker processes: what the loss of one means, told from Ray's exceptions, and whose code they run."""

from __future__ import annotations

import logging
import os
import pickle
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray")

from ray import cloudpickle
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    OwnerDiedError,
    RaySystemError,
    RayTaskError,
    WorkerCrashedError,
)

from pipeline.errors import CodebooksError, Conflict, Unavailable
from pipeline.workers import KeptRecords, code_error, explained, packages_hook, whereabouts

ROOT = Path(__file__).resolve().parents[2]
OWNER_DIED = OwnerDiedError("00" * 28, None, "")


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("encode", f"Traceback ...\n{type(cause).__name__}: {cause}", cause)


@pytest.mark.parametrize(
    "error",
    [
        ActorDiedError(),
        ActorUnavailableError("the node is slow", b"0" * 16),
        NodeDiedError("its node died"),
        WorkerCrashedError(),
        OutOfMemoryError("killed by the memory monitor"),
        OWNER_DIED,
        RaySystemError("Broken pipe"),
        task_error(WorkerCrashedError()),
    ],
    ids=lambda error: type(error).__name__,
)
def test_lost_processes_are_worth_another_try(error: Exception) -> None:
    found = explained(error, "encoding", stays="finished parts are kept")
    assert type(found) is Unavailable
    assert "finished parts are kept, run again" in str(found)
    assert code_error(error) is None


@pytest.mark.parametrize(
    "error",
    [
        RaySystemError(ModuleNotFoundError("No module named 'pipeline.encoding'"), "Traceback ..."),
        RaySystemError("Can't get attribute '_BlockActor' on <module 'pipeline.encoding.driver'>"),
        ActorDiedError(task_error(ImportError("cannot import name 'Shard' from 'pipeline.encoding'"))),
        task_error(AttributeError("module 'pipeline' has no attribute 'parts'")),
        task_error(pickle.UnpicklingError("invalid load key")),
        task_error(TypeError("cannot pickle '_thread.lock' object")),
        pickle.PicklingError("Can't pickle <function>"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_wrong_or_missing_code_is_not(error: Exception) -> None:
    found = explained(error, "encoding", stays="finished parts are kept")
    assert type(found) is CodebooksError
    assert found.exit_code == 1
    assert "install the same packages" in str(found)


def test_an_error_of_ours_inside_ray_s_stays_itself() -> None:
    ours = Conflict("attempt 2 has taken over")
    assert explained(task_error(ours), "encoding", stays="nothing") is ours
    assert explained(task_error(ours).as_instanceof_cause(), "encoding", stays="nothing") is ours


# --- whose code a worker runs


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder that holds packages of our names."""
    for name in ("pipeline", "jobs", "cluster"):
        (tmp_path / "shop" / name).mkdir(parents=True)
        (tmp_path / "shop" / name / "__init__.py").write_text(f"raise RuntimeError('the shop has a {name} of its own')")
    return tmp_path / "shop"


def python(*arguments: str, cwd: Path, path: str = "") -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**environment, **({"PYTHONPATH": path} if path else {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_hook_needs_none_of_our_packages_to_begin_and_finds_ours(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "hook").write_bytes(cloudpickle.dumps(packages_hook()))
    # As Ray does: first the hook, then the driver's current folder before all else, then what was packed by name.
    program = (
        "import pickle, sys\n"
        "sys.path.pop(0)\n"
        f"pickle.loads(open({str(tmp_path / 'hook')!r}, 'rb').read())()\n"
        f"sys.path.insert(0, {str(shop)!r})\n"
        "import pipeline.errors, jobs, cluster\n"
        "print(pipeline.errors.__file__, jobs.__file__, cluster.__file__, sep='\\n')\n"
    )
    found = python("-c", program, cwd=shop).splitlines()
    assert found == [str(ROOT / name) for name in ("pipeline/errors.py", "jobs/__init__.py", "cluster/__init__.py")]


def test_python_m_jobs_means_ours_beside_a_pipeline_of_the_user_s(shop: Path) -> None:
    shutil.rmtree(shop / "jobs")  # that one Python itself would take
    assert python("-m", "jobs", "--version", cwd=shop, path=str(ROOT)).startswith("visual-codebooks ")


def test_a_process_says_where_it_runs() -> None:
    here = whereabouts()
    assert (here.root, here.python) == (str(ROOT), platform.python_version())
    assert here == whereabouts()
    assert len(here.code) == 64


def test_what_a_worker_logs_is_kept_for_the_driver_and_bounded() -> None:
    kept = KeptRecords()
    try:
        logging.getLogger("pipeline.x").info("of %s", "ours")
        logging.getLogger("theirs").info("not of interest")
        logging.getLogger("theirs").warning("of interest")
        assert kept.taken() == ("INFO pipeline.x: of ours", "WARNING theirs: of interest")
        assert kept.taken() == ()
        for number in range(KeptRecords.MOST + 3):
            logging.getLogger("pipeline.x").warning("%d", number)
        told = kept.taken()
        assert (len(told), told[-1]) == (KeptRecords.MOST + 1, "3 more records")
    finally:
        logging.getLogger().removeHandler(kept)
        logging.getLogger("pipeline").setLevel(logging.NOTSET)
