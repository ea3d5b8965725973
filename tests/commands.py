"""The command line as schedulers call it: in a process of its own, or in this one on the tests' Ray cluster.

Loaded by `conftest.py`; the fixture `commands` is a `Commands` that holds the cluster's address.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from jobs.__main__ import main

ROOT = Path(__file__).resolve().parents[1]


class Commands:
    """Commands whose Ray is the tests' own cluster; starting one for each costs about ten seconds of both cores."""

    def __init__(self, address: str, forks: Any = None) -> None:
        self.address = address
        self._forks = forks

    def run(self, *words: str, expect: int = 0) -> dict[str, Any]:
        """Run a command in this process, which is connected to the cluster, and return its JSON object."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([*words, "--json"])
        return _one_object(out.getvalue(), err.getvalue(), code, expect)

    def start(self, *words: str) -> Any:
        """Start a command in a process of its own, connected to the cluster; it is a `forked.Fork`."""
        return self._forks.start(["-m", "jobs", *words, "--json"], self._variables(RAY_ADDRESS=self.address))

    def start_alone(self, *words: str) -> subprocess.Popen[str]:
        """Start a command as a shell does: a Python of its own, which starts a Ray of its own."""
        command = [sys.executable, "-m", "jobs", *words, "--json"]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=self._variables())

    def finish(self, process: Any, *, expect: int = 0) -> dict[str, Any]:
        """Wait for a command that was started, and return its JSON object."""
        try:
            out, err = process.communicate(timeout=400)
        finally:
            process.kill()  # of a command that hangs; nothing of one that has ended
        return _one_object(out, err, process.returncode, expect)

    def _variables(self, **more: str) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def _one_object(out: str, err: str, code: int, expect: int) -> dict[str, Any]:
    assert code == expect, f"exit {code}, expected {expect}\n{out}\n{err[-6000:]}"
    assert len(out.strip().splitlines()) == 1, "standard output holds one JSON object"
    return {**json.loads(out), "text": err}
