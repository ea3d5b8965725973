"""Progress: bars on a terminal, plain lines at most every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import termios
import time
from types import SimpleNamespace

import pytest

from pipeline.events import ShardEnded
from pipeline.progress import Progress
from pipeline.training import TrainProgress


def test_progress_off_a_terminal_is_lines_at_most_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, now = io.StringIO(), [100.0]
    monkeypatch.setattr("pipeline.progress.time", SimpleNamespace(monotonic=lambda: now[0]))
    progress = Progress(stream, every_s=5.0)
    with progress.stage("encode", total=100) as advance:
        for _ in range(10):
            now[0] += 1.5
            advance(10)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3  # after 6 s, after 12 s and at the end
    assert lines[0].startswith("encode: ")
    assert "of 100 photos" in lines[0]
    assert lines[-1].startswith("encode: 100 photos in ")
    progress.note("index: flat")
    assert stream.getvalue().endswith("index: flat\n")


def test_progress_on_a_terminal_is_a_bar() -> None:
    stream = io.StringIO()
    with Progress(stream, bars=True).stage("encode", total=100) as advance:
        advance(100)
    assert "100/100" in stream.getvalue()


def test_training_progress_in_lines_and_bars() -> None:
    def at(step: int) -> TrainProgress:
        return TrainProgress(
            step=step, total_steps=20, epoch=1, epochs=2, loss=1.25, parts={"kl": 0.5}, learning_rate=0.1,
            images_per_s=1234.0, seconds_left=75.0,
        )  # fmt: skip

    stream = io.StringIO()
    progress = Progress(stream, every_s=1000)
    for step in range(1, 21):
        progress.training(at(step))
    lines = stream.getvalue().splitlines()
    assert lines[-1] == "train: epoch 1/2, step 20/20, loss 1.25 (kl 0.5), 1,234 photos/s, 1 min 15 s left"
    assert len(lines) == 2  # the first one, so that a log shows it has begun, and the last
    stream = io.StringIO()
    validated = Progress(stream)
    validated.training(dataclasses.replace(at(20), validation={"validation/total": 2.5, "validation/ssim": 0.5}))
    assert ", loss 1.25 (kl 0.5), held out 2.5, 1,234 photos/s" in stream.getvalue()
    stream = io.StringIO()
    bars = Progress(stream, bars=True)
    bars.training(at(10))
    bars.training(at(20))
    assert "20/20" in stream.getvalue()


@pytest.mark.parametrize(("columns", "shown"), [(0, "pixels: 5 photos"), (80, "100%|")])
def test_a_terminal_gets_bars_unless_it_has_no_width(columns: int, shown: str) -> None:
    parent, child = os.openpty()
    termios.tcsetwinsize(child, (24, columns))
    with os.fdopen(child, "w") as terminal:
        progress = Progress(terminal)
        with progress.stage("pixels", total=5) as advance:
            advance(5)
        terminal.flush()
        text, deadline = "", time.monotonic() + 100
        os.set_blocking(parent, False)
        while shown not in text and time.monotonic() < deadline:  # a terminal hands on what was written bit by bit
            with contextlib.suppress(BlockingIOError):
                text += os.read(parent, 65536).decode()
            time.sleep(0.01)
    os.close(parent)
    assert shown in text


def test_a_log_says_where_each_shard_was_done_and_what_its_process_said() -> None:
    ended = ShardEnded("encode", 3, 10, 1, reused=False, node="node2", seconds=1.25, said=("WARNING pipeline.x: slow",))
    stream = io.StringIO()
    Progress(stream).shard(ended)
    assert stream.getvalue() == (
        "encode: shard 3 on node2: 10 photos, 1 refused, 1.2 s\n"
        "encode: shard 3 on node2 said: WARNING pipeline.x: slow\n"
    )
    stream = io.StringIO()
    Progress(stream, bars=True).shard(ended)
    Progress(stream).shard(dataclasses.replace(ended, node=""))  # done in this process
    assert stream.getvalue() == ""
