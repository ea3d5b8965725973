"""Keys name by what was asked; digests name by content (both lower-case sha256 hex)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

SHORT = 12  # hex digits of a digest that go into a file name
DIGEST = r"^[0-9a-f]{64}$"  # what every key and digest looks like, for fields of stored documents


def canonical_json(value: Any) -> bytes:
    """Return the one UTF-8 JSON text of `value`: sorted keys, no white space, no floats.

    Raises TypeError on a float: its text differs between writers, so a key must never hold one; see `portable`.
    """
    _refuse_floats(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def portable(value: Any) -> Any:
    """Return `value` with every float replaced by its shortest exact decimal text, ready for a key."""
    if isinstance(value, float):
        return f"float:{value!r}"
    if isinstance(value, dict):
        return {str(name): portable(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [portable(member) for member in value]
    return value


def plain_json(value: Any) -> Any:
    """Return a value with what JSON has no word for, NaN and infinity, as null, and every name as text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): plain_json(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(member) for member in value]
    return value


def key_of(value: Any) -> str:
    """Return the key (64 hex digits) of a value that holds no floats."""
    return digest_of(canonical_json(value))


def digest_of(data: bytes | memoryview) -> str:
    """Return the sha256 of bytes as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def _refuse_floats(value: Any) -> None:
    if isinstance(value, float):
        raise TypeError(f"a key cannot hold the float {value!r}; pass it through keys.portable first")
    if isinstance(value, dict):
        for member in value.values():
            _refuse_floats(member)
    elif isinstance(value, list | tuple):
        for member in value:
            _refuse_floats(member)
