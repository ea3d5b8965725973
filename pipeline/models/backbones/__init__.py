"""Networks that two models share."""

from __future__ import annotations

from .conv import ConvDecoder, ConvEncoder, Norm, check_image_size, initialise, map_sizes

__all__ = ["ConvDecoder", "ConvEncoder", "Norm", "check_image_size", "initialise", "map_sizes"]
