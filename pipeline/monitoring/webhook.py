"""The message at the end of a run: one POST of JSON, tried again where that may help."""

from __future__ import annotations

import json
import math
import platform
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from ..errors import Unavailable
from ..storage.secrets import masked, masked_for_people
from .config import WebhookConfig, authorization
from .sending import Request, send
from .state import Standing

TRIES = 4
_FIRST_WAIT_S = 0.5  # doubled each time


def message(standing: Standing, *, store: str, links: str | None) -> dict[str, Any]:
    """Return what is said of a run that has ended; the shape is a promise, so fields are only ever added.

    text: one line for people, under the name that chat services show. verdict: published | unchanged | finished |
    refused | failed | temporary | conflict. report: an address, null where no report was written. links: as in
    MonitorConfig.
    """
    named, ended = standing.named, standing.ended
    if ended is None:
        raise ValueError("a run that works has no message yet")
    verdict = _verdict(ended.exit_code, ended.reason, published=ended.published)
    report = ended.details.get("report")
    error = masked_for_people(ended.error) if ended.error else None
    words = f"{named.command} {named.run}: {verdict}, exit code {ended.exit_code}"
    text = ", ".join([words, *([f"release {ended.release}"] if ended.release else []), error or ended.reason])
    return {
        "text": text,
        "verdict": verdict,
        "exit_code": ended.exit_code,
        "reason": ended.reason,
        "error": error,
        "run": named.run,
        "command": named.command,
        "channel": named.channel,
        "release": ended.release,
        "published": ended.published,
        "report": f"{links or masked(store).rstrip('/')}/{report}" if report else None,
        "gates": [
            {
                "gate": each.name,
                "value": _number(each.value),
                "limit": each.limit,
                "passed": each.passed,
                "allowed": each.allowed,
            }
            for each in standing.verdicts
        ],
        "quarantined": {f"{stage}/{reason}": count for (stage, reason), count in sorted(standing.refused.items())},
        "plan": dict(standing.changes),
        "seconds": {stage: round(seconds, 2) for stage, seconds in standing.seconds.items()},
        "began": datetime.fromtimestamp(standing.began, UTC).isoformat(timespec="seconds"),
        "ended": datetime.fromtimestamp(ended.at, UTC).isoformat(timespec="seconds"),
        "store": masked(store),
        "host": platform.node(),
        "version": named.version,
        "labels": dict(named.labels),
    }


def post(config: WebhookConfig, body: dict[str, Any], *, timeout_s: float) -> None:
    """Send a message, up to TRIES times within `timeout_s` seconds.

    Every try carries the same `Idempotency-Key`, since one that timed out may have arrived. Raises Unavailable,
    ConfigError where the receiver refuses it, ValueError where the authorization is not set.
    """
    if config.url is None:
        return
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "visual-codebooks",
        "Idempotency-Key": str(uuid.uuid4()),
        **authorization(config.authorization_env),
    }
    request = Request("POST", config.url.get_secret_value(), json.dumps(body).encode(), headers)
    deadline, wait = time.monotonic() + timeout_s, _FIRST_WAIT_S
    for left in reversed(range(TRIES)):
        try:
            send(request, timeout_s=max(0.1, deadline - time.monotonic()))
        except Unavailable:
            if not left or time.monotonic() + wait >= deadline:
                raise
            time.sleep(wait)
            wait *= 2
        else:
            return


def _verdict(code: int, reason: str, *, published: bool) -> str:
    if code == 0:
        return "published" if published else "unchanged" if reason == "nothing to do" else "finished"
    return {4: "refused", 5: "conflict", 6: "temporary"}.get(code, "failed")


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
