"""What benchmarks measure with: times of questions, memory of processes, steps in processes of their own."""

from __future__ import annotations

import mmap
import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import steps, timing, watched


def test_questions_are_asked_in_their_order_and_timed_singly() -> None:
    asked: list[float] = []
    taken = timing.alone_ms(lambda seconds: (asked.append(seconds), time.sleep(seconds)), [0.0, 0.01, 0.0])
    assert asked == [0.0, 0.01, 0.0]
    assert taken[1] >= 10
    assert min(taken) >= 0
    assert len(taken) == 3


def test_quantiles_and_spreads_of_known_numbers() -> None:
    values = [float(n) for n in range(101, 0, -1)]
    assert timing.quantiles(values) == {"p50_ms": 51.0, "p99_ms": 100.0}
    assert timing.spread(values) == [51.0, 26.0, 76.0]
    assert timing.spread([0.12349, 3, 2], 0, 100, digits=3) == [2.0, 0.123, 3.0]


def test_memory_is_that_of_the_process_in_bytes() -> None:
    assert watched.held("VmRSS") == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)
    assert watched.held("VmHWM", os.getpid()) >= watched.held("RssAnon")


def test_a_process_that_ends_is_left_out() -> None:
    child = subprocess.Popen(["sleep", "30"])
    assert child.pid in watched.of_each(lambda process: process.pid)
    child.kill()
    child.wait()
    assert watched.of_each(lambda process: process.pid, child.pid) == []
    assert os.getpid() in watched.of_each(lambda process: process.pid)


def test_the_peak_of_a_step_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    seen = watched.Watched()
    # Fresh pages of the system's: of a long process's heap it may have 64 MiB, which it gives without growing.
    with seen.step("large"), mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        for start in range(0, len(held), mmap.PAGESIZE):
            held[start] = 1
    with seen.step("small"):
        pass
    large, small = seen.found["large"], seen.found["small"]
    assert large["peak_mib"] - small["peak_mib"] >= 50
    assert "large: " in capsys.readouterr().err


def test_a_step_apart_tells_its_last_line_and_its_failure(tmp_path: Path) -> None:
    program = tmp_path / "step.py"
    program.write_text(
        "import json, os, sys\nprint('noise')\nprint(json.dumps([sys.argv[1:], os.environ['WORD']]))\n"
        "sys.exit(int(sys.argv[1]))\n"
    )
    assert steps.apart(str(program), 0, tmp_path, WORD="told") == [["0", str(tmp_path)], "told"]
    with pytest.raises(SystemExit, match="3"):
        steps.apart(str(program), 3, WORD="told")
    program.write_text("")
    assert steps.apart(str(program)) is None
