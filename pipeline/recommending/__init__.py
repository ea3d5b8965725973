"""Customers as baskets: from a table of events to what a release offers them, and who is like whom.

Reads events and a release, writes Parquet tables; one process, no Ray and no torch.
"""

from __future__ import annotations

from .config import RecommendConfig
from .events import EventTable
from .offering import Recommended, default_folder, recommend

__all__ = ["EventTable", "RecommendConfig", "Recommended", "default_folder", "recommend"]
