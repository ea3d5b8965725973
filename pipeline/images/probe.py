"""One picture that tells ways of preprocessing apart: fine stripes, hard edges, colours, more height than width."""

from __future__ import annotations

import io

import numpy as np

from .decode import Pixels

WIDTH, HEIGHT = 420, 560


def probe_pixels() -> Pixels:
    """Return the picture, uint8 RGB [560, 420, 3]; whole numbers all the way, so that every machine has the same."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.int64)
    picture = np.stack([rows * 255 // HEIGHT, columns * 255 // WIDTH, (rows + columns) % 256], axis=-1)
    # Rings that grow finer outwards: resampled without antialiasing they alias, and each filter blurs them otherwise.
    across, down = columns - WIDTH // 2, rows - HEIGHT // 2
    rings = (across * across + down * down) // 360 % 2 == 0
    picture[rings] = 255 - picture[rings] // 2
    garment = (abs(across) < 110) & (down > -120) & (down < 170)
    picture[garment] = (200, 40, 30)
    picture[garment & (rows % 9 < 3)] = (20, 60, 190)
    picture[garment & (columns % 31 < 2)] = (240, 240, 240)
    picture[(abs(across) + abs(down + 40) < 45)] = (10, 130, 60)
    picture[:24, :, :] = (0, 0, 0)  # what a crop leaves out
    picture[-24:, :, :] = (255, 220, 0)
    return picture.astype(np.uint8)


def probe_picture() -> bytes:
    """Return the picture as a PNG file."""
    from PIL import Image

    written = io.BytesIO()
    Image.fromarray(probe_pixels()).save(written, "PNG")
    return written.getvalue()
