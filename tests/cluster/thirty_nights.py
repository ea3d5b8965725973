"""Thirty nights of a shop in a row, run by the crontab's own line for submitted nights, with all that goes wrong.

One machine in namespaces of its own (machines.py) holds a Ray cluster that stays up for the whole month and SeaweedFS
behind a proxy that answers by rule; commands come from a place with files of its own, as cron gives them: the line of
cluster/schedulers/crontab with its shell and variables, night.sh, `codebooks submit --wait`. Only the clock is played:
the next night begins when the last one has ended, `date` tells its day, and a pause between tries is a second. What
the feed changes and what goes wrong is drawn (month.py). Nobody does anything by hand; a night that the scheduler
missed is made up for by its name on the next day. The bundle of the first night is kept aside, and lies on the store
when the program is run again. Needs root.

    python tests/cluster/thirty_nights.py --json results/thirty.json [--seed 0] [--nights 30] [--seconds 1000]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from machines import ROOT, Machine, Network, Process, children, made_on, wait_until
from month import MADE_UP, Day, Feed, drawn, picture, problems, unseen
from shop import join

sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
from faulty_store import KEY, SECRET, FaultProxy, Rule, WeedServer

from pipeline.reader import open_release
from pipeline.release import read_manifest
from pipeline.release.channel import read_log
from pipeline.storage import S3Store, StorageOptions

CONFIG = """\
store: s3://shop/visual
catalogue: {source: s3://shop/catalogue.csv}
images: {size: 32}
model: {kind: descriptor, features: hog, cell: 4}
encode: {actors: 1, shard_rows: 40}
"""
PHOTOS = 120
# What somebody who installs the crontab changes in it, and what cron itself gives.
PATHS = {
    "CODEBOOKS": f"{sys.prefix}/bin/codebooks", "CONFIG": "/root/shop.yaml", "ENVIRONMENT": "/root/environment",
    "NIGHTS": "/root/checkout/cluster/schedulers/night.sh",
}  # fmt: skip
CRON = {"HOME": "/root", "LOGNAME": "root", "PATH": "/root/clock:/usr/bin:/bin"}
LONGEST_S = 900.0  # of a night; a shorter limit would let it run on beside the next one


def crontab() -> tuple[dict[str, str], str]:
    """Return the variables of our crontab and its command for a submitted night."""
    lines = (ROOT / "cluster" / "schedulers" / "crontab").read_text().splitlines()
    variables = dict(match.groups() for line in lines if (match := re.fullmatch(r"(\w+)=(.*)", line)))
    (command,) = (line.split(None, 6)[6] for line in lines if line.startswith("# 30 2 * * *") and " submit " in line)
    return variables, command


@dataclass
class Run:
    """A command that was started at the desk, and the day whose name it has."""

    process: Process
    day: str
    submitted: bool = True

    def end(self) -> int:
        """Return its exit code once it has ended."""
        return self.process.wrapper.wait(timeout=LONGEST_S)

    @property
    def tries(self) -> int:
        """How many tries the wrapper has made."""
        return 1 + len(re.findall(r"exit \d+, try [123] of 4", self.process.text()))


class Shop:
    """The machine with its cluster, the store behind the proxy, and the desk that commands come from."""

    def __init__(self, network: Network) -> None:
        self.work = network.work
        (self.machine,) = network.machines
        join(self.machine)  # threads and servers that are started from here on are on its network
        self.server = WeedServer(self.work / "weed", "shop")
        self.proxy = FaultProxy(self.server.port)
        self.straight = StorageOptions(endpoint=f"http://127.0.0.1:{self.server.port}")
        self.bucket = S3Store("s3://shop", self.straight)
        self.store = S3Store("s3://shop/visual", self.straight)
        self.variables, self.line = crontab()
        self.count = 0
        self.errors: list[str] = []
        self.ray = _cluster(self.machine)
        self.desk = self._desk()

    def _desk(self) -> Process:
        checkout, clock = self.work / "checkout", self.work / "clock"
        checkout.mkdir()
        clock.mkdir()
        files = subprocess.run(["git", "archive", "HEAD", "pipeline", "jobs", "cluster"], cwd=ROOT, capture_output=True)
        subprocess.run(["tar", "-x", "-C", str(checkout)], input=files.stdout, check=True)
        (clock / "date").write_text('#!/bin/sh\nexec /bin/date -d "$TODAY" "$@"\n')
        (clock / "date").chmod(0o755)
        variables = {
            "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265", "RAY_AUTH_MODE": "disabled", "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.proxy.endpoint, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET,
            "PYTHONPATH": "/root/checkout",
        }  # fmt: skip
        (self.work / "environment").write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
        (self.work / "shop.yaml").write_text(CONFIG)
        names = ("checkout", "clock", "environment", "shop.yaml")
        return self.machine.start("desk", "sleep", "infinity", seeds=[(self.work / n, f"/root/{n}") for n in names])

    def start(self, day: str, line: str, **variables: str) -> Run:
        """Run a line at the desk as cron would, on a day."""
        self.count += 1
        log = self.work / f"{self.count:03}-{day}.log"
        pid = children(self.desk.wrapper.pid)[0]
        inside = ["nsenter", "-t", str(pid), "--mount", "--pid", "--net", "--uts", "--ipc"]
        known = {**self.variables, **PATHS, **CRON, "PAUSE_S": "1", "TODAY": f"{day} 02:30", **variables}
        wrapper = subprocess.Popen(
            [*inside, self.variables["SHELL"], "-c", f"cd /root; {line}"],
            env=known, stdin=subprocess.DEVNULL, stdout=log.open("wb"), stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        return Run(Process(wrapper, log), day)

    def cron(self, day: str) -> Run:
        """Start the night of a day."""
        return self.start(day, self.line)

    def other(self, run: str) -> Run:
        """Start a night from a second place, which knows nothing of the first one's lock."""
        alone = self.line.removeprefix('"$NIGHTS" ')
        return self.start(run[:10], f"set -a; . $ENVIRONMENT; set +a; {alone} --run {run} --json")

    def kill(self, below: int, words: str) -> None:
        """Kill with -9 the Python programs below a process whose command line has these words; "" kills all there."""
        for member in psutil.Process(below).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                line = member.cmdline()
                if not words or (line and "python" in line[0] and words in " ".join(line)):
                    member.kill()

    def kill_driver(self) -> None:
        self.kill(self.ray.wrapper.pid, "cluster.entry")

    def upload(self, feed: Feed, fresh: dict[str, int], *, half: bool = False) -> None:
        """Bring the day's photos and table to the bucket."""
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda item: self.bucket.put(f"photos/{item}.png", picture(fresh[item])), fresh))
        self.bucket.put("catalogue.csv", feed.table(half=half))

    def log(self) -> list[dict[str, Any]]:
        """Return the channel's log with each release's parent."""
        return [
            {"number": entry.number, "release": entry.release_id, "run": entry.run, "attempt": entry.attempt,
             "parent": read_manifest(self.store, entry.release_id).parent}
            for entry in read_log(self.store, "stable")
        ]  # fmt: skip

    def stop(self) -> None:
        self.proxy.stop()
        self.server.stop()


def _cluster(machine: Machine) -> Process:
    process = machine.start(
        "ray", "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=3",
        "--object-store-memory=100000000", RAY_AUTH_MODE="disabled",
    )  # fmt: skip
    url = "http://127.0.0.1:8265/nodes?view=summary"

    def alive() -> bool:
        summary = ((machine.ask(url) or {}).get("data") or {}).get("summary") or []
        return any(node["raylet"].get("state") == "ALIVE" for node in summary)

    wait_until("the cluster answers", alive, limit_s=120, every_s=1)
    return process


def fault(shop: Shop, day: Day, run: Run, happened: list[str]) -> list[Rule]:
    """Return the rules of the store for a night of its kind. happened: is told what was done, once it was."""
    name, at = day.kind.name, day.kind.at
    if name.startswith("a tenth"):
        return [Rule(".*", "/shop/", share=0.1, status=503, code="SlowDown", each=True)]
    if not at:
        return []
    if name == "the answer of publishing lost":
        return [Rule("PUT", at, lost=True, before=lambda _: (happened.append(name), _over(shop))[0])]

    def act(_target: str) -> None:
        if happened:
            return
        happened.append(name)
        if name.startswith("driver"):
            shop.kill_driver()
        elif name.startswith("submit"):
            shop.kill(run.process.wrapper.pid, "codebooks submit")
        elif name.startswith("scheduler"):
            shop.kill(run.process.wrapper.pid, "")
        elif name.startswith("the store"):
            shop.proxy.rules = [Rule(".*", "/", status=503, code="ServiceUnavailable")]
            threading.Timer(20, _over, [shop]).start()

    return [Rule("PUT", at, before=act)]


def _over(shop: Shop) -> None:
    shop.proxy.rules = []


def night(shop: Shop, day: Day) -> list[tuple[Run, int, str]]:
    """Run one night: each command that was started, its exit code, and what it was for."""
    if day.kind.name == "scheduler off":
        return []
    happened: list[str] = []
    run = shop.cron(day.date)
    shop.proxy.rules = fault(shop, day, run, happened)
    beside: list[tuple[Run, int, str]] = []
    if day.kind.name == "started again beside itself":
        time.sleep(4)
        again = shop.cron(day.date)
        beside.append((again, again.end(), "refused by the lock"))
    elif day.kind.name == "handed in from a second place":
        wait_until("the job is handed in", lambda: "submitted: job" in run.process.text(), limit_s=LONGEST_S)
        other = shop.other(day.date)
        beside.append((other, other.end(), "found at work"))
    elif day.kind.name == "another run beside it":
        other = shop.other(f"{day.date}-other")
        beside.append((other, other.end(), "another run"))
    code = run.end()
    if day.kind.name == "scheduler lost during the night":
        wait_until("the cluster ends the job", lambda: _idle(shop.machine), limit_s=LONGEST_S, every_s=0.5)
    if day.kind.name == "started again after its end":
        again = shop.cron(day.date)
        beside.append((again, again.end(), "again"))
    if day.kind.at and not happened:
        raise RuntimeError(f"{day.date}: {day.kind.name} did not happen\n{run.process.text()[-3000:]}")
    _over(shop)
    return [(run, code, ""), *beside]


def _idle(machine: Machine) -> bool:
    jobs = machine.ask("http://127.0.0.1:8265/api/jobs/") or [{"status": "RUNNING"}]
    return not any(job["status"] in ("PENDING", "RUNNING") for job in jobs)


# What a second command of a night has to end with, and what its output has to say.
BESIDE = {
    "refused by the lock": ((6,), "still at work"), "found at work": ((0,), "found at work"),
    "another run": ((0, 5), "submitted: job"), "again": ((0,), "submitted: job"),
}  # fmt: skip


Runs = list[tuple[Run, int, str]]


def record(shop: Shop, day: Day, feed: Feed, seconds: float, runs: Runs, before: int) -> dict[str, Any]:
    """Return what became of a night, for `problems` and for the results. before: entries of the log before it."""
    ids = set(open_release("s3://shop/visual", options=shop.straight, cache_dir=shop.work / "cache").item_ids())
    entries = [entry["run"] for entry in shop.log()[before:]]
    run, code, _ = runs[0]
    published = [[day.date] if day.kind.entry else []]
    if day.kind.name == "another run beside it":
        published.append([f"{day.date}-other"])
    wanted = (-9, 137) if day.kind.name.startswith("scheduler lost") else day.kind.codes
    others = [{"what": what, "code": code, "right": code in BESIDE[what][0] and BESIDE[what][1] in other.process.text()}
              for other, code, what in runs[1:]]  # fmt: skip
    stale = ids ^ set(feed.photos) if day.kind.codes == (4,) else set()  # the release of the night before
    return {
        "date": day.date, "name": day.kind.name, "added": day.added, "changed": day.changed, "removed": day.removed,
        "code": code, "wanted": list(wanted), "tries": run.tries, "least_tries": day.kind.tries, "entries": entries,
        "published": published, "missing": sorted(set(feed.photos) - ids - stale),
        "strange": sorted(ids - set(feed.photos) - stale), "beside": others, "seconds": round(seconds, 1),
    }  # fmt: skip


def made_up(shop: Shop, day: Day, feed: Feed) -> dict[str, Any]:
    """Run a night that the scheduler missed by its name, a day later, as the scheduler's own catching up does."""
    before, began = len(shop.log()), time.monotonic()
    run = shop.start(day.date, f"RUN={day.date} {shop.line}")
    found = record(shop, day, feed, 0.0, [(run, run.end(), "")], before)
    entry = [[day.date]] if day.kind.name == "scheduler off" else [[]]
    more = {"name": f"{day.kind.name}: made up for", "wanted": [0], "published": entry, "least_tries": 1}
    return {**found, **more, "seconds": round(time.monotonic() - began, 1)}


def month(shop: Shop, days: list[Day], feed: Feed, until: float, between: str) -> list[dict[str, Any]]:
    """Run the nights, one after the other; none is begun that might not end in the time."""
    found: list[dict[str, Any]] = []
    missed: Day | None = None
    bundles, models = shop.work.with_name(f"{shop.work.name}-models"), S3Store("s3://shop/visual/models", shop.straight)
    for path in [path for path in bundles.rglob("*") if path.is_file()]:
        models.put_if_absent(str(path.relative_to(bundles)), path.read_bytes())
    shop.upload(feed, feed.put([f"item-{number:04}" for number in range(PHOTOS)]))
    for day in days:
        subprocess.run(between, shell=True, check=True)
        if time.monotonic() > until - 120:
            print(f"no time is left for {day.date} and later", flush=True)
            break
        if missed is not None:
            _note(found, made_up(shop, missed, feed))
        missed = day if day.kind.name in MADE_UP else None
        shop.upload(feed, feed.next_day(day), half=day.kind.name == "half of the catalogue gone")
        before, began = len(shop.log()), time.monotonic()
        try:
            runs = night(shop, day)
            if runs:
                _note(found, record(shop, day, feed, time.monotonic() - began, runs, before))
                if found[-1]["code"] not in found[-1]["wanted"]:
                    print(runs[0][0].process.text()[-5000:], flush=True)
        except (RuntimeError, TimeoutError, subprocess.TimeoutExpired) as error:  # the month goes on, and is not right
            shop.errors.append(f"{day.date}, {day.kind.name}: {error}")
            print(shop.errors[-1], flush=True)
            _over(shop)
        shop.bucket.put("catalogue.csv", feed.table())
        if not bundles.exists():
            for entry in models.list():
                (bundles / entry.name).parent.mkdir(parents=True, exist_ok=True)
                (bundles / entry.name).write_bytes(models.get(entry.name))
    return found


def as_undisturbed(shop: Shop, feed: Feed) -> bool:
    """Return whether the last release's latents are those of a store on which only one calm night was ever run, with
    the month's bundle."""
    models, calm = (S3Store(f"s3://shop/{name}/models", shop.straight) for name in ("visual", "calm"))
    for entry in models.list():
        calm.put_if_absent(entry.name, models.get(entry.name))
    run = shop.start("2027-01-01", f"{shop.line} store=s3://shop/calm")
    if run.end():
        raise RuntimeError(run.process.text()[-4000:])
    ids = sorted(feed.photos)
    found = []
    for url in ("s3://shop/visual", "s3://shop/calm"):
        table = open_release(url, options=shop.straight, cache_dir=shop.work / "cache").latents(ids)
        found.append(np.stack(table["mean"].to_numpy(zero_copy_only=False)))
    return bool(np.allclose(*found, rtol=0, atol=1e-5))


def _note(nights: list[dict[str, Any]], found: dict[str, Any]) -> None:
    nights.append(found)
    names = ("date", "name", "code", "tries", "entries", "seconds")
    print(json.dumps({name: found[name] for name in names}), flush=True)


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # and the machine with it
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nights", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=86_400.0)
    parser.add_argument("--between", default=":", help="run by a shell before each night, as to let others work")
    asked = parser.parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
    days, feed = drawn(asked.seed, asked.nights), Feed(random.Random(asked.seed))
    work = Path(os.environ.get("CLUSTER_WORK", "/tmp/cluster-thirty"))
    began = time.monotonic()
    with Network(1, work) as network:
        shop = Shop(network)
        try:
            nights = month(shop, days, feed, began + asked.seconds, asked.between)
            log = shop.log()
            calm = as_undisturbed(shop, feed)
        finally:
            shop.stop()
    wrong = [*shop.errors, *problems(nights, log)]
    wrong += [f"{night['date']}: {each}" for night in nights for each in night["beside"] if not each["right"]]
    wrong += [] if calm else ["the last release's latents are not those of a calm night"]
    blind = unseen(nights, log)
    result = {
        **made_on(), "seed": asked.seed, "seconds": round(time.monotonic() - began), "photos": PHOTOS, "config": CONFIG,
        "line": shop.line, "entries": len(log), "as_undisturbed": calm, "requests": dict(shop.proxy.counts),
        "problems": wrong, "controls_not_seen": blind, "nights": nights, "log": log,
    }  # fmt: skip
    asked.json.write_text(json.dumps(result, indent=1) + "\n")
    said = f"{len(nights)} nights, {len(log)} entries, {result['seconds']} s, {len(wrong)} problems"
    print(said, *wrong, *blind, sep="\n")
    return 1 if wrong or blind else 0


if __name__ == "__main__":
    sys.exit(main())
