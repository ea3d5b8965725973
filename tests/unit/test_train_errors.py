"""What becomes of Ray Train's errors: temporary when workers died, final when the training itself failed."""

from __future__ import annotations

import pytest

from pipeline.errors import CodebooksError, Conflict, Unavailable
from pipeline.training.driver import _explained

pytest.importorskip("ray")


def group_error(*failures: Exception) -> Exception:
    from ray.train.v2.api.exceptions import WorkerGroupError

    return WorkerGroupError("workers failed", dict(enumerate(failures)))


def raised(error: Exception) -> Exception:
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    return UserExceptionWithTraceback(error, traceback_str="...")


def died() -> Exception:
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    return WorkerHealthCheckFailedError("the actor died", RuntimeError("SIGKILL"))


def lost_peer() -> Exception:
    return raised(RuntimeError("[gloo/transport/tcp/pair.cc:544] Connection closed by peer [127.0.0.1]:38297"))


@pytest.mark.parametrize(
    "failures", [(died(),), (died(), died()), (lost_peer(), died()), (lost_peer(),), (raised(ValueError("x")), died())]
)
def test_dead_workers_are_worth_another_try(failures):
    error = _explained(group_error(*failures))
    assert type(error) is Unavailable
    assert error.exit_code == 6


@pytest.mark.parametrize(
    "failures",
    [
        (raised(ImportError("libnccl.so.2: cannot open shared object file")),),  # names nccl, and is no lost peer
        (raised(ModuleNotFoundError("No module named 'pipeline.training'")), died()),
        (raised(AttributeError("module 'pipeline' has no attribute 'models'")),),
    ],
)
def test_an_error_in_code_is_never_temporary(failures):
    error = _explained(group_error(*failures))
    assert type(error) is CodebooksError
    assert str(failures[0]._base_exc) in str(error)


def test_code_that_a_worker_cannot_unpack_is_no_lost_machine():
    from ray.exceptions import RaySystemError
    from ray.train.v2.api.exceptions import ControllerError

    unpacked = RaySystemError(ModuleNotFoundError("No module named 'pipeline.training'"), "Traceback ...")
    assert type(_explained(ControllerError(unpacked))) is CodebooksError


def test_an_error_of_ours_that_the_board_was_not_told_stays_itself():
    error = _explained(group_error(raised(Conflict("attempt 2 has taken over")), died()))
    assert type(error) is Conflict


def test_an_exception_of_the_training_is_not():
    error = _explained(group_error(raised(TypeError("no such layer"))))
    assert type(error) is CodebooksError
    assert "no such layer" in str(error)


def test_an_error_of_the_controller_is_worth_another_try():
    from ray.train.v2.api.exceptions import ControllerError

    assert type(_explained(ControllerError(RuntimeError("no workers started")))) is Unavailable
