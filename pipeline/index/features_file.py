"""The exact features of an index of codes, as a file beside it: float32 [n, f] in NumPy's own format, mapped."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import numpy as np

from ..errors import IntegrityError
from .latents import Float32

SUFFIX = ".npy"
# Format 1.0, the header's length in two bytes, then the header as `features_bytes` has NumPy write it.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '<f4', 'fortran_order': False, 'shape': \((\d+), (\d+)\), \} *\n", re.DOTALL
)
_MOST = 1024  # bytes: more than any such header
Source = bytes | memoryview | str | os.PathLike[str]


def features_bytes(features: Float32) -> bytes:
    """Return the file that holds features [n, f]; the same values give the same bytes."""
    out = io.BytesIO()
    np.save(out, np.ascontiguousarray(features, "<f4"), allow_pickle=False)
    return out.getvalue()


def read_features(source: Source) -> Float32:
    """Return the features [n, f] of a file's bytes, or of a local file, which is then mapped; read only.

    Its header is read here and not by NumPy, which asks Python's parser: Python 3.11 refuses it now and then while
    several threads do so ("AST constructor recursion depth mismatch"), and segments are opened by several threads.
    Raises IntegrityError when it holds anything else.
    """
    if isinstance(source, bytes | memoryview):
        offset, shape = _header(bytes(source[:_MOST]), len(source))
        return np.frombuffer(source, "<f4", offset=offset).reshape(shape)
    try:
        with Path(source).open("rb") as file:
            offset, shape = _header(file.read(_MOST), os.fstat(file.fileno()).st_size)
            if 0 in shape:  # which cannot be mapped
                return np.frombuffer(b"", "<f4").reshape(shape)
            return np.memmap(file, np.dtype("<f4"), "r", offset, shape)
    except OSError as error:
        raise IntegrityError(f"this file of features cannot be read: {error}") from error


def _header(start: bytes, size: int) -> tuple[int, tuple[int, int]]:
    """Return where the numbers begin and their shape, of a file's first bytes and its size."""
    found = _HEADER.match(start)
    if found is None:
        raise IntegrityError(
            f"this is not a file of features, float32 [n, f] in NumPy's format; it begins {start[:80]!r}"
        )
    offset, rows, width = 10 + int.from_bytes(found[1], "little"), int(found[2]), int(found[3])
    if size != offset + 4 * rows * width:
        expected = f"{offset + 4 * rows * width} for float32 [{rows}, {width}]"
        raise IntegrityError(f"this is not a file of features, or not all of one: {size} bytes, expected {expected}")
    return offset, (rows, width)
