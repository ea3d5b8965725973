"""Fixtures that several test rooms share."""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

# A case that takes long says that the machine is busy, not that something is wrong.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# The behaviour of Ray's next versions, chosen now so that it does not warn: a worker that asked for no GPU sees
# those of its machine unchanged.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Ray's workers step back behind everything else of a machine; on a busy one the tests would hardly move.
os.environ.setdefault("RAY_worker_niceness", "0")
# Within it a worker process must be there, however busy the machine is; after 60 s, Ray's default, `ray.init` hangs.
os.environ.setdefault("RAY_worker_register_timeout_seconds", "600")
# How often Ray Train looks at its workers; each training waits for one more look at its end, at 2 s by default.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
# An actor more for each worker group, which asks the cloud whether it takes this machine away.
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
# How often Ray's agents look at every process of the machine, for a dashboard that nobody opens; 5 s by default.
os.environ.setdefault("REPORTER_UPDATE_INTERVAL_MS", "600000")
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: more threads each only get in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Look for garbage neither while a million objects are imported nor, later on, among these."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # else libraries that count their objects at the end would miss some


def _on_ray(nodeid: str) -> bool:
    path = nodeid.split("::", 1)[0]
    return path.startswith("tests/distributed/") and not path.endswith("_ranks.py")  # ranks are processes without Ray


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep together what shares costly fixtures, where tests run in several processes: each file, all of Ray's.

    Marks of groups would say it too, but pytest-xdist 3.8 does not see them with pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Rooms(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "ray" if _on_ray(nodeid) else nodeid.split("::", 1)[0]

    return Rooms(config, log)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Any]:
    """A real S3 server process (moto), with the AWS variables of this process and its children set to it.

    .endpoint, .make_bucket(name) -> "s3://name", .count_gets() -> [("GET", "/bucket/key")] since .reset_counts().
    Mark tests that use it with `s3`; it is shared by the session, so give buckets a name of your own.
    """
    moto = importlib.import_module("moto_server")
    with moto.MotoServer() as server, moto.aws_environment(server):
        yield server


@pytest.fixture(scope="session")
def maker() -> Any:
    """The module `release_maker`: writes small releases on a store, and answers for them by brute force."""
    return importlib.import_module("release_maker")


@pytest.fixture(scope="session")
def segmented() -> Any:
    """The module `segmented`: nights of a catalogue whose index is of segments."""
    return importlib.import_module("segmented")


@pytest.fixture
def walked(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index of few rows is searched as one of many, which are not scored one by one; it is tuned by the mean."""
    tuning = importlib.import_module("pipeline.index.tuning")
    monkeypatch.setattr(importlib.import_module("pipeline.index.planner"), "_SCAN_ROWS", 0)
    monkeypatch.setattr(tuning, "recall_at_least", lambda _index, found, _truth: tuning.mean_of(found))


@pytest.fixture(scope="session")
def read_page() -> Any:
    """Call with a page's bytes: its elements and text; see tests/html_page.py."""
    return importlib.import_module("html_page").Page


@pytest.fixture(scope="session")
def expiring() -> Any:
    """The module `expiring`: a store with a clock that the test sets, nights on it, and actors that take turns."""
    return importlib.import_module("expiring")


@pytest.fixture(scope="session")
def forks() -> Iterator[Any]:
    """The program that forks Ray's workers and commands; see tests/forked.py."""
    pytest.importorskip("ray")
    with importlib.import_module("forked").Forks() as program:
        yield program


_CLUSTER = contextlib.ExitStack()  # what ends the tests' Ray


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """End the tests' Ray after the last test that needs it: its processes look for work many times a second."""
    try:
        return (yield)
    finally:
        items = item.session.items
        if _on_ray(item.nodeid) and not any(_on_ray(other.nodeid) for other in items[items.index(item) + 1 :]):
            _CLUSTER.close()


@pytest.fixture(scope="session")
def ray_session(forks: Any) -> Iterator[None]:
    """One Ray cluster on this machine for all tests that need one; starting one costs seconds, so never one a test.

    Its workers are forked from a process that has imported what they need. Six logical CPUs on any machine: with as
    many actors as CPUs nothing is left for Ray Data's own tasks and it hangs.
    """
    ray = pytest.importorskip("ray")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with forks.workers():
        ray.init(
            address="local",
            num_cpus=6,
            include_dashboard=False,
            object_store_memory=512 * 2**20,
            logging_level="ERROR",
            log_to_driver=False,
            configure_logging=False,
        )
    context = pytest.importorskip("ray.data").DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = 120
    _CLUSTER.callback(ray.shutdown)
    with _CLUSTER:
        yield


@pytest.fixture(scope="session")
def commands(ray_session: None, forks: Any) -> Any:
    """The command line on the session's cluster: .run in this process, .start in one of its own."""
    import ray

    return importlib.import_module("commands").Commands(ray.get_runtime_context().gcs_address, forks)


@pytest.fixture
def commands_here(stages_here: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command line in this process, with the stages of `stages_here`: .run alone."""
    stages_here.run_stages_here(monkeypatch)
    return importlib.import_module("commands").Commands("")


@pytest.fixture(scope="session")
def run_ranks() -> Iterator[Any]:
    """Call with (a test file, world, folder): what each rank of its `rank_main` left behind; see tests/ranks.py."""
    with importlib.import_module("ranks").RankRunner() as run:
        yield run


def pytest_runtest_setup() -> None:
    """Have torch make only once what it makes anew for every ONNX export, more than half of an export's time."""
    registration = sys.modules.get("torch.onnx._internal.exporter._registration")
    made = getattr(registration, "ONNXRegistry", None)
    if made is None or hasattr(made.from_torchlib, "cache_info"):
        return
    made.from_torchlib = staticmethod(functools.cache(made.from_torchlib))  # the table of operators
    found = importlib.import_module("torch._export.utils")
    looked, dispatched = found._materialize_cpp_cia_ops, importlib.import_module("torch")._C
    known: list[Any] = []

    def look_again_if_there_are_others() -> None:
        now = dispatched._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
        if now != known:
            looked()
            known[:] = now

    found._materialize_cpp_cia_ops = look_again_if_there_are_others


@pytest.fixture(scope="module")
def no_onnx() -> Iterator[None]:
    """Bundles that this process writes have no real ONNX file, for tests where nobody asks by photo."""
    bundle = pytest.importorskip("pipeline.models.bundle")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle, "export_encoder", lambda *_, **__: b"an encoder")
        yield


@pytest.fixture(scope="session")
def racers() -> Any:
    """Call with (a program, how many, its arguments): processes of it, forked from one; see tests/racers.py."""
    return importlib.import_module("racers").Racers


@pytest.fixture(scope="session")
def stages_here() -> Any:
    """The module `stages_here`: lets a night's pixels, training and encoding run in this process, without Ray."""
    return importlib.import_module("stages_here")


@pytest.fixture(scope="session")
def receiving() -> Any:
    """`receiving(*answers)` of the module `http_receiver`: a real server that keeps what it is sent."""
    return importlib.import_module("http_receiver").receiving
