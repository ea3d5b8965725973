"""The Grafana dashboard as code: `python -m cluster.grafana > cluster/monitoring/dashboard.json`.

A dashboard made by hand is JSON that nobody can review; this is a list of panels, and a test compares the two.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_SOURCE = {"type": "prometheus", "uid": "${source}"}
_OF_RUN = '{channel="$channel",command="$command"}'
_OF_CHANNEL = '{channel="$channel"}'
_WIDE = 24  # columns of Grafana's grid


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. queries: (expression, legend); unit: Grafana's name of it; red_above: where a stat turns red."""

    title: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    unit: str = "short"
    width: int = 8
    height: int = 7
    red_above: float | None = None
    red_below: float | None = None
    help: str = ""


def _run(name: str, more: str = "") -> str:
    """Return a series of the run's group; more: further matchers."""
    return f"codebooks_run_{name}{_OF_RUN[:-1]}{more}}}"


def _age(of: str) -> str:
    """Return the seconds since a time of the channel's group."""
    return f"time() - max without (instance, job) (codebooks_{of}_timestamp_seconds{_OF_CHANNEL})"


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "The channel",
        (
            Panel("Age of the last success", ((_age("last_success"), ""),), "stat", "s", 4, 4, red_above=26 * 3600,
                  help="A refresh that ended with 0, published or unchanged."),
            Panel("Age of the release", ((_age("release_created"), ""),), "stat", "s", 4, 4,
                  help="A catalogue that does not change has an old release."),
            Panel("Exit code of the last run", ((f"last_over_time({_run('exit_code')}[2d])", ""),), "stat", "none", 4,
                  4, red_above=1, help="4: refused by a gate; 6: temporary. None while a run works."),
            Panel("Recall", ((_run("measure", ',measure="recall"'), ""),), "stat", "percentunit", 4, 4, red_below=0.95),
            Panel("Quarantined", ((_run("measure", ',measure="quarantine_share"'), ""),), "stat", "percentunit", 4, 4,
                  red_above=0.1),
            Panel("At work", ((_run("in_progress"), ""),), "stat", "none", 4, 4),
            Panel("The release", ((f"codebooks_release_info{_OF_CHANNEL}", "{{release}}, by {{made_by}}"),), "table",
                  "none", 12, 5),
            Panel("The run", ((_run("info"), "{{run}}, {{release}}, version {{version}}"),), "table", "none", 12, 5),
        ),
    ),
    (
        "The run",
        (
            Panel("Photos a second", ((_run("stage_photos_per_second"), "{{stage}}"),), unit="ops"),
            Panel("Done", ((f"{_run('stage_photos')} / {_run('stage_planned_photos')}", "{{stage}}"),),
                  unit="percentunit"),
            Panel("Seconds by stage", ((_run("stage_seconds"), "{{stage}}"),), "bargauge", "s"),
            Panel("Shards done", ((_run("stage_shards"), "{{stage}}"),)),
            Panel("An actor's photos a second, by node",
                  ((f"{_run('node_photos')} / ({_run('node_seconds')} > 0)", "{{node}}: {{stage}}"),), unit="ops",
                  help="A node that is slower than the others holds up the end of a stage."),
            Panel("Training: photos a second", ((_run("train_photos_per_second"), "over all workers"),), unit="ops"),
            Panel("Training: loss", ((_run("train_loss"), "loss"),)),
            Panel("Training: steps done", ((f"{_run('train_steps')} / {_run('train_planned_steps')}", "done"),),
                  unit="percentunit"),
            Panel("Memory of the driver and its children", ((_run("peak_memory_bytes"), "at most"),), unit="bytes"),
            Panel("Seconds since the run was heard of", ((f"time() - {_run('updated_timestamp_seconds')}", "ago"),),
                  unit="s", help="With `At work` at 1 and more than a few minutes here, its process was killed."),
        ),
    ),
    (
        "What was found",
        (
            Panel("What the plan counted", ((_run("plan"), "{{counted}}"),), "bargauge"),
            Panel("Quarantined photos by reason", ((_run("quarantined_photos"), "{{stage}}: {{reason}}"),)),
            Panel("Measures", ((_run("measure"), "{{measure}}"),), "table"),
            Panel("Gates: values and limits",
                  ((_run("gate_value"), "{{gate}}"), (_run("gate_limit"), "{{gate}}, its limit")), width=12),
            Panel("Gates: passed", ((_run("gate_passed"), "{{gate}}"),), "bargauge", width=6),
            Panel("Not delivered", ((_run("monitor_failures"), "{{sink}}"),), "stat", width=6, red_above=1),
        ),
    ),
    (
        "The cluster, as Ray exports it",
        (
            Panel("CPUs busy", (("avg by (instance) (ray_node_cpu_utilization)", "{{instance}}"),), unit="percent"),
            Panel("Memory", (("sum by (instance) (ray_node_mem_used)", "{{instance}}"),), unit="bytes"),
            Panel("GPUs busy", (("avg by (instance) (ray_node_gpus_utilization)", "{{instance}}"),), unit="percent",
                  help="Only on nodes with GPUs."),
        ),
    ),
)  # fmt: skip


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS:
        panels.append(
            {"type": "row", "title": title, "collapsed": False, "panels": [], "id": len(panels) + 1,
             "gridPos": {"x": 0, "y": top, "w": _WIDE, "h": 1}}
        )  # fmt: skip
        top += 1
        left = tallest = 0
        for panel in row:
            if left + panel.width > _WIDE:
                left, top, tallest = 0, top + tallest, 0
            place = {"x": left, "y": top, "w": panel.width, "h": panel.height}
            panels.append({**_panel(panel), "id": len(panels) + 1, "gridPos": place})
            left, tallest = left + panel.width, max(tallest, panel.height)
        top += tallest
    return {
        "title": "Visual Codebooks",
        "uid": "visual-codebooks",
        "tags": ["codebooks"],
        "schemaVersion": 36,
        "editable": True,
        "refresh": "1m",
        "time": {"from": "now-7d", "to": "now"},
        "templating": {"list": [_source(), *(_variable(name) for name in ("channel", "command"))]},
        "panels": panels,
    }


def main() -> int:
    """Write the JSON to standard output."""
    sys.stdout.write(json.dumps(dashboard(), indent=1, sort_keys=True) + "\n")
    return 0


def _panel(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.red_above is not None:
        steps.append({"color": "red", "value": panel.red_above})
    if panel.red_below is not None:
        steps = [{"color": "red", "value": None}, {"color": "green", "value": panel.red_below}]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": _SOURCE,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}},
            "overrides": [],
        },
        "options": {},
        "targets": _targets(panel.queries, instant=panel.kind != "timeseries"),
    }


def _targets(queries: Sequence[tuple[str, str]], *, instant: bool) -> list[dict[str, Any]]:
    return [
        {
            "refId": chr(ord("A") + number),
            "datasource": _SOURCE,
            "expr": expression,
            "legendFormat": legend,
            "instant": instant,
            "range": not instant,
        }
        for number, (expression, legend) in enumerate(queries)
    ]


def _source() -> dict[str, Any]:
    return {"name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus"}


def _variable(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": f"label_values(codebooks_run_info, {name})", "refId": name},
        "refresh": 2,
        "sort": 1,
    }


if __name__ == "__main__":
    sys.exit(main())
