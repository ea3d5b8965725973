"""Pictures side by side in one PNG file."""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

_GAP = 2  # white pixels between pictures, and around them


def picture_grid(pictures: NDArray[np.uint8], *, columns: int | None = None, scale: int = 1) -> bytes:
    """Return a PNG of pictures uint8 [n, H, W, 3], row by row, `columns` a row (default: as square as it goes).

    scale: pixels a side for each pixel of a picture. Raises InputError without pictures or for another shape.
    """
    from PIL import Image

    if pictures.ndim != 4 or pictures.shape[3] != 3 or pictures.dtype != np.uint8 or not len(pictures):
        raise InputError(f"pictures are {pictures.dtype} {list(pictures.shape)}; a grid needs uint8 [n, H, W, 3]")
    if scale < 1 or (columns is not None and columns < 1):
        raise InputError(f"columns is {columns} and scale {scale}; both must be at least 1")
    large = pictures.repeat(scale, axis=1).repeat(scale, axis=2)
    number, height, width = large.shape[:3]
    across = columns or math.ceil(math.sqrt(number))
    down = -(-number // across)
    sheet = np.full((_GAP + down * (height + _GAP), _GAP + across * (width + _GAP), 3), 255, np.uint8)
    for place, picture in enumerate(large):
        top, left = _GAP + place // across * (height + _GAP), _GAP + place % across * (width + _GAP)
        sheet[top : top + height, left : left + width] = picture
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "PNG")
    return buffer.getvalue()
