"""Alert rules under promtool: as they are, and in known wrong versions, every one of which the tests have to see."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "cluster" / "monitoring"
# (alert, what stands in its rule, what makes it wrong): the tests of rules must see every one of them.
WRONG = [
    ("CodebooksNoRelease", "26 * 3600", "30 * 3600"),
    ("CodebooksNoRelease", "max without", "min without"),
    ("CodebooksNotTold", "for: 2h", "for: 20m"),
    ("CodebooksGateRefused", "== 0", "== 1"),
    ("CodebooksGateRefused", "or ignoring (gate) (", "or ("),
    ("CodebooksRunFailing", "< 4", "< 6"),
    ("CodebooksRunFailing", '{command="refresh"}', ""),
    ("CodebooksStillTemporary", "last_over_time(codebooks_run_exit_code{command=\"refresh\"}[1h])",
     "codebooks_run_exit_code{command=\"refresh\"}"),
    ("CodebooksRunSilent", "and codebooks_run_in_progress == 1", ""),
    ("CodebooksRunSilent", "> 900", "> 9000"),
    ("CodebooksQuarantineAboveBudget", "0.5 *", "0.6 *"),
    ("CodebooksChannelBehind", "without (instance, job, channel)", "without (instance, job, channel, catalogue)"),
    ("CodebooksNotDelivered", "> 0", ">= 0"),
]  # fmt: skip


def promtool(*words: str, stdin: bytes | None = None) -> tuple[int, str]:
    done = subprocess.run(["promtool", *words], input=stdin, capture_output=True)
    return done.returncode, (done.stdout + done.stderr).decode()


def check_rules(folder: Path) -> dict[str, Any]:
    """Test the rules as they are, and each known wrong version of them."""
    rules, tests = (MONITORING / "alerts.yaml").read_text(), ROOT / "tests/cluster/alerts_test.yaml"
    seen = []
    for alert, right, wrong in [("", "", ""), *WRONG]:
        place = folder / (f"rules-{len(seen)}")
        place.mkdir()
        shutil.copy(tests, place / "alerts_test.yaml")
        text = rules
        if alert:
            before, name, after = rules.partition(f"- alert: {alert}\n")
            own, following, rest = after.partition("\n      - alert: ")
            assert right in own, f"{alert}: {right!r} is not in its rule"
            text = before + name + own.replace(right, wrong, 1) + following + rest
        (place / "alerts.yaml").write_text(text)
        code, said = promtool("check", "rules", str(place / "alerts.yaml"))
        assert code == 0, f"{alert}: {said}"
        code, said = promtool("test", "rules", str(place / "alerts_test.yaml"))
        assert (code == 0) == (not alert), f"{alert} with {wrong!r} for {right!r}: promtool ended with {code}\n{said}"
        seen.append(f"{alert}: {right!r} -> {wrong!r}")
    for name in ("prometheus.yaml", "alertmanager.yaml"):
        place = folder / "example"
        shutil.copytree(MONITORING, place, dirs_exist_ok=True)
        tool = ("promtool", "check", "config") if name == "prometheus.yaml" else ("amtool", "check-config")
        done = subprocess.run([*tool, str(place / name)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return {"rules": rules.count("- alert:"), "wrong_versions_seen": seen[1:]}
