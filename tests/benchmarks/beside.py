"""Modules of the tests' own folder, which is on no import path: what makes releases and runs stages without Ray."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]


def tests_module(name: str) -> Any:
    """Load a module of the tests' folder, as their conftest does."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    return importlib.import_module(name)


def release_maker(dim: int, part_rows: int = 20_000) -> Any:
    """Load the tests' maker of releases, for latents of so many numbers and parts of so many rows."""
    module = tests_module("release_maker")
    module.DIM, module.PART_ROWS = dim, part_rows
    return module
