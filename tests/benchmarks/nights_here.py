"""Commands run in this process, and stages without Ray, so that its own seconds and calls are all there are."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any
from unittest import mock

import pytest
from beside import tests_module

from jobs.__main__ import main
from pipeline.encoding import run_shards_here
from pipeline.training import train_here


def answered(words: Sequence[str]) -> tuple[int, dict[str, Any]]:
    """Return the exit code of a command that is told --json, and the object that it printed."""
    with redirect_stdout(io.StringIO()) as said:
        code = main(list(words))
    return code, json.loads(said.getvalue() or "{}")


@contextmanager
def stages_here(run: Callable[..., Any] = run_shards_here) -> Iterator[None]:
    """Let the stages of nights run in this process; what is written is what Ray's workers write. run: shards."""
    with (
        mock.patch("jobs.computing.train_job", train_here),
        mock.patch("jobs.computing.run_shards", run),
        mock.patch("jobs.context.ray_session", return_value=nullcontext()),
        mock.patch("jobs.pipeline_run.early_session", return_value=nullcontext()),
    ):
        yield


def codebooks(*words: str) -> None:
    """Run a command here, with its stages. Raises SystemExit when it fails."""
    with stages_here():
        if code := main([*words]):
            raise SystemExit(f"{words}: exit {code}")


def quick_stages() -> Any:
    """Let stages run here from now on, as in tests, where no encoder is exported; return the tests' module of them."""
    module = tests_module("stages_here")
    module.run_stages_here(pytest.MonkeyPatch())
    return module
