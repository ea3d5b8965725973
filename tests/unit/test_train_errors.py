"""What becomes of Ray Train's errors: temporary when workers died, final when the training itself failed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipeline.errors import CodebooksError, ConfigError, Conflict, Unavailable
from pipeline.training import TrainConfig
from pipeline.training.driver import _explained, _group_start_s

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


@pytest.fixture
def room(monkeypatch):
    """Set what the cluster has."""
    from pipeline.training import driver
    from pipeline.workers import Room

    def has(machines, cpus, *gpus, grows=False):
        monkeypatch.setattr(driver, "find_room", lambda: Room(machines, cpus, gpus, grows=grows))

    return has


def test_gpus_are_asked_for_and_never_inferred(room, caplog):
    from pipeline.training.driver import _placement

    room(1, 8.0, 2.0)
    assert _placement(TrainConfig()) == {"use_gpu": False, "resources_per_worker": {"CPU": 1}}
    assert "set train.gpus_per_worker to 1" in caplog.text
    asked = {"use_gpu": True, "resources_per_worker": {"GPU": 1, "CPU": 1}}
    assert _placement(TrainConfig(gpus_per_worker=1, workers=2)) == asked
    with pytest.raises(ConfigError, match=r"train.workers 4 need 4 GPU, this machine's Ray has 2"):
        _placement(TrainConfig(gpus_per_worker=1, workers=4))
    assert _placement(TrainConfig(gpus_per_worker=1, workers=4, least_workers=2, batch_size=240)) == asked
    # A group at zero is waited for, not inferred away.
    for machines, grows in ((1, True), (3, False)):
        room(machines, 2.0, grows=grows)
        assert _placement(TrainConfig(gpus_per_worker=1, workers=4)) == asked


def test_workers_that_do_not_start_are_told_of_and_given_up(room, caplog, monkeypatch):
    import ray

    from pipeline.training import driver

    clock, begun = [0.0], [0]
    monkeypatch.setattr(driver, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(ray, "get", lambda value, timeout: value)
    board = SimpleNamespace(begun=SimpleNamespace(remote=lambda: begun[0]))
    room(2, 16.0, grows=True)
    train = TrainConfig(gpus_per_worker=1, workers=4, start_timeout_s=100)
    start = driver._Start(train, driver._placement(train))
    for second in (5, 20):
        clock[0] = second
        start.look(board)
    assert not caplog.records
    clock[0] = 45
    start.look(board)
    said = caplog.records[0].getMessage()
    assert "4 training workers, each of 1 GPU and 1 CPU; the 2 machines that are up have 16 CPU and 0 GPU" in said
    clock[0] = 101
    with pytest.raises(Unavailable, match=r"after 101 s .train.start_timeout_s. there is no room for 4") as gone:
        start.look(board)
    assert gone.value.exit_code == 6
    begun[0] = 4  # and of workers that have begun nothing is said, however long they work
    started = driver._Start(train, driver._placement(train))
    for second in (102, 10_000):
        clock[0] = second
        started.look(board)


@pytest.mark.parametrize(
    ("asked", "waited"),
    [({"workers": 4}, 1800.0), ({"workers": 4, "least_workers": 1, "batch_size": 240}, 120.0),
     ({"workers": 4, "least_workers": 1, "batch_size": 240, "start_timeout_s": 30}, 30.0)],
)  # fmt: skip
def test_a_range_of_workers_is_counted_anew_before_its_start_is_given_up(
    asked: dict[str, float], waited: float
) -> None:
    """A machine that has just been lost still counts: a group with a place on it would be waited for to the end."""
    assert _group_start_s(TrainConfig.model_validate(asked)) == waited
