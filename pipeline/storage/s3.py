"""A store in a bucket of S3 or of an S3-compatible server, through s3fs.

Every name is one plain PUT (never multipart): only there do servers agree on `If-None-Match: *`.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC
from typing import Any, BinaryIO, TypeVar

from ..errors import CodebooksError, ConfigError, Forbidden, InputError, IntegrityError, NotFound, Unavailable
from . import s3_client
from .arrow import filesystem_over
from .base import Body, Entry, Store
from .names import check_name, check_prefix, check_range, clip_range, range_header, too_large
from .options import StorageOptions
from .retry import Retry, retrying
from .s3_errors import meaning, missing_bucket, says_range_is_empty, says_taken, status_of

Answer = TypeVar("Answer")
MAX_PUT_BYTES = 5 * 2**30  # S3's limit of a plain PUT
READ_AHEAD = 1 << 18
# Answers to a HEAD, which has no body, that do not say why: 400 is an expired token, too. A GET says it, or works.
_WORDLESS = {400, 401, 403}
_WRITER = "codebooks-writer"  # metadata: which call of put_if_absent wrote the object


class S3Store(Store):
    """Names as objects under s3://BUCKET/PREFIX.

    options: how S3 is reached, else the AWS variables. retry: how long temporary failures are borne. read_timeout_s:
    silence after which a request counts as failed. page: names asked for in one listing request (at most 1000).
    """

    def __init__(
        self,
        url: str,
        options: StorageOptions | None = None,
        *,
        retry: Retry | None = None,
        read_timeout_s: float = 30.0,
        page: int = 1000,
    ) -> None:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        prefix = prefix.strip("/")
        if not url.startswith("s3://") or not bucket:
            raise ConfigError(f"the store {url!r} is not of the form s3://BUCKET/PREFIX")
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._prefix = check_name(prefix) + "/" if prefix else ""
        self.options: StorageOptions = options or StorageOptions()
        self._retry = retry or Retry()
        self._read_timeout_s = read_timeout_s
        self._page = page
        self._bucket_seen = False

    @property
    def _fs(self) -> Any:
        return s3_client.file_system(self.options, self._read_timeout_s)

    def fetch(
        self, name: str, *, start: int | None = None, end: int | None = None, max_bytes: int | None = None
    ) -> Body:
        """Return a range and the token of what it was read from (none for an empty range); see `Store.fetch`."""
        check_range(start, end)
        key = self._key(name)
        if start is not None and start < 0 and end is not None:
            start, end = clip_range(start, end, self.stat(name).size)
        if end is not None and end <= (start or 0):
            self.stat(name)  # an empty range of a missing name is still an error
            return Body(b"", ())
        asked = {"Bucket": self._bucket, "Key": key, **range_header(start, end)}

        def request() -> Body:
            try:
                answer, data = s3_client.read(self._fs, most=max_bytes, **asked)
            except Exception as error:
                if "Range" in asked and says_range_is_empty(error):
                    return Body(b"", ())
                raise
            if data is None:
                raise too_large(self._uri(name), answer.get("ContentLength"), max_bytes)
            if "Range" in asked and "ContentRange" not in answer:  # a server that knows no ranges sent everything
                first, last = clip_range(start, end, len(data))
                data = data[first:last]
            return Body(data, (_token(answer, answer["ContentLength"]),) if answer.get("ETag") else ())

        return self._ask(name, request)

    def put(self, name: str, data: bytes | memoryview) -> None:
        body = self._body(name, data)
        key = self._key(name)
        self._ask(name, lambda: s3_client.call(self._fs, "put_object", Bucket=self._bucket, Key=key, Body=body))

    def put_if_absent(self, name: str, data: bytes | memoryview) -> bool:
        body = self._body(name, data)
        key = self._key(name)
        writer = uuid.uuid4().hex
        doubts: list[Exception] = []  # tries of which nobody knows whether they took effect

        def attempt() -> bool:
            try:
                s3_client.call(
                    self._fs, "put_object", Bucket=self._bucket, Key=key, Body=body,
                    IfNoneMatch="*", Metadata={_WRITER: writer},
                )  # fmt: skip
            except Exception as error:  # noqa: BLE001 - s3fs passes on whatever its layers raise
                if not says_taken(error):
                    doubts.append(self._doubt(name, error))
                return self._settle(name, writer, error, body if doubts else None)
            return True

        return retrying(attempt, self._retry)

    def _doubt(self, name: str, error: Exception) -> Unavailable:
        """Return what a failed write means when it may have taken effect; raises what is certain."""
        known = self._meaning(error, self._uri(name))
        if status_of(error) == 501:
            raise ConfigError(
                f"{known}; the store must honour PUT with `If-None-Match: *`, which keeps two runs from publishing "
                "at once"
            ) from error
        if not isinstance(known, Unavailable):
            raise known from error
        return known

    def _settle(self, name: str, writer: str, error: Exception, body: bytes | None) -> bool:
        """Return whether the object is there by this writer; raises Unavailable to have the write tried again.

        Even "taken" is no answer by itself: aiohttp repeats a PUT whose kept-alive connection broke, unseen, so the
        name may be taken by the first of the two. The writer's mark on the object tells. body: what was sent, when a
        try had no clear end; it is compared where the server dropped the mark.
        """
        try:
            found = self._once(name, lambda: self._head(name))
        except NotFound as missing:
            raise Unavailable(f"{self._uri(name)}: the write failed ({error}) and nothing is there") from missing
        except Forbidden:
            if body is None:  # taken, by all that those can know who may write but not read
                return False
            raise
        mark = found.get("Metadata", {}).get(_WRITER)
        if mark is not None:
            return bool(mark == writer)
        return body is not None and found["ContentLength"] == len(body) and self.get(name) == body

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[Entry]:
        begin = self._prefix + check_prefix(prefix)
        asked: dict[str, Any] = {"Bucket": self._bucket, "Prefix": begin, "MaxKeys": self._page}
        if after:
            asked["StartAfter"] = self._prefix + check_prefix(after)
        last = ""
        while True:
            page = self._ask(prefix, lambda: s3_client.call(self._fs, "list_objects_v2", **asked))
            self._bucket_seen = True
            for found in page.get("Contents", ()):
                key = found["Key"]
                if key <= last:
                    raise IntegrityError(
                        f"{self._uri(prefix)}: the server lists {key!r} after {last!r}, out of order; "
                        "directory buckets and servers that do not sort cannot be used"
                    )
                last = key
                if not key.endswith("/"):  # else the marker of a folder, as consoles make them
                    yield _entry(key.removeprefix(self._prefix), found["Size"], found)
            if not page.get("IsTruncated"):
                return
            following = page.get("NextContinuationToken")
            if not following or following == asked.get("ContinuationToken"):
                raise IntegrityError(
                    f"{self._uri(prefix)}: the server cut the listing after {last!r} and gave no way on"
                )
            asked["ContinuationToken"] = following

    def stat(self, name: str) -> Entry:
        found = self._ask(name, lambda: self._head(name))
        return _entry(name, found["ContentLength"], found)

    def exists(self, name: str) -> bool:
        self._require_bucket()  # a HEAD cannot tell a missing bucket from a missing name
        return super().exists(name)

    def delete(self, name: str) -> None:
        key = self._key(name)
        self._ask(name, lambda: s3_client.call(self._fs, "delete_object", Bucket=self._bucket, Key=key))

    def open(self, name: str) -> BinaryIO:
        return io.BufferedReader(_Ranges(self, self.stat(name)), READ_AHEAD)

    def arrow_filesystem(self) -> tuple[Any, str]:
        root = self.url.removeprefix("s3://")
        return filesystem_over(self, root), root

    def _meaning(self, error: Exception, uri: str) -> CodebooksError:
        return meaning(error, uri, who=s3_client.signer(self.options))

    def _head(self, name: str) -> dict[str, Any]:
        asked = {"Bucket": self._bucket, "Key": self._key(name)}
        try:
            return s3_client.call(self._fs, "head_object", **asked)
        except Exception as error:
            if status_of(error) not in _WORDLESS:
                raise
        return s3_client.first_byte(self._fs, **asked)

    def _key(self, name: str) -> str:
        return self._prefix + check_name(name)

    def _uri(self, name: str) -> str:
        return f"{self.url}/{name}"

    def _body(self, name: str, data: bytes | memoryview) -> bytes:
        if memoryview(data).nbytes > MAX_PUT_BYTES:
            raise InputError(
                f"{self._uri(name)}: {memoryview(data).nbytes} bytes are more than one PUT may carry "
                f"({MAX_PUT_BYTES}); write smaller parts"
            )
        return data if isinstance(data, bytes) else bytes(data)

    def _ask(self, name: str, request: Callable[[], Answer]) -> Answer:
        """Return a request's answer, trying again while it fails for a while only."""
        return retrying(lambda: self._once(name, request), self._retry)

    def _once(self, name: str, request: Callable[[], Answer]) -> Answer:
        try:
            answer = request()
        except CodebooksError:
            raise
        except Exception as error:
            known = self._meaning(error, self._uri(name))
            if isinstance(known, NotFound):
                self._require_bucket()
            raise known from error
        self._bucket_seen = True
        return answer

    def _require_bucket(self) -> None:
        """Raise NotFound when there is no such bucket: the 404 of a HEAD does not say which of the two is missing."""
        if self._bucket_seen:
            return

        def request() -> None:
            try:
                s3_client.call(self._fs, "head_bucket", Bucket=self._bucket)
            except Exception as error:
                known = self._meaning(error, self.url)
                if isinstance(known, NotFound):
                    raise missing_bucket(self.url) from error
                if not isinstance(known, Forbidden):  # a bucket that may not be looked at is there
                    raise known from error

        retrying(request, self._retry)
        self._bucket_seen = True


class _Ranges(io.RawIOBase):
    """An object read by ranges; raises IntegrityError when it changes between two of them."""

    def __init__(self, store: S3Store, entry: Entry) -> None:
        super().__init__()
        self._store = store
        self._entry = entry
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._entry.size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset} in {self._entry.name}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        end = min(self._position + len(view), self._entry.size)
        if end <= self._position:
            return 0
        found = self._store.fetch(self._entry.name, start=self._position, end=end)
        data = found.data
        if found.tokens != (self._entry.token,) or len(data) != end - self._position:
            raise IntegrityError(f"{self._store.url}/{self._entry.name} changed while it was being read; read it again")
        view[: len(data)] = data
        self._position = end
        return len(data)


def _entry(name: str, size: int, found: dict[str, Any]) -> Entry:
    return Entry(name, size, _token(found, size), found["LastModified"].astimezone(UTC))


def _token(found: dict[str, Any], size: int) -> str:
    etag = found.get("ETag")  # which S3 always gives, and not every server that speaks its language
    return f"etag:{str(etag).strip(chr(34))}" if etag else f"modified:{size}:{found['LastModified'].timestamp():.0f}"
