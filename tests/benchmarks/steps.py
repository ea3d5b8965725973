"""Steps of a benchmark as processes of their own, each of which begins with nothing in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def begun(program: str, words: list[str], folder: Path, step: str) -> subprocess.Popen[str]:
    """Start a step of a program, given as its `__file__`, with the options that it was called with."""
    command = [sys.executable, program, *words, "--folder", str(folder), "--step", step]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return what a step printed as its last line; a step that fails ends the benchmark."""
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(process.returncode)
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found
