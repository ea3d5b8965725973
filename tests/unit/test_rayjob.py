"""A night on Kubernetes: the run's name, the RayJob that is made, and how it ended, against an API on this machine."""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest
import yaml

from cluster import rayjob
from cluster.kubernetes_api import KubernetesApi
from cluster.rayjob import exit_code_of, made_from, run_night, run_of_job, run_of_time
from jobs.__main__ import COMMANDS
from jobs.parser import parse_arguments
from pipeline.errors import ConfigError, Forbidden, Unavailable

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = yaml.safe_load((ROOT / "cluster" / "kubernetes" / "base" / "refresh.yaml").read_text())
OWNER = {"name": "refresh-29400000", "uid": "b1"}


def status(message: str = "", *, deployment: str = "Failed", job: str = "FAILED") -> dict[str, Any]:
    return {"status": {"jobDeploymentStatus": deployment, "jobStatus": job, "message": message}}


class Api(BaseHTTPRequestHandler):
    """The part of an API server that a night uses: RayJobs by name and label. A class of its own for each test."""

    jobs: dict[str, Any]
    ends: list[dict[str, Any]]  # what becomes of each RayJob that is made, in order
    failing: list[int]  # codes of the next answers
    seen: list[str]

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, value: Any) -> None:
        address = urlparse(self.path)
        self.seen.append(f"{self.command} {address.path}")
        prefix = "/apis/ray.io/v1/namespaces/shop/rayjobs"
        assert self.headers["Authorization"] == "Bearer t1"
        assert address.path.startswith(prefix)
        name = address.path.removeprefix(prefix).strip("/")
        if self.failing:
            return self._say(self.failing.pop(0), {"message": "no"})
        if value is not None:
            name = value["metadata"]["name"]
            if name in self.jobs:
                return self._say(409, {})
            self.jobs[name] = {**value, **(self.ends.pop(0) if self.ends else {})}
            return self._say(201, value)
        if name:
            return self._say(200, self.jobs[name]) if name in self.jobs else self._say(404, {})
        wanted = dict(pair.split("=") for pair in parse_qs(address.query)["labelSelector"][0].split(","))
        found = [job for job in self.jobs.values() if wanted.items() <= job["metadata"].get("labels", {}).items()]
        return self._say(200, {"items": found})

    def _say(self, code: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[type[Api], KubernetesApi]]:
    (tmp_path / "token").write_text("t1\n")
    handler = type("OneApi", (Api,), {"jobs": {"refresh": TEMPLATE}, "ends": [], "failing": [], "seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setattr(rayjob, "_POLL_S", 0.01)
    yield handler, KubernetesApi(f"http://127.0.0.1:{server.server_port}", "shop", tmp_path, patience_s=0.0)
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_runs_name_is_the_day_on_which_it_was_due() -> None:
    due = int(datetime(2026, 11, 20, 23, 30, tzinfo=UTC).timestamp()) // 60
    assert run_of_job(f"refresh-{due}", "Etc/UTC") == "2026-11-20"
    assert run_of_job(f"refresh-{due}", "Europe/Berlin") == "2026-11-21"
    assert run_of_job("backfill-2026-11-19", "Etc/UTC") == "2026-11-19"
    with pytest.raises(ConfigError, match="tells no date"):
        run_of_job("refresh-abcde", "Etc/UTC")
    with pytest.raises(ConfigError, match="'Europe/Berln'"):
        run_of_job(f"refresh-{due}", "Europe/Berln")


def test_a_time_that_a_scheduler_gives_is_a_day() -> None:
    assert run_of_time("2026-11-20T23:30:00Z", "Etc/UTC") == "2026-11-20"
    assert run_of_time("2026-11-20T23:30:00+00:00", "Europe/Berlin") == "2026-11-21"
    assert run_of_time("2026-11-20", "Europe/Berlin") == "2026-11-20"
    for wrong in ("{{workflow.scheduledTime}}", "2026-11-20T23:30:00", "", "20.11.2026"):
        with pytest.raises(ConfigError, match="--due is"):
            run_of_time(wrong, "Etc/UTC")


def test_what_is_made_of_a_template() -> None:
    made = made_from(TEMPLATE, run="2026-11-21", number=2, job=OWNER)
    assert made["metadata"]["name"] == "refresh-2026-11-21-2"
    assert made["metadata"]["ownerReferences"] == [{"apiVersion": "batch/v1", "kind": "Job", **OWNER}]
    assert made["spec"]["suspend"] is False
    assert made["spec"]["entrypoint"].endswith("--run 2026-11-21 --json --log json")
    assert TEMPLATE["spec"]["suspend"] is True
    rest = {name: value for name, value in made["spec"].items() if name not in ("suspend", "entrypoint")}
    assert rest == {name: TEMPLATE["spec"][name] for name in rest}
    names = {
        made_from(TEMPLATE, run=run, number=1, job={})["metadata"]["name"] for run in ("A:b", "a-b", "a=b", "n" * 128)
    }
    assert len(names) == 4  # runs that differ stay different, within the operator's 47 letters
    assert max(map(len, names)) <= 47
    assert "'a b'" in made_from(TEMPLATE, run="a b", number=1, job={})["spec"]["entrypoint"]  # quoted for the shell


@pytest.mark.parametrize("name", ["refresh", "train"])
def test_the_commands_of_our_templates_are_understood(name: str) -> None:
    template = yaml.safe_load((ROOT / "cluster" / "kubernetes" / "base" / f"{name}.yaml").read_text())
    made = made_from(template, run="2026-11-21", number=1, job={})
    program, *words = shlex.split(made["spec"]["entrypoint"])
    command = COMMANDS[words[0]]
    arguments = parse_arguments(words, command.help, command.options, import_module(command.module))
    assert (program, words[0]) == ("codebooks", name)
    assert arguments is not None
    assert arguments.run == {"refresh": "2026-11-21", "train": "train-2026-11-21"}[name]
    mounted = template["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert any(str(arguments.config).startswith(f"{mount['mountPath']}/") for mount in mounted)


def test_an_unfit_template_is_refused() -> None:
    spec = TEMPLATE["spec"]
    with pytest.raises(ConfigError, match="not suspended"):
        made_from({**TEMPLATE, "spec": {**spec, "suspend": False}}, run="r", number=1, job={})
    with pytest.raises(ConfigError, match=r"write --run \{run\} into it"):
        made_from({**TEMPLATE, "spec": {**spec, "entrypoint": "codebooks refresh"}}, run="r", number=1, job={})


ENDS = [
    (status(deployment="Complete", job="SUCCEEDED"), 0),
    (status("Job entrypoint command failed with exit code 4, last available logs (truncated to 20,000 chars):\nx"), 4),
    (status("Job entrypoint command failed with exit code 6, last available logs:\nexit code 4"), 6),
    (status("Job entrypoint command failed with exit code -9, last available logs:\n"), 6),
    (status("Job entrypoint command failed with exit code 137, last available logs:\n"), 6),
    (status("The job driver's node was lost"), 6),
    (status("Failed to set up the runtime_env: no such wheel"), 1),
    (status(job="STOPPED"), 6),
    (status("The RayJob has passed the activeDeadlineSeconds", job="RUNNING"), 6),
]


@pytest.mark.parametrize(("end", "code"), ENDS)
def test_how_it_ended(end: dict[str, Any], code: int) -> None:
    assert exit_code_of(end) == code


def test_a_night_that_needs_two_pods(
    served: tuple[type[Api], KubernetesApi], capsys: pytest.CaptureFixture[str]
) -> None:
    handler, api = served
    handler.ends += [ENDS[2][0], ENDS[0][0]]
    assert run_night(api, "refresh", "2026-11-21", job=OWNER) == 6
    assert run_night(api, "refresh", "2026-11-21", job=OWNER) == 0  # the Job's next pod: a RayJob of its own
    assert run_night(api, "refresh", "2026-11-21", job=OWNER) == 0  # a pod too many makes none
    assert [name for name in handler.jobs if name != "refresh"] == ["refresh-2026-11-21-1", "refresh-2026-11-21-2"]
    assert handler.seen.count("POST /apis/ray.io/v1/namespaces/shop/rayjobs") == 2
    assert "refresh-2026-11-21-1: exit code 6" in capsys.readouterr().err


def test_a_pod_that_died_is_followed_by_one_that_waits(served: tuple[type[Api], KubernetesApi]) -> None:
    handler, api = served
    going = made_from(TEMPLATE, run="2026-11-21", number=1, job=OWNER)
    handler.jobs["refresh-2026-11-21-1"] = {**going, "status": {"jobDeploymentStatus": "Running"}}
    timer = threading.Timer(0.1, lambda: handler.jobs["refresh-2026-11-21-1"].update(ENDS[0][0]))
    timer.start()
    assert run_night(api, "refresh", "2026-11-21", job=OWNER) == 0
    timer.join()
    assert len(handler.jobs) == 2


def test_what_the_api_says_becomes_an_error(served: tuple[type[Api], KubernetesApi]) -> None:
    handler, api = served
    with pytest.raises(ConfigError, match="no RayJob refesh in the namespace shop"):
        run_night(api, "refesh", "r", job=OWNER)
    for code, error in ((403, Forbidden), (422, ConfigError), (503, Unavailable)):
        handler.failing[:] = [code]
        with pytest.raises(error):
            run_night(api, "refresh", "r", job=OWNER)
    handler.failing[:] = []
    handler.ends.append(ENDS[0][0])
    made = made_from(TEMPLATE, run="r", number=1, job=OWNER)
    assert api.create("rayjobs", made)["metadata"]["name"] == "refresh-r-1"
    assert api.create("rayjobs", made)["metadata"]["name"] == "refresh-r-1"  # a lost answer, asked again


def test_outside_of_a_cluster_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert rayjob.main(["refresh", "--run", "2026-11-21"]) == 2
    assert "no Kubernetes around" in capsys.readouterr().err
