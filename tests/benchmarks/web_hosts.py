"""A few hundred https hosts on loopback addresses, in one process: some slow down, some are dead, none answers HEAD.

    python tests/benchmarks/web_hosts.py FOLDER

reads FOLDER/hosts.json (`plan_hosts` wrote it), answers until its standard input ends, then writes FOLDER/seen.json:
what each host was asked and when. A certificate of its own authority lies in FOLDER for SSL_CERT_FILE.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import io
import ipaddress
import json
import ssl
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from PIL import Image

PORT = 18443
LARGE = 5 * 2**30
_MODIFIED = "Sun, 22 Nov 2026 10:00:00 GMT"
_PIECE = bytes(1 << 16)


@dataclass
class HostPlan:
    """One host. kind: plain | paced | dead; photos: their numbers; pace: requests a second that it bears, 0: any."""

    ip: str
    kind: str
    photos: list[int] = field(default_factory=list)
    pace: float = 0.0


@dataclass
class Seen:
    """What one host was asked. times: seconds of the requests that it answered or refused; refused: answers 429."""

    heads: int = 0
    looks: int = 0
    gets: int = 0
    refused: int = 0
    bytes_sent: int = 0
    times: list[float] = field(default_factory=list)


@dataclass
class Planned:
    """All hosts, the photo that is 5 GB, and those whose first request is answered 429."""

    hosts: list[HostPlan]
    large: int
    once: list[int]


def plan_hosts(photos: int, hosts: int = 300, paced: int = 3, pace: float = 20.0) -> Planned:
    """Share photos among hosts: 0.3 % of the hosts dead (with 0.3 % of the photos), 1 % paced (with a tenth each)."""
    plans = [HostPlan(f"127.0.{1 + n // 250}.{1 + n % 250}", "plain") for n in range(hosts)]
    numbers: Iterator[int] = iter(range(photos))
    plans[0].kind = "dead"
    plans[0].photos = [next(numbers) for _ in range(max(1, round(0.003 * photos)))]
    for plan in plans[1 : 1 + paced]:
        plan.kind, plan.pace = "paced", pace
        plan.photos = [next(numbers) for _ in range(photos // 10)]
    rest = list(numbers)
    for place, number in enumerate(rest):
        plans[1 + paced + place % (hosts - 1 - paced)].photos.append(number)
    return Planned(plans, rest[len(rest) // 2], rest[:: max(1, len(rest) * 100 // photos)][: photos // 100])


def make_certificate(folder: Path, ips: list[str]) -> None:
    """Write FOLDER/authority.pem and FOLDER/server.pem (key and certificate for these addresses)."""
    now = dt.datetime.now(dt.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in ("bench authority", "bench")]

    def signed(subject: int, *, authority: bool) -> x509.Certificate:
        made = (
            x509.CertificateBuilder()
            .subject_name(names[subject])
            .issuer_name(names[0])
            .public_key(keys[subject].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if not authority:
            held = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(ip)) for ip in ips])
            made = made.add_extension(held, critical=False)
        return made.sign(keys[0], hashes.SHA256())

    pem = serialization.Encoding.PEM
    (folder / "authority.pem").write_bytes(signed(0, authority=True).public_bytes(pem))
    private = keys[1].private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.pem").write_bytes(private + signed(1, authority=False).public_bytes(pem))


def photo(number: int) -> bytes:
    """Return a small JPEG that no other number has."""
    shade = hashlib.sha256(str(number).encode()).digest()
    image = Image.frombytes("RGB", (4, 4), (shade * 2)[:48]).resize((48, 48))
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=85)
    return sink.getvalue()


class Server:
    """Answers for every host; one event loop, one certificate."""

    def __init__(self, planned: Planned) -> None:
        self.planned = planned
        self.seen = {plan.ip: Seen() for plan in planned.hosts}
        self.plans = {plan.ip: plan for plan in planned.hosts}
        self.once = set(planned.once)
        self.spare = {plan.ip: plan.pace for plan in planned.hosts}  # requests that a paced host still bears
        self.filled = dict.fromkeys(self.plans, 0.0)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ip = writer.get_extra_info("sockname")[0]
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                fields = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
                method, path, _ = head[0].split(" ")
                await self.answer(ip, method, path, fields, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass  # the client has what it wanted
        finally:
            writer.close()

    async def answer(
        self, ip: str, method: str, path: str, fields: dict[str, str], writer: asyncio.StreamWriter
    ) -> None:
        seen, number = self.seen[ip], int(Path(path.partition("?")[0]).stem)
        seen.times.append(time.time())
        if method == "HEAD":
            seen.heads += 1
            return self.send(writer, "403 Forbidden", b"", {})
        if self.too_many(ip) or number in self.once:
            self.once.discard(number)
            seen.refused += 1
            return self.send(writer, "429 Too Many Requests", b"", {"Retry-After": "1"})
        if fields.get("range") == "bytes=0-0":
            seen.looks += 1
        else:
            seen.gets += 1
        etag = f'"{number:08x}"'
        given = {"ETag": etag, "Last-Modified": _MODIFIED}
        if fields.get("if-none-match") == etag:
            return self.send(writer, "304 Not Modified", b"", given)
        if number == self.planned.large:
            return await self.send_large(seen, fields, writer, given)
        data = photo(number)
        if fields.get("range") == "bytes=0-0":
            given["Content-Range"] = f"bytes 0-0/{len(data)}"
            return self.send(writer, "206 Partial Content", data[:1], given)
        seen.bytes_sent += len(data)
        return self.send(writer, "200 OK", data, given)

    def too_many(self, ip: str) -> bool:
        """Take one request from what a paced host bears; return whether it had none left."""
        pace, now = self.plans[ip].pace, time.monotonic()
        if not pace:
            return False
        self.spare[ip] = min(pace, self.spare[ip] + (now - self.filled[ip]) * pace) if self.filled[ip] else pace
        self.filled[ip] = now
        if self.spare[ip] < 1:
            return True
        self.spare[ip] -= 1
        return False

    def send(self, writer: asyncio.StreamWriter, status: str, body: bytes, fields: dict[str, str]) -> None:
        held = {**fields, "Content-Length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in held.items())
        writer.write(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body)

    async def send_large(
        self, seen: Seen, fields: dict[str, str], writer: asyncio.StreamWriter, given: dict[str, str]
    ) -> None:
        if fields.get("range") == "bytes=0-0":
            return self.send(writer, "206 Partial Content", b"\0", {**given, "Content-Range": f"bytes 0-0/{LARGE}"})
        head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        writer.write(f"HTTP/1.1 200 OK\r\n{head}Content-Length: {LARGE}\r\n\r\n".encode())
        for _ in range(LARGE // len(_PIECE)):
            writer.write(_PIECE)
            seen.bytes_sent += len(_PIECE)
            await writer.drain()
        return None


async def serve(folder: Path) -> None:
    """Answer until standard input ends."""
    held = json.loads((folder / "hosts.json").read_text())
    planned = Planned([HostPlan(**plan) for plan in held["hosts"]], held["large"], held["once"])
    server = Server(planned)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    for plan in planned.hosts:
        if plan.kind != "dead":  # nobody listens there
            await asyncio.start_server(server.talk, plan.ip, PORT, ssl=context)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    (folder / "seen.json").write_text(json.dumps({ip: asdict(seen) for ip, seen in server.seen.items()}))


def busiest(times: list[float]) -> int:
    """Return the most requests within one second of the clock."""
    return max(Counter(int(moment) for moment in times).values(), default=0)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
