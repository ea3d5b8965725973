"""The command line: exit codes, one JSON object, help, signals, and the commands that look at releases."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.__main__ import COMMANDS, CONFIG, EXIT_CODES, RUN, Command, main, overview
from jobs.command import Arguments, Outcome
from pipeline import errors
from pipeline.release import publish, read_head, read_log, write_release
from pipeline.schema import items_schema
from pipeline.storage import Store, open_store

ROOT = Path(__file__).resolve().parents[2]
ALWAYS = {"run", "release", "published", "reason"}


def codebooks(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs", *words],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Add a command `fake` to the table; call with its run() to set what it does."""
    module = ModuleType("jobs_fake")
    monkeypatch.setitem(sys.modules, "jobs_fake", module)
    monkeypatch.setitem(COMMANDS, "fake", Command("Start here", "jobs_fake", "does something", RUN, makes_run=True))

    def set_run(run: Any, add_arguments: Any = None) -> None:
        module.run = run  # type: ignore[attr-defined]
        if add_arguments is not None:
            module.add_arguments = add_arguments  # type: ignore[attr-defined]

    return set_run


def raising(error: BaseException) -> Any:
    def run(_arguments: Arguments) -> Outcome:
        raise error

    return run


def test_help_shows_every_command_an_example_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert text == overview()
    assert all(f"  {name} " in text for name in COMMANDS)
    assert all(f"\n  {code}  " in text for code in EXIT_CODES)
    assert "codebooks refresh --config" in text
    assert max(len(line) for line in text.splitlines()) <= 110
    assert main([]) == 2


def test_every_error_has_an_exit_code_of_the_table() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert {value.exit_code for value in classes if hasattr(value, "exit_code")} <= set(EXIT_CODES)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("similar", "search", "explain")])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: codebooks {command}")
    assert "--json" in text


def test_an_unknown_command_shows_the_near_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["relases"]) == 2
    assert "did you mean 'releases'?" in capsys.readouterr().err
    assert main(["--json", "releases"]) == 2
    taken = capsys.readouterr()
    assert "stands before the command" in taken.err
    assert json.loads(taken.out)["exit_code"] == 2


@pytest.mark.parametrize("words", [["--rum", "x"], ["--limit", "0"], ["--limit", "x"], ["word"], ["--run"]])
def test_usage_errors_are_2_with_a_json_object(fake: Any, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    fake(lambda arguments: Outcome())
    assert main(["fake", "--json", *words]) == 2
    taken = capsys.readouterr()
    found = json.loads(taken.out)
    assert ALWAYS | {"error", "exit_code"} == set(found)
    assert found["reason"] == "usage or config"
    assert main(["fake", "--json", "--run", "night", *words]) == 2
    assert json.loads(capsys.readouterr().out)["run"] == "night"
    assert "codebooks fake --help" in taken.err


def test_arguments_may_stand_in_any_order(fake: Any) -> None:
    seen: list[Arguments] = []

    def run(arguments: Arguments) -> Outcome:
        seen.append(arguments)
        return Outcome()

    fake(run, lambda parser: parser.add_argument("thing"))
    assert main(["fake", "a=1", "--config", "c.yaml", "b.c=2", "--run", "n", "--limit", "5", "d=3"]) == 0
    assert main(["fake", "sku-1", "a=1", "--config", "c.yaml", "b.c=2", "--run", "n", "--limit", "5", "d=3"]) == 0
    assert seen[1] == Arguments("c.yaml", "n", 5, ("a=1", "b.c=2", "d=3"), json=False, options=seen[1].options)
    assert seen[1].options == argparse.Namespace(thing="sku-1")


def test_an_outcome_becomes_text_and_one_object(fake: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def run(arguments: Arguments) -> Outcome:
        print("a library that prints")
        return Outcome(
            run=arguments.run, release="r-1", published=True, reason="published", details={"photos": 3}, text="all well"
        )

    fake(run)
    assert main(["fake", "--run", "night", "--json"]) == 0
    taken = capsys.readouterr()
    assert json.loads(taken.out) == {
        "run": "night", "release": "r-1", "published": True, "reason": "published", "photos": 3,
    }  # fmt: skip
    assert taken.out.count("\n") == 1
    assert taken.err == "a library that prints\nall well\n"
    assert main(["fake"]) == 0
    taken = capsys.readouterr()
    assert taken.out == ""


def test_a_run_without_a_name_gets_a_time_stamp(fake: Any) -> None:
    names: list[str | None] = []

    def run(arguments: Arguments) -> Outcome:
        names.append(arguments.run)
        return Outcome()

    fake(run)
    assert main(["fake"]) == 0
    assert main(["fake"]) == 0
    assert all(name is not None and name.startswith("20") for name in names)
    assert names[0] != names[1]
    assert main(["fake", "--run", "a/b"]) == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("x"), 2),
        (errors.InputError("x"), 3),
        (errors.NotFound("x"), 3),
        (errors.IntegrityError("x"), 3),
        (errors.UnknownItem("x"), 3),
        (errors.GateRefused("x"), 4),
        (errors.Conflict("x"), 5),
        (errors.Unavailable("x"), 6),
        (KeyboardInterrupt(), 6),
        (SystemExit(1), 6),
        (ZeroDivisionError("x"), 1),
    ],
)
def test_errors_become_exit_codes(
    fake: Any, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    fake(raising(error))
    assert main(["fake", "--json", "--run", "night"]) == code
    taken = capsys.readouterr()
    found = json.loads(taken.out)
    assert ALWAYS | {"error", "exit_code"} == set(found)
    assert (found["run"], found["release"], found["published"]) == ("night", None, False)
    assert (found["exit_code"], found["reason"]) == (code, EXIT_CODES[code][0])
    assert ("Traceback" in taken.err) == (code == 1)


def test_a_missing_package_is_named_with_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "fake", Command("x", "jobs.fake_that_needs", "x", CONFIG))

    def missing(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("importlib.import_module", missing)
    assert main(["fake"]) == 2
    assert (
        "needs 'torch', which is not installed; run `pip install 'visual-codebooks[run,cpu]'`"
        in capsys.readouterr().err
    )


LIGHT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "ray", "torchvision", "PIL", "psutil", "tqdm", "onnxruntime"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
from jobs.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["releases"],
        ["rollback"],
        ["history"],
        ["explain", "a"],
        ["init", "x.csv"],
        ["similar", "a"],
        ["doctor"],
        ["--help"],
    ],
)
def test_light_commands_need_neither_torch_nor_ray(tmp_path: Path, words: list[str]) -> None:
    place = [f"store={tmp_path / 'store'}"] if words[0] not in ("init", "doctor", "--help") else []
    done = subprocess.run([sys.executable, "-c", LIGHT, *words, *place], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 3), done.stderr
    assert "not installed; run" not in done.stderr or words[0] == "doctor"


def test_a_heavy_command_without_torch_says_what_to_install(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT, "refresh", "--json"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "visual-codebooks[run,cpu]" in json.loads(done.stdout)["error"]


WAITING = """
import sys, time
from types import ModuleType
from pathlib import Path
import pipeline.stopping
from jobs.__main__ import COMMANDS, Command, RUN, main
from jobs.command import Outcome
from pipeline.runs import open_run
from pipeline.storage import open_store

def polite(arguments):
    with open_run(open_store(sys.argv[1]), arguments.run).begin("a: 1"):
        print("ready", file=sys.stderr, flush=True)
        while True:
            try:
                time.sleep(60)
            except Exception:
                pass

def stubborn(arguments):
    until = time.monotonic() + 300
    while time.monotonic() < until:
        try:
            # Inside the try, or the signal could come just before it.
            print("ready", file=sys.stderr, flush=True)
            time.sleep(60)
        except BaseException:
            pass

pipeline.stopping.LIMIT_S = float(sys.argv[3])
module = ModuleType("jobs_fake")
module.run = {"polite": polite, "stubborn": stubborn}[sys.argv[2]]
sys.modules["jobs_fake"] = module
COMMANDS["fake"] = Command("x", "jobs_fake", "waits", RUN, makes_run=True)
sys.exit(main(["fake", "--run", "night", "--json"]))
"""


def waiting(store: Path, behaviour: str, limit_s: float = 25.0) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(store), behaviour, str(limit_s)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unwinds_lets_go_of_the_run_and_exits_6(tmp_path: Path, number: signal.Signals) -> None:
    process = waiting(tmp_path / "store", "polite", limit_s=1000)  # only unwinding ends it sooner
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 6, err
    found = json.loads(out)
    assert found.pop("error").startswith(f"stopped by {number.name}; what is finished stays")
    reason = "temporary, try again"
    assert found == {"run": "night", "release": None, "published": False, "reason": reason, "exit_code": 6}
    assert json.loads((tmp_path / "store/runs/night/heartbeats/1.ended").read_text()) == {"attempt": 1, "ended": True}


@pytest.mark.slow
def test_a_second_signal_ends_the_process_on_the_spot(tmp_path: Path) -> None:
    process = waiting(tmp_path / "store", "stubborn", limit_s=1000)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    while process.stderr.readline() != "ready\n":  # again, after what the first one raised
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 6
    assert json.loads(out)["exit_code"] == 6


@pytest.mark.slow
def test_code_that_does_not_let_go_is_ended_after_the_limit(tmp_path: Path) -> None:
    process = waiting(tmp_path / "store", "stubborn", limit_s=1.0)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 6
    assert json.loads(out)["reason"] == "temporary, try again"


def publish_small(store: Store, name: str, head: int, items: int) -> None:
    sink = io.BytesIO()
    pq.write_table(items_schema([]).empty_table(), sink)
    written = write_release(
        store, release_id=name, files={"items": (sink.getvalue(), ".parquet", 0)}, parts=(), release_key="0" * 64,
        run=name.split("-")[0], attempt=1, parent=None, model_id="m", model_kind="vae", latent_dim=3, transform_id="t",
        metric="l2", index_kind="flat", code_version="0", counts={"items": items, "photos": 2 * items, "refused": 1},
    )  # fmt: skip
    publish(
        store, "stable", expected_head=head, release_id=name, manifest_sha256=written.manifest_sha256,
        run=written.manifest.run, attempt=1,
    )  # fmt: skip


@pytest.fixture
def three(tmp_path: Path) -> Store:
    """A store with three releases on `stable`."""
    store = open_store(str(tmp_path / "store"))
    for number, name in enumerate(["mon-a", "tue-b", "wed-c"]):
        publish_small(store, name, number, items=1000 * (number + 1))
    return store


def test_releases_lists_the_log_and_marks_the_current_one(three: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rollback", f"store={three.url}"]) == 0
    three.delete("releases/mon-a/manifest.json")
    capsys.readouterr()
    assert main(["releases", f"store={three.url}", "--json"]) == 0
    taken = capsys.readouterr()
    found = json.loads(taken.out)
    assert (found["release"], found["reason"], found["channel"]) == ("tue-b", "listed", "stable")
    assert [row["release"] for row in found["releases"]] == ["mon-a", "tue-b", "wed-c", "tue-b"]
    assert [row["current"] for row in found["releases"]] == [False, False, False, True]
    assert [row["expired"] for row in found["releases"]] == [True, False, False, False]
    assert found["releases"][3]["reason"] == "rollback"
    lines = taken.err.splitlines()
    assert lines[1].split() == ["number", "created", "(UTC)", "release", "reason", "items", "photos", "refused"]
    assert lines[2].split()[0] == "1"
    assert "mon-a (expired)" in lines[2]
    assert lines[5].split()[:2] == ["*", "4"]
    assert lines[5].endswith("2,000   4,000        1")
    assert main(["releases", f"store={three.url}", "--last", "1", "--json"]) == 0
    taken = capsys.readouterr()
    assert len(json.loads(taken.out)["releases"]) == 1
    assert "3 older entries are left out" in taken.err


def test_releases_of_an_empty_channel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["releases", f"store={tmp_path / 'store'}", "--channel", "canary", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["release"], found["releases"], found["channel"]) == (None, [], "canary")
    assert not (tmp_path / "store").exists()


def test_rollback_to_the_one_before_and_to_a_name(three: Store, capsys: pytest.CaptureFixture[str]) -> None:
    place = f"store={three.url}"
    assert main(["rollback", place, "--json"]) == 0
    taken = capsys.readouterr()
    found = json.loads(taken.out)
    assert (found["release"], found["before"], found["number"], found["published"]) == ("tue-b", "wed-c", 4, True)
    assert "codebooks rollback --channel stable --to wed-c" in taken.err
    assert main(["rollback", place, "--to", "mon-a"]) == 0
    assert main(["rollback", place, "--to", "mon-a", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["reason"], found["published"], found["number"]) == ("nothing to do", False, 5)
    assert main(["rollback", place]) == 2
    assert main(["rollback", place, "--to", "nope"]) == 3
    assert main(["rollback", place, "--channel", "canary"]) == 3
    assert len(read_log(three, "stable")) == 5
    head = read_head(three, "stable")
    assert head is not None
    assert head.release_id == "mon-a"


def test_a_command_without_a_store_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CODEBOOKS__STORE", raising=False)
    assert main(["releases"]) == 2
    assert "store: is missing" in capsys.readouterr().err


@pytest.mark.slow
def test_the_same_as_a_process(three: Store) -> None:
    done = codebooks("releases", "--json", env={"CODEBOOKS__STORE": three.url})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["release"] == "wed-c"
    assert "* " in done.stderr
    done = codebooks("nonsense")
    assert (done.returncode, done.stdout) == (2, "")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("visual-codebooks ")
