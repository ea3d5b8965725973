"""Fixtures that several test rooms share."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# The behaviour of Ray's next versions, chosen now so that it does not warn: a worker that asked for no GPU sees
# those of its machine unchanged.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray cluster on this machine for the whole test run; starting one costs seconds, so never one a test.

    Six logical CPUs on any machine: with as many actors as CPUs nothing is left for Ray Data's own tasks and it hangs.
    """
    ray = pytest.importorskip("ray")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.init(
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
    yield
    ray.shutdown()
