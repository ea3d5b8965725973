"""What a name on a store may be, and how ranges of bytes are read."""

from __future__ import annotations

from ..errors import ConfigError, InputError, TooLarge

MAX_NAME_BYTES = 1024  # S3's limit for a key


def check_name(name: str) -> str:
    """Return `name` when every store can hold it.

    Raises InputError: a name is at most 1024 bytes of UTF-8, does not begin or end with `/`, and none of its parts is
    `.` or `..` (HTTP clients and folders both resolve those, so the name would reach something else).
    """
    reason = ""
    if not name:
        reason = "is empty"
    elif "\0" in name:
        reason = "holds a NUL character"
    elif name[0] == "/" or name[-1] == "/":
        reason = "begins or ends with '/'"
    elif not {".", ".."}.isdisjoint(name.split("/")):
        reason = "has a part '.' or '..', which could lead out of the store"
    else:
        try:
            if len(name.encode()) > MAX_NAME_BYTES:
                reason = f"is longer than {MAX_NAME_BYTES} bytes"
        except UnicodeEncodeError:
            reason = "is not valid UTF-8"
    if reason:
        raise InputError(f"the name {name!r} {reason}; rename it")
    return name


def check_prefix(prefix: str) -> str:
    """Return `prefix` when it can begin a name; raises InputError on a part `..` or `.` before its last `/`."""
    if not {".", ".."}.isdisjoint(prefix.split("/")[:-1]):
        raise InputError(f"the prefix {prefix!r} has a part '.' or '..', which could lead out of the store")
    return prefix


def check_range(start: int | None, end: int | None) -> None:
    """Raise ConfigError unless (start, end) is a range that `get` answers: an end never counts from the end."""
    if end is not None and end < 0:
        raise ConfigError(f"a range may not have the negative end {end}; only start counts from the end")


def clip_range(start: int | None, end: int | None, size: int) -> tuple[int, int]:
    """Return (start, end) as offsets inside `size` bytes, by the rules of a Python slice."""
    check_range(start, end)
    first, last, _ = slice(start, end).indices(size)
    return first, max(first, last)


def range_header(start: int | None, end: int | None) -> dict[str, str]:
    """Return the HTTP header that asks for a range; none for the whole."""
    if start is None and end is None:
        return {}
    if start is not None and start < 0:
        return {"Range": f"bytes={start}"}
    return {"Range": f"bytes={start or 0}-{'' if end is None else end - 1}"}


def check_size(name: str, size: int, max_bytes: int | None) -> None:
    """Raise TooLarge when so many bytes are more than a reader wants to hold; None: it holds any number."""
    if max_bytes is not None and size > max_bytes:
        raise too_large(name, size, max_bytes)


def too_large(name: str, size: int | None, max_bytes: int | None) -> TooLarge:
    """Return the error for a photo of so many bytes (None: that nobody has counted)."""
    most = max_bytes or 0
    found = f"more than {most:,} bytes" if size is None else f"{size:,} bytes are more than {most:,}"
    return TooLarge(f"{name}: {found}, the most that is taken of one file here")


def is_utf8(text: str) -> bool:
    """Return whether a text can be written at all: file names, JSON and YAML may hold halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
