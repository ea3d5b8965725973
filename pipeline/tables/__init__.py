"""The tables that a release has beside its items: vectors, nearest items, semantic IDs and the way back from these."""

from __future__ import annotations

from .changes import night_changes
from .config import SemanticIdsConfig, TablesConfig
from .night import SID_MOVES, FurtherTables, Makers, TrainCodebooks, further_tables
from .sid_measures import sid_lines
from .tonight import Night

__all__ = [
    "SID_MOVES",
    "FurtherTables",
    "Makers",
    "Night",
    "SemanticIdsConfig",
    "TablesConfig",
    "TrainCodebooks",
    "further_tables",
    "night_changes",
    "sid_lines",
]
