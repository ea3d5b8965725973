"""What a benchmark writes down: its results as JSON, and when, of which code and on what they were measured.

Imports nothing of ours and nothing heavy.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
DATA = ROOT.parent / "shared" / "data"  # the catalogues, beside the checkout
Run = dict[str, Any]


def today() -> str:
    """Return the date in UTC."""
    return dt.datetime.now(dt.UTC).date().isoformat()


def made_on(note: str = "one thread") -> dict[str, Any]:
    """Return what a result says of when, of which code and on what it was measured; note: more of the machine.

    load: of the last minute, of how busy other things kept it too.
    """
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    machine = f"{os.cpu_count()} x {platform.machine()}"
    return {
        "date": today(),
        "commit": commit.stdout.strip(),
        "machine": f"{machine}, {note}" if note else machine,
        "load": round(os.getloadavg()[0], 1),
    }


def memory() -> str:
    """Return what `made_on` may note of a machine: its memory."""
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') >> 30} GiB"


def write(path: Path, found: Any) -> None:
    """Write JSON in one step, where a file is: a killed benchmark leaves the old one whole."""
    text = json.dumps(found, indent=1) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():  # a device
        path.write_text(text)
        return
    aside = path.with_suffix(".new")
    aside.write_text(text)
    aside.replace(path)


def tell(found: Any, path: Path | None) -> None:
    """Print a result, and write it where a file was asked for."""
    print(json.dumps(found, indent=1), flush=True)
    if path is not None:
        write(path, found)


def kept(path: Path, nothing: Any = None) -> Any:
    """Return what a file holds; where there is none, `nothing`, by default no results."""
    if path.is_file():
        return json.loads(path.read_text())
    return {"results": {}} if nothing is None else nothing


def add(path: Path, found: Any, *names: str) -> None:
    """Put a result into a file's `results`, by its name (a name in a name, ...), beside what stands there."""
    held = kept(path)
    room = held["results"]
    for name in names[:-1]:
        room = room.setdefault(name, {})
    room[names[-1]] = found
    write(path, held)


def read(path: Path) -> list[Run]:
    """Return the runs so far."""
    return list(kept(path, {"runs": []})["runs"])


def write_runs(path: Path, runs: Sequence[Run]) -> None:
    """Write runs, each of which tells its own date."""
    import torch

    write(path, {"machine": platform.platform(), "torch": torch.__version__, "runs": runs})


def renewed(runs: Sequence[Run], run: Run, *names: str) -> list[Run]:
    """Return runs with one more at the end, in place of the one with the same values under these names."""
    return [*(each for each in runs if any(each[name] != run[name] for name in names)), run]
