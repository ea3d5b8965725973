"""Releases and the channel logs that say which one is current; knows files and bytes only."""

from .allowances import write_allowance
from .channel import (
    ChannelEntry,
    asked_manifest,
    channel_head,
    channel_names,
    check_takes_samples,
    entry_name,
    promotable,
    promote,
    publish,
    published_digest,
    read_head,
    read_log,
    rollback,
)
from .config import PublishConfig, SignConfig
from .delisting import Delisted, delist, read_delisted, relist
from .diff import ReleaseDiff, diff_releases, diff_text
from .expiry import Expiry, expire, undelete
from .format import check_store, claim_store
from .history import History, history, history_text, live_at, none_yet_text, parse_moment
from .holds import HeldLease, Lease, Pin, holders, pin, take_lease, unpin
from .manifest import FileEntry, Manifest, Sample, manifest_name, read_manifest, release_id, release_key
from .marked import inventory_bytes
from .roots import Policy
from .seen_heads import SeenHeads, trusted_head
from .signatures import check_signed, sign_release, signature_name, signatures_of
from .signed_heads import check_head_signed, sign_entry, sign_heads
from .signing_keys import SigningKey, TrustedKey, read_signing_keys, read_trusted_keys, signers
from .tables import read_file, read_table, write_table
from .verify import ReleaseCheck, verify_release
from .write import ReleaseFile, WrittenRelease, write_release

__all__ = [
    "ChannelEntry",
    "Delisted",
    "Expiry",
    "FileEntry",
    "HeldLease",
    "History",
    "Lease",
    "Manifest",
    "Pin",
    "Policy",
    "PublishConfig",
    "ReleaseCheck",
    "ReleaseDiff",
    "ReleaseFile",
    "Sample",
    "SeenHeads",
    "SignConfig",
    "SigningKey",
    "TrustedKey",
    "WrittenRelease",
    "asked_manifest",
    "channel_head",
    "channel_names",
    "check_head_signed",
    "check_signed",
    "check_store",
    "check_takes_samples",
    "claim_store",
    "delist",
    "diff_releases",
    "diff_text",
    "entry_name",
    "expire",
    "history",
    "history_text",
    "holders",
    "inventory_bytes",
    "live_at",
    "manifest_name",
    "none_yet_text",
    "parse_moment",
    "pin",
    "promotable",
    "promote",
    "publish",
    "published_digest",
    "read_delisted",
    "read_file",
    "read_head",
    "read_log",
    "read_manifest",
    "read_signing_keys",
    "read_table",
    "read_trusted_keys",
    "release_id",
    "release_key",
    "relist",
    "rollback",
    "sign_entry",
    "sign_heads",
    "sign_release",
    "signature_name",
    "signatures_of",
    "signers",
    "take_lease",
    "trusted_head",
    "undelete",
    "unpin",
    "verify_release",
    "write_allowance",
    "write_release",
    "write_table",
]
