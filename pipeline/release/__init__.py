"""Releases and the channel logs that say which one is current; knows files and bytes only."""

from .channel import ChannelEntry, promote, publish, read_head, read_log, rollback
from .config import PublishConfig
from .manifest import FileEntry, Manifest, manifest_name, read_manifest, release_id, release_key
from .write import ReleaseFile, WrittenRelease, write_release

__all__ = [
    "ChannelEntry",
    "FileEntry",
    "Manifest",
    "PublishConfig",
    "ReleaseFile",
    "WrittenRelease",
    "manifest_name",
    "promote",
    "publish",
    "read_head",
    "read_log",
    "read_manifest",
    "release_id",
    "release_key",
    "rollback",
    "write_release",
]
