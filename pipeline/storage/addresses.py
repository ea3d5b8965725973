"""Web addresses: their host and path, how messages name them, and which machines are never connected to."""

from __future__ import annotations

import ipaddress
import socket
import urllib.parse
from collections.abc import Iterator

from ..errors import ConfigError

Address = tuple[str, str, int]  # scheme, host, port
Ip = ipaddress.IPv4Address | ipaddress.IPv6Address

_PORTS = {"https": 443, "http": 80}
# Where clouds tell a machine its own credentials, beside the link-local 169.254.0.0/16 and fe80::/10.
_METADATA = frozenset(
    map(ipaddress.ip_address, ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254"))
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_THIS_HOST = ipaddress.ip_network("0.0.0.0/8")


def address_of(uri: str) -> Address:
    """Return (scheme, host, port) of a web URI; raises ConfigError when it is none."""
    try:
        parts = urllib.parse.urlsplit(uri)
        scheme, host, port = parts.scheme.lower(), parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{shown(uri)!r} is no web address: {error}") from error
    if scheme not in _PORTS or not host:
        raise ConfigError(f"{shown(uri)!r} is no web address of the form https://HOST/PATH")
    if parts.username is not None:
        raise ConfigError(f"{shown(uri)!r} holds a user or a password, which no photo is asked for with; take it away")
    return scheme, host.lower(), port or _PORTS[scheme]


def path_of(uri: str) -> str:
    """Return what a request names: path and query, with spaces and letters outside of ASCII escaped."""
    parts = urllib.parse.urlsplit(uri)
    # What is escaped already stays as it is.
    path = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    return f"{path}?{urllib.parse.quote(parts.query, safe='/?%:@!$&()*+,;=~-._')}" if parts.query else path


def shown(uri: str) -> str:
    """Return an address as messages may hold it: no query, which may be a signature, no user and no password."""
    begin, _, rest = uri.partition("://")
    if not rest or begin.lower() not in _PORTS:
        return uri
    path, query, _ = rest.partition("?")
    host, slash, path = path.partition("/")
    _, at, host = host.rpartition("@")
    return f"{begin}://{'***@' if at else ''}{host}{slash}{path}{'?...' if query else ''}"


def leaves_its_path(uri: str) -> bool:
    """Return whether a path has a part `.` or `..`, however often it is escaped: servers resolve them."""
    path, before = urllib.parse.urlsplit(uri).path, ""
    while path != before:
        path, before = urllib.parse.unquote(path), path
    return not {".", ".."}.isdisjoint(path.replace("\\", "/").split("/"))


def names_loopback(host: str) -> bool:
    """Return whether a host is written as this machine itself: `localhost`, or a loopback address in any form."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    ip = _written(host)
    return ip is not None and any(_is_loopback(one) for one in _meant(ip))


def never_asked(host: str) -> str | None:
    """Return why a host that is written as an address, in any form, is never asked; None for any other."""
    ip = _written(host)
    return None if ip is None else refused_ip(str(ip), loopback=True)


def _written(host: str) -> Ip | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        try:
            return ipaddress.ip_address(socket.inet_aton(host))  # 127.1, 0x7f000001, 2130706433, 0177.0.0.1
        except (OSError, UnicodeEncodeError):
            return None


def refused_ip(text: str, *, loopback: bool) -> str | None:
    """Return why nothing connects to an IP address, or None. loopback: this machine itself is allowed.

    An IPv4 address that an IPv6 one holds (mapped, compatible, 6to4, Teredo, NAT64) counts as itself.
    """
    for ip in _meant(ipaddress.ip_address(text.partition("%")[0])):
        if ip.is_link_local or ip in _METADATA:
            return "a link-local or metadata address, which is never asked"
        if _is_loopback(ip) and not loopback:
            return "this machine itself, which only a prefix that names it so (https://127.0.0.1:PORT/) allows"
    return None


def _is_loopback(ip: Ip) -> bool:
    # A connection to 0.0.0.0 or :: reaches this machine.
    return ip.is_loopback or ip.is_unspecified or (ip.version == 4 and ip in _THIS_HOST)


def _meant(ip: Ip) -> Iterator[Ip]:
    yield ip
    if isinstance(ip, ipaddress.IPv6Address):
        found = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in _NAT64 or (int(ip) >> 32 == 0 and int(ip) > 0xFFFF):
            found.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        yield from (one for one in found if one is not None)
