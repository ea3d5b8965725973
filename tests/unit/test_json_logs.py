"""`--log json`: one object a line on standard error, whoever wrote it, with the run, stage and shard it is about."""

from __future__ import annotations

import io
import json
import logging
import platform
import re
import sys
import warnings
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from jobs.__main__ import COMMANDS, RUN, Command, main
from jobs.command import Arguments, Outcome
from pipeline.errors import GateRefused
from pipeline.events import ShardEnded, StageBegan, StageEnded, tell
from pipeline.monitoring.logs import JsonLines
from pipeline.progress import Progress

FIELDS = {"time", "level", "message", "run", "stage", "shard", "node"}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = ModuleType("jobs_fake")
    monkeypatch.setitem(sys.modules, "jobs_fake", module)
    monkeypatch.setitem(COMMANDS, "fake", Command("Start here", "jobs_fake", "does something", RUN, makes_run=True))
    return module


def objects(text: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in text.splitlines()]
    assert all(set(said) >= FIELDS for said in found)
    return found


def test_everything_that_is_said_is_an_object(fake: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def run(_: Arguments) -> Outcome:
        progress = Progress()
        progress.note("index: flat")
        sys.stderr.write("half ")
        sys.stderr.write("a line\n")
        print("what a library prints")
        tell(StageBegan("encode", 10))
        tell(ended := ShardEnded("encode", 3, 10, 1, reused=False, node="far", seconds=2.0))
        progress.shard(ended)
        logging.getLogger("pipeline.x").info("of %s", "ours")
        logging.getLogger("theirs").info("not of interest")
        logging.getLogger("theirs").warning("theirs, https://me:hunter2hunter2@host/x")
        warnings.warn("old", UserWarning, stacklevel=1)
        with progress.stage("encode", total=10) as advance:
            advance(10)
        tell(StageEnded("encode", 2.0, 10))
        return Outcome(text="line one\nline two")

    fake.run = run
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["fake", "--run", "n", "--log", "json", "--json"]) == 0
    out, err = capsys.readouterr()
    json.loads(out)
    said = objects(err)
    messages = {each["message"]: each for each in said}
    assert {each["run"] for each in said} == {"n"}
    assert {each["node"] for each in said if each["shard"] is None} == {platform.node()}
    assert messages["index: flat"]["stage"] is None
    assert "half a line" in messages
    assert "what a library prints" in messages
    assert messages["of ours"]["level"] == "info"
    assert messages["of ours"]["logger"] == "pipeline.x"
    assert "not of interest" not in messages
    assert messages["theirs, https://***@host/x"]["level"] == "warning"
    assert messages["UserWarning: old"]["level"] == "warning"
    shard = messages["shard 3: 10 photos, 1 refused"]
    assert (shard["shard"], shard["stage"], shard["photos"], shard["node"]) == (3, "encode", 10, "far")
    assert sum("shard 3" in each["message"] for each in said) == 1
    assert messages["encode: ended after 2.0 s"]["seconds"] == 2.0
    assert messages["line one\nline two"]["stage"] is None
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", each["time"]) for each in said)


@pytest.mark.parametrize(
    ("error", "code", "level"), [(GateRefused("recall 0.5"), 4, "error"), (RuntimeError("odd"), 1, "error")]
)
def test_a_failure_is_an_error_and_a_traceback_one_object(
    fake: Any, capsys: pytest.CaptureFixture[str], error: Exception, code: int, level: str
) -> None:
    def run(_: Arguments) -> Outcome:
        raise error

    fake.run = run
    assert main(["fake", "--log=json"]) == code
    said = objects(capsys.readouterr().err)
    assert {each["level"] for each in said} == {level}
    assert said[-1]["message"].startswith("codebooks: ")
    assert len(said) == (2 if code == 1 else 1)
    assert said[-1]["run"] is not None


def test_a_wrong_command_line_is_logged_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["refresh", "--log", "json", "--nonsense"]) == 2
    (said,) = objects(capsys.readouterr().err)
    assert said["level"] == "error"
    assert main(["refresh", "--log", "xml"]) == 2
    assert "invalid choice: 'xml'" in capsys.readouterr().err


def test_lines_stay_text_where_nobody_asks(fake: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fake.run = lambda _: Outcome(text="plain")
    assert main(["fake"]) == 0
    assert capsys.readouterr().err == "plain\n"
    before = sys.stderr, logging.getLogger().handlers[:], warnings.showwarning
    assert main(["fake", "--log", "json"]) == 0
    assert (sys.stderr, logging.getLogger().handlers, warnings.showwarning) == before


def test_times_are_utc_and_what_is_half_said_is_not_lost() -> None:
    stream = io.StringIO()
    lines = JsonLines(stream, lambda: None, clock=lambda: datetime(2026, 11, 30, 1, 2, 3, 4000, UTC))
    lines.write("é without an end")
    assert stream.getvalue() == ""
    lines.finish()
    assert stream.getvalue().isascii()
    assert json.loads(stream.getvalue())["time"] == "2026-11-30T01:02:03.004Z"
    assert json.loads(stream.getvalue())["message"] == "é without an end"


def test_lines_of_another_process_of_ours_are_passed_on_as_they_are() -> None:
    there, here = io.StringIO(), io.StringIO()
    JsonLines(there, lambda: "far").write("encode: 5 photos\n")
    JsonLines(here, lambda: "near").write(there.getvalue())
    assert here.getvalue() == there.getvalue()
    JsonLines(here, lambda: "near").write('{"time": "half\n')
    assert objects(here.getvalue())[-1]["run"] == "near"


def test_libraries_that_ask_for_the_file_below_get_it(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        lines = JsonLines(file, lambda: None)
        assert lines.fileno() == file.fileno()
        assert not lines.isatty()
        assert lines.writable()
