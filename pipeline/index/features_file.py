"""The exact features of an index of codes, as a file beside it: float32 [n, f] in NumPy's own format, mapped."""

from __future__ import annotations

import io
import os

import numpy as np

from ..errors import IntegrityError
from .latents import Float32

SUFFIX = ".npy"
Source = bytes | memoryview | str | os.PathLike[str]


def features_bytes(features: Float32) -> bytes:
    """Return the file that holds features [n, f]; the same values give the same bytes."""
    out = io.BytesIO()
    np.save(out, np.ascontiguousarray(features, "<f4"), allow_pickle=False)
    return out.getvalue()


def read_features(source: Source) -> Float32:
    """Return the features [n, f] of a file's bytes, or of a local file, which is then mapped; read only.

    Raises IntegrityError when it holds anything else.
    """
    try:
        if isinstance(source, bytes | memoryview):
            found = np.load(io.BytesIO(source), allow_pickle=False)
            found.flags.writeable = False
        else:
            found = np.load(os.fspath(source), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise IntegrityError(f"this is not a file of features: {error}") from error
    if not isinstance(found, np.ndarray) or found.dtype != np.dtype("<f4") or found.ndim != 2:
        shape = getattr(found, "shape", ())
        raise IntegrityError(f"a file of features holds {type(found).__name__} {list(shape)}, expected float32 [n, f]")
    return found
