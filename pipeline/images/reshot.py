"""A photo as if it had been taken once more: nearer, a little aslant, in other light, and saved as JPEG."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

_NEAREST = 0.85  # least share of a side that is still seen
_SLANT = 5.0  # degrees, either way
_ASTRAY = 0.03  # of a side beyond what the nearer view leaves free, either way
_LIGHT = 0.15  # brighter or darker by up to this share
_TINT = 0.04  # and each colour
_QUALITY = (60, 95)  # of JPEG


@dataclass(frozen=True, slots=True)
class Reshot:
    """How a photo is taken again, the same at each size. side: share of a side that is seen; right, down: where its
    middle lies, as shares of a side from the photo's own; turn: radians; gains: factors of red, green and blue."""

    side: float
    right: float
    down: float
    turn: float
    gains: tuple[float, float, float]
    quality: int


def drawn_reshot(key: int, *, seed: int, view: int) -> Reshot:
    """Return the `view`th way to take the photo of this key again; the same for the same three numbers."""
    dice = np.random.default_rng([seed, key, view])
    side = float(dice.uniform(_NEAREST, 1.0))
    reach = (1.0 - side) / 2 + _ASTRAY
    right, down = dice.uniform(-reach, reach, size=2).tolist()
    turn = math.radians(dice.uniform(-_SLANT, _SLANT))
    red, green, blue = (dice.uniform(1 - _LIGHT, 1 + _LIGHT) * dice.uniform(1 - _TINT, 1 + _TINT, size=3)).tolist()
    return Reshot(side, right, down, turn, (red, green, blue), int(dice.integers(_QUALITY[0], _QUALITY[1] + 1)))


def reshot(pixels: Pixels, how: Reshot) -> Pixels:
    """Return a photo, uint8 [size, size, 3], taken again; what comes into view beyond its edge repeats the edge."""
    from PIL import Image

    size = pixels.shape[0]
    margin = math.ceil(size * (_ASTRAY + math.sin(math.radians(_SLANT)))) + 1
    wide = Image.fromarray(np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="edge"))
    across, along = how.side * math.cos(how.turn), how.side * math.sin(how.turn)
    middle = size / 2  # of what is shown; of what is seen it is `margin` and the shift away
    left, top = middle + margin + how.right * size, middle + margin + how.down * size
    places = (across, -along, left - middle * (across - along), along, across, top - middle * (along + across))
    seen = np.asarray(wide.transform((size, size), Image.Transform.AFFINE, places, Image.Resampling.BILINEAR))
    lit = np.clip(np.rint(seen * np.array(how.gains, np.float32)), 0, 255).astype(np.uint8)
    saved = io.BytesIO()
    Image.fromarray(lit).save(saved, "JPEG", quality=how.quality)
    return np.asarray(Image.open(saved).convert("RGB"), np.uint8)
