"""An S3 server for tests and benchmarks: moto in a process and a virtual environment of its own.

moto pins a botocore that aiobotocore refuses, so it cannot live beside the project's dependencies. This file is loaded
by tests/conftest.py and by benchmark scripts; it needs the standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

MOTO = "moto[server]==5.2.5"
ROOT = Path(__file__).resolve().parent.parent
# The server leaves when its standard input ends, so it never outlives a test session that was killed. moto looks
# whether a name exists and writes it in two steps without a lock, and adds the metadata in a third: on a busy machine
# two racers of eight were told 200. S3 does a PUT at once, and so does the server here.
_PROGRAM = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(0)), daemon=True).start()
from moto.s3.responses import S3Response
from moto.server import main
lock = threading.RLock()
def at_once(method):
    def locked(*args, **names):
        with lock:
            return method(*args, **names)
    return locked
S3Response.put_object = at_once(S3Response.put_object)
S3Response.head_object = at_once(S3Response.head_object)
main(sys.argv[1:])
"""
_LOG_LINE = re.compile(r'"(?P<method>[A-Z]+) (?P<target>\S+) HTTP/[0-9.]+" (?P<status>[0-9]{3})')
_ANYBODY = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": "*"}],
}
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# Query words that make a GET of `/bucket/key` something else than reading the object.
_NOT_READS = {"uploads", "uploadId", "acl", "tagging", "attributes", "retention", "legal-hold"}


def moto_python() -> Path:
    """Return the Python of moto's environment, which `make install` or the first use makes in half a minute.

    CODEBOOKS_MOTO_VENV names another folder for it, for example one that a CI machine keeps.
    """
    folder = Path(os.environ.get("CODEBOOKS_MOTO_VENV") or ROOT / ".cache" / "moto-venv")
    stamp = folder / "complete.txt"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test sessions that start together make it once
        if not stamp.exists() or stamp.read_text() != MOTO:
            shutil.rmtree(folder, ignore_errors=True)
            for command in (
                [sys.executable, "-m", "venv", str(folder)],
                [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", MOTO],
            ):
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(
                        f"the S3 test server's environment {folder} could not be made: {' '.join(command)} gave "
                        f"{done.returncode}:\n{done.stderr[-2000:]}\nSet CODEBOOKS_MOTO_VENV to an environment that "
                        "holds moto[server] (with its name in complete.txt), or leave the tests out: -m 'not s3'"
                    )
            stamp.write_text(MOTO)
    return folder / "bin" / "python"


class MotoServer:
    """A running S3 server. endpoint: its URL; as a context manager it stops at the end."""

    def __init__(self) -> None:
        self._log = tempfile.NamedTemporaryFile(mode="w+", prefix="moto-", suffix=".log")  # noqa: SIM115
        self._seen = 0  # bytes of the log that the last reset left behind
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.process = subprocess.Popen(
            [str(moto_python()), "-c", _PROGRAM, "-H", "127.0.0.1", "-p", str(self.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            env=environment,
            start_new_session=True,
        )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    @property
    def environment(self) -> dict[str, str]:
        """The AWS variables under which any S3 client of this process or a child finds the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",  # any pair will do: moto checks no signatures
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def make_bucket(self, name: str, *, public: bool = False) -> str:
        """Make an empty bucket and return its URL, `s3://name`. public: anybody may do everything, unsigned."""
        steps = [(f"/{name}", b"")]
        steps += [(f"/{name}?policy", json.dumps(_ANYBODY).encode())] if public else []
        for path, sent in steps:
            status, body = self._request("PUT", path, sent)
            if status != 200:
                raise RuntimeError(f"bucket {name!r} could not be made: {status} {body[:300]!r}")
        return f"s3://{name}"

    def requests(self) -> list[tuple[str, str]]:
        """Return (method, path) of every answered request since the last reset; a path is as sent, with its query."""
        with Path(self._log.name).open("rb") as log:
            log.seek(self._seen)
            text = log.read().decode("utf-8", "replace")
        return [
            (found["method"], found["target"])
            for line in text.splitlines()
            if (found := _LOG_LINE.search(_COLOURS.sub("", line)))
        ]

    def count_gets(self) -> list[tuple[str, str]]:
        """Return ("GET", "/bucket/key") of every read of an object since the last reset; listings do not count."""
        found = []
        for method, target in self.requests():
            path, _, query = target.partition("?")
            if method != "GET" or path.startswith("/moto-api") or "/" not in path.strip("/"):
                continue
            if _NOT_READS & set(urllib.parse.parse_qs(query, keep_blank_values=True)):
                continue
            found.append((method, urllib.parse.unquote(path)))
        return found

    def reset_counts(self) -> None:
        """Forget the requests answered so far."""
        self._seen = Path(self._log.name).stat().st_size

    def stop(self) -> None:
        """Kill the server and everything it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
        self._log.close()

    def __enter__(self) -> MotoServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=200)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _wait(self) -> None:
        deadline = time.monotonic() + 300
        while True:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the S3 test server did not start:\n{Path(self._log.name).read_text()[-2000:]}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self._request("GET", "/moto-api/data.json")[0] == 200:
                    self.reset_counts()
                    return
            time.sleep(0.05)


@contextlib.contextmanager
def aws_environment(server: MotoServer) -> Iterator[MotoServer]:
    """Point this process and its children at the server; what was set before is put back at the end."""
    changes: dict[str, str | None] = {
        "AWS_PROFILE": None, "AWS_SESSION_TOKEN": None, "AWS_ENDPOINT_URL_S3": None, **server.environment
    }  # fmt: skip
    before = {name: os.environ.get(name) for name in changes}
    _set_environment(changes)
    try:
        yield server
    finally:
        _set_environment(before)


def _set_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


if __name__ == "__main__":
    moto_python()
