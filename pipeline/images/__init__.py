"""Photos to pixels: `decode` (Pillow and NumPy, no torch) and the demo catalogue's pictures (`render`).

Importing this room needs neither Pillow nor torch: the reader imports it for photo queries and works without both.
"""

from __future__ import annotations

from .config import TRANSFORM_VERSION, ImagesConfig, transform_id
from .decode import REASONS, decode, decode_each

__all__ = ["REASONS", "TRANSFORM_VERSION", "ImagesConfig", "decode", "decode_each", "transform_id"]
