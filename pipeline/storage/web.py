"""Reading photos over https, from allowed places only."""

from __future__ import annotations

import base64
import email.utils
import http.client
import ssl
import threading
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from typing import Any, Literal

from ..errors import ConfigError, Forbidden, InputError, NotFound, Unavailable
from ..keys import digest_of
from .base import Entry
from .retry import Retry, retrying, temporary_status

Revalidated = tuple[Literal["same", "changed"], str]
Address = tuple[str, str, int]  # scheme, host, port
MAX_BYTES = 256 * 2**20  # of one answer
MAX_REDIRECTS = 5
_PORTS = {"https": 443, "http": 80}
_BROKEN = (http.client.HTTPException, OSError)


class _Connections(dict[Address, http.client.HTTPConnection]):
    """The open connections of one thread, closed when the thread or the reader ends."""

    def __del__(self) -> None:
        for connection in self.values():
            connection.close()


class WebReader:
    """GETs of https (and http) URIs that begin with one of the prefixes; redirects may not lead out of them.

    Safe to pickle and to use from several threads, each of which keeps its connections. prefixes: URL prefixes,
    compared by scheme, host and port, then as text by path.
    """

    def __init__(
        self,
        prefixes: tuple[str, ...] = (),
        *,
        retry: Retry | None = None,
        timeout_s: float = 30.0,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.prefixes = prefixes
        self._allowed = [(address_of(prefix), _path_of(prefix)) for prefix in prefixes]
        self._retry = retry or Retry()
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._mine = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.prefixes, self._retry, self._timeout_s, self._max_bytes)

    def read(self, uri: str) -> bytes:
        """Return the body of a URI; raises NotFound, Forbidden, Unavailable, ConfigError outside of the prefixes."""
        return self._ask("GET", uri, {})[2]

    def stat(self, uri: str) -> Entry:
        """Return size, token and time of a URI by a HEAD; raises InputError where the server gives no ETag."""
        _, headers, _ = self._ask("HEAD", uri, {})
        etag, size = headers.get("ETag"), headers.get("Content-Length")
        if not etag or size is None:
            raise InputError(f"{uri}: the server gives no ETag or size; name a column with `catalogue.version` instead")
        when = headers.get("Last-Modified")
        modified = email.utils.parsedate_to_datetime(when).astimezone(UTC) if when else datetime.fromtimestamp(0, UTC)
        return Entry(uri, int(size), f"etag:{etag}", modified)

    def revalidate(self, uri: str, token: str | None) -> Revalidated:
        """Return whether a URI is still what `token` names, and its token now.

        token: as an earlier call gave it, or None. The GET carries If-None-Match, so nothing is sent that has not
        changed; a server without ETags sends everything and the token is `sha256:...`.
        """
        known = token.removeprefix("etag:") if token and token.startswith("etag:") else None
        status, headers, body = self._ask("GET", uri, {"If-None-Match": known} if known else {})
        if status == 304 and token:
            return "same", token
        etag = headers.get("ETag")
        now = f"etag:{etag}" if etag else f"sha256:{digest_of(body)}"
        return ("same" if now == token else "changed"), now

    def _ask(self, method: str, uri: str, headers: dict[str, str]) -> tuple[int, http.client.HTTPMessage, bytes]:
        self._check(uri, uri)
        return retrying(lambda: self._follow(method, uri, headers), self._retry)

    def _check(self, target: str, uri: str) -> None:
        address, path = address_of(target), _path_of(target)
        if {".", ".."} & set(urllib.parse.unquote(path.partition("?")[0]).replace("\\", "/").split("/")):
            raise ConfigError(f"{uri}: a path with '.' or '..' is not followed; write the address it stands for")
        if not any(address == allowed and path.startswith(begin) for allowed, begin in self._allowed):
            what = uri if target == uri else f"{uri} leads to {target}, which"
            raise ConfigError(
                f"{what} is under none of the allowed prefixes ({', '.join(self.prefixes) or 'none are set'}); add its "
                "prefix to `catalogue.https_prefixes`"
            )

    def _follow(self, method: str, uri: str, headers: dict[str, str]) -> tuple[int, http.client.HTTPMessage, bytes]:
        target = uri
        for _ in range(MAX_REDIRECTS + 1):
            status, answered, body = self._request(method, target, headers)
            if status not in {301, 302, 303, 307, 308}:
                _raise_for(uri, status)
                return status, answered, body
            target = urllib.parse.urljoin(target, answered.get("Location", ""))
            self._check(target, uri)
        raise InputError(f"{uri} redirects more than {MAX_REDIRECTS} times")

    def _request(self, method: str, target: str, headers: dict[str, str]) -> tuple[int, http.client.HTTPMessage, bytes]:
        address = address_of(target)
        connection = self._connection(address)
        try:
            connection.request(method, _path_of(target), headers={"User-Agent": "visual-codebooks", **headers})
            answer = connection.getresponse()
            body = answer.read(self._max_bytes + 1)
        except ssl.SSLCertVerificationError as error:
            self._drop(address)
            raise ConfigError(f"{target}: the server's certificate is not trusted ({error.verify_message})") from error
        except _BROKEN as error:
            self._drop(address)
            raise Unavailable(f"{target}: {type(error).__name__}: {error}") from error
        if len(body) > self._max_bytes:
            self._drop(address)
            raise InputError(f"{target} is larger than {self._max_bytes} bytes; no photo is that large")
        if answer.will_close:
            self._drop(address)
        return answer.status, answer.headers, body

    def _connection(self, address: Address) -> http.client.HTTPConnection:
        open_now: _Connections = self._mine.__dict__.setdefault("connections", _Connections())
        found = open_now.get(address)
        if found is None:
            found = open_now[address] = _connect(address, self._timeout_s)
        return found

    def _drop(self, address: Address) -> None:
        connection = self._mine.__dict__.get("connections", {}).pop(address, None)
        if connection is not None:
            connection.close()


def address_of(uri: str) -> Address:
    """Return (scheme, host, port) of a web URI; raises ConfigError when it is none."""
    try:
        parts = urllib.parse.urlsplit(uri)
        scheme, host, port = parts.scheme.lower(), parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{uri!r} is no web address: {error}") from error
    if scheme not in _PORTS or not host or parts.username is not None:
        raise ConfigError(f"{uri!r} is no web address of the form https://HOST/PATH")
    return scheme, host.lower(), port or _PORTS[scheme]


def _path_of(uri: str) -> str:
    parts = urllib.parse.urlsplit(uri)
    path = parts.path or "/"
    # Spaces and letters outside of ASCII are escaped; what is escaped already stays as it is.
    path = urllib.parse.quote(path, safe="/%:@!$&'()*+,;=~-._")
    return f"{path}?{urllib.parse.quote(parts.query, safe='/?%:@!$&()*+,;=~-._')}" if parts.query else path


def _connect(address: Address, timeout_s: float) -> http.client.HTTPConnection:
    scheme, host, port = address
    if scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=timeout_s)
    proxy = urllib.request.getproxies().get("https")  # HTTPS_PROXY, unless NO_PROXY names the host
    if not proxy or urllib.request.proxy_bypass(host):
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=ssl.create_default_context())
    way = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    connection = http.client.HTTPSConnection(
        way.hostname or "", way.port or 80, timeout=timeout_s, context=ssl.create_default_context()
    )
    user = f"{urllib.parse.unquote(way.username)}:{urllib.parse.unquote(way.password or '')}" if way.username else ""
    secret = {"Proxy-Authorization": "Basic " + base64.b64encode(user.encode()).decode()} if user else {}
    connection.set_tunnel(host, port, headers=secret)
    return connection


def _raise_for(uri: str, status: int) -> None:
    if status in {200, 304}:
        return
    if status in {404, 410}:
        raise NotFound(f"{uri} is not there (HTTP {status})")
    if status in {401, 403, 407, 451}:
        raise Forbidden(f"{uri}: access refused (HTTP {status})")
    if temporary_status(status):
        raise Unavailable(f"{uri}: HTTP {status}")
    raise InputError(f"{uri}: unexpected HTTP {status}")


def _rebuilt(prefixes: tuple[str, ...], retry: Retry, timeout_s: float, max_bytes: int) -> WebReader:
    return WebReader(prefixes, retry=retry, timeout_s=timeout_s, max_bytes=max_bytes)
