"""Whether those that a config names could be told, looked at before a night needs it; nothing is sent to a webhook."""

from __future__ import annotations

import os
import socket
import ssl
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from ..errors import CodebooksError, ConfigError
from ..findings import Finding
from .config import MonitorConfig, authorization
from .sending import Request, send

_TIMEOUT_S = 5.0


def check_told(values: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is found of a section `monitor`; what is wrong is a warning, since it stops no night.

    values: the section as plain values. Raises ConfigError where it is wrong itself; no secret stands in the message.
    """
    try:
        config = MonitorConfig.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(f"monitor.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"not looked at, its section is wrong: {problems}") from error
    metrics = config.metrics
    if metrics.textfile is not None:
        yield _textfile(Path(metrics.textfile))
    if metrics.pushgateway is not None:
        yield _reached("pushgateway", metrics.authorization_env, _Gateway(metrics.pushgateway))
    if config.webhook.url is not None:
        yield _reached("webhook", config.webhook.authorization_env, _Door(config.webhook.url.get_secret_value()))


class _Gateway:
    """A Pushgateway, which says that it is ready."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def look(self, headers: dict[str, str]) -> str:
        request = Request("GET", f"{self._url}/-/ready", b"", headers)
        send(request, timeout_s=_TIMEOUT_S)
        return f"{request.host} is ready"


class _Door:
    """Who gets the message: only the way to it is tried, to its certificate; a request would be taken for a night."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)

    def look(self, _headers: dict[str, str]) -> str:
        parts = self._parts
        host, port = str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80)
        if urllib.request.getproxies().get(parts.scheme) and not urllib.request.proxy_bypass(host):
            return f"{host}:{port} is reached through a proxy, which was not tried"
        with socket.create_connection((host, port), timeout=_TIMEOUT_S) as connection:
            if parts.scheme == "https":
                ssl.create_default_context().wrap_socket(connection, server_hostname=host).close()
        return f"{host}:{port} can be reached; nothing was sent"


def _textfile(folder: Path) -> Finding:
    if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
        return Finding("ok", "textfile", f"{folder} can be written")
    text = f"{folder} is no folder that can be written"
    mend = f"make it, writable for this user, and start node_exporter with --collector.textfile.directory={folder}"
    return Finding("warn", "textfile", text, mend)


def _reached(name: str, authorization_env: str | None, place: _Gateway | _Door) -> Finding:
    try:
        return Finding("ok", name, place.look(authorization(authorization_env)))
    except (CodebooksError, OSError, ValueError) as error:  # a certificate's error is an OSError too
        return Finding("warn", name, f"{error}", "nights go on without it; mend it to be told of them")
