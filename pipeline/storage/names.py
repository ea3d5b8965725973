"""What a name on a store may be, and how ranges of bytes are read."""

from __future__ import annotations

from ..errors import ConfigError, InputError

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
