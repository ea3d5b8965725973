"""Nights on a cluster of real machines: clean, and with a node killed, cut off, late, or the head lost.

Three Ray nodes, an object store (SeaweedFS) on a fourth machine, the commands from a fifth; each in namespaces of its
own (see machines.py), so that nothing but the network is between them. The nodes hold Ray and the third parties, not
this project; credentials travel by `--pass`. Each night makes the same catalogue's release on a store of its own under
the same run name: the release must be that of a single machine, digest by digest. Needs root.

    python tests/cluster/nights.py --json results/nights.json [--only clean,pixels] [--seconds 280]

Nights that the file has already are left out; none is begun that might not end in the time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from machines import ROOT, Machine, Network, Process, children, made_on, wait_until
from shop import CONFIG, ELASTIC, PHOTOS, RUN, TRAINED, Shop, join

sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
from faulty_store import KEY, SECRET, weed_binary

from pipeline.errors import CodebooksError

LONGEST_S = 500.0
Act = Callable[[Shop, str, Process], None]


def when(folder: str, least: int, act: Callable[[Shop], None], *, holding: str = "") -> Act:
    """Return what does something to the machines once a night's store has so many names that begin so.

    holding: what a worker of the machine to be lost must be, past its own start; any or none by default.
    """

    def acting(shop: Shop, name: str, process: Process) -> None:
        def seen() -> bool:
            if process.wrapper.poll() is not None:
                raise RuntimeError(f"{name} ended before {folder} had {least} names:\n{process.text()[-3000:]}")
            if shop.count(name, folder) < least:
                return False
            held = held_by(shop.network.machines[2]) if holding else {}
            return not holding or any(holding in worker and "__init__" not in worker for worker in held)

        wait_until(f"{name}: {least} names below {folder}", seen, limit_s=150)
        act(shop)

    return acting


def held_by(machine: Machine) -> dict[str, int]:
    """Return Ray's workers on a machine by what they are, but for idle ones and the node's own services."""
    names: Counter[str] = Counter()
    for process in machine.processes:
        for member in psutil.Process(process.wrapper.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error, IndexError):
                names[member.cmdline()[0]] += 1
    own = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
    return {name: count for name, count in sorted(names.items()) if name.startswith("ray::") and name not in own}


# The head takes no work, so what is lost is at work.
def kill_node(shop: Shop) -> None:
    shop.held = held_by(shop.network.machines[2])
    shop.network.machines[2].kill()


def pull_cable(shop: Shop) -> None:
    shop.held = held_by(shop.network.machines[2])
    shop.network.machines[2].cable(plugged=False)


def lose_head(shop: Shop) -> None:
    shop.head.kill()
    shop.start_head()


def late_node(shop: Shop, name: str, process: Process) -> None:
    wait_until("the wait is told", lambda: "cluster.min_nodes asks for" in process.text(), limit_s=120)
    time.sleep(10)
    shop.start_node(2)


NIGHTS: dict[str, Act | None] = {
    "alone": None,
    "clean": None,
    "encode": when("latents/", 1, kill_node, holding="ShardActor"),
    "head": when("latents/", 4, lose_head),
    "cable": when("latents/", 4, pull_cable),
    "late": late_node,
    "index": when("latents/", PHOTOS // 8, kill_node),
    "alone-trained": None,
    "clean-trained": None,
    "pixels-trained": when("pixels/", 1, kill_node, holding="ShardActor"),
    "train-trained": when(f"runs/{RUN}/checkpoints/", 1, kill_node, holding="RayTrainWorker"),
    # Its release is not that of the others: fewer workers have other noise and another order of photos.
    "elastic-trained": when(f"runs/{RUN}/checkpoints/", 6, kill_node),
}
# Nights of a cluster whose head keeps its state in redis.
WITH_REDIS = {"redis": when("latents/", 4, lose_head)}


class Worlds(threading.Thread):
    """Notes of each checkpoint of a night by how many workers it was written, until told to stop."""

    def __init__(self, shop: Shop, name: str) -> None:
        super().__init__(daemon=True)
        self.store = shop.bucket(f"{name}/store")
        self.workers: dict[int, int] = {}
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.5):
            with contextlib.suppress(CodebooksError):
                for entry in self.store.list(f"runs/{RUN}/checkpoints/"):
                    step = entry.name.split("/")[-2]
                    if entry.name.endswith("/complete.json") and int(step) not in self.workers:
                        self.workers[int(step)] = json.loads(self.store.get(entry.name))["identity"]["world_size"]


def night(shop: Shop, name: str, act: Act | None) -> dict[str, Any]:
    """Run one night and return what became of it; a refresh that ends with 6 is run again, as a scheduler does."""
    if name == "late":
        shop.network.machines[2].kill()
        wait_until("the node is gone", lambda: shop.alive() == 2, limit_s=90, every_s=1)
    bundles = shop.network.work.with_name(f"{shop.network.work.name}-models")
    if not name.startswith("alone") and "-trained" not in name:
        for path in [path for path in bundles.rglob("*") if path.is_file()]:
            shop.bucket(f"{name}/store/models").put_if_absent(str(path.relative_to(bundles)), path.read_bytes())
    began, codes, acted_at, shop.held = time.monotonic(), [], None, {}
    worlds = Worlds(shop, name)
    if "trained" in name:
        worlds.start()
    while len(codes) < 3:
        process = shop.command(f"{name}-{len(codes)}", f"store=s3://shop/{name}/store", alone=name.startswith("alone"))
        if act is not None and not codes:
            act(shop, name, process)
            acted_at = time.monotonic() - began
        process.wrapper.wait(timeout=LONGEST_S)
        codes.append(process.wrapper.returncode)
        if codes[-1] != 6:
            break
    seconds = time.monotonic() - began
    worlds.over.set()
    last = [line for line in process.text().splitlines() if line.startswith("{")]
    answer = json.loads(last[-1]) if last else {}
    if name == "alone":
        store = shop.bucket("alone/store/models")
        for entry in store.list():
            (bundles / entry.name).parent.mkdir(parents=True, exist_ok=True)
            (bundles / entry.name).write_bytes(store.get(entry.name))
    if codes[-1]:
        print(process.text()[-6000:], flush=True)
    return {
        "seconds": round(seconds, 1), "codes": codes, "disturbed_after_s": acted_at and round(acted_at, 1),
        "held_by_the_lost_node": shop.held, "workers_of_checkpoints": dict(sorted(worlds.workers.items())),
        "stages": answer.get("seconds", {}), "published": answer.get("published", False), **shop.released(name),
    }  # fmt: skip


def leaks(shop: Shop) -> list[str]:
    """Return the files of Ray's on any node that hold the secret key, but for the job's own."""
    found: list[str] = []
    for machine in shop.network.machines[:3]:
        for process in machine.processes:
            for child in children(process.wrapper.pid):
                inside = ["nsenter", "-t", str(child), "--mount", "grep", "-rlF", SECRET, "/tmp/ray"]
                said = subprocess.run(inside, capture_output=True, text=True).stdout
                found += [f"{machine.number}:{line}" for line in said.splitlines()]
    return [name for name in found if not name.endswith("/submitted/job.json")]


def mend(shop: Shop) -> None:
    """Put the cluster back to its three nodes."""
    node = shop.network.machines[2]
    node.cable(plugged=True)
    if not node.processes:
        shop.start_node(2)
    wait_until("three nodes are alive", lambda: shop.alive() == 3, limit_s=120, every_s=1)


def run_nights(names: list[str], out: Path, until: float, *, redis: bool) -> None:
    work = Path(os.environ.get("CLUSTER_WORK", "/tmp/cluster-nights"))
    shows = [] if str(weed_binary()).startswith("/usr") else [Path(weed_binary()).parent]
    with Network(5, work, shows=shows) as network:
        shop = Shop(network, redis=redis)
        join(shop.desk)
        files = _git("archive", "HEAD", "pipeline", "jobs", "cluster")
        commit = _git("rev-parse", "--short", "HEAD").decode().strip()
        (work / "checkout").mkdir()
        subprocess.run(["tar", "-x", "-C", str(work / "checkout")], input=files, check=True)
        began = time.monotonic()
        shop.start_store()
        for name in names:
            if not name.startswith("alone") and not shop.head.processes:
                shop.start_head()
                for number in (1, 2):
                    shop.start_node(number)
                wait_until("the head answers", lambda: shop.alive() >= 1, limit_s=300, every_s=1)
                print(f"the head is up, {time.monotonic() - began:.0f} s from the start", flush=True)
            if time.monotonic() > until - 90:
                print(f"no time is left for {name}", flush=True)
                return
            found = {"commit": commit, **night(shop, name, {**NIGHTS, **WITH_REDIS}[name])}
            if name.startswith("clean"):
                found["secret_in_files"] = leaks(shop)
            results = _read(out)
            results["nights"][name] = found
            _write(out, results)
            print(name, json.dumps({k: v for k, v in found.items() if k not in ("items", "index")}), flush=True)
            if NIGHTS.get(name) is not None and name != names[-1]:
                mend(shop)


def _git(*words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=True).stdout


def _read(out: Path) -> dict[str, Any]:
    return json.loads(out.read_text()) if out.exists() else {"nights": {}}


def _write(out: Path, results: dict[str, Any]) -> None:
    nights, compared = results["nights"], ("release", "model", "items", "index")
    for name, found in nights.items():
        like = "-trained" if name.endswith("-trained") else ""
        alone, clean = nights.get(f"alone{like}"), nights.get(f"clean{like}")
        if alone is not None and not name.startswith("elastic"):
            found["as_alone"] = {key: found.get(key) == alone.get(key) for key in compared}
        found["lost_s"] = round(found["seconds"] - clean["seconds"], 1) if clean else None
    told = made_on()
    about = {"date": told["date"], "machine": told["machine"]}
    about |= {"photos": PHOTOS, "config": CONFIG, "trained": TRAINED, "elastic": ELASTIC}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**results, **about}, indent=1) + "\n")


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # and the machines with it
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--only", default=",".join([*NIGHTS, *WITH_REDIS]))
    parser.add_argument("--seconds", type=float, default=86_400.0)
    asked = parser.parse_args()
    until = time.monotonic() + asked.seconds
    os.environ |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
    wanted = [name for name in asked.only.split(",") if name not in _read(asked.json)["nights"]]
    if shutil.which("redis-server") is None:
        wanted = [name for name in wanted if name not in WITH_REDIS]
    for redis in (False, True):
        names = [name for name in wanted if (name in WITH_REDIS) == redis]
        if names and time.monotonic() < until - 120:
            run_nights(names, asked.json, until, redis=redis)


if __name__ == "__main__":
    main()
