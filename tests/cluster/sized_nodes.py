"""The simulation of cluster/sizing.py against real nights on 1, 2 and 4 Ray nodes, by the clock.

All nodes are namespaces of one computer (machines.py), so what limits a night here must be no core: every photo is
answered late, by SeaweedFS behind a proxy that waits, and an actor has 16 requests at once for each of two shards. What
is foretold is the stage `encode`: how shards are dealt to the actors of so many nodes, one of each. Its start-up is
measured by a night of a few photos before, and is the only number that is taken from here. The very first night trains,
so that no other one has to. Needs root.

    python tests/cluster/sized_nodes.py --json results/sized_nodes.json [--nodes 1,2,4]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from machines import ROOT, Machine, Network, Process, made_on, wait_until
from month import picture
from shop import Shop, join

sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
from faulty_store import KEY, SECRET, FaultProxy, Rule, WeedServer

from cluster import sizing

PHOTOS, FEW, ROWS, GET_MS = 1536, 192, 48, 1000.0
CONFIG = f"""\
store: s3://shop/visual
catalogue: {{source: s3://shop/catalogue.csv}}
images: {{size: 32}}
model: {{kind: descriptor, features: hog, cell: 4}}
encode: {{shard_rows: {ROWS}}}
"""


class LateProxy(FaultProxy):
    """Answers each GET of a photo late."""

    def rule_for(self, method: str, target: str) -> Rule | None:
        if method == "GET" and target.startswith("/shop/photos/"):
            time.sleep(GET_MS / 1000)
        return super().rule_for(method, target)


class Sized(Shop):
    """A head without CPUs for work, up to four nodes, and a sixth machine with store, proxy and commands."""

    @property
    def desk(self) -> Machine:
        return self.network.machines[5]

    def begin(self) -> None:
        join(self.desk)
        self.server = WeedServer(self.network.work / "weed", "shop")
        self.proxy = LateProxy(self.server.port, self.desk.ip)
        self.photos = 0
        (self.network.work / "shop.yaml").write_text(CONFIG)

    @property
    def endpoint(self) -> str:
        return self.proxy.endpoint

    def grow(self, photos: int) -> None:
        """Add photos to the catalogue."""
        fresh = range(self.photos, self.photos + photos)
        bucket = self.bucket("")
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda number: bucket.put(f"photos/{number}.png", picture(number)), fresh))
        self.photos += photos
        rows = "".join(f"item-{number:05},photos/{number}.png\n" for number in range(self.photos))
        bucket.put("catalogue.csv", f"item_id,image\n{rows}".encode())

    def night(self, run: str, actors: int) -> Process:
        work = self.network.work
        line = ["codebooks", "submit", "--address", self.dashboard, "--wait", "--pass", "AWS_*", "refresh", "--json",
                "--config", "/root/shop.yaml", "--run", run, f"encode.actors={actors}"]  # fmt: skip
        return self.desk.start(
            run, *line, seeds=[(work / "checkout", "/root/checkout"), (work / "shop.yaml", "/root/shop.yaml")],
            PYTHONPATH="/root/checkout", RAY_AUTH_MODE="disabled", AWS_ENDPOINT_URL=self.endpoint,
            AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET, AWS_REGION="us-east-1",
        )  # fmt: skip


def encoded(shop: Sized, run: str, actors: int) -> float:
    """Return the seconds of a night's stage `encode`."""
    process = shop.night(run, actors)
    if process.wrapper.wait(timeout=300):
        raise RuntimeError(process.text()[-5000:])
    answer = json.loads([line for line in process.text().splitlines() if line.startswith("{")][-1])
    return float(answer["seconds"]["encode"])


def begin(shop: Sized) -> None:
    """Make the bundle that all nights encode with."""
    shop.start_node(1)
    wait_until("a node is alive", lambda: shop.alive() == 2, limit_s=120, every_s=1)
    shop.grow(FEW)
    encoded(shop, "first", 1)


def foretold(photos: int, nodes: int, start_s: float) -> sizing.Stage:
    """Return the stage as the simulation has it, every photo of the catalogue new."""
    shop = sizing.Shop(photos, churn=1.0, side=32, kilobytes=3.0, pixels=32, shard_rows=ROWS)
    place = sizing.Place(cores=1, warm=True, get_ms=GET_MS, start_s=start_s)
    return next(stage for stage in sizing.simulate(shop, place, nodes).stages if stage.name.startswith("fetch"))


def measured(shop: Sized, nodes: int) -> dict[str, Any]:
    """Return what the stage took with so many nodes, and what was foretold."""
    for number in range(1, nodes + 1):
        if not shop.network.machines[number].processes:
            shop.start_node(number)
    wait_until(f"{nodes} nodes are alive", lambda: shop.alive() == nodes + 1, limit_s=120, every_s=1)
    shop.grow(FEW)
    start = encoded(shop, f"start-{nodes}", nodes) - foretold(FEW, nodes, 0.0).seconds
    shop.grow(PHOTOS)
    seconds = encoded(shop, f"night-{nodes}", nodes)
    stage = foretold(PHOTOS, nodes, start)
    return {
        "nodes": nodes, "start_s": round(start, 1), "foretold_s": round(stage.seconds, 1),
        "measured_s": round(seconds, 1), "foretold_to_measured": round(stage.seconds / seconds, 2),
        "waits_for": foretold(PHOTOS, nodes, 0.0).bound,
    }  # fmt: skip


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # and the machines with it
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--nodes", default="1,2,4")
    asked = parser.parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
    work = Path(os.environ.get("CLUSTER_WORK", "/tmp/cluster-sized"))
    found = []
    with Network(6, work) as network:
        shop = Sized(network)
        shop.begin()
        (work / "checkout").mkdir()
        files = subprocess.run(["git", "archive", "HEAD", "pipeline", "jobs", "cluster"], cwd=ROOT, capture_output=True)
        subprocess.run(["tar", "-x", "-C", str(work / "checkout")], input=files.stdout, check=True)
        try:
            shop.start_head()
            begin(shop)
            for nodes in sorted(int(word) for word in asked.nodes.split(",")):
                found.append(measured(shop, nodes))
                print(json.dumps(found[-1]), flush=True)
        finally:
            shop.proxy.stop()
            shop.server.stop()
    about = {"photos": PHOTOS, "few": FEW, "shard_rows": ROWS, "get_ms": GET_MS, "config": CONFIG}
    asked.json.write_text(json.dumps({**made_on(), **about, "nodes": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
