"""The DAG in a real Airflow: read, then run for days whose program ends as told; `make test-schedulers`.

    python3 -m venv /tmp/airflow && /tmp/airflow/bin/pip install apache-airflow==3.3.2
    python tests/cluster/airflow_nights.py --airflow /tmp/airflow/bin/airflow --json FILE

Every run is `airflow dags test`, which runs a day with its retries in its own process. The database is SQLite in a
folder of its own. The program notes its arguments and ends with the next of its codes; `kill` kills it with -9. Nights
that FILE has already, and right, are not run again.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DAG = ROOT / "cluster" / "schedulers" / "airflow_dag.py"
PROGRAM = """#!/bin/bash
echo "$*" >> "$FOLDER/seen"
code=$(sed -n "$(wc -l < "$FOLDER/seen")p" "$FOLDER/codes")
[ "$code" = kill ] && kill -KILL $$
[ "$code" = 0 ] && echo '{"run": "x", "release": "r-1", "published": true, "reason": "done"}'
exit "$code"
"""


@dataclass(frozen=True, slots=True)
class Night:
    """A day, the codes its program ends with, and what Airflow has to make of it."""

    name: str
    date: str
    codes: tuple[str, ...]
    state: str
    run: str
    tries: int


NIGHTS = (
    Night("temporary, killed, then done", "2026-11-01T02:30:00+00:00", ("6", "kill", "0"), "success", "2026-11-01", 3),
    Night("a gate refuses", "2026-11-02T02:30:00+00:00", ("4", "0"), "failed", "2026-11-02", 1),
    Night("another run has won", "2026-11-03T02:30:00+00:00", ("5", "0"), "success", "2026-11-03", 1),
    Night("temporary for ever", "2026-11-04T02:30:00+00:00", ("6",) * 5, "failed", "2026-11-04", 4),
    Night("a day made up for, late in the evening", "2026-10-31T23:30:00+00:00", ("0",), "success", "2026-11-01", 1),
)


def main() -> int:
    """Run all nights and write what became of them; 0 when all are as they have to be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--airflow", required=True, help="the program of an Airflow 3")
    parser.add_argument("--json", type=Path, help="where the results go")
    given = parser.parse_args()
    if shutil.which(given.airflow) is None:
        parser.error(f"there is no program {given.airflow}; install Airflow into an environment of its own")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    facts = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": platform.platform(),
        "commit": commit.strip(),
    }
    before = json.loads(given.json.read_text()) if given.json is not None and given.json.exists() else {}
    results: list[dict[str, Any]] = [result for result in before.get("airflow", []) if result["right"]]
    known = {result["name"] for result in results}
    with tempfile.TemporaryDirectory(prefix="airflow-nights-") as folder:
        read = prepared(given.airflow, Path(folder))
        results = [read, *(result for result in results if result["name"] != read["name"])]
        for night in (night for night in NIGHTS if night.name not in known):
            results.append(ran(given.airflow, Path(folder), night))
            if given.json is not None:
                given.json.write_text(json.dumps({**before, **facts, "airflow": results}, indent=1) + "\n")
    return 0 if all(result["right"] for result in results) else 1


def environment(folder: Path, zone: str = "UTC") -> dict[str, str]:
    """Return what Airflow and the DAG are told."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "FOLDER": str(folder),
        "AIRFLOW_HOME": str(folder / "home"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "2",
        "CODEBOOKS_COMMAND": f"{folder / 'codebooks'} refresh --config 'a b.yaml'",
        "CODEBOOKS_RETRY_S": "0",
        "CODEBOOKS_ZONE": zone,
    }


def prepared(airflow: str, folder: Path) -> dict[str, Any]:
    """Make the database, read the DAG, and say what Airflow found in it."""
    for name in ("home", "dags"):
        (folder / name).mkdir()
    shutil.copy(DAG, folder / "dags" / DAG.name)
    (folder / "codebooks").write_text(PROGRAM)
    (folder / "codebooks").chmod(0o755)
    started = time.monotonic()
    called(airflow, folder, "db", "migrate")
    called(airflow, folder, "dags", "reserialize")
    errors = called(airflow, folder, "dags", "list-import-errors", "--output", "json").stdout
    listed = called(airflow, folder, "dags", "list", "--output", "json").stdout
    version = called(airflow, folder, "version").stdout.strip().splitlines()[-1]
    right = "No data found" in errors or errors.strip().endswith("[]")
    right = right and "codebooks_refresh" in listed
    return shown({"name": "read", "version": version, "right": right, "seconds": round(time.monotonic() - started)})


def ran(airflow: str, folder: Path, night: Night) -> dict[str, Any]:
    """Run one day and compare what became of it."""
    (folder / "seen").write_text("")
    (folder / "codes").write_text("".join(f"{code}\n" for code in night.codes))
    started = time.monotonic()
    zone = "Europe/Berlin" if "evening" in night.name else "UTC"
    done = called(airflow, folder, "dags", "test", "codebooks_refresh", night.date, zone=zone)
    lines = (folder / "seen").read_text().splitlines()
    states = re.findall(r"state[=:]\s*'?(success|failed)", done.stdout + done.stderr)
    found = {"code": done.returncode, "state": states[-1] if states else None, "tries": len(lines)}
    runs = sorted({match[1] for line in lines if (match := re.search(r"--run (\S+)", line))})
    kept = all(line.startswith("refresh --config a b.yaml --run ") and line.endswith(" --json") for line in lines)
    right = (found["tries"], runs, kept) == (night.tries, [night.run], True)
    right = right and (done.returncode == 0) == (night.state == "success")
    if not right:
        sys.stderr.write(done.stdout[-4000:] + done.stderr[-4000:])
    facts = {"name": night.name, "codes": list(night.codes), "wanted": night.state, "runs": runs, "right": right}
    return shown({**facts, **found, "seconds": round(time.monotonic() - started)})


def called(airflow: str, folder: Path, *words: str, zone: str = "UTC") -> subprocess.CompletedProcess[str]:
    """Return what an `airflow` command said."""
    return subprocess.run(
        [airflow, *words], env=environment(folder, zone), capture_output=True, text=True, timeout=600, cwd=folder
    )


def shown(result: dict[str, Any]) -> dict[str, Any]:
    """Print a result and return it."""
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
    return result


if __name__ == "__main__":
    sys.exit(main())
