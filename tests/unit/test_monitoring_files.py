"""The dashboard and the alerts name metrics that there are, and every alert and exit code stands in the runbook.

What promtool, Prometheus and Alertmanager make of them is `make cluster-watch`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.grafana import dashboard
from pipeline.ends import EXIT_CODES
from pipeline.evaluation import GATES
from pipeline.monitoring.metrics import CHANNEL_FAMILIES, RUN_FAMILIES

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "cluster" / "monitoring"
LABELS = {family.name: {*family.labels, "command", "channel"} for family in RUN_FAMILIES} | {
    family.name: {*family.labels, "channel"} for family in CHANNEL_FAMILIES
}


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    return list(group["rules"])


def expressions() -> list[str]:
    shown = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]
    return [*shown, *(rule["expr"] for rule in alerts())]


def strange(expression: str) -> list[str]:
    """Return what of an expression no metric of ours is or has."""
    found = []
    for name, matchers in re.findall(r"\b(codebooks_[a-z_]+)(\{[^}]*\})?", expression):
        if name not in LABELS:
            found.append(name)
            continue
        found += [f"{name}.{label}" for label in re.findall(r"(\w+)=", matchers) if label not in LABELS[name]]
    return found


@pytest.mark.parametrize("expression", expressions())
def test_expressions_name_metrics_and_labels_that_there_are(expression: str) -> None:
    assert strange(expression) == []
    assert re.search(r"\b(codebooks|ray)_", expression)


def test_a_misspelt_metric_or_label_is_seen() -> None:
    assert strange("codebooks_run_exitcode == 4") == ["codebooks_run_exitcode"]
    assert strange('codebooks_run_exit_code{stage="x"}') == ["codebooks_run_exit_code.stage"]


def test_gates_that_are_named_are_gates() -> None:
    named = {name for text in expressions() for name in re.findall(r'gate="(\w+)"', text)}
    assert named <= {gate.field for gate in GATES}
    assert named


def test_the_dashboard_is_the_one_that_its_code_makes() -> None:
    made = json.dumps(dashboard(), indent=1, sort_keys=True) + "\n"
    assert (MONITORING / "dashboard.json").read_text() == made, (
        "python -m cluster.grafana > cluster/monitoring/dashboard.json"
    )
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one in panels:
        for other in panels:
            a, b = one["gridPos"], other["gridPos"]
            apart = (
                a["x"] + a["w"] <= b["x"]
                or b["x"] + b["w"] <= a["x"]
                or a["y"] + a["h"] <= b["y"]
                or b["y"] + b["h"] <= a["y"]
            )
            assert one is other or apart, (one["title"], other["title"])


def test_every_alert_is_tested_both_ways() -> None:
    tests = yaml.safe_load((ROOT / "tests/cluster/alerts_test.yaml").read_text())["tests"]
    asked = [(each["alertname"], bool(each["exp_alerts"])) for test in tests for each in test["alert_rule_test"]]
    for rule in alerts():
        assert (rule["alert"], True) in asked
    silent = {name for name, fires in asked if not fires}
    # These two have no time at which they could be silent in the same series; others' tests hold for them.
    assert {rule["alert"] for rule in alerts()} - silent == set()


def test_every_alert_and_exit_code_stands_in_the_runbook() -> None:
    text = (ROOT / "cluster/README.md").read_text()
    heads = [head.strip().lower() for head in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    for rule in alerts():
        assert rule["annotations"]["runbook"] == f"cluster/README.md#{rule['alert'].lower()}"
        assert heads.count(rule["alert"].lower()) == 1, rule["alert"]
        assert rule["labels"]["severity"] in {"page", "ticket"}
    for code in EXIT_CODES:
        assert re.search(rf"^\| {code} \|", text, re.MULTILINE), f"exit code {code}"
