"""How a command meets a running cluster: with and without its token, from its host and from elsewhere, told exit codes.

A head that wants a token on one machine, commands from another (see machines.py). Prints one line a case, and ends with
1 where one is not as expected. Needs root.

    python tests/cluster/doors.py [--json results/doors.json]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from machines import ROOT, Machine, Network, children, made_on, wait_until
from shop import join

TOKEN = "0123456789abcdef0123456789abcdef"
WRONG = "f" * 32
# What joins a cluster as every computing command does, with the error's exit code.
JOIN = """
import sys
from jobs.ray_session import ray_session
from pipeline.errors import CodebooksError
from pipeline.nodes import ClusterConfig
import ray
try:
    with ray_session(ClusterConfig(address=sys.argv[1] or None), busy=1):
        print("joined", len(ray.nodes()), ray.get(ray.remote(lambda: 7).remote(), timeout=60))
except CodebooksError as error:
    print(error)
    sys.exit(error.exit_code)
"""
HELD = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}


def on(machine: Machine, name: str, *command: str, home_token: str = "", **variables: str) -> tuple[int, str]:
    """Run a command on a machine's own, empty files; home_token: in ~/.ray/auth_token."""
    save = f"mkdir -p ~/.ray; printf %s {home_token} > ~/.ray/auth_token; " if home_token else ""
    process = machine.start(
        name, "bash", "-c", f'{save}cd /root && exec "$@"', "desk", *command,
        seeds=[(machine.network.work / "checkout", "/root/checkout")], PYTHONPATH="/root/checkout", **variables,
    )  # fmt: skip
    return process.wrapper.wait(timeout=200), process.text()


def beside(machine: Machine, *command: str, **variables: str) -> tuple[int, str]:
    """Run a command among the processes of what was started first on a machine, as somebody logged in there would."""
    pid = str(children(machine.processes[0].wrapper.pid)[0])
    inside = ["nsenter", "-t", pid, "--mount", "--pid", "--net", "--uts", "--ipc"]
    home = {"HOME": "/root", "PATH": f"{sys.prefix}/bin:/usr/bin:/bin", "PYTHONPATH": "/root/checkout"}
    done = subprocess.run(
        [*inside, *command], env={**home, **variables}, capture_output=True, text=True, timeout=200, check=False
    )
    return done.returncode, done.stdout + done.stderr


def cases(head: Machine, desk: Machine, only: str) -> Iterator[tuple[str, tuple[int, str], int, str]]:
    """Yield each case whose name begins so: what it gave, the exit code that is expected, what it must say."""
    url, gcs = f"http://{head.ip}:8265", f"{head.ip}:6379"
    # Its own code is 3, for there is no release; `ray job submit` would end with 1.
    submit = ["codebooks", "submit", "--address", url, "--wait", "similar", "sku-1", "store=/root/nothing"]
    nobody = ["codebooks", "submit", "--address", f"http://{head.ip}:9999", "releases", "store=/x"]
    by = [sys.executable, "-c", JOIN]
    unlocked = {"RAY_AUTH_MODE": "disabled"}
    wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": WRONG}
    tried: list[tuple[str, Callable[[], tuple[int, str]], int, str]] = [
        ("submit with the token", lambda: on(desk, "right", *submit, **HELD), 3, "exit code 3"),
        (
            "submit with ~/.ray's token",
            lambda: on(desk, "home", *submit, home_token=TOKEN),
            3,
            "exit code 3",
        ),
        ("submit without a token", lambda: on(desk, "none", *submit), 2, "wants a token"),
        ("submit with a wrong token", lambda: on(desk, "wrong", *submit, **wrong), 2, "wants a token"),
        ("submit where nobody is", lambda: on(desk, "nobody", *nobody), 6, "no Ray dashboard answers"),
        ("join on the host, auto", lambda: beside(head, *by, "auto", **HELD), 0, "joined 1 7"),
        ("join on the host, by address", lambda: beside(head, *by, gcs, **HELD), 0, "joined 1 7"),
        ("join on the host without its token", lambda: beside(head, *by, gcs, **unlocked), 2, "wants a token"),
        ("a Ray of its own beside the running one", lambda: beside(head, *by, ""), 0, "joined 1 7"),
        ("join from another machine", lambda: on(desk, "far", *by, gcs, **HELD), 2, "codebooks submit"),
        ("join by the dashboard's address", lambda: on(desk, "url", *by, url, **HELD), 2, "codebooks submit"),
    ]
    for name, attempt, expected, words in tried:
        if name.startswith(only):
            yield name, attempt(), expected, words


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", help="cases whose name begins so")
    asked = parser.parse_args()
    work = Path(os.environ.get("CLUSTER_WORK", "/tmp/cluster-nights")).with_name("doors")
    with Network(2, work) as network:
        head, desk = network.machines
        join(desk)
        (work / "checkout").mkdir()
        files = subprocess.run(["git", "archive", "HEAD", "pipeline", "jobs", "cluster"], cwd=ROOT, capture_output=True)
        subprocess.run(["tar", "-x", "-C", str(work / "checkout")], input=files.stdout, check=True)
        head.start(
            "head", "ray", "start", "--head", "--block", f"--node-ip-address={head.ip}", "--dashboard-host=0.0.0.0",
            "--num-cpus=2", "--object-store-memory=100000000", seeds=[(work / "checkout", "/root/checkout")], **HELD,
        )  # fmt: skip
        wait_until("the head answers", lambda: _answers(f"http://{head.ip}:8265/api/version"), limit_s=120, every_s=1)
        results: list[dict[str, Any]] = []
        began = time.monotonic()
        for name, (code, text), expected, words in cases(head, desk, asked.only):
            right = code == expected and words in text
            results.append({"case": name, "code": code, "as_expected": right})
            print(f"{'right' if right else 'WRONG'}  {name}: {code}", flush=True)
            if not right:
                print(text[-3000:], flush=True)
        print(f"{len(results)} cases in {time.monotonic() - began:.0f} s")
    if asked.json:
        asked.json.write_text(json.dumps({**made_on(), "cases": results}, indent=1) + "\n")
    sys.exit(not all(result["as_expected"] for result in results))


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True  # it wants the token
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
