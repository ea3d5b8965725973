"""From files, the environment and arguments to one frozen config: plain dicts joined, each value's place remembered."""

from __future__ import annotations

from .checking import check_and_build
from .sources import Merged, Source, environment_sources, merge, normal, override_source, parse_value, read_file

__all__ = [
    "Merged",
    "Source",
    "check_and_build",
    "environment_sources",
    "merge",
    "normal",
    "override_source",
    "parse_value",
    "read_file",
]
