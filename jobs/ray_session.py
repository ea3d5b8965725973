"""Connect to the cluster a config names, or start one on this machine, for as long as a job needs it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import ray

from pipeline.errors import Unavailable
from pipeline.nodes import ClusterConfig, Note, joined_address, local_places, say
from pipeline.stopping import restore_handlers
from pipeline.workers import gather_nodes, not_joined, packages_hook, starting_in_silence, use_token_if_any

_HOOK = "worker_process_setup_hook"


@contextmanager
def ray_session(
    cluster: ClusterConfig, *, busy: int, settings: Mapping[str, Any] | None = None, note: Note = say
) -> Iterator[None]:
    """Hold a Ray cluster open; a local one is stopped at the end, a remote one only disconnected from.

    busy: logical CPUs that actors or training workers hold. A local cluster gets more than that: with none left over,
    Ray Data's own tasks would wait for ever without a word. settings: the config as plain values, whose paths every
    node must reach. A running cluster is waited for until it has cluster.min_nodes. Workers run our packages, not
    others of the same names in the current folder. Within another session it is that one. Raises ConfigError for a
    path of one machine on several, Unavailable when the named cluster does not answer or stays too small.
    """
    if ray.is_initialized():  # a caller holds it open over several runs
        yield
        return
    address = joined_address(cluster.address or os.environ.get("RAY_ADDRESS"))
    if address:
        use_token_if_any()
    # A cluster on loopback needs no token; Ray would otherwise write one into the home folder.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # The behaviour of Ray's next versions: a worker that asked for no GPU sees its machine's unchanged.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    # Ray's C++ side writes to standard error past every Python setting; what fails reaches us as an exception.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    local: dict[str, Any] = {
        "address": "local",  # or Ray would join whatever cluster somebody has started on this machine
        "num_cpus": cluster.num_cpus or max(os.cpu_count() or 1, busy + 2),
        "include_dashboard": False,
        "object_store_memory": cluster.object_store_memory_mb * 2**20,
    }
    _connect({"address": address} if address else local)
    restore_handlers()  # ray.init has set its own, which end the process with 1
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    try:
        if address:
            gather_nodes(cluster, settings or {}, note)
        yield
    finally:
        ray.shutdown()


@contextmanager
def early_session(cluster: ClusterConfig, settings: Mapping[str, Any], note: Note = say) -> Iterator[None]:
    """Hold the cluster open from here on where a path must be refused before anything is written, else do nothing."""
    named = joined_address(cluster.address or os.environ.get("RAY_ADDRESS"))
    early = named is not None and bool(local_places(settings))
    with ray_session(cluster, busy=0, settings=settings, note=note) if early else nullcontext():
        yield


def _connect(how: Mapping[str, Any]) -> None:
    """Start or join a cluster. Raises Unavailable, ConfigError."""
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": False}
    if _HOOK not in os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", ""):  # a job that brings its own keeps that one
        quiet["runtime_env"] = {_HOOK: packages_hook()}
    address = how["address"]
    try:
        with starting_in_silence():
            ray.init(**how, **quiet)
    except (ConnectionError, ray.exceptions.AuthenticationError) as error:
        raise not_joined(address, error) from error
    except Exception as error:  # Ray raises a bare Exception, known by its words alone
        if "timed out during startup" not in str(error):
            raise
        raise Unavailable(
            f"Ray did not start on this machine in time ({error}); it is probably busy: run again"
        ) from error
