"""What the loss of a process means, told from Ray's exceptions: another try, or code that no try mends."""

from __future__ import annotations

import pickle

import pytest

pytest.importorskip("ray")

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
from pipeline.workers import code_error, explained

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
