"""An Airflow 3 DAG of the night: exit 6 and deaths by signal are tried again, 1 to 5 are not; the run is the day.

Copy it into the DAG folder. Back-fill, one night at a time: `airflow backfill create --dag-id codebooks_refresh
--max-active-runs 1 --from-date 2026-11-01 --to-date 2026-11-04T23:59:59`; each day has a run's name of its own, and a
day that is published already ends with 0 and does nothing.

What to run comes from the worker's environment, so that no path stands here:
    CODEBOOKS_COMMAND   the command without --run, default `codebooks refresh --config /etc/codebooks/shop.yaml`
    CODEBOOKS_ZONE      the time zone of the schedule and of the day in the run's name, default UTC
    CODEBOOKS_SCHEDULE  a cron expression, default `30 2 * * *`
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import subprocess
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from airflow.exceptions import AirflowFailException, AirflowSkipException
from airflow.sdk import dag, get_current_context, task
from airflow.timetables.trigger import CronTriggerTimetable

ZONE = os.environ.get("CODEBOOKS_ZONE", "UTC")
SCHEDULE = os.environ.get("CODEBOOKS_SCHEDULE", "30 2 * * *")
DEFAULT_COMMAND = "codebooks refresh --config /etc/codebooks/shop.yaml"
TEMPORARY, CONFLICT = 6, 5
MEANINGS = {1: "unexpected error", 2: "usage or config", 3: "input unreadable", 4: "a gate refused the release"}


def run_name(logical_date: datetime) -> str:
    """Return the run's name of a day: the same for each of its retries and for its back-fill."""
    return logical_date.astimezone(ZoneInfo(ZONE)).strftime("%Y-%m-%d")


def verdict(code: int, *, signalled: bool) -> str:
    """Return what becomes of the task: `done`, `again`, `skip` (another run has won) or `fail` (a person looks)."""
    if code == 0:
        return "done"
    if code == TEMPORARY or signalled:
        return "again"
    return "skip" if code == CONFLICT else "fail"


@dag(
    dag_id="codebooks_refresh",
    schedule=CronTriggerTimetable(SCHEDULE, timezone=ZONE),
    start_date=datetime(2026, 1, 1, tzinfo=ZoneInfo(ZONE)),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=20),
    tags=["visual-codebooks"],
)
def codebooks_refresh() -> None:
    """One task: the night."""

    @task(
        retries=int(os.environ.get("CODEBOOKS_RETRIES", "3")),
        retry_delay=timedelta(seconds=float(os.environ.get("CODEBOOKS_RETRY_S", "300"))),
        execution_timeout=timedelta(hours=6),
    )
    def refresh() -> dict[str, Any]:
        """Run the command and return its JSON object, which Airflow keeps as the task's XCom."""
        context = get_current_context()
        when = context.get("logical_date") or context["dag_run"].run_after  # a run by hand may have no logical date
        command = [
            *shlex.split(os.environ.get("CODEBOOKS_COMMAND", DEFAULT_COMMAND)),
            "--run",
            run_name(when),
            "--json",
        ]
        log = logging.getLogger("airflow.task")
        log.info("%s", shlex.join(command))
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:  # noqa: S603
            answer: dict[str, Any] = {}
            try:
                for line in child.stdout or ():
                    log.info("%s", line.rstrip())
                    answer = _object(line) or answer
            finally:  # a time-out, or the task was marked by hand: the program gets its 30 seconds
                if child.poll() is None:
                    child.send_signal(signal.SIGTERM)
            code = child.wait()
        # A shell tells a signal's number as 128 more, Popen as a negative one.
        match verdict(code, signalled=code < 0 or code > 128):
            case "again":
                raise RuntimeError(f"exit {code}: temporary; the next try goes on with the same run")
            case "skip":
                raise AirflowSkipException(f"exit {code}: another run has won the channel")
            case "fail":
                raise AirflowFailException(f"exit {code}: {MEANINGS.get(code, 'unknown')}; a person has to look")
        return answer

    refresh()


def _object(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) and "published" in found else None


codebooks_refresh()
