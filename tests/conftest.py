"""Fixtures that several test rooms share."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def _load(name: str) -> Any:
    """Load a file beside this one: with import-mode=importlib the tests folder is on no import path."""
    spec = importlib.util.spec_from_file_location(f"_tests_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Any]:
    """A real S3 server process (moto), with the AWS variables of this process and its children set to it.

    .endpoint, .make_bucket(name) -> "s3://name", .count_gets() -> [("GET", "/bucket/key")] since .reset_counts().
    Mark tests that use it with `s3`; it is shared by the session, so give buckets a name of your own.
    """
    moto = _load("moto_server")
    with moto.MotoServer() as server, moto.aws_environment(server):
        yield server
