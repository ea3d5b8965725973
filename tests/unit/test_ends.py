"""How our process ends, whatever its terminal, disk, user and words are: by an exit code and never a traceback."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from jobs.__main__ import COMMANDS, RUN, Command, main
from jobs.command import Arguments, Outcome
from jobs.config import load_config
from pipeline.ends import full_disk
from pipeline.errors import ConfigError, InputError
from pipeline.process import Steady
from pipeline.storage import Files, open_store
from pipeline.storage.local import HOMELESS, expanded

ROOT = Path(__file__).resolve().parents[2]


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PY": sys.executable, **environment}
    done = subprocess.run(["sh", "-c", line], cwd=ROOT, env=env, capture_output=True, timeout=120)
    shown = (bytes.decode(said, errors="backslashreplace") for said in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(done.args, done.returncode, *shown)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = ModuleType("jobs_fake")
    monkeypatch.setitem(sys.modules, "jobs_fake", module)
    monkeypatch.setitem(COMMANDS, "fake", Command("Start here", "jobs_fake", "does something", RUN, makes_run=True))
    return module


def test_the_object_is_ascii_and_json_whatever_is_in_it(fake: Any, capsys: pytest.CaptureFixture[str]) -> None:
    details = {
        "name": "café \ud800 \U0001f600",
        "price": float("nan"),
        "all": [float("-inf"), 1],
        3: {Path("é"): b""},
    }
    fake.run = lambda _: Outcome(published=True, reason="published", details=details)
    assert main(["fake", "--json"]) == 0
    out = capsys.readouterr().out
    assert out.isascii()
    assert out.count("\n") == 1
    answer = json.loads(out, parse_constant=pytest.fail)
    assert answer["name"] == details["name"]
    assert (answer["price"], answer["all"], answer["3"]) == (None, [None, 1], {"é": "b''"})
    assert answer["published"] is True


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii:strict", "latin-1:strict", "cp1252"])
def test_terminals_of_any_encoding_get_every_word(tmp_path: Path, encoding: str) -> None:
    line = '"$PY" -m jobs releases --json "store=$STORE"'
    done = shell(line, STORE=str(tmp_path / "cafés \U0001f600"), PYTHONIOENCODING=encoding, LC_ALL="C")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["reason"] == "no releases"
    assert "has no releases yet" in done.stderr
    assert "\\U0001f600" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ("<&- >&- 2>&-", ""),
        (">/dev/full", "could not be written to standard output (No space left on device)"),
        ("2>/dev/full", ""),
    ],
)
def test_streams_that_cannot_be_written_change_no_exit_code(tmp_path: Path, ends: str, said: str) -> None:
    done = shell(f'"$PY" -m jobs releases --json "store=$STORE" {ends}', STORE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_reader_that_leaves_does_not_end_the_run() -> None:
    """`codebooks refresh 2>&1 | head -1` ended with 0, and nothing was published."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as raw:  # noqa: PTH123  a number, not a path
        stream = Steady(raw, encoding="ascii", errors="backslashreplace", line_buffering=True)
        assert stream.write("one é\n") == 6
        assert stream.lost == os.strerror(errno.EPIPE)
        stream.write("two\n")
        stream.flush()


class WorkerError(Exception):
    """As Ray's errors carry the worker's: neither `raise from` nor an errno of their own."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__("a worker failed")
        self.cause = cause


@pytest.mark.parametrize("wrap", [lambda error: error, WorkerError], ids=["here", "worker"])
def test_a_full_disk_is_temporary_and_named(fake: Any, capsys: pytest.CaptureFixture[str], wrap: Any) -> None:
    def run(_arguments: Arguments) -> Outcome:
        raise wrap(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/scratch/x"))

    fake.run = run
    assert main(["fake", "--json"]) == 6
    said = capsys.readouterr()
    assert json.loads(said.out)["error"].startswith("there is no room left on the disk of /scratch/x")
    assert "Traceback" not in said.err
    assert full_disk(OSError(errno.EIO, "other")) is None


BAD_WORDS = [
    ["--config", "x" * 5000],
    ["--config", "/"],
    ["--config", "~nobody-of-this-name/x.yaml"],
    ["--config", "\udce9.yaml"],
    ["train.epochs=2024-13-45"],
    ["train.epochs=" + "[" * 5000],
    ["train.epochs=" + "9" * 5000],
    ["train.epochs=!!python/object:os.system {}"],
    ["train.epochs=&a [*a]"],
    ["train.epochs={[1]: 2}"],
    ["train.epochs=.nan"],
    ["publish.channel=[]"],
    ["train.epochs=\udce9"],
    ['store="/tmp/a\\0b"'],
    ['store="/tmp/\\ud800"'],
    ["store=~nobody-of-this-name/x"],
    ["store="],
    ["store=file://elsewhere/x"],
    ["=1"],
    ["a..b=1"],
    ["\0=1"],
    ["store=/tmp", "--channel", "../x"],
    ["store=/tmp", "--channel", "x\0y"],
    ["store=/tmp", "--channel", "\udce9"],
    ["store=/tmp", "--last", "9" * 5000],
    ["store=/tmp", "--last", "x"],
]


@pytest.mark.parametrize("words", BAD_WORDS, ids=lambda words: ascii(" ".join(words))[:40])
def test_words_that_mean_nothing_are_exit_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["releases", "--json", *words])
    said = capsys.readouterr()
    assert code in (2, 3), said.err
    assert "Traceback" not in said.err
    assert json.loads(said.out)["exit_code"] == code


@pytest.mark.parametrize(
    "value", ["[]", "{a: {b: 1}}", "!!set {a}", ".inf", "1" * 60, '"\\ud800"', "2024-01-01", "null"]
)
@pytest.mark.parametrize(
    "path", ["model.kind", "index.kind", "train.epochs", "catalogue.attributes", "store.url", "gates"]
)
def test_settings_of_any_value_are_used_or_refused(path: str, value: str) -> None:
    words = ("store=/x", "catalogue.source=/x", "model.kind=descriptor", f"{path}={value}")
    with contextlib.suppress(ConfigError):
        assert load_config(Arguments(overrides=words), {}).model_dump()


@pytest.mark.parametrize("name", ["../x", "a/b", "", "x" * 5000, "\0", "\udce9", ".", "a b"])
def test_runs_of_any_name_are_refused_or_run(fake: Any, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    fake.run = lambda arguments: Outcome(run=arguments.run)
    assert main(["fake", "--json", "--run", name]) == 2
    assert json.loads(capsys.readouterr().out)["run"] == name


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1.5", "9" * 5000, ""])
def test_limits_are_positive_numbers(fake: Any, limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    fake.run = lambda _: Outcome()
    assert main(["fake", "--json", f"--limit={limit}"]) == 2
    assert json.loads(capsys.readouterr().out)["exit_code"] == 2


def test_a_config_file_of_any_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "night.yaml"
    for data in (
        b"\xff\xfe",
        b"\0",
        b"[" * 5000,
        b"store: 2024-13-45",
        b'store: "\\ud800"',
        b"- a",
        b"a: &x [*x]",
        b"\x80",
    ):
        path.write_bytes(data)
        assert main(["releases", "--config", str(path)]) == 2, data[:20]
        assert str(path) in capsys.readouterr().err, data[:20]


@pytest.mark.parametrize("uri", ["/tmp/a\0b.jpg", "file:///tmp/a%00b.jpg", "/tmp/a\0/b.jpg", "/tmp/\ud800.jpg"])
def test_uris_that_no_system_call_takes_are_refused(uri: str) -> None:
    for ask in (Files().read, Files().stat, Files().open):
        with pytest.raises((ConfigError, ValueError), match=r"NUL|UTF-8"):
            ask(uri)


def test_folders_of_names_too_long_to_be_there_are_refused(tmp_path: Path) -> None:
    for name in ("x" * 5000, "x" * 300, "x/" * 3000):
        with pytest.raises(InputError, match="File name too long"):
            list(Files().list(f"{tmp_path}/{name}"))


def test_a_home_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/x") == Path("/home/me/x")
    assert expanded("a~b") == Path("a~b")
    monkeypatch.setenv(HOMELESS, "1")
    for path in ("~/x", "~", "~nobody-of-this-name/x"):
        with pytest.raises(ConfigError, match="home that is not there; write it whole"):
            open_store(path)


@pytest.mark.slow
def test_a_user_without_name_and_home_can_import_everything(tmp_path: Path) -> None:
    """As in a container under any uid. `ray.train` expands `~` while it is imported."""
    as_stranger = ["unshare", "-U", "--map-user=54321", "--map-group=54321"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*as_stranger, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("needs user namespaces")
    environment = {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "PATH": os.environ["PATH"]}

    def stranger(*words: str) -> subprocess.CompletedProcess[str]:
        asked = [*as_stranger, sys.executable, *words]
        return subprocess.run(asked, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    # The line of ray/train/constants.py, and the question that torch's compiler asks; Ray itself would cost seconds.
    asking = "import pathlib, getpass; pathlib.Path('~/ray_results').expanduser(); print(getpass.getuser())"
    assert "Could not determine home directory" in stranger("-c", asking).stderr
    done = stranger("-c", f"from pipeline.process import settle; settle(); {asking}")
    assert done.stdout.strip() == "uid-54321", done.stderr
    done = stranger("-m", "jobs", "releases", "store=~/x")
    assert (done.returncode, "home that is not there" in done.stderr) == (2, True), done.stderr
