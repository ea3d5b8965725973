"""The whole chain on loopback: a real refresh, Pushgateway, Prometheus, Alertmanager, and our receiver of alerts.

`make cluster-watch` (Debian's prometheus and its pushgateway, alertmanager, node-exporter; some minutes). What a night
tells goes through the real programs: `promtool` judges the text format and the rules, every expression of the dashboard
is sent to the real Prometheus after real nights and has to find data, node_exporter reads the textfile, alerts arrive
as POSTs, and a night that is killed with -9 leaves the last success where it is. Known wrong versions must fail: each
rule with another limit, a metric without help, half a file.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from watch_rules import MONITORING, ROOT, check_rules, promtool

from pipeline.events import Finished, tell
from pipeline.images.render import render_catalogue
from pipeline.monitoring import MonitorConfig, monitored
from pipeline.storage.config import StoreConfig

RESULTS = ROOT / "tests" / "benchmarks" / "results" / "watch.json"
NEEDED = (
    "promtool",
    "prometheus",
    "prometheus-pushgateway",
    "prometheus-alertmanager",
    "amtool",
    "prometheus-node-exporter",
)
# Needs a GPU in the cluster that Prometheus scrapes.
WITHOUT_DATA_HERE = ("ray_node_gpus_utilization",)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def ask(url: str, timeout_s: float = 10.0) -> Any:
    with urllib.request.urlopen(url, timeout=timeout_s) as answer:
        return json.loads(answer.read() or b"null")


def until(what: str, found: Callable[[], Any], limit_s: float = 60.0) -> Any:
    """Return the first true answer. Raises AssertionError after `limit_s` seconds."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if answer := found():
                return answer
        time.sleep(0.3)
    raise AssertionError(f"{what}: not after {limit_s:g} s")


@contextmanager
def process(folder: Path, *words: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the end of the `with`, its output in a file of the folder."""
    log = (folder / f"{Path(words[0]).name}.log").open("ab")
    with log, subprocess.Popen(words, stdout=log, stderr=log, env={**os.environ, **environment}) as running:
        try:
            yield running
        finally:
            running.terminate()
            try:
                running.wait(20)
            except subprocess.TimeoutExpired:
                running.kill()


@contextmanager
def receiver() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Take POSTs of JSON: ours at /night, Alertmanager's at /alerts."""
    got: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            got.append({"path": self.path, "body": body})
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", got
    finally:
        server.shutdown()
        server.server_close()


def check_metrics(url: str) -> dict[str, Any]:
    """Let promtool judge what the Pushgateway serves, our own part of it, and a text without help as a control."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    ours = [line for line in lines if line.startswith(("codebooks_", "# HELP codebooks_", "# TYPE codebooks_"))]
    code, said = promtool("check", "metrics", stdin=("\n".join(ours) + "\n").encode())
    assert (code, said.strip()) == (0, ""), said
    bare = [line for line in ours if not line.startswith("# HELP codebooks_run_exit_code")]
    code, said = promtool("check", "metrics", stdin=("\n".join(bare) + "\n").encode())
    assert code != 0, "promtool passes a metric without help"
    return {"families": sum(line.startswith("# TYPE") for line in ours),
            "series": sum(not line.startswith("#") for line in ours), "control": said.strip()}  # fmt: skip


def check_dashboard(url: str) -> dict[str, Any]:
    """Send every expression of the dashboard to the real Prometheus, and demand data."""
    board = json.loads((MONITORING / "dashboard.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    empty = []
    for expression in expressions:
        asked = expression.replace("$channel", "stable").replace("$command", "refresh")
        query = urllib.parse.urlencode({"query": asked})
        found = ask(f"{url}/api/v1/query?{query}")["data"]["result"]
        if not found:
            empty.append(asked)
    missing = [asked for asked in empty if not any(known in asked for known in WITHOUT_DATA_HERE)]
    assert not missing, f"no data for {missing}"
    return {"expressions": len(expressions), "without_data_here": empty}


def check_textfile(folder: Path) -> dict[str, Any]:
    """Let the real node_exporter read what a run writes, and a file that is cut off as a control."""
    files = folder / "textfile"
    files.mkdir()
    config = MonitorConfig.model_validate({"metrics": {"textfile": str(files), "labels": {"catalogue": 'a "b" \\ c'}}})
    with monitored(config, StoreConfig(url=str(folder / "nothing")), run="n", command="refresh", channel="stable"):
        tell(Finished(None, published=False, reason="evaluated"))
    port = free_port()
    words = ("prometheus-node-exporter", "--collector.disable-defaults", "--collector.textfile",
             f"--collector.textfile.directory={files}", f"--web.listen-address=127.0.0.1:{port}")  # fmt: skip

    def lines() -> list[str]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return [line for line in answer.read().decode().splitlines() if not line.startswith("#")]

    with process(folder, *words):
        found = until("node_exporter answers", lines)
        ours = [line for line in found if line.startswith("codebooks_")]
        assert "node_textfile_scrape_error 0" in found
        assert any(line.startswith("codebooks_run_exit_code{") and line.endswith(" 0") for line in ours), ours
        written = next(files.glob("*.prom"))
        written.write_bytes(written.read_bytes()[:-20])
        assert "node_textfile_scrape_error 1" in lines(), "node_exporter takes half a file"
    return {"series": len(ours), "files": [path.name for path in sorted(files.iterdir())]}


def configure(folder: Path, gateway: str, alerts: str, ray_files: str) -> Path:
    """Write a Prometheus config of our rules, at intervals of a second, and limits that a test can wait for."""
    rules = (MONITORING / "alerts.yaml").read_text().replace("26 * 3600", "20").replace("for: 5m", "for: 1s")
    rules = rules.replace("> 900", "> 10")
    (folder / "alerts.yaml").write_text(rules)
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(folder / "alerts.yaml")],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alerts]}]}]},
        "scrape_configs": [
            {"job_name": "codebooks", "honor_labels": True, "static_configs": [{"targets": [gateway]}]},
            {"job_name": "ray", "file_sd_configs": [{"files": [ray_files], "refresh_interval": "1s"}]},
        ],
    }
    path = folder / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def chain(folder: Path) -> dict[str, Any]:
    """Run the nights and follow what they tell to its ends."""
    gateway_port, alert_port, prometheus_port = free_port(), free_port(), free_port()
    gateway, prometheus = f"http://127.0.0.1:{gateway_port}", f"http://127.0.0.1:{prometheus_port}"
    ray_folder = folder / "ray"
    with contextlib.ExitStack() as stack:
        hook, got = stack.enter_context(receiver())
        (folder / "alertmanager.yaml").write_text(yaml.safe_dump({
            "route": {"receiver": "ours", "group_wait": "1s", "group_interval": "1s", "repeat_interval": "1h",
                      "group_by": ["alertname"]},
            "receivers": [{"name": "ours", "webhook_configs": [{"url": f"{hook}/alerts", "send_resolved": True}]}],
        }))  # fmt: skip
        config = configure(
            folder,
            f"127.0.0.1:{gateway_port}",
            f"127.0.0.1:{alert_port}",
            f"{ray_folder}/prom_metrics_service_discovery.json",
        )
        listen = "--web.listen-address=127.0.0.1"
        start = [
            ("prometheus-pushgateway", f"{listen}:{gateway_port}"),
            ("prometheus-alertmanager", f"--config.file={folder / 'alertmanager.yaml'}", "--cluster.listen-address=",
             f"--storage.path={folder / 'am'}", f"{listen}:{alert_port}"),
            ("prometheus", f"--storage.tsdb.path={folder / 'tsdb'}", f"{listen}:{prometheus_port}",
             f"--config.file={config}"),
        ]  # fmt: skip
        for words in start:
            stack.enter_context(process(folder, *words))
        until("Prometheus is ready", lambda: ask(f"{prometheus}/api/v1/status/buildinfo"))
        address = stack.enter_context(ray_cluster(ray_folder))
        return nights(folder, gateway, prometheus, hook, got, address)


@contextmanager
def ray_cluster(folder: Path) -> Iterator[str]:
    """Start a head that exports its metrics, as a cluster of several machines does."""
    folder.mkdir()
    port = free_port()
    words = ["start", "--head", f"--port={port}", "--num-cpus=4", f"--temp-dir={folder}", "--disable-usage-stats",
             "--object-store-memory=200000000", "--dashboard-host=127.0.0.1", f"--dashboard-port={free_port()}",
             "--block"]  # fmt: skip
    ray = str(Path(sys.executable).with_name("ray"))
    with process(folder, ray, *words, RAY_AUTH_MODE="disabled"):
        until("Ray lists what is to be scraped", (folder / "prom_metrics_service_discovery.json").exists, 90)
        yield f"127.0.0.1:{port}"


def nights(
    folder: Path, gateway: str, prometheus: str, hook: str, got: list[dict[str, Any]], address: str
) -> dict[str, Any]:
    """A night that publishes, one that a gate refuses; then nothing, until the alert of the age arrives."""
    catalogue = folder / "catalogue"
    render_catalogue(catalogue, items=60, seed=0)
    broken = next(path for path in sorted(catalogue.rglob("*")) if path.suffix in (".jpg", ".png", ".jpeg"))
    broken.write_bytes(b"no picture")
    given = [
        f"store={folder / 'store'}", f"catalogue.source={catalogue / 'catalogue.csv'}", "monitor.metrics.every_s=1",
        f"monitor.metrics.pushgateway={gateway}", f"monitor.webhook.url={hook}/night", "train.epochs=2",
    ]  # fmt: skip

    def night_words(run: str) -> list[str]:
        env = {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}
        command = [sys.executable, "-m", "jobs", "refresh", "--config", "demo", "--run", run, "--log", "json"]
        return ["env", *(f"{name}={value}" for name, value in env.items()), *command, *given]

    def night(run: str, *words: str, expect: int) -> float:
        began = time.monotonic()
        done = subprocess.run([*night_words(run), *words], capture_output=True, text=True, timeout=280)
        assert done.returncode == expect, f"exit {done.returncode}\n{done.stderr[-3000:]}"
        for line in done.stderr.splitlines():
            json.loads(line)
        return time.monotonic() - began

    def query(text: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = ask(f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': text})}")[
            "data"
        ]["result"]
        return found

    seconds = {"published": night("one", expect=0)}
    until("the exit code of night one", lambda: query('codebooks_run_exit_code{command="refresh"} == 0'))
    result: dict[str, Any] = {"dashboard": check_dashboard(prometheus), "metrics": check_metrics(gateway)}
    success = query("codebooks_last_success_timestamp_seconds")
    seconds["refused"] = refused_night(catalogue, night)
    until("the exit code of night two", lambda: query('codebooks_run_exit_code{command="refresh"} == 4'))
    after = query("codebooks_last_success_timestamp_seconds")
    assert [each["value"][1] for each in after] == [each["value"][1] for each in success], "the last success is gone"
    assert query('codebooks_run_gate_passed{gate="min_items"} == 0'), "the gate is not told"

    def arrived(alert: str) -> Any:
        alerts = [one for each in got if each["path"] == "/alerts" for one in each["body"]["alerts"]]
        return next((one for one in alerts if one["labels"]["alertname"] == alert and one["status"] == "firing"), None)

    began = time.monotonic()
    gate = until("the alert of the gate", lambda: arrived("CodebooksGateRefused"))
    old = until("the alert of the age (20 s here)", lambda: arrived("CodebooksNoRelease"), 90)
    killed_night(night_words("three"), query)
    kept = query("codebooks_last_success_timestamp_seconds")
    assert [each["value"][1] for each in kept] == [each["value"][1] for each in success], "a killed night took it away"
    silent = until("the alert of silence (10 s here)", lambda: arrived("CodebooksRunSilent"), 90)
    told = [each["body"] for each in got if each["path"] == "/night"]
    assert [(each["run"], each["verdict"]) for each in told] == [("one", "published"), ("two", "refused")]
    assert Path(told[0]["report"]).is_file()
    return {
        **result,
        "night_seconds": {name: round(value, 1) for name, value in seconds.items()},
        "alerts": {one["labels"]["alertname"]: one["annotations"]["summary"] for one in (gate, old, silent)},
        "seconds_until_both_alerts": round(time.monotonic() - began, 1),
        "webhook": [each["text"] for each in told],
    }


def killed_night(words: Sequence[str], query: Callable[[str], list[dict[str, Any]]]) -> None:
    """Kill a night with -9 once Prometheus has seen it; what it told last stays, and that it is at work."""
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        at_work = 'codebooks_run_in_progress{command="refresh"} == 1'
        until("the third night is seen at work", lambda: query(at_work), 120)
        running.kill()
    time.sleep(3)
    assert query(at_work), "the killed night is forgotten"


def refused_night(catalogue: Path, night: Callable[..., float]) -> float:
    """Run a night on a catalogue of one item less, under a gate that nothing can pass."""
    lines = (catalogue / "catalogue.csv").read_text().splitlines(keepends=True)
    (catalogue / "catalogue.csv").write_text("".join(lines[:-1]))
    return night("two", "gates.min_items=100000", expect=4)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only-rules", action="store_true", help="promtool's part alone, about a minute")
    parser.add_argument("--only-chain", action="store_true", help="the nights alone")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.relative_to(ROOT)}")
    arguments = parser.parse_args()
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if absent:
        sys.stderr.write(f"not installed: {', '.join(absent)}; Debian has prometheus, prometheus-pushgateway, "
                         "prometheus-alertmanager, prometheus-node-exporter\n")  # fmt: skip
        return 2
    with tempfile.TemporaryDirectory(prefix="watch-") as name:
        folder = Path(name)
        found: dict[str, Any] = {} if arguments.only_chain else check_rules(folder)
        if not arguments.only_rules:
            found |= {"textfile": check_textfile(folder), **chain(folder)}
    versions = subprocess.run(["prometheus", "--version"], capture_output=True, text=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    found |= {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "commit": commit.stdout.strip(),
        "prometheus": (versions.stdout + versions.stderr).split()[2],
    }
    text = json.dumps(found, indent=1, sort_keys=True) + "\n"
    if arguments.write:
        RESULTS.write_text(text)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
