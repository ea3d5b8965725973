"""Releases and the channel logs that say which one is current; knows files and bytes only."""

from .channel import ChannelEntry, check_takes_samples, promote, publish, read_head, read_log, rollback
from .config import PublishConfig
from .format import check_store, claim_store
from .manifest import FileEntry, Manifest, Sample, manifest_name, read_manifest, release_id, release_key
from .tables import read_file, read_table, write_table
from .verify import ReleaseCheck, verify_release
from .write import ReleaseFile, WrittenRelease, write_release

__all__ = [
    "ChannelEntry",
    "FileEntry",
    "Manifest",
    "PublishConfig",
    "ReleaseCheck",
    "ReleaseFile",
    "Sample",
    "WrittenRelease",
    "check_store",
    "check_takes_samples",
    "claim_store",
    "manifest_name",
    "promote",
    "publish",
    "read_file",
    "read_head",
    "read_log",
    "read_manifest",
    "read_table",
    "release_id",
    "release_key",
    "rollback",
    "verify_release",
    "write_release",
    "write_table",
]
