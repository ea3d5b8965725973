"""The only door to bytes: stores on S3, on a disk and in memory, and the reading of photos by URI."""

from __future__ import annotations

from .base import Entry, Store
from .clock import check_shows_writes, check_write_once, store_clock
from .files import Files
from .local import LocalStore
from .memory import MemoryStore
from .options import StorageOptions
from .retry import Retry
from .s3 import S3Store
from .urls import open_store, split_uri
from .web import WebReader

__all__ = [
    "Entry",
    "Files",
    "LocalStore",
    "MemoryStore",
    "Retry",
    "S3Store",
    "StorageOptions",
    "Store",
    "WebReader",
    "check_shows_writes",
    "check_write_once",
    "open_store",
    "split_uri",
    "store_clock",
]
