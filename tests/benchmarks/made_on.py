"""When, of which code and on what a result was measured; it imports nothing of ours."""

from __future__ import annotations

import datetime as dt
import os
import platform
import subprocess
from pathlib import Path


def made_on(note: str = "one thread") -> dict[str, str]:
    """Return what a result says of when, of which code and on what it was measured; note: more of the machine."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    machine = f"{os.cpu_count()} x {platform.machine()}"
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "machine": f"{machine}, {note}" if note else machine,
    }
