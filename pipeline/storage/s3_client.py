"""The s3fs file systems of this process: one for each way of reaching S3, made on first use.

What they are made of is imported then: half a second of CPU that a process without S3 does not pay.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, cast

from ..errors import Misconfigured
from .options import NO_SECRETS, StorageOptions
from .s3_errors import says_range_is_empty
from .secrets import holds_user

CONNECTIONS = 64  # at once, of one process; the catalogue's reader uses 16 threads, Ray tasks a few more
CONNECT_TIMEOUT_S = 10.0
_PIECE_BYTES = 1 << 20
# Part of the key under which a file system is kept: another value means another server or another user.
_VARIABLES = (
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CA_BUNDLE",
)  # fmt: skip
_made: dict[tuple[Any, ...], Any] = {}
_lock = threading.Lock()


def _forget_after_fork() -> None:
    # A forked child shares its parent's sockets and has lost the thread that serves them, and perhaps holds its lock.
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()
    _INHERITED.append(dict(_made))
    _made.clear()


# Kept, so that no finaliser of a forked child closes the parent's connections.
_INHERITED: list[dict[tuple[Any, ...], Any]] = []
os.register_at_fork(after_in_child=_forget_after_fork)


def file_system(options: StorageOptions, read_timeout_s: float) -> Any:
    """Return this process's s3fs file system for these options, without caches and without tries of its own."""
    key = (options, read_timeout_s, *(os.environ.get(name) for name in _VARIABLES))
    with _lock:
        found = _made.get(key)
        if found is None:
            found = _made[key] = _make(options, read_timeout_s)
        return found


def signer(options: StorageOptions) -> str:
    """Return who signs the requests, in words for people: the key's id and where it comes from, never a secret."""
    if options.anonymous:
        return "nobody (anonymous)"
    profile = options.profile or os.environ.get("AWS_PROFILE")
    if profile:
        return f"the credentials of profile {profile!r}"
    key = os.environ.get("AWS_ACCESS_KEY_ID", "")
    shown = f"{key[:4]}...{key[-4:]}" if len(key) > 12 else key
    return (
        f"the access key {shown!r} of AWS_ACCESS_KEY_ID" if key else "the credentials of this machine's role or files"
    )


def _make(options: StorageOptions, read_timeout_s: float) -> Any:
    import s3fs
    from aiobotocore.session import AioSession

    if holds_user(options.server):
        raise Misconfigured(f"the endpoint holds a user or password; take it out of AWS_ENDPOINT_URL: {NO_SECRETS}")
    # botocore reads AWS_DEFAULT_REGION only, every other SDK and tool AWS_REGION too.
    region = options.region or os.environ.get("AWS_REGION")
    session = AioSession(profile=options.profile)
    # A quarter of the time for a listing of millions: botocore's own parser goes through dateutil, 40 us for each name.
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_timestamp)
    made = s3fs.S3FileSystem(
        anon=options.anonymous,
        endpoint_url=options.endpoint,
        client_kwargs={"region_name": region} if region else {},
        config_kwargs={
            "max_pool_connections": CONNECTIONS,
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": read_timeout_s,
            # Botocore puts its own together anew for each request, a tenth of what a GET costs.
            "user_agent": "visual-codebooks",
            # A try that botocore or s3fs repeats by itself would turn a write whose reply was lost into "taken".
            "retries": {"total_max_attempts": 1, "mode": "standard"},
        },
        use_listings_cache=False,
        skip_instance_cache=True,
        session=session,
    )
    made.retries = 1
    return made


def _timestamp(value: Any) -> datetime:
    for read in (datetime.fromisoformat, parsedate_to_datetime):  # of listings, of headers: 10 us, botocore's own 200
        try:
            moment = read(value)
        except (TypeError, ValueError, AttributeError):
            continue
        if moment.tzinfo is not None:
            return moment
    from botocore.utils import parse_timestamp

    return cast("datetime", parse_timestamp(value))  # of a server with a form of its own


def call(fs: Any, method: str, **arguments: Any) -> dict[str, Any]:
    """Return the answer of one S3 request; raises what s3fs raises."""
    answer: dict[str, Any] = _sync(fs, fs._call_s3, method, **arguments)
    return answer


def _sync(fs: Any, request: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    from fsspec.asyn import sync

    return sync(fs.loop, request, *arguments, **named)


def read(fs: Any, *, most: int | None = None, **arguments: Any) -> tuple[dict[str, Any], bytes | None]:
    """Return the answer of one get_object request and its body; None instead of one longer than `most` bytes.

    Of a body whose length the answer states nothing is read then, of another no more than that.
    """

    async def request() -> tuple[dict[str, Any], bytes | None]:
        answer = await fs._call_s3("get_object", **arguments)
        async with answer["Body"] as body:
            if most is None:
                return answer, await body.read()
            if answer.get("ContentLength", 0) > most:
                return answer, None
            pieces, length = [], 0
            while length <= most and (piece := await body.read(_PIECE_BYTES)):
                pieces.append(piece)
                length += len(piece)
            return answer, b"".join(pieces) if length <= most else None

    answer: tuple[dict[str, Any], bytes | None] = _sync(fs, request)
    return answer


def first_byte(fs: Any, **arguments: Any) -> dict[str, Any]:
    """Return what head_object would, from a get_object of one byte; `ContentLength` is that of the whole object."""

    async def request() -> dict[str, Any]:
        try:
            answer = await fs._call_s3("get_object", Range="bytes=0-0", **arguments)
        except OSError as error:
            if says_range_is_empty(error):  # an object of no bytes has no first one
                answer = await fs._call_s3("get_object", **arguments)
            else:
                raise
        answer["Body"].close()  # unread: a server that knows no ranges sends the whole object
        return dict(answer)

    answer: dict[str, Any] = _sync(fs, request)
    total = str(answer.get("ContentRange", "")).rpartition("/")[2]
    return {**answer, "ContentLength": int(total)} if total.isdecimal() else answer
