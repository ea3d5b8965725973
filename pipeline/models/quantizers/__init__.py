"""Quantizers: vectors to the rows of a codebook."""

from __future__ import annotations

from .ema import EMAQuantizer, Quantised

__all__ = ["EMAQuantizer", "Quantised"]
