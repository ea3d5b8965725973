"""The only door to bytes: stores on S3, on a disk and in memory, and the reading of photos by URI."""

from __future__ import annotations

from .base import Body, Entry, Store
from .clock import check_shows_writes, check_write_once, store_clock
from .files import Files
from .local import LocalStore
from .memory import MemoryStore
from .options import NO_SECRETS, StorageOptions
from .places import Places
from .retry import Retry
from .s3 import S3Store
from .secrets import holds_user, masked, masked_for_people, names_secret
from .urls import home_of, open_store, split_uri
from .web import WebReader

__all__ = [
    "NO_SECRETS",
    "Body",
    "Entry",
    "Files",
    "LocalStore",
    "MemoryStore",
    "Places",
    "Retry",
    "S3Store",
    "StorageOptions",
    "Store",
    "WebReader",
    "check_shows_writes",
    "check_write_once",
    "holds_user",
    "home_of",
    "masked",
    "masked_for_people",
    "names_secret",
    "open_store",
    "split_uri",
    "store_clock",
]
