"""Steps of a benchmark as processes of their own, each of which begins with nothing in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any


def begun(program: str, *words: object, **variables: str) -> subprocess.Popen[str]:
    """Start a program, given as its `__file__`, with some words and with variables beside this process's."""
    command = [sys.executable, program, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **variables})


def ended(process: subprocess.Popen[str]) -> Any:
    """Return what a step printed as its last line, as JSON; a step that fails ends the benchmark."""
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(process.returncode)
    return json.loads(out.splitlines()[-1]) if out.strip() else None


def apart(program: str, *words: object, **variables: str) -> Any:
    """Return what a program says as its last line, run to its end in a process of its own."""
    return ended(begun(program, *words, **variables))
