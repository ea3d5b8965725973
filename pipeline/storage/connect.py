"""Connections to web hosts, each checked by the address that it is really made to."""

from __future__ import annotations

import base64
import functools
import http.client
import socket
import ssl
import threading
import urllib.parse
import urllib.request

from ..errors import NotAllowed
from .addresses import Address, refused_ip

CONNECT_TIMEOUT_S = 10.0
MOST_IDLE = 64


class _Checked(http.client.HTTPConnection):
    """Connects to the first address of a host that may be asked and answers.

    The check comes after the name is resolved and on the very address that is connected to, so that neither a name
    that points to this machine's own services nor one that changes between two look-ups gets past it.
    """

    tls: ssl.SSLContext | None = None
    loopback = False

    def connect(self) -> None:
        self.sock = self._reached()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls is not None:
            try:
                self.sock = self.tls.wrap_socket(self.sock, server_hostname=self.host)
            except BaseException:
                self.close()
                raise
        self.sock.settimeout(self.timeout)

    def _reached(self) -> socket.socket:
        refused: str | None = None
        failed: OSError | None = None
        for family, kind, protocol, _, place in socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM):
            why = refused_ip(str(place[0]), loopback=self.loopback)
            if why is not None:
                refused = f"{self.host} is {place[0]}, {why}"
                continue
            sock = socket.socket(family, kind, protocol)
            sock.settimeout(min(CONNECT_TIMEOUT_S, self.timeout or CONNECT_TIMEOUT_S))
            try:
                sock.connect(place)
            except OSError as error:
                sock.close()
                failed = error
            else:
                return sock
        if failed is None and refused is not None:
            raise NotAllowed(refused)
        raise failed or OSError(f"{self.host} has no address")


class Connections:
    """Open connections that nobody uses at the moment, of all threads; the longest unused are closed beyond a number.

    Not more than there may be requests at once: a catalogue may name thousands of hosts, a process a thousand files.
    """

    def __init__(self, most: int = MOST_IDLE) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._idle: list[tuple[Address, http.client.HTTPConnection]] = []

    def __del__(self) -> None:
        for _, connection in self._idle:
            connection.close()

    def take(self, address: Address) -> http.client.HTTPConnection | None:
        """Return the open connection to a host that was used last, None without one."""
        with self._lock:
            for place in range(len(self._idle) - 1, -1, -1):
                if self._idle[place][0] == address:
                    return self._idle.pop(place)[1]
        return None

    def give(self, address: Address, connection: http.client.HTTPConnection) -> None:
        """Keep an open connection for the next request."""
        with self._lock:
            self._idle.append((address, connection))
            over = self._idle.pop(0)[1] if len(self._idle) > self._most else None
        if over is not None:
            over.close()


@functools.cache
def _trust() -> ssl.SSLContext:
    # Reading the certificates that are trusted takes longer than a handshake; the context may be shared by threads.
    return ssl.create_default_context()


def connect(address: Address, timeout_s: float, *, loopback: bool) -> http.client.HTTPConnection:
    """Return a connection to a host, not yet open. loopback: it may be this machine itself.

    Through the proxy of the environment (HTTPS_PROXY, unless NO_PROXY names the host) the proxy looks the name up, so
    only a host written as an address can be checked then. Raises NotAllowed for one that is never asked.
    """
    scheme, host, port = address
    proxy = urllib.request.getproxies().get("https") if scheme == "https" else None
    if not proxy or urllib.request.proxy_bypass(host):
        connection = _Checked(host, port, timeout=timeout_s)
        connection.tls = _trust() if scheme == "https" else None
        connection.loopback = loopback
        return connection
    _check_written(host, loopback=loopback)
    way = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    tunnel = http.client.HTTPSConnection(way.hostname or "", way.port or 80, timeout=timeout_s, context=_trust())
    user = f"{urllib.parse.unquote(way.username)}:{urllib.parse.unquote(way.password or '')}" if way.username else ""
    secret = {"Proxy-Authorization": "Basic " + base64.b64encode(user.encode()).decode()} if user else {}
    tunnel.set_tunnel(host, port, headers=secret)
    return tunnel


def _check_written(host: str, *, loopback: bool) -> None:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except OSError:
        return  # a name
    for *_, place in found:
        why = refused_ip(str(place[0]), loopback=loopback)
        if why is not None:
            raise NotAllowed(f"{host} is {place[0]}, {why}")
