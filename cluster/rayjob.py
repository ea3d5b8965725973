"""Run a night on Kubernetes: `python -m cluster.rayjob TEMPLATE` makes a RayJob, waits, and ends with its exit code.

TEMPLATE is a suspended RayJob of the same namespace, so that all of it is checked, patched and reviewed as any other
object; what is made from it has another name, is not suspended, and has the run's name in its entrypoint. A CronJob's
pod runs this: as long as it waits, `concurrencyPolicy: Forbid` holds the next night back, and its exit codes let
`podFailurePolicy` retry what may be retried.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import os
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pipeline.errors import CodebooksError, ConfigError, Unavailable
from pipeline.runs import check_run_name
from pipeline.stopping import STOPPING, stopping_on_signals

from .kubernetes_api import KubernetesApi
from .manifest_model import Document, at, listed

RUN_LABEL = "visual-codebooks/run"
TEMPLATE_LABEL = "visual-codebooks/template"
_PLACE = "{run}"
_ENDED = ("Complete", "Failed")
_LONGEST_NAME = 47  # the operator makes longer names of it
_POLL_S = 5.0
_EXIT_CODE = re.compile(r"exit code (-?\d+)")


def run_of_job(job: str, zone: str) -> str:
    """Return the run's name for a Job: the day on which it was due, the same for every retry.

    A CronJob calls its Jobs NAME-<minutes since 1970>, of the time at which they were due; one made by hand may end
    with a date, as `kubectl create job refresh-2026-11-20 --from=cronjob/refresh`. Raises ConfigError for other names.
    """
    if match := re.search(r"-(\d{4}-\d{2}-\d{2})$", job):
        return match[1]
    match = re.search(r"-(\d{8})$", job)
    if match is None:
        raise ConfigError(
            f"the Job is called {job!r}, which tells no date; end it with one, as refresh-2026-11-20, or say --run"
        )
    return _day(datetime.fromtimestamp(int(match[1]) * 60, UTC), zone)


def run_of_time(due: str, zone: str) -> str:
    """Return the run's name for a time at which a night was due: its day; a day alone is taken as it is.

    Raises ConfigError for what is neither, such as a placeholder that a scheduler has not filled.
    """
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", due):
        return due
    try:
        when = datetime.fromisoformat(due)
    except ValueError as error:
        raise ConfigError(f"--due is {due!r}; give a time as 2026-11-21T02:30:00Z, or a day as 2026-11-21") from error
    if when.tzinfo is None:
        raise ConfigError(f"--due is {due!r}, without a time zone; end it with Z or an offset")
    return _day(when, zone)


def _day(when: datetime, zone: str) -> str:
    try:
        place = ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ConfigError(f"the time zone is {zone!r}; write for example Europe/Berlin or Etc/UTC") from error
    return when.astimezone(place).strftime("%Y-%m-%d")


def made_from(template: Document, *, run: str, number: int, job: Mapping[str, str]) -> Document:
    """Return the RayJob of a run's attempt. job: name and uid of the Job that owns it, with which it goes.

    Raises ConfigError when the template is not suspended or its entrypoint has no place for the run's name.
    """
    name = str(at(template, "metadata.name"))
    spec = copy.deepcopy(template.get("spec") or {})
    if spec.get("suspend") is not True:
        raise ConfigError(f"RayJob {name} is not suspended, so it is no template; set spec.suspend: true")
    if _PLACE not in str(spec.get("entrypoint")):
        raise ConfigError(
            f"the entrypoint of RayJob {name} is {spec.get('entrypoint')!r}; write --run {_PLACE} into it"
        )
    spec["suspend"] = False
    spec["entrypoint"] = spec["entrypoint"].replace(_PLACE, shlex.quote(run))
    labels = {**(at(template, "metadata.labels") or {}), TEMPLATE_LABEL: name, RUN_LABEL: _label(run)}
    metadata: Document = {"name": _name(name, run, number), "labels": labels}
    if job.get("name") and job.get("uid"):
        metadata["ownerReferences"] = [
            {"apiVersion": "batch/v1", "kind": "Job", "name": job["name"], "uid": job["uid"]}
        ]
    return {"apiVersion": template["apiVersion"], "kind": "RayJob", "metadata": metadata, "spec": spec}


def exit_code_of(job: Document) -> int:
    """Return the exit code of an ended RayJob's program: its own, or what a retry may mend.

    Ray tells it only within a sentence. A program that a signal killed, a cluster that was lost and a deadline are all
    temporary (6); words that tell no code are unexpected (1).
    """
    status = job.get("status") or {}
    if status.get("jobDeploymentStatus") == "Complete" and status.get("jobStatus") == "SUCCEEDED":
        return 0
    text = str(status.get("message") or "")
    if status.get("jobStatus") == "FAILED" and (match := _EXIT_CODE.search(text)):
        code = int(match[1])
        return Unavailable.exit_code if code < 0 or code > 128 else code or 1
    if status.get("jobStatus") == "FAILED" and "runtime_env" in text:
        return CodebooksError.exit_code
    return Unavailable.exit_code


def run_night(api: KubernetesApi, template_name: str, run: str, *, job: Mapping[str, str]) -> int:
    """Make the RayJob of a run, or wait for one that is there and not ended, and return its exit code.

    Raises ConfigError when the template is not there or unfit, Unavailable when the API does not answer.
    """
    template = api.get("rayjobs", template_name)
    if template is None:
        raise ConfigError(
            f"there is no RayJob {template_name} in the namespace {api.namespace}; apply the overlay first"
        )
    selector = f"{TEMPLATE_LABEL}={template_name},{RUN_LABEL}={_label(run)}"
    earlier = sorted(listed(api.list("rayjobs", selector), "items"), key=_number)
    going = [each for each in earlier if at(each, "status.jobDeploymentStatus") not in _ENDED]
    if going or any(exit_code_of(each) == 0 for each in earlier):
        found = going[-1] if going else next(each for each in earlier if exit_code_of(each) == 0)
        _say(f"{run}: waits for {at(found, 'metadata.name')}, which is there already")
    else:
        number = _number(earlier[-1]) + 1 if earlier else 1
        wanted = made_from(template, run=run, number=number, job=job)
        found = api.create("rayjobs", wanted)
        _say(f"{run}: made RayJob {at(found, 'metadata.name')}")
    return _wait(api, str(at(found, "metadata.name")))


def _wait(api: KubernetesApi, name: str) -> int:
    said = ""
    while True:
        STOPPING.check()
        job = api.get("rayjobs", name)
        if job is None:
            raise Unavailable(f"RayJob {name} was deleted while it was waited for")
        status = job.get("status") or {}
        words = " ".join(str(status[key]) for key in ("jobDeploymentStatus", "jobStatus", "reason") if status.get(key))
        if words != said:
            _say(f"{name}: {words or 'new'}")
            said = words
        if status.get("jobDeploymentStatus") in _ENDED:
            code = exit_code_of(job)
            if code:
                _say(f"{name}: {status.get('message') or 'no message'}")
            _say(f"{name}: exit code {code}")
            return code
        time.sleep(_POLL_S)


def _number(job: Document) -> int:
    match = re.search(r"-(\d+)$", str(at(job, "metadata.name")))
    return int(match[1]) if match else 0


def _label(run: str) -> str:
    """Return a run's name as a label's value, which has at most 63 characters of few kinds."""
    fits = re.fullmatch(r"[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?", run)
    return run if fits else hashlib.sha256(run.encode()).hexdigest()[:16]


def _name(template: str, run: str, number: int) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")
    name = f"{template}-{plain}-{number}"
    if plain == run and len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(run.encode()).hexdigest()[:8]  # two runs whose plain names are the same stay two
    room = _LONGEST_NAME - len(f"-{digest}-{number}")
    return f"{f'{template}-{plain}'[:room].rstrip('-')}-{digest}-{number}"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one night and return its exit code: the program's own, 2 for a wrong set-up, 6 for what a retry may mend."""
    parser = argparse.ArgumentParser(prog="python -m cluster.rayjob", description=__doc__)
    parser.add_argument("template", help="name of the suspended RayJob")
    parser.add_argument("--run", help="the run's name; without it the day on which the Job was due")
    parser.add_argument("--due", help="when it was due, in place of --run: the run's name is that day in TIME_ZONE")
    given: Any = parser.parse_args(argv)
    zone = os.environ.get("TIME_ZONE", "Etc/UTC")
    job = {"name": os.environ.get("JOB_NAME", ""), "uid": os.environ.get("JOB_UID", "")}
    with stopping_on_signals(lambda: None):
        try:
            due = run_of_time(given.due, zone) if given.due is not None else None
            run = given.run or due or run_of_job(job["name"], zone)
            check_run_name(run)
            return run_night(KubernetesApi.from_pod(), given.template, run, job=job)
        except KeyboardInterrupt:
            _say("stopped; the RayJob goes on, and the next pod of this Job waits for it")
            return Unavailable.exit_code
        except CodebooksError as error:
            _say(str(error))
            return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
