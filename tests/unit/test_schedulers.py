"""The cron wrapper with a program that ends as told, and the files for schedulers as far as they can be read here."""

from __future__ import annotations

import ast
import fcntl
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cluster.manifest_values import cron_problem

SCHEDULERS = Path(__file__).resolve().parents[2] / "cluster" / "schedulers"
NIGHT = SCHEDULERS / "night.sh"

# Notes its arguments, then ends with the next of its codes; `kill` is a death by signal.
PROGRAM = """#!/bin/bash
echo "$*" >> "$FOLDER/seen"
code=$(sed -n "$(wc -l < "$FOLDER/seen")p" "$FOLDER/codes")
[ "$code" = kill ] && kill -KILL $$
exit "$code"
"""


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "FOLDER": str(folder), "LOCKS": str(folder), "PAUSE_S": "0", **more}


def night(folder: Path, *codes: object, **more: str) -> tuple[int, list[str], str]:
    """Return the exit code, the command lines that were run, and what was said."""
    program = folder / "codebooks"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    (folder / "seen").write_text("")
    (folder / "codes").write_text("".join(f"{code}\n" for code in codes))
    command = [str(NIGHT), str(program), "refresh", "--config", "a b.yaml"]
    done = subprocess.run(command, env=environment(folder, **more), capture_output=True, text=True, timeout=200)
    return done.returncode, (folder / "seen").read_text().splitlines(), done.stderr


@pytest.mark.parametrize(
    ("codes", "code", "tries"),
    [
        ([0], 0, 1),
        ([6, 6, 0], 0, 3),
        (["kill", 0], 0, 2),
        ([137, 0], 0, 2),
        ([6, 4], 4, 2),
        *(([code, 0], code, 1) for code in (1, 2, 3, 4, 5)),
        ([6, 6, 6, 6, 0], 6, 4),
    ],
)
def test_what_is_tried_again(tmp_path: Path, codes: list[object], code: int, tries: int) -> None:
    found, seen, _ = night(tmp_path, *codes, RUN="2026-11-20")
    assert (found, len(seen)) == (code, tries)
    assert set(seen) == {"refresh --config a b.yaml --run 2026-11-20 --json"}  # a retry has the same run


def test_the_run_is_today_unless_said(tmp_path: Path) -> None:
    before = time.strftime("%Y-%m-%d")
    _, (line,), _ = night(tmp_path, 0)
    assert re.search(r"--run (\S+)", line)[1] in {before, time.strftime("%Y-%m-%d")}  # type: ignore[index]


def test_a_night_waits_for_none_before_it(tmp_path: Path) -> None:
    with (tmp_path / f"codebooks-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, seen, said = night(tmp_path, 0)
    assert (code, seen) == (6, [])
    assert "still at work" in said


def test_the_environment_comes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "environment").write_text(f"FOLDER='{tmp_path}'\nRETRIES=0\n")
    code, seen, _ = night(tmp_path, 0, ENVIRONMENT=str(tmp_path / "environment"))
    assert (code, len(seen)) == (0, 1)
    code, seen, said = night(tmp_path, 0, ENVIRONMENT=str(tmp_path / "absent"))
    assert (code, seen) == (2, [])
    assert str(tmp_path / "absent") in said


def test_sigterm_reaches_the_program_and_ends_the_night(tmp_path: Path) -> None:
    program = tmp_path / "codebooks"
    program.write_text("#!/bin/bash\ntrap 'echo told > \"$FOLDER/told\"; exit 6' TERM\ntouch \"$FOLDER/on\"\n"
                       "while :; do sleep 0.02; done\n")  # fmt: skip
    program.chmod(0o755)
    with subprocess.Popen([str(NIGHT), str(program), "refresh"], env=environment(tmp_path)) as running:
        while not (tmp_path / "on").exists():
            time.sleep(0.01)
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=200) == 6
    assert (tmp_path / "told").exists()


def test_the_crontab_can_be_read() -> None:
    lines = (SCHEDULERS / "crontab").read_text().splitlines()
    jobs = [line.removeprefix("# ") for line in lines if re.match(r"(# )?[*0-9]+ [*0-9]+ ", line)]
    assert [cron_problem(" ".join(line.split()[:5])) for line in jobs] == [None, None, None]
    assert not any("%" in line for line in jobs)  # ends a command in a crontab
    named = {line.partition("=")[0] for line in lines if re.match(r"[A-Z]+=", line)}
    assert set(re.findall(r"\$(\w+)", " ".join(jobs))) <= named


def test_the_dag_imports_nothing_of_ours() -> None:
    """It is read in Airflow's own environment; make test-schedulers runs it there."""
    tree = ast.parse((SCHEDULERS / "airflow_dag.py").read_text())
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    named |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in named} & {"pipeline", "jobs", "cluster"}
