"""`codebooks submit COMMAND ...`: the command as a Ray job on a cluster, with its own exit code."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.dashboard import Dashboard, named_address
from cluster.following import follow
from cluster.shipping import FOLDER, JobFile, not_passed, pack, passed_variables
from jobs.__main__ import COMMANDS
from jobs.command import Arguments, Outcome
from jobs.config import config_values, load_config
from jobs.parser import parse_arguments
from jobs.sources import read_sources
from pipeline.errors import ConfigError
from pipeline.nodes import local_places, refuse_local_places, say
from pipeline.runs import check_run_name, default_run_name
from pipeline.settings import merge
from pipeline.storage.local import expanded
from pipeline.storage.secrets import masked_options, names_secret

TAKES_COMMAND = True

_ENTRY = "python -m cluster.entry"
_STOP_S = "35"  # our processes let go of a run within 30 s of SIGTERM; Ray's default kills them after 3
_NOT_THERE = {
    "submit": "it hands in another command; name that one",
    "demo": "it works in a folder of this machine; run it here",
    "init": "it writes a file of this machine; run it here",
    "search": "it asks with a photo on this machine; run it here, it needs no cluster",
    "pretrained": "it writes a file of this machine; run it here, it needs no cluster",
}
# Options that name a file which the command would write where nobody finds it.
_WRITES = ("write", "output")
_OWN_OPTIONS = ("--wait", "--address", "--pass", "--code", "--runtime-env")
_OURS = ("working_dir", "py_modules", "worker_process_setup_hook")


@dataclass(frozen=True, slots=True)
class Asked:
    """A command to be submitted. words: of its command line, as the job gets them; run: its name or None.

    settings: of its config, as plain values. config: the file that travels with it. place: of the store, "" for none.
    """

    words: tuple[str, ...]
    run: str | None
    settings: Mapping[str, Any]
    config: Path | None

    @property
    def place(self) -> str:
        """Return the store's URL."""
        store = self.settings.get("store", "")
        return str(store.get("url", "")) if isinstance(store, Mapping) else str(store)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `submit`."""
    parser.add_argument(
        "--address", metavar="URL", help="the cluster's dashboard, http://HEAD:8265 (else RAY_API_SERVER_ADDRESS)"
    )
    parser.add_argument("--wait", action="store_true", help="show its log, end with its exit code; Ctrl-C asks first")
    parser.add_argument(
        "--pass",
        dest="passed",
        metavar="NAME",
        action="append",
        default=[],
        help="a variable of this environment, or a pattern as 'AWS_*', that the job gets; may be repeated "
        "(CODEBOOKS__* always go along)",
    )
    parser.add_argument(
        "--code", choices=("sent", "image"), default="sent", help="run what is installed here, or what the image holds"
    )
    parser.add_argument("--runtime-env", metavar="FILE", help="a YAML file of Ray's runtime environment to add")
    parser.add_argument("command", metavar="COMMAND ...", nargs=argparse.REMAINDER, help="as after `codebooks`")


def run(arguments: Arguments) -> Outcome:
    """Hand the command in, or find the job of its run that is still at work, and follow it if asked to.

    Raises ConfigError before anything is handed in, Unavailable when the cluster does not answer.
    """
    options = arguments.options
    asked = asked_command(options.command)
    address = named_address(options.address)
    environment = passed_variables(options.passed, os.environ)
    extra = runtime_environment(options.runtime_env)
    dashboard = Dashboard(address)
    nodes = dashboard.nodes()
    min_nodes = (asked.settings.get("cluster") or {}).get("min_nodes", 1)
    refuse_local_places(local_places(asked.settings), nodes, min_nodes)
    submission_id, new = _handed_in(dashboard, asked, environment, extra, code=options.code == "sent")
    say(f"{'submitted' if new else 'found at work'}: job {submission_id} on {', '.join(nodes)}")
    if environment and new:
        say(f"it is given {', '.join(environment)}")
    if new and (kept := not_passed(environment, os.environ)):
        say(f"{', '.join(kept)} stay here: the cluster reaches the store as it is set up; --pass 'AWS_*' sends them")
    known = {"submission_id": submission_id, "address": address, "attached": not new}
    if not options.wait:
        text = f"the same command with --wait follows it; so does `ray job logs --address {address} -f {submission_id}`"
        return Outcome(run=asked.run, reason="submitted" if new else "running", details=known, text=text)
    ending = follow(dashboard, submission_id, ask=_asker())
    answer = {name: value for name, value in ending.answer.items() if name not in ("run", "release", "published")}
    return Outcome(
        run=ending.answer.get("run", asked.run),
        release=ending.answer.get("release"),
        published=bool(ending.answer.get("published", False)),
        reason=str(answer.pop("reason", ending.text)),
        details={**answer, **known, "exit_code": ending.exit_code},
        text=ending.text,
        exit_code=ending.exit_code,
    )


def asked_command(words: Sequence[str]) -> Asked:
    """Return the command that is to be submitted, checked as it would be here. Raises ConfigError."""
    if not words:
        raise ConfigError("name the command to submit, as in: codebooks submit --wait refresh --config shop.yaml")
    name = words[0]
    command = COMMANDS.get(name)
    if command is None:
        options = " (options of submit stand before it)" if name.startswith("-") else ""
        raise ConfigError(f"there is no command {name!r} to submit{options}; see `codebooks --help`")
    if late := [word for word in words[1:] if word.partition("=")[0] in _OWN_OPTIONS]:
        raise ConfigError(f"{late[0]!r} is of submit and stands before the command: codebooks submit {late[0]} {name}")
    if name in _NOT_THERE:
        raise ConfigError(f"{name} cannot be submitted: {_NOT_THERE[name]}")
    arguments = parse_arguments(words, command.help, command.options, importlib.import_module(command.module))
    if arguments is None:
        raise ConfigError(f"--help stands after {name}; write `codebooks {name} --help`")
    for option in _WRITES:
        if getattr(arguments.options, option, None) is not None:
            raise ConfigError(f"--{option} names a file that {name} would write on the cluster; leave it out there")
    run = arguments.run and check_run_name(arguments.run)
    sent = list(words)
    if command.makes_run and run is None:
        run = default_run_name()
        sent += ["--run", run]
    if "--json" not in sent:
        sent.append("--json")
    settings = _settings(arguments, whole="run" in command.options)
    config = _config_file(arguments)
    if config is not None:
        sent = _with_config(sent, f"{FOLDER}/{config.name}")
    return Asked((*sent, *_absolute(settings, arguments)), run, settings, config)


def runtime_environment(file: str | None) -> dict[str, Any]:
    """Return the runtime environment that a file adds to the job's own. Raises ConfigError."""
    if file is None:
        return {}
    try:
        found = yaml.safe_load(expanded(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"--runtime-env {file!r} cannot be read as YAML: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"--runtime-env {file!r} holds no mapping, such as `pip: [...]`")
    for name in _OURS:
        if name in found:
            raise ConfigError(f"--runtime-env {file!r} sets {name}, which is how this command travels; take it out")
    for name in found.get("env_vars") or {}:
        if names_secret(str(name)):
            raise ConfigError(
                f"--runtime-env {file!r} sets env_vars.{name}, which Ray writes into logs and shows on its dashboard; "
                f"set it here and hand it over by --pass {name}"
            )
    return found


def job_name(asked: Asked) -> str:
    """Return what all jobs of a run have in common in their ids: the same for each command, run and store."""
    run = asked.run or default_run_name()
    digest = hashlib.sha256(json.dumps([asked.words[0], run, asked.place]).encode()).hexdigest()
    return f"codebooks-{asked.words[0]}-{run}-{digest[:8]}"


def _handed_in(
    dashboard: Dashboard, asked: Asked, environment: Mapping[str, str], extra: Mapping[str, Any], *, code: bool
) -> tuple[str, bool]:
    """Return the id of the job that is at work on this run, and whether it was handed in just now.

    Two that come at one moment make one job: the second is refused its id, and finds the first. Raises ConfigError when
    the one at work was given other settings.
    """
    name, settings = job_name(asked), _digest(asked, environment)
    while True:
        known = {job.submission_id or "": job for job in dashboard.jobs()}
        numbers = [_number(submission_id, name) for submission_id in known]
        last = max(numbers, default=0)
        job = known.get(f"{name}-{last}")
        if job is not None and str(job.status.value) in ("PENDING", "RUNNING"):
            if (job.metadata or {}).get("settings") != settings:
                raise ConfigError(
                    f"job {name}-{last} is at work on run {asked.run!r} with other settings; wait for its end, stop it "
                    f"(`ray job stop --address {dashboard.address} {name}-{last}`), or choose another --run"
                )
            return f"{name}-{last}", False
        with tempfile.TemporaryDirectory(prefix="codebooks-submit-") as folder:
            job_file = JobFile(words=asked.words, environment=dict(environment))
            packed = pack(Path(folder) / "job", job_file, asked.config, code=code)
            variables = {**(extra.get("env_vars") or {}), "RAY_JOB_STOP_WAIT_TIME_S": _STOP_S}
            new = dashboard.submit(
                f"{name}-{last + 1}",
                entrypoint=_ENTRY,
                runtime_env={**extra, "working_dir": str(packed), "env_vars": variables},
                metadata={"command": masked_options(" ".join(asked.words)), "settings": settings},
            )
        if new:
            return f"{name}-{last + 1}", True


def _number(submission_id: str, name: str) -> int:
    """Return which job of this name an id stands for, 0 for another name's."""
    number = submission_id.removeprefix(f"{name}-")
    return int(number) if submission_id.startswith(f"{name}-") and number.isdigit() else 0


def _digest(asked: Asked, environment: Mapping[str, str]) -> str:
    """Return what tells a job's settings from another's; of variables only those that are settings."""
    own = {name: value for name, value in environment.items() if name.upper().startswith("CODEBOOKS__")}
    said = json.dumps([asked.words, asked.settings, own], sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()


def _settings(arguments: Arguments, *, whole: bool) -> Mapping[str, Any]:
    """Return the config as plain values: whole and checked where the command reads it whole."""
    if whole:
        return config_values(load_config(arguments))
    return merge(read_sources(arguments)).values


def _config_file(arguments: Arguments) -> Path | None:
    """Return the file that `--config` names, None for a preset, which every installation has."""
    if arguments.config is None:
        return None
    path = expanded(arguments.config)
    return path if path.is_file() else None


def _with_config(words: Sequence[str], file: str) -> list[str]:
    """Return the words with the config's file where it lies in the job's folder."""
    found: list[str] = []
    for word in words:
        if found and found[-1] == "--config":
            found.append(file)
        else:
            found.append(f"--config={file}" if word.startswith("--config=") else word)
    return found


def _absolute(settings: Mapping[str, Any], arguments: Arguments) -> list[str]:
    """Return overrides that keep local paths what they are here; the job's own folder is another, and is deleted.

    Raises ConfigError for a relative path that no override reaches.
    """
    said = merge(read_sources(arguments)).values
    found: list[str] = []
    for place in local_places(settings):
        section, _, rest = place.key.partition(".")
        if place.key in ("store.url", "catalogue.source"):
            if (said.get(section) or {}).get(rest) != place.value:
                found.append(f"{place.key}={json.dumps(place.value)}")
        elif not place.value.startswith(("/", "file:", "memory:")):
            raise ConfigError(
                f"{place.key} is {place.value!r}, relative to a folder here; write it as an absolute path"
            )
    return found


def _asker() -> Any:
    """Return what asks the person at the terminal a yes or no, None where nobody sits there."""
    if sys.stdin is None or not sys.stdin.isatty():
        return None

    def ask(question: str) -> bool:
        sys.stderr.write(question)
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    return ask
