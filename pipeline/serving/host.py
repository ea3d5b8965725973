"""uvicorn as the application's host: options, one listening socket, N spawned processes, an end that drains."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from pydantic import SecretStr, ValidationError
from starlette.applications import Starlette
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from ..errors import ConfigError
from ..release import check_store, read_head
from ..release.channel import CHANNELS
from ..storage import Store, open_store
from ..storage.options import StorageOptions
from .application import application
from .config import TOKEN_VARIABLE, ServeConfig

_BACKLOG = 2048
_ANSWERS_WITHIN_S = 60.0
_OPTIONS = {name: field for name, field in ServeConfig.model_fields.items() if field.description is not None}
_TOKEN = r"[A-Za-z0-9._~+/-]{16,}=*"  # noqa: S105  what a bearer token may be (RFC 6750)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add one option for each setting of a service that has a description."""
    for name, field in _OPTIONS.items():
        shown = "" if field.default is None else f" (default {field.default})"
        kind = type(field.default) if isinstance(field.default, int | float) else str
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, metavar=name.upper(), help=f"{field.description}{shown}"
        )


def settings_of(options: argparse.Namespace, store_url: str, storage: StorageOptions, channel: str) -> ServeConfig:
    """Return the settings of a command line; the token comes from the environment. Raises ConfigError."""
    given = {name: value for name, value in vars(options).items() if name in _OPTIONS and value is not None}
    return parse_settings(given, store_url, storage, channel)


def parse_settings(given: Mapping[str, Any], store_url: str, storage: StorageOptions, channel: str) -> ServeConfig:
    """Return the settings of options by their names; the token comes from the environment. Raises ConfigError."""
    if unknown := sorted(set(given) - set(_OPTIONS)):
        raise ConfigError(f"the service has no option {unknown[0]!r}; there are: {', '.join(_OPTIONS)}")
    values = {**given, "store_url": store_url, "storage": storage, "channel": channel, "token": _token()}
    try:
        return ServeConfig.model_validate(values)
    except ValidationError as error:
        problems = [
            f"--{str(each['loc'][0]).replace('_', '-')} is {each['input']!r}: {each['msg']}" for each in error.errors()
        ]
        raise ConfigError("; ".join(problems)) from None


def serve(config: ServeConfig) -> None:
    """Serve until SIGTERM or Ctrl-C; requests under way are answered first. SIGHUP replaces the processes one by one.

    Each process is spawned, never forked, and follows the channel by itself; one that dies is replaced. Raises
    ConfigError when the address cannot be had or a process cannot start, and what a store raises that is not reached.
    """
    _say_where_the_channel_is(open_store(config.store_url, config.storage), config)
    # Searches run beside each other already; threads inside each would only get in each other's way.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with _listening(config) as listener, tempfile.TemporaryDirectory(prefix="codebooks-serve-") as folder:
        host, port = listener.getsockname()[:2]
        sys.stderr.write(f"serving {config.store_url} on {_address(host, port)} with {config.workers} process(es)\n")
        hosted = uvicorn.Config(
            partial(_hosted, config, Path(folder), os.getpid()),
            factory=True,
            workers=config.workers,
            lifespan="on",
            loop="asyncio",
            http="h11",
            ws="none",
            access_log=False,  # /metrics counts; a line a request would be most of the work
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=config.drain_s,
            timeout_worker_healthcheck=30,  # native code may hold a process up for a moment
        )
        processes = Multiprocess(hosted, [listener])
        processes.run()
    if any(process.exitcode == STARTUP_FAILURE for process in processes.processes):
        raise ConfigError("a process of the service could not start, so the service ended; its error stands above")


def answering_address(config: ServeConfig) -> str:
    """Return the address of a service that others host, once this node answers there.

    They listen where whoever started the first one had them listen. Raises ConfigError when nothing of this service
    answers within a minute.
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)  # noqa: S104  asked, not listened on
    address = _address(host, config.port)
    ends, problem = time.monotonic() + _ANSWERS_WITHIN_S, ""
    while time.monotonic() < ends:
        try:
            with urllib.request.urlopen(f"{address}healthz", timeout=5) as answer:  # noqa: S310  always http
                if json.load(answer).get("status") == "ok":
                    return address
        except (OSError, ValueError, AttributeError) as error:
            problem = str(error)
        time.sleep(0.2)
    raise ConfigError(
        f"nothing of this service answers at {address} ({problem}): another Ray Serve of this cluster listens at "
        "its own --host and --port, which the first one decides; name those, or end that one (`serve shutdown`)"
    )


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _hosted(config: ServeConfig, folder: Path, parent: int) -> Starlette:
    """Return the application in a process of its own, which ends when its parent is gone without having said so."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="parent").start()
    return application(config, folder)


def _token() -> SecretStr | None:
    text = os.environ.get(TOKEN_VARIABLE)
    if text is None:
        return None
    if not re.fullmatch(_TOKEN, text):
        raise ConfigError(
            f"{TOKEN_VARIABLE} holds {len(text)} characters that make no token: use 16 or more letters, digits or "
            "._~+/-, for example of `openssl rand -hex 32`, or unset it to serve without one"
        )
    return SecretStr(text)


def _say_where_the_channel_is(store: Store, config: ServeConfig) -> None:
    """Check that this is a store; a channel without a release is told of, and waited for."""
    check_store(store)
    if config.release_id is not None or read_head(store, config.channel) is not None:
        return
    known = sorted({entry.name.split("/")[1] for entry in store.list(CHANNELS)})
    sys.stderr.write(
        f"channel {config.channel!r} on {store.url} has no release yet (channels that have: "
        f"{', '.join(known) or 'none'}); /readyz answers 503 until the first is published. Is this the right one?\n"
    )


def _listening(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        listener = socket.create_server((config.host, config.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"{config.host}:{config.port} cannot be listened on ({error.strerror or error}); name an address of this "
            "machine with --host, and with --port a port that is free and allowed (0 takes any)"
        ) from error
    listener.set_inheritable(True)
    return listener
