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
import ctypes
import io
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from machines import ROOT, Machine, Network, Process, children, wait_until
from PIL import Image

sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
from faulty_store import KEY, SECRET, weed_binary

from pipeline.errors import CodebooksError
from pipeline.release import read_head, read_manifest
from pipeline.storage import Retry, S3Store, StorageOptions

PHOTOS = 160
RUN = "2026-11-30"
CONFIG = """\
store: s3://shop/visual
catalogue: {source: s3://shop/catalogue.csv}
images: {size: 32, keep: always}
model: {kind: descriptor, features: hog, cell: 4}
encode: {actors: 3, shard_rows: 8}
cluster: {min_nodes: 2, wait_s: 240}
"""
# A model that is trained, by two workers; a night of it begins with a pass that stores pixels. The other's bundle is
# made by the night alone and lies on the store before each later night, as on any but a shop's first.
TRAINED = """\
store: s3://shop/visual
catalogue: {source: s3://shop/catalogue.csv}
images: {size: 32, keep: always}
model: {kind: vae, latent_dim: 8}
train: {epochs: 12, batch_size: 32, workers: 2, validation: 0, checkpoint_every_s: 2}
encode: {actors: 3, shard_rows: 8}
cluster: {min_nodes: 2, wait_s: 240}
"""
S3_PORT = 8333
LONGEST_S = 260.0
_NEW_NETWORK = 0x40000000


@dataclass
class Shop:
    """The machines of the cluster, the store's server, and where the commands are given."""

    network: Network
    redis: bool = False

    @property
    def head(self) -> Machine:
        return self.network.machines[0]

    @property
    def store(self) -> Machine:
        return self.network.machines[3]

    @property
    def desk(self) -> Machine:
        return self.network.machines[4]

    @property
    def dashboard(self) -> str:
        return f"http://{self.head.ip}:8265"

    @property
    def endpoint(self) -> str:
        return f"http://{self.store.ip}:{S3_PORT}"

    def start_store(self) -> None:
        identity = {
            "name": "shop", "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }  # fmt: skip
        file = self.network.work / "s3.json"
        file.write_text(json.dumps({"identities": [identity]}))
        ip = self.store.ip
        self.store.start(
            "store", weed_binary(), "server", "-dir=/tmp", f"-ip={ip}", f"-ip.bind={ip}", "-s3", f"-s3.port={S3_PORT}",
            "-s3.config=/tmp/s3.json", "-master.volumeSizeLimitMB=64", "-volume.max=50", seeds=[(file, "/tmp/s3.json")],
        )  # fmt: skip
        if self.redis:
            self.store.start("redis", "redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "")
        server = self.bucket("")

        def ready() -> bool:
            try:
                if not server._fs.exists("shop"):
                    server._fs.mkdir("shop")
                server.put("ready", b"1")
            except Exception:  # noqa: BLE001 - whatever a server says that is not up yet
                return False
            return True

        wait_until("the object store answers", ready, limit_s=90, every_s=1)
        rows = "".join(f"item-{number:03},photos/{number}.png\n" for number in range(PHOTOS))
        server.put("catalogue.csv", f"item_id,image\n{rows}".encode())
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(lambda number: server.put(f"photos/{number}.png", picture(number)), range(PHOTOS)))

    def bucket(self, folder: str) -> S3Store:
        url = f"s3://shop/{folder}".rstrip("/")
        return S3Store(url, StorageOptions(endpoint=self.endpoint), retry=Retry(attempts=2))

    def start_head(self) -> None:
        more = {}
        if self.redis:
            more = {"RAY_REDIS_ADDRESS": f"{self.store.ip}:6379", "RAY_external_storage_namespace": "shop"}
        self._start_node(self.head, "--head", "--dashboard-host=0.0.0.0", "--num-cpus=0", **more)
        wait_until("the head takes nodes", lambda: listens(self.head.ip, 6379), limit_s=120)

    def start_node(self, number: int) -> None:
        machine = self.network.machines[number]
        self._start_node(machine, f"--address={self.head.ip}:6379", "--num-cpus=2")

    def _start_node(self, machine: Machine, *options: str, **variables: str) -> None:
        words = [
            "ray",
            "start",
            "--block",
            f"--node-ip-address={machine.ip}",
            "--object-store-memory=100000000",
            *options,
        ]
        # As a supervisor does: a node that was cut off ends itself.
        program = 'while true; do "$@"; ray stop --force >/dev/null 2>&1; sleep 1; done'
        machine.start(
            f"ray{machine.number}", "bash", "-c", program, "node", *words, RAY_AUTH_MODE="disabled", **variables
        )

    def alive(self) -> int:
        """Return how many nodes the head says are alive."""
        try:
            with urllib.request.urlopen(f"{self.dashboard}/nodes?view=summary", timeout=5) as answer:
                summary = json.load(answer)["data"]["summary"]
        except (OSError, ValueError, KeyError):
            return 0
        return sum(node["raylet"].get("state") == "ALIVE" for node in summary)

    def command(self, name: str, *words: str, alone: bool = False) -> Process:
        """Start a refresh from the desk: handed in to the cluster, or on that machine alone."""
        submit = [] if alone else ["submit", "--address", self.dashboard, "--wait", "--pass", "AWS_*"]
        line = ["codebooks", *submit, "refresh", "--json", "--config", "shop.yaml", "--run", RUN, *words]
        work = self.network.work
        (work / "shop.yaml").write_text(TRAINED if "-trained" in name else CONFIG)
        return self.desk.start(
            name, "bash", "-c", 'cd /root && exec "$@"', "desk", *line,
            seeds=[(work / "checkout", "/root/checkout"), (work / "shop.yaml", "/root/shop.yaml")],
            PYTHONPATH="/root/checkout", RAY_AUTH_MODE="disabled", AWS_ENDPOINT_URL=self.endpoint,
            AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET, AWS_REGION="us-east-1",
        )  # fmt: skip

    def count(self, name: str, folder: str) -> int:
        """Return how many names of a night's store begin so, 0 where it does not answer."""
        try:
            return sum(1 for _ in self.bucket(f"{name}/store").list(folder))
        except CodebooksError:
            return 0

    def released(self, name: str) -> dict[str, str]:
        """Return what identifies the release of a night."""
        store = self.bucket(f"{name}/store")
        head = read_head(store, "stable")
        if head is None:
            return {}
        manifest = read_manifest(store, head.release_id)
        files = manifest.model_dump(mode="json")["files"]
        said = {role: json.dumps(file, sort_keys=True) for role, file in files.items() if role in ("items", "index")}
        return {"release": head.release_id, "model": manifest.model_id, **said}


def listens(host: str, port: int) -> bool:
    """Return whether a port is open."""
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return False
    return True


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


Act = Callable[[Shop, str, Process], None]


def when(folder: str, least: int, act: Callable[[Shop], None]) -> Act:
    """Return what does something to the machines once a night's store has so many names that begin so."""

    def acting(shop: Shop, name: str, process: Process) -> None:
        def seen() -> bool:
            if process.wrapper.poll() is not None:
                raise RuntimeError(f"{name} ended before {folder} had {least} names:\n{process.text()[-3000:]}")
            return shop.count(name, folder) >= least

        wait_until(f"{name}: {least} names below {folder}", seen, limit_s=150)
        act(shop)

    return acting


# The head takes no work, so what is lost is at work.
def kill_node(shop: Shop) -> None:
    shop.network.machines[2].kill()


def pull_cable(shop: Shop) -> None:
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
    "encode": when("latents/", 4, kill_node),
    "head": when("latents/", 4, lose_head),
    "cable": when("latents/", 4, pull_cable),
    "late": late_node,
    "index": when("latents/", PHOTOS // 8, kill_node),
    "alone-trained": None,
    "clean-trained": None,
    "pixels-trained": when("pixels/", 4, kill_node),
    "train-trained": when(f"runs/{RUN}/checkpoints/", 1, kill_node),
}
# Nights of a cluster whose head keeps its state in redis.
WITH_REDIS = {"redis": when("latents/", 4, lose_head)}


def night(shop: Shop, name: str, act: Act | None) -> dict[str, Any]:
    """Run one night and return what became of it; a refresh that ends with 6 is run again, as a scheduler does."""
    if name == "late":
        shop.network.machines[2].kill()
        wait_until("the node is gone", lambda: shop.alive() == 2, limit_s=90, every_s=1)
    bundles = shop.network.work.with_name(f"{shop.network.work.name}-models")
    if not name.startswith("alone") and "-trained" not in name:
        for path in [path for path in bundles.rglob("*") if path.is_file()]:
            shop.bucket(f"{name}/store/models").put_if_absent(str(path.relative_to(bundles)), path.read_bytes())
    began, codes, acted_at = time.monotonic(), [], None
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
                wait_until("the head answers", lambda: shop.alive() >= 1, limit_s=120, every_s=1)
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


def join(machine: Machine) -> None:
    """Move this process to a machine's network; what it starts from here on is there too."""
    with Path(f"/run/netns/{machine.space}").open() as space:
        if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), _NEW_NETWORK):
            raise OSError(ctypes.get_errno(), "setns")


def _git(*words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=True).stdout


def _read(out: Path) -> dict[str, Any]:
    return json.loads(out.read_text()) if out.exists() else {"nights": {}}


def _write(out: Path, results: dict[str, Any]) -> None:
    nights, compared = results["nights"], ("release", "model", "items", "index")
    for name, found in nights.items():
        like = "-trained" if name.endswith("-trained") else ""
        alone, clean = nights.get(f"alone{like}"), nights.get(f"clean{like}")
        if alone is not None:
            found["as_alone"] = {key: found.get(key) == alone.get(key) for key in compared}
        found["lost_s"] = round(found["seconds"] - clean["seconds"], 1) if clean else None
    about = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"), "photos": PHOTOS, "config": CONFIG, "trained": TRAINED,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, all machines on it, others at work beside them",
    }  # fmt: skip
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
