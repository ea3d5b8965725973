"""Customers as baskets: from a table of events to what a release offers them, and who is like whom.

Reads events and a release, writes Parquet tables; in one process, or by tasks where that is connected to Ray.
"""

from __future__ import annotations

from .config import RecommendConfig
from .events import EventTable
from .offering import Recommended, default_folder, recommend
from .options import add_options, settings_of

__all__ = [
    "EventTable",
    "RecommendConfig",
    "Recommended",
    "add_options",
    "default_folder",
    "recommend",
    "settings_of",
]
