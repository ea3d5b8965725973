"""A night whose photos lie on three hundred web hosts, which are as web hosts are.

A catalogue of 3,000 photos over a local https server: 0.3 % of the hosts are dead, 1 % bear twenty requests a second
and answer 429 with `Retry-After` beyond that, so does the first request of 1 % of all photos; HEAD is forbidden
everywhere, one object is 5 GB. Addresses carry a signature that is another one in the second night. Says what the two
nights published, and requests and seconds of each host beside the pace that it asked for. Loopback only.

    python tests/benchmarks/bench_hosts.py --photos 3000 --json tests/benchmarks/results/hosts.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from options import Options
from record import ROOT, made_on, write
from watched import of_each
from web_hosts import PORT, Planned, busiest, make_certificate, plan_hosts

from pipeline.storage import open_store

SERVER = Path(__file__).parent / "web_hosts.py"


def write_catalogue(path: Path, planned: Planned, night: str) -> int:
    """Write the table of one night, its addresses signed for that night; return its photos."""
    rows = [
        {
            "item_id": f"{number:06d}",
            "image": f"https://{plan.ip}:{PORT}/p/{number}.jpg?w=48&X-Amz-Date={night}&X-Amz-Signature=f0{night}",
            "category": f"c{number % 5}",
        }
        for plan in planned.hosts
        for number in plan.photos
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return len(rows)


def refresh(folder: Path, planned: Planned, run: str) -> dict[str, Any]:
    """Run one night as a scheduler does; return its result, seconds and the most memory of one of its processes."""
    config = folder / "night.yaml"
    prefixes = [f"https://{plan.ip}:{PORT}/p/" for plan in planned.hosts]
    config.write_text(
        json.dumps({
            "store": str(folder / "store"),
            "catalogue": {"source": str(folder / "c.parquet"), "category": "category", "allowed_prefixes": prefixes},
            "images": {"size": 32},
            "model": {"kind": "descriptor"},
            "encode": {"actors": 2},
            "cluster": {"num_cpus": 2},
        })
    )  # fmt: skip
    environment = {
        **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
        "SSL_CERT_FILE": str(folder / "authority.pem"),
    }
    command = [sys.executable, "-m", "jobs", "refresh", "--config", str(config), "--run", run, "--json"]
    began = time.monotonic()
    with (folder / f"{run}.err").open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, cwd=ROOT)
        most = 0
        while process.poll() is None:
            most = max([most, *of_each(_own, process.pid)])
            time.sleep(0.5)
        out = process.stdout.read() if process.stdout else ""
    seconds = time.monotonic() - began
    if process.returncode != 0:
        print((folder / f"{run}.err").read_text()[-3000:], file=sys.stderr)
    result = json.loads(out) if out.strip() else {}
    return {"exit": process.returncode, "seconds": round(seconds, 1), "most_mb": round(most / 2**20), "result": result}


def _own(process: psutil.Process) -> int:
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


def published(folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Return what a release holds: items, refusals by reason, and whether anything of a signature is in it."""
    store = open_store(str(folder / "store"))
    name = f"releases/{result['release']}/"
    tables = {entry.name: store.get(entry.name) for entry in store.list(name)}
    items = next(data for key, data in tables.items() if "/items-" in key)
    quarantine = next(data for key, data in tables.items() if "/quarantine-" in key)
    reasons = pq.read_table(pa.BufferReader(quarantine)).column("reason").value_counts().to_pylist()
    texts = [table.to_pydict() for table in map(pq.read_table, map(pa.BufferReader, (items, quarantine)))]
    return {
        "items": pq.read_table(pa.BufferReader(items)).num_rows,
        "refused": {entry["values"]: entry["counts"] for entry in reasons},
        "signatures_in_it": "Signature" in json.dumps(texts, default=str)
        or any(b"X-Amz" in data for data in tables.values()),
    }


def by_host(folder: Path, planned: Planned) -> dict[str, Any]:
    """Return what each kind of host was asked; of paced ones each by itself."""
    seen = json.loads((folder / "seen.json").read_text())
    found: dict[str, Any] = {}
    for plan in planned.hosts:
        here, name = seen[plan.ip], plan.ip if plan.kind == "paced" else plan.kind
        sums = found.setdefault(name, {"hosts": 0, "photos": 0, "heads": 0, "looks": 0, "gets": 0, "refused": 0})
        sums["hosts"] += 1
        sums["photos"] += len(plan.photos)
        for word in ("heads", "looks", "gets", "refused"):
            sums[word] += here[word]
        if plan.kind == "paced":
            served = len(here["times"]) - here["refused"]
            active = len({int(moment) for moment in here["times"]})
            sums |= {
                "asked_pace": plan.pace, "served_a_second": round(served / max(active, 1), 1),
                "most_in_a_second": busiest(here["times"]), "active_s": active,
            }  # fmt: skip
        if planned.large in plan.photos:
            found["bytes of the 5 GB object's host"] = here["bytes_sent"]
    return found


def main() -> None:
    arguments = Options(__doc__, photos=3000, hosts=300, json=(Path, "also written there")).parse_args()
    planned = plan_hosts(arguments.photos, arguments.hosts)
    report: dict[str, Any] = {**made_on(""), "photos": arguments.photos, "hosts": arguments.hosts}
    with tempfile.TemporaryDirectory(prefix="hosts-") as name:
        folder = Path(name)
        make_certificate(folder, [plan.ip for plan in planned.hosts])
        (folder / "hosts.json").write_text(json.dumps(asdict(planned)))
        for run, night in (("first", "20261129"), ("second", "20261130")):
            write_catalogue(folder / "c.parquet", planned, night)
            server = subprocess.Popen(
                [sys.executable, str(SERVER), name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            try:
                if server.stdout is None or server.stdout.readline().strip() != "ready":
                    raise SystemExit("the server did not start")
                done = refresh(folder, planned, run)
            finally:
                server.communicate("")
            result = done.pop("result")
            report[run] = {**done, "published": result.get("published"), "reason": result.get("reason")}
            if result.get("release"):
                report[run]["release"] = published(folder, result)
            report[run]["asked"] = by_host(folder, planned)
            print(json.dumps({run: report[run]}, indent=1), flush=True)
    if arguments.json:
        write(arguments.json, report)


if __name__ == "__main__":
    main()
