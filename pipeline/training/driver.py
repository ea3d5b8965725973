"""Runs a training on a Ray cluster: as many workers as asked for, restarted when one dies, watched from here."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from ..boards import ProgressBoard
from ..errors import CodebooksError, ConfigError, Unavailable
from ..keys import SHORT
from ..runs import Lookout
from ..workers import code_error, find_room, helper
from .config import TrainConfig
from .progress import TrainProgress
from .rendezvous import torch_config
from .worker import Job, train_worker

_log = logging.getLogger(__name__)

_POLL_S = 0.5
_STOP_S = 20.0  # how long an interrupted driver waits for the workers' last checkpoint
_CONTROLLER_FAILURES = 5  # Ray's default waits for ever for workers that never start
_NOTE_S = 30.0  # how often it is said what is waited for
_START = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"  # by which Ray takes workers back that have not started
# A range of workers: Ray decides how many by the machines that it believes to be up, one just lost among them. It is
# then asked again, instead of waiting for a group that cannot come.
_REGROUP_S = 120.0

# On one machine: nobody announces that it will be taken away, which a process of its own would listen for; and workers
# are asked often how they are, so that the end of a small training is noticed at once.
_ALONE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}

ProgressCallback = Callable[[TrainProgress], None]


def train_job(job: Job, *, progress: ProgressCallback | None = None) -> str:
    """Run a training on Ray and return the id, a model_id or a prior_id, of what answers the job's train_key.

    Checkpoints and TensorBoard files lie below its run_dir, and an earlier attempt's newest checkpoint is continued.
    progress is called in this thread. `ray.init` was done by the caller. Raises ConfigError when the cluster cannot
    hold the workers, Unavailable when workers died more than train.max_failures times or have not started in
    train.start_timeout_s, Conflict when a newer attempt of the run has begun, CodebooksError when the training itself
    failed.
    """
    import ray

    where = _placement(job.train)
    for name, value in _ALONE.items() if _machines() == 1 else ():
        os.environ.setdefault(name, value)
    os.environ[_START] = str(_group_start_s(job.train))  # Ray hands it on to the process that starts the workers
    board = helper(ProgressBoard, restarts=-1).remote()
    # A name of its own for every call: under a name it has seen, Ray Train would return the old result.
    name = f"{job.train_key[:SHORT]}-{job.attempt}-{uuid.uuid4().hex[:8]}"
    scratch = tempfile.mkdtemp(prefix="ray-train-")
    try:
        fit = _Fit({"job": ray.put(job), "board": board}, where, job.train, _storage(job, scratch), name)
        _watch(fit, board, progress, Lookout(job.store, job.run_dir, job.attempt), _Start(job.train, where).look)
    finally:
        ray.kill(board)
        shutil.rmtree(scratch, ignore_errors=True)
    found = job.answer()
    if found is None:
        raise CodebooksError(
            f"the training ended, but nothing answers its train key {job.train_key}; see the workers' logs"
        )
    return found


class _Fit(threading.Thread):
    """Ray Train's blocking call, in a thread of its own so that this process stays free to watch and to stop.

    In the main thread Ray would also replace the handler of SIGINT for good. Wait for `ended`, not with `join`: a
    signal handler that raises inside `Thread.join` leaves the thread marked as ended while it runs (CPython 3.11,
    bpo-45274), and Ray, shut down under a running training, ends the process with 1.
    """

    def __init__(
        self, setup: dict[str, Any], where: dict[str, Any], train: TrainConfig, storage: dict[str, Any], name: str
    ) -> None:
        super().__init__(name="ray-train", daemon=True)
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        # mypy sees the signatures of Ray's first train API, not those of the second, which is the default.
        failures = FailureConfig(
            max_failures=train.max_failures,
            controller_failure_limit=_CONTROLLER_FAILURES,  # type: ignore[call-arg]
        )
        self._trainer = TorchTrainer(
            train_worker,  # type: ignore[arg-type]
            train_loop_config=setup,
            torch_config=torch_config("nccl" if where["use_gpu"] else "gloo"),
            scaling_config=ScalingConfig(num_workers=_number(train), **where),  # type: ignore[arg-type]
            run_config=RunConfig(name=name, failure_config=failures, **storage),
        )
        self.error: Exception | None = None
        self.ended = threading.Event()

    def run(self) -> None:
        """Train; what went wrong is kept in `error`."""
        try:
            self._trainer.fit()
        except Exception as error:  # noqa: BLE001 - handed to the thread that waits, which raises it
            self.error = error
        finally:
            self.ended.set()


def _group_start_s(train: TrainConfig) -> float:
    """Return how long Ray waits for a group of workers before it decides anew how many they are."""
    return train.start_timeout_s if train.least_workers is None else min(train.start_timeout_s, _REGROUP_S)


def _number(train: TrainConfig) -> int | tuple[int, int]:
    """Return how many workers Ray starts: a range has it go on with fewer where others do not come."""
    return train.workers if train.least_workers is None else (train.least_workers, train.workers)


class _Start:
    """Says what the workers are waited for, and gives up after train.start_timeout_s."""

    def __init__(self, train: TrainConfig, where: dict[str, Any]) -> None:
        self._train = train
        self._each = " and ".join(f"{number:g} {kind}" for kind, number in where["resources_per_worker"].items())
        self._began = self._said = time.monotonic()
        self._over = False

    def look(self, board: Any) -> None:
        """Ask the board whether the workers have begun. Raises Unavailable when they have not for too long."""
        import ray

        if self._over:
            return
        self._over = ray.get(board.begun.remote(), timeout=5.0) > 0
        now = time.monotonic()
        waited = now - self._began
        if self._over or min(waited, now - self._said) < _NOTE_S:
            return
        room = find_room()
        lacking = (
            f"{self._train.workers} training workers, each of {self._each}; the {room.machines} machines that are up "
            f"have {room.cpus:g} CPU and {sum(room.gpus):g} GPU"
        )
        if waited > self._train.start_timeout_s:
            raise Unavailable(
                f"after {waited:.0f} s (train.start_timeout_s) there is no room for {lacking}; run again when there "
                "is, or lower train.workers"
            )
        self._said = now
        _log.warning("train: waiting for %s; %.0f of %d s", lacking, waited, self._train.start_timeout_s)


def _watch(
    fit: _Fit,
    board: Any,
    progress: ProgressCallback | None,
    lookout: Lookout,
    look_at_start: Callable[[Any], None] = lambda _: None,
) -> None:
    """Wait for the end of a training, passing on its progress; when interrupted let it write a checkpoint first.

    At every poll the lookout is asked, so that a superseded attempt stops its workers.
    """
    import ray

    seen: bytes | None = None
    fatal: CodebooksError | None = None
    fit.start()
    try:
        ended = False
        while not ended:
            ended = fit.ended.wait(_POLL_S)
            lookout.check()
            try:
                look_at_start(board)
                latest, error = ray.get(board.read.remote(), timeout=5.0)
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
                continue  # without the board there is no progress to show; the training goes on
            fatal = None if error is None else pickle.loads(error)  # noqa: S301 - written by our own workers
            if progress and latest is not None and latest != seen:
                seen = latest
                progress(pickle.loads(latest))  # noqa: S301 - as above
    except BaseException:
        board.stop.remote()
        fit.ended.wait(_STOP_S)
        raise
    if fatal is not None:
        raise fatal
    if fit.error is not None:
        raise _explained(fit.error) from fit.error


def _explained(error: Exception) -> CodebooksError:
    """Return Ray Train's error in this project's terms: temporary when processes or machines died, never for code."""
    failures = list(getattr(error, "worker_failures", {}).values())
    raised = [failure._base_exc for failure in failures if hasattr(failure, "_base_exc")]
    own = [found for found in raised if isinstance(found, CodebooksError)]
    if own:  # the board was gone when it was to be told
        return own[0]
    if code := code_error(error):
        return CodebooksError(f"the training failed: {code}")
    if failures and len(raised) == len(failures) and not any(_lost_a_peer(found) for found in raised):
        return CodebooksError(f"the training failed: {raised[0]!r}")
    return Unavailable(
        f"training workers died more often than train.max_failures allows; run again to continue: {error}"
    )


def _lost_a_peer(raised: BaseException) -> bool:
    """Return whether an error says that another rank or machine went away.

    gloo and NCCL report that as a RuntimeError, known by its words alone.
    """
    from ray.exceptions import RayError

    if isinstance(raised, RuntimeError | ConnectionError):
        return any(sign in str(raised).lower() for sign in ("gloo", "nccl", "by peer"))
    return isinstance(raised, RayError)


def _placement(train: TrainConfig) -> dict[str, Any]:
    """Return use_gpu and resources_per_worker: what is asked for, whatever is up.

    Raises ConfigError when a cluster of one machine, which nothing grows, cannot hold them.
    """
    room = find_room()
    on_gpu = train.gpus_per_worker > 0
    each = {"GPU": train.gpus_per_worker, "CPU": train.threads} if on_gpu else {"CPU": train.threads}
    there = {"GPU": sum(room.gpus), "CPU": room.cpus}
    least = train.least_workers or train.workers
    for kind, number in each.items():
        if room.machines == 1 and not room.grows and number * least > there[kind]:
            raise ConfigError(
                f"train.workers {least} need {number * least} {kind}, this machine's Ray has {there[kind]:g}; lower "
                f"train.workers, train.threads or train.gpus_per_worker, or start Ray with more"
            )
    if room.gpus and not on_gpu:
        _log.warning(
            "train: on CPUs, and the cluster has %g GPUs; set train.gpus_per_worker to 1 to train on them",
            sum(room.gpus),
        )
    return {"use_gpu": on_gpu, "resources_per_worker": each}


def _storage(job: Job, scratch: str) -> dict[str, Any]:
    """Return where Ray Train keeps its own small files: a local folder, or the store when there are more machines."""
    if _machines() == 1:
        return {"storage_path": scratch}
    filesystem, root = job.store.arrow_filesystem()
    return {"storage_path": f"{root.rstrip('/')}/{job.run_dir}/ray", "storage_filesystem": filesystem}


def _machines() -> int:
    import ray

    return sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]
