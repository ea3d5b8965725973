"""Reading over http from a server of this test's own."""

from __future__ import annotations

import hashlib
import pickle
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pipeline.errors import CodebooksError, ConfigError, Forbidden, InputError, NotFound, Unavailable
from pipeline.storage import Files, Places, Retry, WebReader

QUICK = Retry(attempts=3, first_s=0.01, cap_s=0.02, total_s=5)


class Shop:
    """What the server holds: path -> body; answers: path -> statuses given before the body; seen: all requests."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.bodies: dict[str, bytes] = {"/photos/a.jpg": b"content a", "/photos/a%20b.jpg": b"content a b"}
        self.answers: dict[str, list[int | str]] = {}
        self.redirects: dict[str, str] = {}
        self.etags = True
        self.modified: str | None = "Sun, 22 Nov 2026 10:00:00 GMT"
        self.heads: int | None = None  # the status that every HEAD gets
        self.ranges = True
        self.chunked = False
        self.retry_after: str | None = None
        self.seen: list[tuple[str, str, str | None]] = []
        self.sent = 0
        self.connections = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    shop: Shop

    def setup(self) -> None:
        super().setup()
        self.shop.connections += 1

    def do_GET(self) -> None:
        shop = self.shop
        known = self.headers.get("If-None-Match")
        shop.seen.append((self.command, self.path, known))
        planned = shop.answers.get(self.path) or []
        status = planned.pop(0) if planned else 200
        if self.command == "HEAD" and shop.heads:
            status = shop.heads
        body = shop.bodies.get(self.path, b"")
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        if status == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if self.path in shop.redirects:
            status = 302
        elif status == 200 and self.path not in shop.bodies:
            status = 404
        elif status == 200 and known == etag and shop.etags:
            status = 304
        first, last = self._range(len(body))
        if status == 200 and last is not None:
            status = 206 if first < len(body) else 416
        self.send_response(int(status))
        if status in {206, 416}:
            self.send_header("Content-Range", f"bytes {f'{first}-{last}' if status == 206 else '*'}/{len(body)}")
            body = body[first : (last or 0) + 1]
        if status in {429, 503} and shop.retry_after is not None:
            self.send_header("Retry-After", shop.retry_after)
        if status == 302:
            self.send_header("Location", shop.redirects[self.path])
        if shop.etags:
            self.send_header("ETag", etag)
        body = body if status in {200, 206} else b""
        if shop.modified:
            self.send_header("Last-Modified", shop.modified)
        if shop.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            shop.sent += len(body)
            self.wfile.write(body if not shop.chunked else b"%x\r\n%s\r\n" % (len(body), body))
            if shop.chunked and body:
                self.wfile.write(b"0\r\n\r\n")

    def _range(self, size: int) -> tuple[int, int | None]:
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        if not asked or not self.shop.ranges:
            return 0, None
        first, _, last = asked.partition("-")
        return int(first), min(int(last or size - 1), max(size - 1, 0))

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        pass


@pytest.fixture
def shop() -> Iterator[Shop]:
    handler = type("OneHandler", (Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    handler.shop = Shop(server.server_address[1])  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield handler.shop  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    thread.join()


def reader(shop: Shop, *prefixes: str) -> WebReader:
    return WebReader(prefixes or (f"{shop.url}/photos/",), retry=QUICK, timeout_s=2.0)


def test_a_photo_is_read(shop: Shop) -> None:
    web = reader(shop)
    assert web.fetch(f"{shop.url}/photos/a.jpg").data == b"content a"
    assert web.fetch(f"{shop.url}/photos/a b.jpg").data == b"content a b"
    assert web.fetch(f"{shop.url}/photos/a%20b.jpg").data == b"content a b"
    assert pickle.loads(pickle.dumps(web)).fetch(f"{shop.url}/photos/a.jpg").data == b"content a"
    assert Files(places=Places((shop.url,))).read(f"{shop.url}/photos/a.jpg") == b"content a"
    files = pickle.loads(pickle.dumps(Files(places=Places((shop.url,)))))
    with files.open(f"{shop.url}/photos/a.jpg") as handle:
        handle.seek(-1, 2)
        assert handle.read() == b"a"


def test_a_thread_keeps_its_connection(shop: Shop) -> None:
    web = reader(shop)
    for _ in range(20):
        web.fetch(f"{shop.url}/photos/a.jpg")
    assert shop.connections == 1
    with ThreadPoolExecutor(8) as threads:
        assert {body.data for body in threads.map(web.fetch, [f"{shop.url}/photos/a.jpg"] * 80)} == {b"content a"}
    assert shop.connections <= 9


@pytest.mark.parametrize(
    "path",
    [
        "/private/a.jpg", "/photos", "/photos/../private/a.jpg", "/photos/%2e%2e/private", "/photos/%2E./private",
        "/photos/..%2fprivate", "/photos/..%5cprivate",
    ],
)  # fmt: skip
def test_nothing_is_asked_outside_of_the_prefixes(shop: Shop, path: str) -> None:
    with pytest.raises(ConfigError, match=r"allowed prefixes|is not followed"):
        reader(shop).fetch(shop.url + path)
    assert shop.seen == []


def test_a_prefix_holds_the_whole_host_and_port(shop: Shop) -> None:
    web = WebReader(("https://cdn.example", f"{shop.url}/photos/"))
    port = shop.port
    for uri in (
        "https://cdn.example.evil.com/a", "https://cdn.example@evil.com/a", "http://cdn.example/a",
        "https://cdn.example:444/a", f"http://localhost:{port}/photos/a.jpg", f"http://127.0.0.1:{port}0/photos/a.jpg",
        "https://evil.com/https://cdn.example/a", "https:///a", "https://cdn.example:x/a",
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            web.fetch(uri)
    assert shop.seen == []
    with pytest.raises(ConfigError, match="no web address"):
        WebReader(("cdn.example",))


def test_redirects_stay_inside(shop: Shop) -> None:
    shop.redirects["/photos/old.jpg"] = "a.jpg"
    assert reader(shop).fetch(f"{shop.url}/photos/old.jpg").data == b"content a"
    shop.redirects["/photos/out.jpg"] = "/private/a.jpg"
    with pytest.raises(ConfigError, match=r"leads to .*/private/a.jpg, which is under none"):
        reader(shop).fetch(f"{shop.url}/photos/out.jpg")
    shop.redirects["/photos/loop.jpg"] = "/photos/loop.jpg"
    with pytest.raises(InputError, match="redirects more than 5 times"):
        reader(shop).fetch(f"{shop.url}/photos/loop.jpg")


@pytest.mark.parametrize(
    ("status", "expected"),
    [(404, NotFound), (410, NotFound), (401, Forbidden), (403, Forbidden), (418, InputError), (204, InputError)],
)
def test_refusals_pass_at_once(shop: Shop, status: int, expected: type[CodebooksError]) -> None:
    shop.answers["/photos/a.jpg"] = [status]
    with pytest.raises(expected, match=f"{shop.url}/photos/a.jpg"):
        reader(shop).fetch(f"{shop.url}/photos/a.jpg")
    assert len(shop.seen) == 1


@pytest.mark.parametrize("failure", [500, 503, 429, "drop"])
def test_temporary_failures_are_borne_for_a_while(shop: Shop, failure: int | str) -> None:
    shop.answers["/photos/a.jpg"] = [failure] * 2
    assert reader(shop).fetch(f"{shop.url}/photos/a.jpg").data == b"content a"
    shop.answers["/photos/a.jpg"] = [failure] * 99
    with pytest.raises(Unavailable, match="3 tries"):
        reader(shop).fetch(f"{shop.url}/photos/a.jpg")


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(Unavailable, match="ConnectionRefusedError"):
        WebReader((url,), retry=QUICK).fetch(f"{url}/a")


def test_a_kept_connection_that_the_server_closed_is_opened_again(shop: Shop) -> None:
    web = reader(shop)
    web.fetch(f"{shop.url}/photos/a.jpg")
    shop.answers["/photos/a.jpg"] = ["drop"]
    assert web.fetch(f"{shop.url}/photos/a.jpg").data == b"content a"


def test_https_goes_through_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[bytes] = []

    def answer(listener: socket.socket) -> None:
        with listener.accept()[0] as connection:
            heard.append(connection.recv(4096))
            connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=answer, args=(listener,), daemon=True)
        thread.start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:pass%20word@127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        with pytest.raises(Unavailable, match="Tunnel connection failed: 403"):
            WebReader(("https://cdn.example/",), retry=Retry(attempts=1)).fetch("https://cdn.example/a.jpg")
        thread.join(10)
    assert heard[0].startswith(b"CONNECT cdn.example:443 HTTP/1.")
    assert b"Proxy-Authorization: Basic bWU6cGFzcyB3b3Jk" in heard[0]


def test_too_large_is_refused(shop: Shop) -> None:
    web = WebReader((shop.url,), retry=QUICK, max_bytes=8)
    with pytest.raises(InputError, match="9 bytes are more than 8"):
        web.fetch(f"{shop.url}/photos/a.jpg")


def test_a_photo_is_revalidated_and_not_sent_again(shop: Shop) -> None:
    files, uri = Files(places=Places((shop.url,))), f"{shop.url}/photos/a.jpg"
    verdict, token = files.revalidate(uri, None)
    assert (verdict, shop.sent) == ("changed", 9)
    assert token == f'etag:"{hashlib.md5(b"content a").hexdigest()}"'
    assert files.stat(uri).token == token
    assert files.stat(uri).size == 9
    assert files.stat(uri).modified.isoformat() == "2026-11-22T10:00:00+00:00"
    assert files.revalidate(uri, token) == ("same", token)
    assert shop.sent == 9
    assert shop.seen[-1] == ("GET", "/photos/a.jpg", token.removeprefix("etag:"))
    shop.bodies["/photos/a.jpg"] = b"new"
    verdict, other = files.revalidate(uri, token)
    assert verdict == "changed"
    assert other != token
    with pytest.raises(NotFound):
        files.revalidate(f"{shop.url}/photos/gone.jpg", token)


def test_a_server_without_etags_is_told_by_the_bytes(shop: Shop) -> None:
    shop.etags, shop.modified = False, None
    web, uri = reader(shop), f"{shop.url}/photos/a.jpg"
    verdict, token = web.revalidate(uri, None)
    assert token == "sha256:" + hashlib.sha256(b"content a").hexdigest()
    assert web.revalidate(uri, token) == ("same", token)
    shop.bodies["/photos/a.jpg"] = b"new"
    assert web.revalidate(uri, token)[0] == "changed"
    assert verdict == "changed"
    with pytest.raises(InputError, match=r"catalogue\.version"):
        web.stat(uri)
