"""`airflow backfill create` by a real Airflow: its scheduler, its API and PostgreSQL; `make test-schedulers`.

    python3 -m venv /tmp/airflow && /tmp/airflow/bin/pip install apache-airflow==3.3.2 psycopg2-binary asyncpg
    python tests/cluster/airflow_backfill.py --airflow /tmp/airflow/bin/airflow --json FILE

The database is a PostgreSQL of its own in a folder of its own (as root: run by the user `postgres`). Four days are made
up for, one at a time. The program ends as told for each run's name; the same back-fill again must make no run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from airflow_nights import DAG, environment, shown

PROGRAM = """#!/bin/bash
echo "$*" >> "$FOLDER/seen"
run=$(sed 's/.*--run \\([^ ]*\\).*/\\1/' <<< "$*")
code=$(grep "^$run " "$FOLDER/codes" | cut -d' ' -f$(( $(grep -c -- "--run $run " "$FOLDER/seen") + 1 )))
[ "$code" = kill ] && kill -KILL $$
[ "$code" = 0 ] && echo '{"run": "x", "release": "r-1", "published": true, "reason": "done"}'
exit "${code:-99}"
"""
# What the program ends with for each run's name, and what the day has to become.
DAYS = {
    "2026-11-01": (("6", "0"), "success"),
    "2026-11-02": (("0",), "success"),
    "2026-11-03": (("4",), "failed"),
    "2026-11-04": (("kill", "0"), "success"),
}
CREATE = ("backfill", "create", "--dag-id", "codebooks_refresh", "--from-date", "2026-11-01",
          "--to-date", "2026-11-04T23:59:59", "--max-active-runs", "1")  # fmt: skip


def main() -> int:
    """Run the back-fill and write what became of it beside the other nights; 0 when it is as it has to be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--airflow", required=True, help="the program of an Airflow 3 that knows PostgreSQL")
    parser.add_argument("--json", type=Path, help="results of airflow_nights.py; this one is added")
    given = parser.parse_args()
    for program in (given.airflow, _postgres("initdb")):
        if shutil.which(program) is None:
            parser.error(f"there is no program {program}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="airflow-backfill-") as name, postgres(Path(name)) as database:
        result = backfilled(given.airflow, Path(name), database)
    result["seconds"] = round(time.monotonic() - began)
    shown(result)
    if given.json is not None:
        known = json.loads(given.json.read_text()) if given.json.exists() else {}
        given.json.write_text(json.dumps({**known, "backfill": result}, indent=1) + "\n")
    return 0 if result["right"] else 1


def backfilled(airflow: str, folder: Path, database: str) -> dict[str, Any]:
    """Start an Airflow, make up for the days, ask for the same again, and compare."""
    Path(folder, "dags").mkdir()
    shutil.copy(DAG, folder / "dags" / DAG.name)
    (folder / "codebooks").write_text(PROGRAM)
    (folder / "codebooks").chmod(0o755)
    (folder / "codes").write_text("".join(f"{run} {' '.join(codes)}\n" for run, (codes, _) in DAYS.items()))
    (folder / "seen").touch()
    port = _free_port()
    told = {
        **environment(folder), "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://{database}",
        "AIRFLOW__API__PORT": str(port), "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__API_AUTH__JWT_SECRET": "0123456789abcdef" * 4, "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__SCHEDULER__DAG_DIR_LIST_INTERVAL": "10", "CODEBOOKS_SCHEDULE": "30 2 * * *",
    }  # fmt: skip

    def called(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([airflow, *words], env=told, capture_output=True, text=True, timeout=300, cwd=folder)

    migrated = called("db", "migrate")
    read = called("dags", "reserialize")
    if migrated.returncode or read.returncode:
        raise SystemExit(migrated.stderr[-3000:] + read.stderr[-3000:])
    version = called("version").stdout.strip().splitlines()[-1]
    with contextlib.ExitStack() as stack:
        for part in ("api-server", "dag-processor", "scheduler"):
            stack.enter_context(running([airflow, part], told, folder / f"{part}.log"))
        _wait(lambda: _listens(port), "the API answers", 120)
        created = called(*CREATE)
        _wait(lambda: _ended(_states(database)), "the days end", 240)
        states = _states(database)
        again = called(*CREATE)
    seen = (folder / "seen").read_text().splitlines()
    # The schedule makes a run of the last date that was due, too: it is none of the back-fill's.
    runs = [match[1] for line in seen if (match := re.search(r"--run (\S+)", line)) and match[1] in DAYS]
    wanted = [run for run, (codes, _) in DAYS.items() for _ in codes]
    found = {
        "name": "backfill create", "version": version, "created": created.returncode, "states": states, "runs": runs,
        "again": again.returncode, "made_again": len(runs) - len(wanted),
    }  # fmt: skip
    right = created.returncode == 0 and runs == wanted and states == {run: state for run, (_, state) in DAYS.items()}
    if not right:
        sys.stderr.write(created.stdout[-3000:] + created.stderr[-3000:] + again.stdout[-2000:] + again.stderr[-2000:])
        for part in ("api-server", "dag-processor", "scheduler"):
            sys.stderr.write(f"== {part}\n" + (folder / f"{part}.log").read_text()[-3000:])
    return {**found, "codes": {run: codes for run, (codes, _) in DAYS.items()}, "right": right}


def _states(database: str) -> dict[str, str]:
    """Return the state of each back-filled day, from the database: an `airflow` command takes many seconds."""
    query = "select logical_date, state from dag_run where run_type = 'backfill' order by logical_date"
    asked = [_postgres("psql"), f"postgresql://{database}", "-At", "-F", " ", "-c", query]
    lines = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.splitlines()
    return {line[:10]: line.split()[-1] for line in lines}


def _ended(states: dict[str, str]) -> bool:
    return len(states) == len(DAYS) and all(state in ("success", "failed") for state in states.values())


@contextlib.contextmanager
def running(command: list[str], told: dict[str, str], log: Path) -> Iterator[None]:
    """Hold a program up."""
    process = subprocess.Popen(
        command, env=told, stdout=log.open("wb"), stderr=subprocess.STDOUT, start_new_session=True, cwd=log.parent
    )
    try:
        yield
    finally:
        for sent in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, sent)
                process.wait(timeout=20)
        process.wait()


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Hold a PostgreSQL up, and yield its user, address and database."""
    data, port = folder / "postgres", _free_port()
    data.mkdir()
    user = []
    if os.geteuid() == 0:  # it refuses to run as root
        folder.chmod(0o755)
        shutil.chown(data, "postgres", "postgres")
        user = ["runuser", "-u", "postgres", "--"]
    subprocess.run([*user, _postgres("initdb"), "-D", str(data), "-U", "airflow", "-A", "trust"],
                   check=True, capture_output=True, cwd=data)  # fmt: skip
    server = [*user, _postgres("postgres"), "-D", str(data), "-p", str(port), "-k", str(data), "-h", "127.0.0.1"]
    with running([*server, "-c", "fsync=off"], {"PATH": os.environ["PATH"], "LC_ALL": "C"}, folder / "postgres.log"):
        _wait(lambda: _listens(port), "PostgreSQL answers", 60)
        create = [_postgres("createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "airflow", "airflow"]
        subprocess.run(create, check=True, capture_output=True)
        yield f"airflow@127.0.0.1:{port}/airflow"


def _postgres(program: str) -> str:
    """Return a program of PostgreSQL's server, which Debian keeps off the PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    return str(places[-1]) if places else program


def _wait(seen: Any, what: str, limit_s: float) -> None:
    until = time.monotonic() + limit_s
    while not seen():
        if time.monotonic() > until:
            raise SystemExit(f"after {limit_s:g} s: {what}")
        time.sleep(1)


def _listens(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
