"""Telling how a run goes: Prometheus metrics, JSON logs, a message at its end."""

from __future__ import annotations

from .checking import check_told
from .config import MetricsConfig, MonitorConfig, WebhookConfig
from .logs import json_lines
from .monitor import ALREADY, NO_CHANNEL, monitored

__all__ = [
    "ALREADY",
    "NO_CHANNEL",
    "MetricsConfig",
    "MonitorConfig",
    "WebhookConfig",
    "check_told",
    "json_lines",
    "monitored",
]
