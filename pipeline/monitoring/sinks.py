"""Where metrics go: a folder of node_exporter's textfile collector, a Pushgateway."""

from __future__ import annotations

import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..keys import SHORT, digest_of
from .config import MetricsConfig, authorization
from .metrics import Success, channel_labels, channel_metrics, run_labels, run_metrics, text_of
from .sending import Request, send
from .state import Standing

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

JOB = "codebooks"


class Sink(ABC):
    """Takes a run's metrics while it works and at its end."""

    name: str

    @abstractmethod
    def put(self, group: Mapping[str, str], registry: CollectorRegistry, *, timeout_s: float) -> None:
        """Replace a group of series, which its labels name, as a whole. Raises an exception of any kind."""

    def tell(self, standing: Standing, success: Success | None, *, timeout_s: float) -> None:
        """Replace the run's group, and the channel's where a night succeeded: what it held stays otherwise."""
        self.put(run_labels(standing), run_metrics(standing), timeout_s=timeout_s)
        if success is not None:
            self.put(channel_labels(standing), channel_metrics(standing, success), timeout_s=timeout_s)


class Textfile(Sink):
    """Files in the folder of node_exporter's textfile collector, each replaced by a rename.

    The collector reads whatever ends in `.prom` at any moment; a file that is half there would cost the scrape.
    """

    name = "textfile"

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def put(self, group: Mapping[str, str], registry: CollectorRegistry, *, timeout_s: float) -> None:
        """Write one group. Raises OSError, ConfigError where the folder is not there."""
        if not self._folder.is_dir():
            raise ConfigError(
                f"monitor.metrics.textfile: {self._folder} is no folder; make it, and start node_exporter with "
                f"--collector.textfile.directory={self._folder}"
            )
        descriptor, aside = tempfile.mkstemp(prefix=".", suffix=".part", dir=self._folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(text_of(registry))
                os.fchmod(descriptor, 0o644)  # node_exporter runs as another user
            Path(aside).replace(self._folder / textfile_name(group))
        except BaseException:
            Path(aside).unlink(missing_ok=True)
            raise


class Pushgateway(Sink):
    """A Pushgateway: PUT replaces the whole group of these labels and no other group.

    The gateway keeps what it was given until it is replaced or deleted, so a job that dies leaves its last state, and
    the channel's group outlives every failed night.
    """

    name = "pushgateway"

    def __init__(self, url: str, authorization_env: str | None) -> None:
        self._url = url
        self._authorization_env = authorization_env

    def put(self, group: Mapping[str, str], registry: CollectorRegistry, *, timeout_s: float) -> None:
        """Push one group. Raises CodebooksError, ValueError where the authorization is not set."""
        from prometheus_client import push_to_gateway

        extra = authorization(self._authorization_env)

        def handler(url: str, method: str, timeout: float, headers: list[tuple[str, str]], data: bytes) -> Any:
            return lambda: send(Request(method, url, data, {**dict(headers), **extra}), timeout_s=timeout)

        push_to_gateway(self._url, JOB, registry, grouping_key=dict(group), timeout=timeout_s, handler=handler)


def textfile_name(group: Mapping[str, str]) -> str:
    """Return the file of a group: `codebooks_refresh_stable.prom` of a run, `codebooks_stable.prom` of a channel."""
    named = [JOB, *(group[label] for label in ("command", "channel") if label in group)]
    others = {label: value for label, value in group.items() if label not in ("command", "channel")}
    if others:
        named.append(digest_of(repr(sorted(others.items())).encode())[:SHORT])
    return re.sub(r"[^A-Za-z0-9_.-]", "-", "_".join(named)) + ".prom"


def sinks_of(config: MetricsConfig) -> list[Sink]:
    """Return the sinks that a config names."""
    sinks: list[Sink] = []
    if config.textfile is not None:
        sinks.append(Textfile(config.textfile))
    if config.pushgateway is not None:
        sinks.append(Pushgateway(config.pushgateway, config.authorization_env))
    return sinks
