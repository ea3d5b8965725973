"""Colour profiles: pixels of any profile to sRGB, as the photo was meant to look.

By littleCMS (Pillow's ImageCms), relative colorimetric with black point compensation: white stays white, and what both
spaces can show looks the same. A profile that is damaged, or of other channels than the picture's, counts as none.
"""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from .stripping import MAX_PROFILE_BYTES

if TYPE_CHECKING:
    from PIL.Image import Image

_CHANNELS = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # of a picture's mode, as a profile names them
_SAME = 2  # grey levels by which another writer's sRGB may differ from littleCMS's own
_KEPT = 16  # transforms; a catalogue's photos have few profiles


def to_srgb(image: Image, profile: bytes | None) -> Image:
    """Return a picture of mode L, RGB or CMYK as RGB in sRGB; one without a profile is taken as that.

    A profile of sRGB itself costs its look-up only.
    """
    if profile and image.mode in _CHANNELS and len(profile) <= MAX_PROFILE_BYTES:
        transform = _transform(bytes(profile), image.mode)
        if transform is not None:
            converted: Image = transform.apply(image)
            return converted
    return image if image.mode == "RGB" else image.convert("RGB")


@functools.lru_cache(maxsize=_KEPT)
def _transform(profile: bytes, mode: str) -> Any:
    """Return what converts pictures of a profile and mode to sRGB, None where nothing is to be done or can be."""
    from PIL import Image, ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != _CHANNELS[mode]:
            return None
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        # Colours and greys of all kinds: what a profile is called does not tell what it does.
        levels = np.linspace(0, 255, 9).round().astype(np.uint8)
        channels = len(mode) if mode != "CMYK" else 4
        grid = np.stack(np.meshgrid(*[levels] * channels, indexing="ij"), -1).reshape(-1, 9, channels)
        probe = Image.fromarray(grid if channels > 1 else grid[..., 0], mode)
        before, after = np.asarray(probe.convert("RGB"), np.int16), np.asarray(transform.apply(probe), np.int16)
    except Exception:  # noqa: BLE001 - littleCMS and Pillow raise several types for damaged bytes, all of which mean: none
        return None
    return None if mode != "CMYK" and np.abs(after - before).max() <= _SAME else transform
