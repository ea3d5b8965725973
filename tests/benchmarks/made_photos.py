"""Photos that are made here, as hard to decode as those of a shop."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def make_photo(generator: np.random.Generator, width: int = 400, height: int = 533) -> bytes:
    """Return a JPEG, at 400 x 533 of about 25 kB: smooth areas, edges and some noise, as product photos have."""
    coarse = Image.fromarray(generator.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    noisy = smooth + generator.normal(0, 6, smooth.shape).astype(np.int16)
    sink = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(sink, "JPEG", quality=80)
    return sink.getvalue()
