"""JPEGs that were cut and closed with an end marker: libjpeg fills the missing rows with grey and only warns.

Pillow does not pass the warning on. But a decoder that lacks data takes whatever comes next: where more data in front
of the end marker change the picture, the data had not been enough. A complete file's decoder has stopped by then.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

# A marker inside a scan that ends it: not a stuffed byte (FF 00), a restart or a filling byte (ITU T.81, B.1.1).
_ENDS = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_MISSING = (127, 128)  # every channel of a block without data; inks are inverted
_MORE = 1 << 16  # bytes of data that are put in


def may_be_cut(image: Image) -> bool:
    """Return whether a decoded JPEG ends as one without its last data does: in the grey of empty blocks."""
    corner = image.getpixel((image.width - 1, image.height - 1))
    return all(value in _MISSING for value in (corner if isinstance(corner, tuple) else (corner,)))


def is_cut(data: bytes, image: Image, decoded: Callable[[bytes], Image]) -> bool:
    """Return whether a JPEG has too little data before its end marker.

    image: the picture that `decoded` gives of `data`; it is decoded once more, so this is for those that `may_be_cut`.
    """
    scan = _last_scan(data)
    if scan is None:
        return False
    start, end = scan
    more = data[start:end][-_MORE:] or b"\x55"
    again = decoded(data[:end] + more + data[end:])
    return not np.array_equal(np.asarray(image), np.asarray(again))


def _last_scan(data: bytes) -> tuple[int, int] | None:
    """Return where the data of the last scan before the first end marker begin and end; None where none is found."""
    position, scan = 2, None
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xD9:
            break
        if marker == 0xFF:
            position += 1
            continue
        position += 2 if 0xD0 <= marker <= 0xD8 or marker == 1 else 2 + (data[position + 2] << 8 | data[position + 3])
        if marker == 0xDA:
            ended = _ENDS.search(data, position)
            scan = position, ended.start() if ended else len(data)
            position = scan[1]
    return scan
