"""Failures on the way to S3, each injected into the real code path, and what the store makes of them."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from pipeline.errors import (
    ClientRefused,
    ClientStale,
    CodebooksError,
    ConfigError,
    Forbidden,
    InputError,
    IntegrityError,
    NotFound,
    SignatureRefused,
    Unavailable,
)
from pipeline.storage import Retry, S3Store, StorageOptions, check_write_once
from pipeline.storage.s3_errors import meaning

ROOT = Path(__file__).resolve().parents[2]
QUICK = Retry(attempts=4, first_s=0.01, cap_s=0.02, total_s=10)
READ_TIMEOUT_S = 1.0  # of a store that is to find a server too slow; on a busy machine it finds others so, too
XML = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message>{more}</Error>"


@dataclass
class Fault:
    """What happens to the next requests of a method (whose target holds `where`), `times` times.

    forward: whether the server gets the request. status: answered instead of the server's own, 0 keeps it. drop: the
    connection is closed without an answer. delay_s: wait before answering. cut: send this many bytes of the body only.
    between: called after forwarding (or instead of it) and before the answer.
    """

    method: str
    where: str = ""
    times: int = 1
    forward: bool = False
    status: int = 0
    code: str = "InternalError"
    drop: bool = False
    delay_s: float = 0.0
    cut: int | None = None
    between: Callable[[], Any] = lambda: None
    rewrite: Callable[[bytes], bytes] = lambda body: body
    strip_sent: tuple[str, ...] = ()
    strip_answered: tuple[str, ...] = ()


@dataclass
class Proxy:
    """A proxy before the S3 server that does to requests what `faults` says; seen: (method, target) of each."""

    port: int
    server_port: int
    faults: list[Fault] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, method: str, target: str) -> Fault:
        with self.lock:
            self.seen.append((method, target))
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and fault.where in target:
                    fault.times -= 1
                    return fault
        return Fault(method, forward=True)

    def count(self, method: str) -> int:
        return sum(1 for seen, _ in self.seen if seen == method)


class Handler(BaseHTTPRequestHandler):
    """One kept-alive connection of a client."""

    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.proxy.take(self.command, self.path)
        status, headers, answer = fault.status, {"Content-Type": "application/xml"}, b""
        if fault.forward:
            status, headers, answer = self.forward(body, fault)
        if fault.status:
            status, answer = fault.status, XML.format(code=fault.code, more="").encode()
            headers = {"Content-Type": "application/xml"}
        fault.between()
        time.sleep(fault.delay_s)
        if fault.drop:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        answer = fault.rewrite(answer)
        self.send_response(status)
        size = headers.pop("Content-Length", "0") if self.command == "HEAD" else str(len(answer))
        for name, value in headers.items():
            if name not in {"Content-Length", "Transfer-Encoding", "Connection", *fault.strip_answered}:
                self.send_header(name, value)
        self.send_header("Content-Length", size)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the client has given up: a time-out
            self.wfile.write(b"" if self.command == "HEAD" else answer[: fault.cut])
        if fault.cut is not None:
            self.close_connection = True

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any  # noqa: N815 - http.server's names

    def forward(self, body: bytes, fault: Fault) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.server_port, timeout=200)
        drop = {"expect", "connection", "content-length", *(name.lower() for name in fault.strip_sent)}
        headers = {name: value for name, value in self.headers.items() if name.lower() not in drop}
        connection.request(self.command, self.path, body=body, headers=headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, dict(answer.headers.items()), data

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        pass


@pytest.fixture(scope="module")
def proxy(s3_server: Any) -> Iterator[Proxy]:
    handler = type("OneHandler", (Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    handler.proxy = Proxy(server.server_address[1], s3_server.port)  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield handler.proxy  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def bucket(s3_server: Any) -> str:
    url: str = s3_server.make_bucket("faults")
    return url


def _status(status: int) -> dict[str, int]:
    return {"HTTPStatusCode": status}


@dataclass
class Case:
    """A store whose requests go through the proxy, one that also waits no longer than READ_TIMEOUT_S, and one on the
    same names that goes straight to the server."""

    store: S3Store
    hasty: S3Store
    straight: S3Store
    proxy: Proxy

    def store_under(self, fault: Fault) -> S3Store:
        """Make a fault the next one, and return the store that meets it."""
        self.proxy.faults.append(fault)
        return self.hasty if fault.delay_s else self.store


@pytest.fixture
def case(proxy: Proxy, bucket: str, s3_server: Any) -> Case:
    url = f"{bucket}/{uuid.uuid4().hex}"
    options = StorageOptions(endpoint=f"http://127.0.0.1:{proxy.port}")
    hasty = S3Store(url, options, retry=QUICK, read_timeout_s=READ_TIMEOUT_S)
    made = Case(S3Store(url, options, retry=QUICK), hasty, S3Store(url), proxy)
    proxy.faults.clear()
    for store in (made.store, made.hasty):
        store.exists("warm")  # connected, and the bucket is known to be there
    proxy.seen.clear()
    return made


@pytest.mark.s3
class TestTemporaryFailures:
    """What may be better next time is tried again, for a bounded time."""

    @pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "SlowDown"), (429, "TooManyRequests")])
    @pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
    def test_two_bad_answers_are_borne(self, case: Case, method: str, status: int, code: str) -> None:
        case.straight.put("runs/a", b"content")
        case.proxy.faults.append(Fault(method, status=status, code=code, times=2))
        call: dict[str, Callable[[], Any]] = {
            "GET": lambda: case.store.get("runs/a"),
            "HEAD": lambda: case.store.stat("runs/a").size,
            "PUT": lambda: case.store.put("runs/a", b"new"),
            "DELETE": lambda: case.store.delete("runs/a"),
        }
        expected = {"GET": b"content", "HEAD": 7, "PUT": None, "DELETE": None}
        assert call[method]() == expected[method]
        assert case.proxy.count(method) == 3
        assert case.straight.exists("runs/a") is (method != "DELETE")
        if method == "PUT":
            assert case.straight.get("runs/a") == b"new"

    @pytest.mark.parametrize(
        "fault",
        [
            Fault("GET", drop=True), Fault("GET", forward=True, drop=True), Fault("GET", forward=True, cut=100),
            Fault("GET", forward=True, delay_s=1.4 * READ_TIMEOUT_S), Fault("GET", status=400, code="RequestTimeout"),
        ],
        ids=["dropped", "dropped after", "cut in the body", "too slow", "400 RequestTimeout"],
    )  # fmt: skip
    @pytest.mark.slow
    def test_a_broken_read_is_read_again_and_never_short(self, case: Case, fault: Fault) -> None:
        data = os.urandom(50_000)
        case.straight.put("runs/a", data)
        fault.times = 1
        assert case.store_under(fault).get("runs/a") == data
        asked = case.proxy.count("GET")
        assert asked >= 2 if fault.delay_s else asked == 2

    def test_a_page_of_a_listing_is_asked_for_again(self, case: Case, bucket: str) -> None:
        names = [f"k/{number:02d}" for number in range(20)]
        for name in names:
            case.straight.put(name, b"x")
        options = StorageOptions(endpoint=f"http://127.0.0.1:{case.proxy.port}")
        paged = S3Store(case.store.url, options, retry=QUICK, page=7)
        case.proxy.faults.append(Fault("GET", "continuation-token", status=503, code="SlowDown", times=2))
        assert [entry.name for entry in paged.list("k/")] == names
        assert case.proxy.count("GET") == 5

    @pytest.mark.parametrize("method", ["get", "put", "stat", "delete", "put_if_absent", "list"])
    def test_what_stays_bad_is_unavailable(self, case: Case, method: str) -> None:
        case.proxy.faults.extend(Fault(verb, status=503, code="SlowDown", times=99) for verb in HTTP_METHODS)
        arguments = ("runs/a", b"1") if method in {"put", "put_if_absent"} else ("runs/a",)
        call = getattr(case.store, method)
        with pytest.raises(Unavailable, match=r"4 tries in .*run the same command again") as caught:
            [*call(*arguments)]
        assert f"{case.store.url}/runs/a" in str(caught.value)
        assert "HTTP 503" in str(caught.value)
        assert caught.value.exit_code == 6

    def test_a_server_that_is_not_there_is_unavailable(self, bucket: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            closed = probe.getsockname()[1]
        store = S3Store(bucket, StorageOptions(endpoint=f"http://127.0.0.1:{closed}"), retry=QUICK)
        with pytest.raises(Unavailable, match="EndpointConnectionError"):
            store.get("a")
        with pytest.raises(Unavailable, match="EndpointConnectionError"):
            store.put_if_absent("a", b"1")


HTTP_METHODS = ("GET", "HEAD", "PUT", "DELETE")


@pytest.mark.s3
class TestWriteOnceUnderFailures:
    """True and False of put_if_absent are always the truth (notes on object stores: done, refused, unknown)."""

    @pytest.mark.parametrize(
        "fault",
        [
            Fault("PUT", status=500), Fault("PUT", status=500, code="UnknownError"), Fault("PUT", drop=True),
            Fault("PUT", delay_s=1.4 * READ_TIMEOUT_S, status=504),
            Fault("PUT", status=409, code="ConditionalRequestConflict"),
        ],
        ids=["500", "500 UnknownError", "dropped", "time-out", "409"],
    )  # fmt: skip
    @pytest.mark.slow
    def test_a_write_that_did_not_happen_is_made_again(self, case: Case, fault: Fault) -> None:
        fault.times = 1
        assert case.store_under(fault).put_if_absent("a", b"mine") is True
        assert case.straight.get("a") == b"mine"
        assert case.store.put_if_absent("a", b"mine") is False

    @pytest.mark.parametrize(
        "fault",
        [
            Fault("PUT", forward=True, status=500), Fault("PUT", forward=True, status=503, code="SlowDown"),
            Fault("PUT", forward=True, drop=True), Fault("PUT", forward=True, delay_s=1.4 * READ_TIMEOUT_S),
        ],
        ids=["500", "503", "dropped", "time-out"],
    )  # fmt: skip
    @pytest.mark.slow
    def test_a_reply_lost_after_the_write_took_effect_is_a_win(self, case: Case, fault: Fault) -> None:
        fault.times = 1
        assert case.store_under(fault).put_if_absent("a", b"mine") is True
        assert case.straight.get("a") == b"mine"

    def test_control_s3fs_alone_calls_its_own_lost_write_taken(self, case: Case) -> None:
        """Negative control: a PUT that aiohttp repeats unseen is told as FileExistsError though it is ours."""
        case.proxy.faults.append(Fault("PUT", forward=True, drop=True))
        fs = case.store._fs
        key = case.store.url.removeprefix("s3://faults/") + "/a"
        with pytest.raises(FileExistsError):
            fs.call_s3("put_object", Bucket="faults", Key=key, Body=b"mine", IfNoneMatch="*")
        assert case.straight.get("a") == b"mine"

    @pytest.mark.parametrize("theirs", [b"theirs", b"mine"], ids=["other bytes", "equal bytes"])
    @pytest.mark.parametrize(
        "fault",
        [Fault("PUT", status=500), Fault("PUT", drop=True), Fault("PUT", delay_s=1.4 * READ_TIMEOUT_S, status=504)],
        ids=["500", "dropped", "time-out"],
    )
    @pytest.mark.slow
    def test_a_lost_write_that_another_overtook_is_a_loss(self, case: Case, fault: Fault, theirs: bytes) -> None:
        won: list[bool] = []
        fault.times = 1
        fault.between = lambda: won.append(case.straight.put_if_absent("a", theirs))
        assert case.store_under(fault).put_if_absent("a", b"mine") is False
        assert won == [True]
        assert case.straight.get("a") == theirs

    def test_500_to_a_loser_of_a_race_is_a_loss(self, case: Case) -> None:
        case.straight.put_if_absent("a", b"theirs")
        case.proxy.faults.append(Fault("PUT", forward=True, status=500, code="UnknownError"))
        assert case.store.put_if_absent("a", b"mine") is False

    def test_412_without_its_condition_is_a_loss(self, case: Case) -> None:
        """Ceph leaves <Condition> out and s3fs raises OSError(EINVAL), as for a malformed request."""
        case.straight.put_if_absent("a", b"theirs")
        case.proxy.faults.append(Fault("PUT", status=412, code="PreconditionFailed", times=2))
        key = case.store.url.removeprefix("s3://faults/") + "/a"
        with pytest.raises(OSError, match="injected") as caught:
            case.store._fs.call_s3("put_object", Bucket="faults", Key=key, Body=b"mine", IfNoneMatch="*")
        assert (type(caught.value), caught.value.errno) == (OSError, errno.EINVAL)
        assert case.store.put_if_absent("a", b"mine") is False

    @pytest.mark.parametrize("code", ["InvalidRequest", "BadDigest", "InvalidArgument"])
    def test_a_400_is_not_taken_for_a_loss(self, case: Case, code: str) -> None:
        case.proxy.faults.append(Fault("PUT", status=400, code=code))
        with pytest.raises(InputError, match=f"HTTP 400 {code}: injected"):
            case.store.put_if_absent("a", b"mine")

    def test_412_of_a_name_deleted_since_is_tried_again(self, case: Case) -> None:
        case.proxy.faults.append(Fault("PUT", status=412, code="PreconditionFailed"))
        assert case.store.put_if_absent("a", b"mine") is True

    def test_a_server_that_drops_metadata_is_told_by_the_bytes(self, case: Case) -> None:
        mark = ("x-amz-meta-codebooks-writer",)
        case.proxy.faults.append(Fault("PUT", forward=True, status=500, strip_sent=mark))
        assert case.store.put_if_absent("a", b"mine") is True
        case.proxy.faults.append(Fault("PUT", forward=True, strip_sent=mark))
        assert case.store.put_if_absent("a", b"mine") is False

    def test_a_loser_who_may_not_read_is_told(self, case: Case) -> None:
        case.straight.put_if_absent("a", b"theirs")
        case.proxy.faults.append(Fault("HEAD", status=403, code="AccessDenied"))
        assert case.store.put_if_absent("a", b"mine") is False

    def test_a_server_without_conditional_writes_is_named_with_the_remedy(self, case: Case) -> None:
        case.proxy.faults.append(Fault("PUT", status=501, code="NotImplemented"))
        with pytest.raises(ConfigError, match="must honour PUT with `If-None-Match"):
            case.store.put_if_absent("a", b"mine")

    def test_a_server_that_ignores_the_condition_is_found_out(self, case: Case) -> None:
        check_write_once(case.store, "runs/probe")
        case.proxy.faults.append(Fault("PUT", forward=True, strip_sent=("If-None-Match",), times=2))
        with pytest.raises(ConfigError, match="overwrites names that exist"):
            check_write_once(case.store, "runs/probe")
        assert not case.straight.exists("runs/probe")

    def test_nothing_goes_up_in_pieces(self, case: Case) -> None:
        data = os.urandom(12 << 20)
        options = StorageOptions(endpoint=f"http://127.0.0.1:{case.proxy.port}")
        store = S3Store(case.store.url, options, retry=QUICK)
        assert store.put_if_absent("large", data) is True
        store.put("runs/large", data)
        assert case.proxy.count("POST") == 0
        assert all("uploadId" not in target for _, target in case.proxy.seen)
        assert store.put_if_absent("large", data) is False
        assert case.straight.get("large") == data


@pytest.mark.s3
class TestRefusals:
    """What will not be better next time is told at once, by its name."""

    @pytest.mark.parametrize(
        ("status", "code", "expected", "words"),
        [
            (403, "AccessDenied", Forbidden, "check the credentials"),
            (401, "Unauthorized", Forbidden, "check the credentials"),
            (404, "NoSuchKey", NotFound, "is not there"),
            (404, "NoSuchBucket", NotFound, "there is no bucket 'faults'"),
            (301, "PermanentRedirect", ConfigError, "set AWS_REGION"),
            (400, "AuthorizationHeaderMalformed", ConfigError, "set AWS_REGION"),
            (400, "InvalidArgument", InputError, "InvalidArgument"),
        ],
    )
    def test_each_answer_has_its_error(
        self, case: Case, status: int, code: str, expected: type[CodebooksError], words: str
    ) -> None:
        case.proxy.faults.append(Fault("GET", status=status, code=code, times=9))
        with pytest.raises(expected, match=words) as caught:
            case.store.get("a b")
        assert case.store.url in str(caught.value)
        assert case.proxy.count("GET") <= 2  # botocore itself follows a redirect once

    @pytest.mark.parametrize(
        ("status", "code", "expected", "exit_code", "words", "tries"),
        [
            (403, "RequestTimeTooSkewed", ClientStale, 6, "clock says .* GMT, this one .*NTP", QUICK.attempts),
            (400, "ExpiredToken", ClientStale, 6, "'testing' of AWS_ACCESS_KEY_ID expired: renew", QUICK.attempts),
            (403, "InvalidAccessKeyId", ClientRefused, 3, "does not know the access key 'testing'", 3),
            (400, "InvalidToken", ClientRefused, 3, "AWS_SESSION_TOKEN", 3),
            (403, "SignatureDoesNotMatch", SignatureRefused, 3, "check AWS_SECRET_ACCESS_KEY", 3),
        ],
    )
    def test_who_asks_is_told_from_what_is_asked_for(
        self, case: Case, status: int, code: str, expected: type[CodebooksError], exit_code: int, words: str, tries: int
    ) -> None:
        case.straight.put("a", b"1")
        case.proxy.faults.append(Fault("GET", status=status, code=code, times=99))
        with pytest.raises(expected, match=words) as caught:
            case.store.get("a")
        assert (type(caught.value), caught.value.exit_code) == (expected, exit_code)
        assert f"{tries} tries" in str(caught.value)
        assert case.proxy.count("GET") == tries
        case.proxy.faults[:] = [Fault("GET", status=status, code=code, times=2)]
        assert case.store.get("a") == b"1", "what passes is borne"

    @pytest.mark.parametrize("status", [400, 403])
    def test_a_head_that_does_not_say_why_is_asked_as_a_get(self, case: Case, status: int) -> None:
        for name, data in (("a", b"12345"), ("empty", b"")):
            case.straight.put(name, data)
            case.proxy.faults[:] = [Fault("HEAD", status=status, times=99)]
            assert case.store.stat(name) == case.straight.stat(name)
            assert case.proxy.faults[0].times < 99
            assert case.store.stat(name).size == len(data)
        case.proxy.faults[:] = [Fault("HEAD", status=status, times=99), Fault("GET", status=400, code="ExpiredToken")]
        with pytest.raises(ClientStale, match="HTTP 400 ExpiredToken"):
            S3Store(case.store.url, case.store.options, retry=Retry(attempts=1)).stat("a")
        case.proxy.faults[1] = Fault("GET", status=403, code="AccessDenied", times=9)
        with pytest.raises(Forbidden, match="HTTP 403 AccessDenied: "):
            case.store.stat("a")

    def test_what_the_server_did_not_say_is_not_printed(self) -> None:
        """As botocore tells a HEAD's 403, and an answer whose elements are empty."""
        head = ClientError({"Error": {"Code": "403", "Message": "Forbidden"}, "ResponseMetadata": _status(403)}, "Head")
        assert "s3://b/a: HTTP 403: Forbidden; check" in str(meaning(head, "s3://b/a"))
        empty = ClientError({"Error": {"Code": None, "Message": None}, "ResponseMetadata": _status(500)}, "Get")
        assert str(meaning(empty, "s3://b/a")) == "s3://b/a: HTTP 500"

    def test_no_credentials(self, monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(Forbidden, match="set AWS_ACCESS_KEY_ID"):
            S3Store(bucket).get("a")
        S3Store(bucket, StorageOptions(anonymous=True)).put("anonymous", b"1")

    def test_region_and_endpoint_come_from_the_config_or_else_from_the_variables(
        self, monkeypatch: pytest.MonkeyPatch, s3_server: Any, bucket: str
    ) -> None:
        def reached(store: S3Store) -> tuple[str, str]:
            client = store._fs.s3
            return client.meta.region_name, client.meta.endpoint_url

        assert reached(S3Store(bucket)) == ("us-east-1", s3_server.endpoint)
        monkeypatch.setenv("AWS_REGION", "eu-west-3")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        assert reached(S3Store(bucket)) == ("eu-west-3", "http://127.0.0.1:1")
        options = StorageOptions(region="ap-south-1", endpoint="http://127.0.0.1:2")
        assert reached(S3Store(bucket, options)) == ("ap-south-1", "http://127.0.0.1:2")

    def test_an_unknown_profile(self, bucket: str) -> None:
        with pytest.raises(ConfigError, match="nobody"):
            S3Store(bucket, StorageOptions(profile="nobody")).get("a")

    @pytest.mark.parametrize("url", ["s3://", "s3:///x", "s3://No Such!"])
    def test_a_url_that_names_no_bucket(self, s3_server: Any, url: str) -> None:
        with pytest.raises(ConfigError, match=url):
            S3Store(url).get("a")

    def test_an_endpoint_that_is_no_url(self, bucket: str) -> None:
        with pytest.raises(ConfigError, match="check the bucket's name and the endpoint"):
            S3Store(bucket, StorageOptions(endpoint="no url")).get("a")


@pytest.mark.s3
class TestWrongServers:
    """Servers that answer 200 and mean something else."""

    def test_ranges_that_are_ignored(self, case: Case) -> None:
        case.straight.put("runs/a", b"0123456789")
        case.proxy.faults.append(Fault("GET", forward=True, strip_sent=("Range",), times=9))
        assert case.store.get("runs/a", start=2, end=5) == b"234"
        assert case.store.get("runs/a", start=-3) == b"789"
        with case.store.open("runs/a") as handle:
            handle.seek(4)
            assert handle.read(3) == b"456"

    def test_an_object_that_changes_while_it_is_read(self, case: Case) -> None:
        case.straight.put("runs/a", b"a" * 600_000)
        with case.store.open("runs/a") as handle:
            handle.read(10)
            case.straight.put("runs/a", b"b" * 600_000)
            handle.seek(500_000)
            with pytest.raises(IntegrityError, match="changed while it was being read"):
                handle.read(10)

    def test_a_listing_out_of_order(self, case: Case) -> None:
        for name in ("k/1", "k/2"):
            case.straight.put(name, b"x")

        def swap(body: bytes) -> bytes:
            return body.replace(b"k/1<", b"k/3<").replace(b"k%2F1<", b"k%2F3<")

        case.proxy.faults.append(Fault("GET", "list-type=2", forward=True, rewrite=swap))
        with pytest.raises(IntegrityError, match="out of order"):
            list(case.store.list("k/"))

    def test_a_listing_cut_without_a_way_on(self, case: Case) -> None:
        case.straight.put("k/1", b"x")

        def cut(body: bytes) -> bytes:
            return body.replace(b"<IsTruncated>false", b"<IsTruncated>true")

        case.proxy.faults.append(Fault("GET", "list-type=2", forward=True, rewrite=cut))
        with pytest.raises(IntegrityError, match="gave no way on"):
            list(case.store.list("k/"))


@pytest.mark.s3
class TestProcesses:
    """A store goes to other processes and comes back."""

    def test_a_forked_child_connects_anew(self, case: Case) -> None:
        case.straight.put("runs/a", b"content")
        assert case.store.get("runs/a") == b"content"
        child = os.fork()
        if child == 0:  # no assertion may leave the child: it would run the rest of the tests a second time
            code = 1
            try:
                code = 0 if case.store.get("runs/a") == b"content" and case.store.put_if_absent("b", b"1") else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert case.store.get("b") == b"1"

    @pytest.mark.slow
    def test_a_program_ends_in_silence(self, case: Case) -> None:
        """Connections are closed at exit: no warning, no hanging thread."""
        case.straight.put("runs/a", b"content")
        program = "import pickle, sys\nprint(pickle.loads(bytes.fromhex(sys.argv[1])).get('runs/a'))"
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program, pickle.dumps(case.straight).hex()],
            cwd=ROOT, capture_output=True, text=True, timeout=200,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, "b'content'\n", "")
