"""The catalogue: reading it from tables, folders and tar shards, tokens, and what differs from the parent release."""

from __future__ import annotations

from .allowed import NOT_ALLOWED, catalogue_files, check_living, lacking_prefixes, places_of, prefixes_to_add
from .changes import changes_between
from .config import CatalogueConfig
from .difference import CARRIED, Difference, compare, named_in
from .limits import Failed, FailureLimits, homes_of
from .notes import CatalogueNotes, catalogue_notes
from .photo_reader import PhotoReader
from .photos import SOURCES, read_photos
from .tokens import TokenCost, resolve_tokens

__all__ = [
    "CARRIED",
    "NOT_ALLOWED",
    "SOURCES",
    "CatalogueConfig",
    "CatalogueNotes",
    "Difference",
    "Failed",
    "FailureLimits",
    "PhotoReader",
    "TokenCost",
    "catalogue_files",
    "catalogue_notes",
    "changes_between",
    "check_living",
    "compare",
    "homes_of",
    "lacking_prefixes",
    "named_in",
    "places_of",
    "prefixes_to_add",
    "read_photos",
    "resolve_tokens",
]
