"""`codebooks submit`: what travels, what is refused before anything runs, which job is found, how its end is told."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cluster.submit
import pipeline.stopping
from cluster.following import Log, ending_of, follow
from cluster.shipping import JobFile, pack, passed_variables
from cluster.submit import asked_command, job_name, runtime_environment
from jobs.__main__ import main
from pipeline.errors import ConfigError, Conflict, NotFound, Unavailable
from pipeline.stopping import stopping_on_signals
from pipeline.workers import PASSED, packages_hook

REFRESH = ["refresh", "store=s3://shop/visual", "catalogue.source=s3://shop/c.csv", "model.kind=vae"]
ANSWER = {"run": "r", "release": "r-1", "published": True, "reason": "published"}
SECRET = "never-in-any-log-0123456789"


class FakeDashboard:
    """A cluster's dashboard as a list of jobs; what it was handed is kept, with the files of its working folder."""

    def __init__(self, nodes: int = 1) -> None:
        self.address = "http://head:8265"
        self.known: list[Any] = []
        self.handed: list[dict[str, Any]] = []
        self.numbers = nodes
        self.taken = False
        self.client: Any = self
        self.log = "line one\n" + json.dumps(ANSWER) + "\nline two\n"

    def nodes(self) -> list[str]:
        return [f"10.0.0.{number}" for number in range(self.numbers)]

    def jobs(self) -> list[Any]:
        return self.known

    def job(self, submission_id: str) -> Any:
        found = [job for job in self.known if job.submission_id == submission_id]
        if not found:
            raise NotFound(f"{submission_id} does not exist")
        return found[0]

    def submit(self, submission_id: str, **settings: Any) -> bool:
        if self.taken:  # another submit was quicker
            self.taken = False
            self.add(submission_id, "RUNNING", settings["metadata"])
            return False
        folder = Path(settings["runtime_env"]["working_dir"])
        files = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
        self.handed.append({"id": submission_id, **settings, "files": files})
        self.add(submission_id, "SUCCEEDED", settings["metadata"], driver_exit_code=0)
        return True

    def add(self, submission_id: str, status: str, metadata: Any = None, **more: Any) -> None:
        said = {"driver_exit_code": None, "error_type": None, "message": "", "metadata": metadata, **more}
        self.known.append(SimpleNamespace(submission_id=submission_id, status=SimpleNamespace(value=status), **said))

    def stop(self, submission_id: str) -> None:
        self.job(submission_id).status = SimpleNamespace(value="STOPPED")

    async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
        for start in range(0, len(self.log), 7):
            yield self.log[start : start + 7]


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> FakeDashboard:
    fake = FakeDashboard()
    monkeypatch.setattr(cluster.submit, "Dashboard", lambda _: fake)
    for name in [name for name in os.environ if name.startswith(("AWS_", "CODEBOOKS__"))]:
        monkeypatch.delenv(name)
    return fake


def submitted(*words: str) -> int:
    return main(["submit", "--address", "http://head:8265", *words])


def test_what_travels_is_the_packages_the_config_and_named_variables(
    dashboard: FakeDashboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "shop.yaml"
    config.write_text("store: s3://shop/visual\ncatalogue: {source: s3://shop/c.csv}\nmodel: {kind: vae}\n")
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "private.py").write_text("never = 'sent'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_PROFILE", "of-this-machine")
    monkeypatch.setenv("CODEBOOKS__TRAIN__EPOCHS", "2")
    assert submitted("--pass", "AWS_*", "refresh", "--config", "shop.yaml", "--run", "2026-11-30") == 0
    (handed,) = dashboard.handed
    files = handed.pop("files")
    assert files["submitted/shop.yaml"] == config.read_text()
    assert {name.split("/")[0] for name in files} == {
        "pipeline", "jobs", "cluster", "submitted", next(name for name in files if "dist-info" in name).split("/")[0],
    }  # fmt: skip
    assert "pipeline/private.py" not in files
    assert "pipeline/report/page.html.j2" in files
    assert not any("__pycache__" in name for name in files)
    job = JobFile.model_validate_json(files["submitted/job.json"])
    assert job.environment == {"AWS_SECRET_ACCESS_KEY": SECRET, "CODEBOOKS__TRAIN__EPOCHS": "2"}
    assert job.words == ("refresh", "--config", "submitted/shop.yaml", "--run", "2026-11-30", "--json")
    assert SECRET not in str(handed), "what Ray is told, it logs and shows"
    assert handed["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "35"}
    said = capsys.readouterr().err
    assert "AWS_SECRET_ACCESS_KEY, CODEBOOKS__TRAIN__EPOCHS" in said
    assert SECRET not in said


@pytest.mark.slow
def test_the_packages_that_travel_are_whole(tmp_path: Path) -> None:
    """Run from the packed folder alone, in a process that knows no other."""
    folder = pack(tmp_path / "job", JobFile(words=("--version",), environment={}), None, code=True)
    assert stat.S_IMODE((folder / "submitted" / "job.json").stat().st_mode) == 0o600
    program = "import sys; sys.path.insert(0, '.'); from cluster.entry import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=folder, capture_output=True, text=True, timeout=120,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("visual-codebooks ")


def test_nothing_but_the_config_travels_where_the_image_holds_the_code(dashboard: FakeDashboard) -> None:
    assert submitted("--code", "image", *REFRESH) == 0
    assert set(dashboard.handed[0]["files"]) == {"submitted/job.json"}


@pytest.mark.parametrize(
    ("named", "says"),
    [
        (["NOT_SET_ANYWHERE"], "no such variable is set here"),
        (["AWS_X*"], "no such variable is set here"),
        (["PYTHONPATH"], "the cluster's own processes"),
        (["RAY_ADDRESS"], "the cluster's own processes"),
    ],
)
def test_variables_that_cannot_be_passed(named: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        passed_variables(named, {"PYTHONPATH": "x", "RAY_ADDRESS": "y", "AWS_REGION": "z"})


def test_a_pattern_leaves_out_what_names_this_machine_and_a_name_does_not() -> None:
    environment = {"AWS_REGION": "eu", "AWS_PROFILE": "me", "AWS_CONFIG_FILE": "/home/me/c", "OTHER": "1"}
    assert passed_variables(["AWS_*"], environment) == {"AWS_REGION": "eu"}
    assert passed_variables(["AWS_PROFILE"], environment) == {"AWS_PROFILE": "me"}


def test_workers_are_given_the_variables_inside_the_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSED, "AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    hook = packages_hook()
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    hook()
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == SECRET


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "name the command to submit"),
        (["refesh"], "there is no command 'refesh'"),
        (["--wait2", "refresh"], "unrecognized|no command '--wait2'"),
        (["submit", "plan"], "submit cannot be submitted"),
        (["demo"], "demo cannot be submitted: it works in a folder of this machine"),
        (["search", "photo.jpg"], "search cannot be submitted"),
        ([*REFRESH, "--wait"], "'--wait' is of submit and stands before the command"),
        ([*REFRESH, "train.epochs=0"], "train.epochs"),
        ([*REFRESH, "--run", "a/b"], "no run name"),
        (["choose", "--write", "best.yaml", *REFRESH[1:]], "--write names a file that choose would write"),
        ([*REFRESH[:3], "model.kind=pretrained", "model.weights=r18.pth"], "relative to a folder here"),
    ],
)
def test_commands_that_are_refused_before_anybody_is_asked(words: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        asked_command(words)


@pytest.mark.parametrize("nodes", [1, 3])
def test_a_local_store_is_refused_on_several_nodes_before_anything_is_handed_in(
    dashboard: FakeDashboard, nodes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    dashboard.numbers = nodes
    monkeypatch.chdir(tmp_path)
    code = submitted("refresh", "store=here", "catalogue.source=/data/c.csv", "model.kind=vae", "--run", "r")
    said = capsys.readouterr().err
    if nodes == 1:  # made absolute: the job works in a folder of its own
        assert code == 0
        words = json.loads(dashboard.handed[0]["files"]["submitted/job.json"])["words"]
        assert words[-1] == f'store.url="{tmp_path}/here"'
    else:
        assert code == 2
        assert f"store.url ('{tmp_path}/here'), catalogue.source ('/data/c.csv')" in said
        assert "has 3 nodes (10.0.0.0, 10.0.0.1, 10.0.0.2)" in said
        assert not dashboard.handed
        shared = f"cluster.shared_folders=[{tmp_path}, /data]"
        assert submitted("refresh", "store=here", "catalogue.source=/data/c.csv", "model.kind=vae", shared) == 0


def test_a_second_submit_finds_the_first_and_a_later_one_begins_anew(
    dashboard: FakeDashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*REFRESH, "--run", "2026-11-30"]
    assert submitted(*words) == 0
    name = dashboard.handed[0]["id"].removesuffix("-1")
    assert name.startswith("codebooks-refresh-2026-11-30-")
    dashboard.known[0].status = SimpleNamespace(value="RUNNING")
    assert submitted("--json", *words) == 0
    assert json.loads(capsys.readouterr().out)["attached"] is True
    assert len(dashboard.handed) == 1
    assert submitted(*words, "train.epochs=3") == 2
    assert "at work on run '2026-11-30' with other settings" in capsys.readouterr().err
    dashboard.known[0].status = SimpleNamespace(value="FAILED")
    assert submitted(*words) == 0
    assert dashboard.handed[1]["id"] == f"{name}-2"
    dashboard.taken = True  # two at one moment
    assert submitted(*words) == 0
    assert "found at work" in capsys.readouterr().err
    assert len(dashboard.handed) == 2


def test_other_runs_commands_and_stores_have_jobs_of_their_own() -> None:
    words = [*REFRESH, "--run", "a"]
    other_store = ["refresh", "store=s3://other/visual", *REFRESH[2:], "--run", "a"]
    asked = [words, [*REFRESH, "--run", "b"], other_store, ["train", *words[1:]]]
    assert len({job_name(asked_command(each)) for each in asked}) == 4
    assert job_name(asked_command(words)) == job_name(asked_command([*words, "train.epochs=3"]))


@pytest.mark.parametrize(
    ("status", "code", "kind", "expected", "says"),
    [
        ("SUCCEEDED", 0, None, 0, "published"),
        *[("FAILED", number, "JOB_ENTRYPOINT_COMMAND_ERROR", number, "published") for number in range(1, 7)],
        ("FAILED", -9, "JOB_ENTRYPOINT_COMMAND_ERROR", 6, "killed by SIGKILL"),
        ("FAILED", 137, "JOB_ENTRYPOINT_COMMAND_ERROR", 6, "killed by SIGKILL"),
        ("FAILED", 127, "JOB_ENTRYPOINT_COMMAND_ERROR", 1, "ended with 127"),
        ("FAILED", None, "JOB_SUPERVISOR_ACTOR_DIED", 6, "did not run to its end"),
        ("FAILED", None, "RUNTIME_ENV_SETUP_FAILURE", 2, "did not run to its end"),
        ("STOPPED", None, None, 6, "was stopped"),
    ],
)
def test_the_code_is_the_jobs_own(status: str, code: int | None, kind: str | None, expected: int, says: str) -> None:
    job = SimpleNamespace(status=status, driver_exit_code=code, error_type=kind, message="the log's end")
    ending = ending_of(job, ANSWER)
    assert (ending.exit_code, says in ending.text) == (expected, True), ending


def test_waiting_shows_the_log_and_answers_with_the_jobs_object(
    dashboard: FakeDashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submitted("--wait", "--json", *REFRESH, "--run", "r") == 0
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert {name: answer[name] for name in ANSWER} == ANSWER
    assert answer["submission_id"] == dashboard.handed[0]["id"]
    assert "line one\nline two\n" in said.err
    assert '"r-1"' not in said.err


def test_a_log_read_again_from_its_beginning_goes_on_where_it_stopped() -> None:
    lines: list[str] = []
    log = Log(lines.append)
    log.feed("one\ntw")
    log.restart()
    for piece in ("one", "\ntwo\nthr", "ee\n"):
        log.feed(piece)
    log.restart()
    log.feed("one\ntwo\nthree\nfour")
    log.end()
    assert "".join(lines) == "one\ntwo\nthree\nfour\n"


def test_a_secret_in_a_log_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    lines: list[str] = []
    Log(lines.append).feed(f"key {SECRET}\n")
    assert lines == ["key ***\n"]


@pytest.mark.parametrize(("answer", "stopped"), [(True, True), (False, False), (None, False)])
def test_ctrl_c_asks_before_the_job_is_stopped(answer: bool | None, stopped: bool) -> None:
    """answer: of the person at the terminal, None without one."""
    dashboard = FakeDashboard()
    dashboard.add("night", "RUNNING")
    interrupted: list[bool] = []

    async def tail(_: str) -> AsyncIterator[str]:
        if not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        yield "stopping\n"

    dashboard.tail_job_logs = tail  # type: ignore[method-assign]
    asked: list[str] = []

    def ask(question: str) -> bool:
        asked.append(question)
        return bool(answer)

    ending = follow(dashboard, "night", ask=None if answer is None else ask)
    assert ending.exit_code == 6
    assert len(asked) == (answer is not None)
    assert (dashboard.job("night").status.value == "STOPPED") is stopped
    assert ("goes on at http://head:8265" in ending.text) is not stopped


def test_a_head_that_forgot_the_job_is_a_reason_to_try_again() -> None:
    with pytest.raises(Unavailable, match="head was started anew; submit again"):
        follow(FakeDashboard(), "night", ask=None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("working_dir: .", "sets working_dir"),
        ("env_vars: {AWS_SECRET_ACCESS_KEY: x}", "shows on its dashboard"),
        ("- a", "no mapping"),
        ("{", "cannot be read as YAML"),
    ],
)
def test_runtime_environments_that_are_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "env.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        runtime_environment(str(file))


def test_the_address_of_the_command_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.dashboard import _naming, named_address

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:6379")
    assert named_address("http://head:8265") == "http://head:8265"
    assert named_address(None) == "10.0.0.9:6379"
    with _naming("http://head:8265"):
        assert (os.environ["RAY_API_SERVER_ADDRESS"], os.environ.get("RAY_ADDRESS")) == ("http://head:8265", None)
    assert os.environ["RAY_ADDRESS"] == "10.0.0.9:6379"
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="no cluster is named"):
        named_address(None)
    with pytest.raises(ConfigError, match="of Ray Client"):
        named_address("ray://head:10001")


def test_dead_nodes_neither_count_nor_make_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's filter on the state raises on a cluster that has lost a node, as seen on a real one."""
    import cluster.dashboard

    def list_nodes(*, filters: Any = None, raise_on_missing_output: bool = True, **_: Any) -> list[Any]:
        assert not raise_on_missing_output
        assert filters is None
        states = {"10.0.0.2": "ALIVE", "10.0.0.3": "DEAD", "10.0.0.1": "ALIVE"}
        return [SimpleNamespace(node_ip=ip, state=state) for ip, state in states.items()]

    monkeypatch.setattr(cluster.dashboard, "list_nodes", list_nodes)
    dashboard = object.__new__(cluster.dashboard.Dashboard)
    dashboard.address, dashboard.client = "http://head:8265", SimpleNamespace(_address="http://head:8265")
    assert dashboard.nodes() == ["10.0.0.1", "10.0.0.2"]


def test_what_the_dashboard_says_becomes_an_error_of_ours() -> None:
    import requests

    from cluster.dashboard import Dashboard

    dashboard = object.__new__(Dashboard)
    dashboard.address = "http://head:8265"

    def raising(error: Exception) -> Any:
        def question() -> None:
            raise error

        return lambda: dashboard._asked(question)

    for error, kind in (
        (ConnectionError("no"), Unavailable),
        (requests.exceptions.ReadTimeout("slow"), Unavailable),
        (RuntimeError("Request failed with status code 404: Job x does not exist."), NotFound),
        (RuntimeError("Request failed with status code 500: ... x already exists. Please use"), Conflict),
        (RuntimeError("Request failed with status code 500: No available agent"), Unavailable),
        (RuntimeError("Version check returned 404."), ConfigError),
    ):
        with pytest.raises(kind):
            raising(error)()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_real_signal_leaves_the_job_at_work(
    number: signal.Signals, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the command line runs it: our own handlers of both signals stand, one question is asked for Ctrl-C alone."""
    monkeypatch.setattr(pipeline.stopping, "LIMIT_S", 1e6)  # after which SIGTERM ends this very process
    dashboard = FakeDashboard()
    dashboard.add("night", "RUNNING")
    asked: list[str] = []

    async def quiet(_: str) -> AsyncIterator[str]:
        yield "begun\n"
        os.kill(os.getpid(), number)
        await asyncio.sleep(3600)

    dashboard.tail_job_logs = quiet  # type: ignore[method-assign]

    def ask(question: str) -> bool:
        time.sleep(0.1)  # a person is slow, and no timer may end the process meanwhile
        asked.append(question)
        return False

    began = time.monotonic()
    with stopping_on_signals(lambda: None):
        if number == signal.SIGINT:
            assert "goes on at" in follow(dashboard, "night", ask=ask).text
        else:
            with pytest.raises(KeyboardInterrupt):
                follow(dashboard, "night", ask=ask)
    assert time.monotonic() - began < 200
    assert len(asked) == (number == signal.SIGINT)
    assert dashboard.job("night").status.value == "RUNNING"
    assert ("goes on at http://head:8265" in capsys.readouterr().err) is (number == signal.SIGTERM)
