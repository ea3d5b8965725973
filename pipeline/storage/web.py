"""Reading photos over https, from allowed places only."""

from __future__ import annotations

import email.utils
import http.client
import ssl
import time
import urllib.parse
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from ..errors import (
    CodebooksError,
    ConfigError,
    Forbidden,
    HostSilent,
    InputError,
    NoAnswer,
    NotAllowed,
    NotFound,
    Throttled,
    Unavailable,
)
from ..keys import digest_of
from .addresses import address_of, names_loopback, path_of, shown
from .base import Body, Entry
from .connect import Connections, connect
from .hosts import CONNECTIONS, Hosts, Traffic
from .names import check_size, clip_range, range_header
from .places import check_web
from .retry import Retry, temporary_status

Revalidated = tuple[Literal["same", "changed"], str]
MAX_BYTES = 256 * 2**20  # of one answer
MAX_REDIRECTS = 5
_BODY_S = 300.0  # in which a body must have come: a host that sends a byte now and then holds nobody longer
_REDIRECTS = {301, 302, 303, 307, 308}
_BROKEN = (http.client.HTTPException, OSError)
_DRAINED = 1 << 16  # a body that nobody wants is read to keep its connection, where it is no longer than this
_PIECE_BYTES = 1 << 16
_FIRST_BYTE = {"Range": "bytes=0-0"}
# A photo changed so shortly before the answer may change once more within the same second (RFC 9110, 8.8.2.2).
_YOUNG_S = 2.0


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def size(self) -> int | None:
        """Return the whole photo's bytes, as far as the headers say."""
        ranged = self.headers.get("Content-Range")
        size = ranged.rpartition("/")[2] if ranged else self.headers.get("Content-Length", "")
        return int(size) if size.isdecimal() else None

    def tokens(self) -> tuple[str, ...]:
        """Return `etag:...` and `modified:<size>:<seconds>`, those of them that the headers give, the better first."""
        etag, size, modified = self.headers.get("ETag"), self.size, _time(self.headers.get("Last-Modified"))
        found = [f"etag:{etag}"] if etag else []
        now = _time(self.headers.get("Date")) or time.time()
        if modified is not None and size is not None and now - modified >= _YOUNG_S:
            found.append(f"modified:{size}:{modified:.0f}")
        return tuple(found)


class WebReader:
    """GETs of https (and http) URIs that begin with one of the prefixes; redirects may not lead out of them.

    Safe to pickle and to use from several threads, which share open connections and what hosts ask for (`Hosts`).
    prefixes: URL prefixes, see `places`. retry: its total_s is also the longest `Retry-After` that a
    photo waits for. max_bytes: of any one answer. connections: to one host at once.
    """

    def __init__(
        self,
        prefixes: tuple[str, ...] = (),
        *,
        retry: Retry | None = None,
        timeout_s: float = 30.0,
        max_bytes: int = MAX_BYTES,
        connections: int = CONNECTIONS,
    ) -> None:
        self.prefixes = prefixes
        self._loopback = {host for _, host, _ in map(address_of, prefixes) if names_loopback(host)}
        self._retry = retry or Retry(total_s=120.0)
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._connections = connections
        self._idle = Connections()
        self._hosts = Hosts(connections)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.prefixes, self._retry, self._timeout_s, self._max_bytes, self._connections)

    def traffic(self) -> dict[str, Traffic]:
        """Return this process's requests to each host."""
        return self._hosts.traffic()

    def fetch(
        self, uri: str, *, start: int | None = None, end: int | None = None, max_bytes: int | None = None
    ) -> Body:
        """Return the body of a URI, or its bytes in [start, end), and the tokens of that very answer.

        Raises NotFound, Forbidden, Unavailable, NotAllowed, InputError; TooLarge before a longer body is read where
        the answer states its length, else after `max_bytes` of it.
        """
        most = min(max_bytes or self._max_bytes, self._max_bytes)
        if start is None and end is None:
            answer = self._ask("GET", uri, {}, most=most)
            _raise_for(uri, answer.status)
            return Body(answer.body, answer.tokens())
        check_size(shown(uri), (end or 0) - (start or 0), most)
        answer = self._ask("GET", uri, range_header(start, end), most=self._max_bytes)
        _raise_for(uri, answer.status)
        if answer.status == 416:
            return Body(b"", answer.tokens())
        first, last = clip_range(start, end, len(answer.body)) if answer.status == 200 else (0, len(answer.body))
        return Body(answer.body[first:last], answer.tokens())

    def stat(self, uri: str) -> Entry:
        """Return token, size (-1: unsaid) and time of a URI without its bytes.

        By a HEAD, or, where the host refuses those and answers GETs, by GETs of one byte from then on. Raises
        InputError where neither tells an ETag nor a time and a size.
        """
        host = self._hosts.of(address_of(uri))
        if host.looks != "range":
            answer = self._ask("HEAD", uri, {})
            if answer.status == 200 and answer.tokens():
                host.looks = host.looks or "head"
                return _entry(uri, answer)
            if host.looks == "head" and answer.status in {404, 410}:
                _raise_for(uri, answer.status)
        # Signed addresses are signed for GET alone, and many a host answers HEAD with 403, 405, 501 or without a token.
        answer = self._ask("GET", uri, _FIRST_BYTE, most=None)
        _raise_for(uri, answer.status)
        if not answer.tokens():
            raise InputError(
                f"{shown(uri)}: the server gives neither an ETag nor a time and a size; name a column with "
                "`catalogue.version` instead"
            )
        host.looks = host.looks or "range"
        return _entry(uri, answer)

    def revalidate(self, uri: str, token: str | None) -> Revalidated:
        """Return whether a URI is still what `token` names, and its token now.

        token: as an earlier call gave it, or None. Of what has an ETag, or a time and a size, no bytes are sent; the
        token of anything else is `sha256:...` of its bytes, which takes reading them.
        """
        if token and token.startswith("etag:"):
            answer = self._ask("GET", uri, {"If-None-Match": token.removeprefix("etag:"), **_FIRST_BYTE}, most=None)
            _raise_for(uri, answer.status)
            if answer.status == 304 or token in answer.tokens():
                return "same", token
            if answer.tokens():
                return "changed", answer.tokens()[0]
        elif token and token.startswith("modified:"):
            entry = self._looked(uri, token)
            if entry is not None:
                return ("same" if entry == token else "changed"), entry
        body = self.fetch(uri)
        digest = f"sha256:{digest_of(body.data)}"
        if token == digest:
            return "same", token
        return "changed", body.tokens[0] if body.tokens else digest

    def _looked(self, uri: str, token: str) -> str | None:
        """Return `token` where a look still finds it, else what it finds; None for nothing."""
        answer = self._ask("GET", uri, _FIRST_BYTE, most=None)
        _raise_for(uri, answer.status)
        found = answer.tokens()
        return token if token in found else next(iter(found), None)

    def _ask(self, method: str, uri: str, headers: dict[str, str], most: int | None = None) -> _Answer:
        """Return the last answer after redirects. most: bytes of the body that are read at most, None: it is not."""
        check_web(uri, uri, self.prefixes)
        host = self._hosts.of(address_of(uri))
        return host.ask(lambda: self._follow(method, uri, headers, most), self._retry)

    def _follow(self, method: str, uri: str, headers: dict[str, str], most: int | None) -> _Answer:
        target = uri
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._request(method, target, headers, most)
            if answer.status not in _REDIRECTS:
                return answer
            target = urllib.parse.urljoin(target, answer.headers.get("Location", ""))
            check_web(target, uri, self.prefixes)
        raise InputError(f"{shown(uri)} redirects more than {MAX_REDIRECTS} times")

    def _request(self, method: str, target: str, headers: dict[str, str], most: int | None) -> _Answer:
        host = self._hosts.of(address_of(target))
        with host.turn():
            begun = host.clock()
            answer = self._sent(method, target, headers, most)
            _count(host.traffic, method, answer, most)
            if answer.status in {429, 503}:
                after_s = _retry_after(answer.headers)
                host.refused(after_s, begun, self._retry.total_s)
                asks = f", which asks to wait {after_s:.0f} s" if after_s else ""
                raise Throttled(f"{shown(target)}: HTTP {answer.status}{asks}", after_s)
            host.answered()
        if temporary_status(answer.status) and method != "HEAD":
            raise Unavailable(f"{shown(target)}: HTTP {answer.status}")
        return answer

    def _sent(self, method: str, target: str, headers: dict[str, str], most: int | None) -> _Answer:
        address, name = address_of(target), shown(target)
        connection, answer = self._answered(method, target, headers)
        try:
            body = self._body(answer, name, most)
        except _BROKEN as error:
            connection.close()
            raise Unavailable(f"{name}: {type(error).__name__}: {error}") from error
        except CodebooksError:
            connection.close()
            raise
        if body is None or answer.will_close:
            connection.close()
        else:
            self._idle.give(address, connection)
        return _Answer(answer.status, answer.headers, body or b"")

    def _answered(
        self, method: str, target: str, headers: dict[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Return the connection on which a request was answered, and the answer, whose body is still to be read."""
        address, name = address_of(target), shown(target)
        kept = self._idle.take(address)
        connection = kept
        try:
            connection = connection or connect(address, self._timeout_s, loopback=address[1] in self._loopback)
            connection.request(method, path_of(target), headers={"User-Agent": "visual-codebooks", **headers})
            return connection, connection.getresponse()
        except ssl.SSLCertVerificationError as error:
            # It may have run out today and be renewed tomorrow; where SSL_CERT_FILE is wrong no host's is trusted.
            why = error.verify_message or "no reason given"
            raise HostSilent(f"{name}: the server's certificate is not trusted ({why}; see SSL_CERT_FILE)") from error
        except NotAllowed as error:
            raise NotAllowed(f"{name}: {error}") from error
        except _BROKEN as error:
            if connection is not None:
                connection.close()
            if kept is not None and not isinstance(error, TimeoutError):  # the server has closed it, as it may
                return self._answered(method, target, headers)
            raise NoAnswer(f"{name}: {type(error).__name__}: {error}") from error
        except UnicodeError as error:  # a label that no name server knows
            raise ConfigError(f"{name}: its host is no name that can be looked up ({error})") from error

    def _body(self, answer: http.client.HTTPResponse, name: str, most: int | None) -> bytes | None:
        """Return the body of an answer; None for one that is left unread, whose connection cannot be used again."""
        wanted = answer.status in {200, 206} and most is not None
        stated = answer.length
        if wanted:
            check_size(name, stated or 0, most)
        elif stated is None or stated > _DRAINED:
            return None
        pieces, held, until = [], 0, time.monotonic() + _BODY_S
        while piece := answer.read1(_PIECE_BYTES):
            pieces.append(piece)
            held += len(piece)
            if wanted:
                check_size(name, held, most)
            if time.monotonic() > until:
                raise Unavailable(f"{name}: {held:,} bytes came in {_BODY_S:.0f} s; it is given up")
        if stated is not None and held < stated:
            raise Unavailable(f"{name}: the connection ended after {held:,} of {stated:,} bytes")
        answer.close()  # its connection takes the next request only after this
        return b"".join(pieces)


def _count(traffic: Traffic, method: str, answer: _Answer, most: int | None) -> None:
    # Threads may lose a count to each other here; these numbers are shown, and nothing hangs on them.
    if method == "HEAD":
        traffic.heads += 1
    elif most is None:
        traffic.looks += 1
    else:
        traffic.reads += 1
        traffic.bytes_read += len(answer.body)


def _retry_after(headers: http.client.HTTPMessage) -> float:
    """Return the seconds that a `Retry-After` names, as a number or as a date by the server's own clock; else 0."""
    text = (headers.get("Retry-After") or "").strip()
    if text.isdecimal():
        return float(text[:9])
    until = _time(text)
    return 0.0 if until is None else max(0.0, until - (_time(headers.get("Date")) or time.time()))


def _time(text: str | None) -> float | None:
    """Return the time that a header names, in seconds since 1970; None where it names none."""
    try:
        return email.utils.parsedate_to_datetime(text).timestamp() if text else None
    except (ValueError, TypeError, OverflowError):
        return None


def _entry(uri: str, answer: _Answer) -> Entry:
    modified = datetime.fromtimestamp(_time(answer.headers.get("Last-Modified")) or 0, UTC)
    return Entry(uri, -1 if answer.size is None else answer.size, answer.tokens()[0], modified)


def _raise_for(uri: str, status: int) -> None:
    """Raise what a status means that is no photo: 416 is an empty one, whose first byte was asked for."""
    if status in {200, 206, 304, 416}:
        return
    if status in {404, 410}:
        raise NotFound(f"{shown(uri)} is not there (HTTP {status})")
    if status in {401, 403, 407, 451}:
        raise Forbidden(f"{shown(uri)}: access refused (HTTP {status})")
    raise InputError(f"{shown(uri)}: unexpected HTTP {status}")


def _rebuilt(prefixes: tuple[str, ...], retry: Retry, timeout_s: float, max_bytes: int, connections: int) -> WebReader:
    return WebReader(prefixes, retry=retry, timeout_s=timeout_s, max_bytes=max_bytes, connections=connections)
