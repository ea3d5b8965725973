"""Reading over http from a server of this test's own."""

from __future__ import annotations

import email.utils
import hashlib
import http.client
import pickle
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pipeline.errors import (
    CodebooksError,
    ConfigError,
    Forbidden,
    HostSilent,
    InputError,
    NoAnswer,
    NotAllowed,
    NotFound,
    Throttled,
    TooLarge,
    Unavailable,
)
from pipeline.storage import Files, Places, Retry, WebReader
from pipeline.storage import web as web_module

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
        if status == "short":
            self.close_connection = True
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ncont")
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


class Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients leave before the end of what is too much
            super().handle_error(request, client_address)


@pytest.fixture
def shop() -> Iterator[Shop]:
    handler = type("OneHandler", (Handler,), {})
    server = Server(("127.0.0.1", 0), handler)
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


@pytest.mark.slow
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
        thread.join(200)
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


@pytest.mark.parametrize("status", [403, 405, 501, 404, 500, 400])
def test_a_host_that_refuses_heads_is_asked_by_gets_of_one_byte(shop: Shop, status: int) -> None:
    shop.heads = status
    web, uri = reader(shop), f"{shop.url}/photos/a.jpg"
    entry = web.stat(uri)
    assert entry.token == f'etag:"{hashlib.md5(b"content a").hexdigest()}"'
    assert entry.size == 9
    assert shop.sent == 1
    assert [method for method, *_ in shop.seen] == ["HEAD", "GET"]
    assert web.stat(f"{shop.url}/photos/a%20b.jpg").size == 11
    assert [method for method, *_ in shop.seen] == ["HEAD", "GET", "GET"]  # a refused HEAD is remembered
    with pytest.raises(NotFound):
        web.stat(f"{shop.url}/photos/gone.jpg")


def test_a_host_that_answers_heads_is_asked_by_heads(shop: Shop) -> None:
    web = reader(shop)
    for _ in range(3):
        web.stat(f"{shop.url}/photos/a.jpg")
    with pytest.raises(NotFound):
        web.stat(f"{shop.url}/photos/gone.jpg")
    assert {method for method, *_ in shop.seen} == {"HEAD"}
    assert web.traffic()[f"127.0.0.1:{shop.port}"].heads == 4


def test_a_host_that_knows_no_ranges_sends_a_few_bytes_and_no_more(shop: Shop) -> None:
    shop.heads, shop.ranges = 403, False
    shop.bodies["/photos/large.jpg"] = b"x" * (64 << 20)
    web = reader(shop)
    assert web.stat(f"{shop.url}/photos/large.jpg").size == 64 << 20
    assert web.stat(f"{shop.url}/photos/a.jpg").size == 9
    assert web.traffic()[f"127.0.0.1:{shop.port}"].bytes_read == 0


def test_an_empty_photo_has_no_first_byte(shop: Shop) -> None:
    shop.heads = 405
    shop.bodies["/photos/empty.jpg"] = b""
    assert reader(shop).stat(f"{shop.url}/photos/empty.jpg").size == 0


def test_a_time_and_a_size_are_a_token_where_there_is_no_etag(shop: Shop) -> None:
    shop.etags = False
    web, uri = reader(shop), f"{shop.url}/photos/a.jpg"
    token = web.stat(uri).token
    assert token == "modified:9:1795341600"  # 2026-11-22T10:00:00Z
    assert web.revalidate(uri, token) == ("same", token)
    assert shop.sent <= 1
    shop.bodies["/photos/a.jpg"] = b"another"
    assert web.revalidate(uri, token) == ("changed", "modified:7:1795341600")
    # A server that makes its pages anew says "modified now" each time, which is no token.
    shop.modified = email.utils.formatdate(usegmt=True)
    with pytest.raises(InputError, match="neither an ETag nor a time"):
        web.stat(uri)


def test_a_token_that_still_fits_stays(shop: Shop) -> None:
    web, uri = reader(shop), f"{shop.url}/photos/a.jpg"
    digest = "sha256:" + hashlib.sha256(b"content a").hexdigest()
    assert web.revalidate(uri, digest) == ("same", digest)
    assert web.revalidate(uri, "modified:9:1795341600") == ("same", "modified:9:1795341600")


def test_what_a_get_says_of_itself_is_held_against_a_token(shop: Shop) -> None:
    web, uri = reader(shop), f"{shop.url}/photos/a.jpg"
    body, token = web.fetch(uri), web.stat(uri).token
    assert not body.differs(token)
    assert not body.differs(token.replace("etag:", "etag:W/"))
    assert not body.differs("modified:9:1795341600")
    assert body.differs('etag:"other"')
    assert body.differs("modified:8:1795341600")
    assert not body.differs("version:7")


def test_a_long_body_is_refused_before_it_is_read(shop: Shop) -> None:
    shop.bodies["/photos/large.jpg"] = b"x" * (64 << 20)
    web = reader(shop)
    with pytest.raises(TooLarge, match="67,108,864 bytes are more than 1,000"):
        web.fetch(f"{shop.url}/photos/large.jpg", max_bytes=1000)
    shop.chunked = True  # no length is stated: it is read up to the limit
    with pytest.raises(TooLarge, match="are more than 1,000"):
        web.fetch(f"{shop.url}/photos/large.jpg", max_bytes=1000)
    assert web.fetch(f"{shop.url}/photos/a.jpg", max_bytes=1000).data == b"content a"
    assert web.traffic()[f"127.0.0.1:{shop.port}"].bytes_read == 9


def test_ranges_are_read_as_ranges(shop: Shop) -> None:
    uri = f"{shop.url}/photos/a.jpg"
    assert reader(shop).fetch(uri, start=2, end=5).data == b"nte"
    assert shop.sent == 3
    shop.ranges = False
    assert reader(shop).fetch(uri, start=2, end=5).data == b"nte"
    with pytest.raises(TooLarge):
        reader(shop).fetch(uri, start=0, end=9, max_bytes=8)


@pytest.mark.slow
def test_retry_after_is_obeyed_and_bounded(shop: Shop) -> None:
    shop.answers["/photos/a.jpg"] = [429]
    shop.retry_after = "1"
    begun = time.monotonic()
    assert reader(shop).fetch(f"{shop.url}/photos/a.jpg").data == b"content a"
    assert 1.0 <= time.monotonic() - begun < 200
    shop.answers["/photos/a.jpg"] = [503] * 9
    shop.retry_after = "3600"
    web, begun = reader(shop), time.monotonic()
    with pytest.raises(Throttled, match=r"HTTP 503, which asks to wait 3600 s"):
        web.fetch(f"{shop.url}/photos/a.jpg")
    with pytest.raises(HostSilent, match="asks to be left alone for 3600 s; not asked again"):
        web.fetch(f"{shop.url}/photos/a%20b.jpg")
    assert time.monotonic() - begun < 200


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7.0), ("Sun, 29 Nov 2026 10:00:30 GMT", 30.0), ("Sun, 29 Nov 2026 09:00:00 GMT", 0.0), ("soon", 0.0),
     ("-3", 0.0), ("", 0.0), ("9" * 400, 999999999.0)],
)  # fmt: skip
def test_retry_after_as_a_number_or_a_date_by_the_servers_clock(text: str, seconds: float) -> None:
    headers = http.client.HTTPMessage()
    headers["Retry-After"], headers["Date"] = text, "Sun, 29 Nov 2026 10:00:00 GMT"
    assert web_module._retry_after(headers) == seconds


def test_a_dead_host_costs_its_tries_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, addresses = [], socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *host, **how: tried.append(host) or addresses(*host, **how))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    web = WebReader((url,), retry=QUICK)
    with pytest.raises(NoAnswer, match="3 tries"):
        web.fetch(f"{url}/a")
    assert len(tried) == 3
    for _ in range(1000):
        with pytest.raises(HostSilent, match=r"ConnectionRefusedError.*; not asked again for"):
            web.fetch(f"{url}/b")
    assert len(tried) == 3


def test_a_host_that_answers_others_is_not_silent(shop: Shop) -> None:
    shop.answers["/photos/a.jpg"] = ["drop"] * 9
    web = WebReader((f"{shop.url}/photos/",), retry=Retry(attempts=3, first_s=0.2, cap_s=0.2))
    with ThreadPoolExecutor(2) as threads:
        failing = threads.submit(web.fetch, f"{shop.url}/photos/a.jpg")
        while not failing.done():
            assert web.fetch(f"{shop.url}/photos/a%20b.jpg").data == b"content a b"
        assert isinstance(failing.exception(), NoAnswer)
    assert web.fetch(f"{shop.url}/photos/a%20b.jpg").data == b"content a b"


def test_names_that_point_to_this_machine_are_not_followed(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may be allowed and point anywhere, at the second look-up too: what is connected to decides."""
    answers = {
        "cdn.example": ["127.0.0.1"],
        "meta.example": ["169.254.169.254"],
        "both.example": ["fe80::1", "127.0.0.1"],
    }

    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET6 if ":" in ip else socket.AF_INET, 1, 6, "", (ip, port)) for ip in answers[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    for host in answers:
        web = WebReader((f"http://{host}:{shop.port}/",), retry=QUICK)
        with pytest.raises(
            NotAllowed, match=r"is (127.0.0.1, this machine itself|169.254.169.254, a link-local|::1, this)"
        ):
            web.fetch(f"http://{host}:{shop.port}/photos/a.jpg")
    assert shop.seen == []


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1"])
def test_an_address_in_another_form_is_the_same_address(shop: Shop, host: str) -> None:
    uri = f"http://{host}:{shop.port}/photos/a.jpg"
    with pytest.raises(NotAllowed):
        reader(shop).fetch(uri)
    assert WebReader((f"http://{host}:{shop.port}/",)).fetch(uri).data == b"content a"  # named so, it is allowed
    with pytest.raises(NotAllowed, match="a link-local or metadata address"):
        WebReader(("http://2852039166/",), retry=QUICK).fetch("http://2852039166/latest/meta-data/")


def test_messages_hold_no_signatures(shop: Shop) -> None:
    shop.redirects["/photos/r.jpg?sig=geheim"] = "/private/a.jpg?token=geheim"
    web = reader(shop)
    for path in ("/photos/gone.jpg?sig=geheim", "/photos/r.jpg?sig=geheim", "/private/x?sig=geheim"):
        with pytest.raises(CodebooksError) as caught:
            web.fetch(shop.url + path)
        assert "geheim" not in str(caught.value)


def test_a_body_that_ends_early_is_asked_for_again(shop: Shop) -> None:
    shop.answers["/photos/a.jpg"] = ["short"]
    assert reader(shop).fetch(f"{shop.url}/photos/a.jpg").data == b"content a"
    assert len(shop.seen) == 2
