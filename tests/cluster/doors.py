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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machines import ROOT, Machine, Network, children, wait_until
from nights import join

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


def cases(head: Machine, desk: Machine) -> Iterator[tuple[str, tuple[int, str], int, str]]:
    """Yield each case: its name, what it gave, the exit code that is expected, and words that it must say."""
    url, gcs = f"http://{head.ip}:8265", f"{head.ip}:6379"
    submit = ["codebooks", "submit", "--address", url, "--wait", "releases", "store=/root/nothing"]
    join_by = [sys.executable, "-c", JOIN]
    open_door = {"RAY_AUTH_MODE": "disabled"}
    wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": WRONG}
    yield "join on the host, auto", beside(head, *join_by, "auto", **HELD), 0, "joined 1 7"
    yield "join on the host, by address", beside(head, *join_by, gcs, **HELD), 0, "joined 1 7"
    yield "join on the host without its token", beside(head, *join_by, gcs, **open_door), 2, "wants a token"
    yield "a Ray of its own beside the running one", beside(head, *join_by, ""), 0, "joined 1 7"
    yield "join from another machine", on(desk, "far", *join_by, gcs, **HELD), 2, "codebooks submit"
    yield "join by the dashboard's address", on(desk, "url", *join_by, url, **HELD), 2, "codebooks submit"
    yield "submit without a token", on(desk, "none", *submit), 2, "wants a token"
    yield "submit with a wrong token", on(desk, "wrong", *submit, **wrong), 2, "wants a token"
    # The job's own code: there is no store at that path. `ray job submit` would end with 1.
    yield "submit with the token", on(desk, "right", *submit, **HELD), 3, "/root/nothing"
    yield "submit with the token of ~/.ray", on(desk, "home", *submit, home_token=TOKEN), 3, "/root/nothing"
    nobody = ["codebooks", "submit", "--address", f"http://{head.ip}:9999", "releases", "store=/x"]
    yield "submit where nobody is", on(desk, "nobody", *nobody), 6, "no Ray dashboard answers"


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
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
        for name, (code, text), expected, words in cases(head, desk):
            right = code == expected and words in text
            results.append({"case": name, "code": code, "as_expected": right})
            print(f"{'right' if right else 'WRONG'}  {name}: {code}", flush=True)
            if not right:
                print(text[-3000:], flush=True)
        print(f"{len(results)} cases in {time.monotonic() - began:.0f} s")
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=1) + "\n")
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
