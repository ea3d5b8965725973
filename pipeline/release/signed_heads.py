"""Signed entries of a channel's log: that who holds a key put a release there, not only that he once made it.

`channels/<name>/<number>.signed-<first 12 hex of the key's id>.json`, beside the entry: a DSSE envelope of an in-toto
statement whose subject is the entry, by the sha256 of its bytes, and whose predicate says again what is in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..errors import NotFound, Untrusted
from ..keys import SHORT, digest_of
from ..storage import Store
from .channel import ChannelEntry, channel_names, entry_name, read_head
from .manifest import document_bytes
from .signatures import STATEMENT, authenticated, enveloped, plain_json, signed_payload
from .signing_keys import SigningKey, TrustedKey

_PREDICATE = "urn:visual-codebooks:channel-entry:1"


def signed_head_name(channel: str, number: int, key_id: str) -> str:
    """Return the name, on the store, of a key's signature of an entry."""
    return f"{entry_name(channel, number).removesuffix('.json')}.signed-{key_id[:SHORT]}.json"


def sign_entry(store: Store, channel: str, entry: ChannelEntry, keys: Sequence[SigningKey]) -> list[str]:
    """Sign an entry that is in the log with each key and return the signatures' names; those that are there stay.

    Raises Untrusted where something else lies in the place of one.
    """
    payload = plain_json(_statement(channel, entry))
    names = []
    for key in keys:
        name = signed_head_name(channel, entry.number, key.public.key_id)
        data = enveloped(payload, key.sign(authenticated(payload)), key.public.key_id)
        if not store.put_if_absent(name, data):
            _check(store.get(name), name, key.public, channel, entry)
        names.append(name)
    return names


def sign_heads(store: Store, release: str, keys: Sequence[SigningKey]) -> list[str]:
    """Sign the newest entry of every channel on which a release is current; return the signatures' names."""
    names = []
    for channel in channel_names(store):
        head = read_head(store, channel)
        if head is not None and head.release_id == release:
            names += sign_entry(store, channel, head, keys)
    return names


def check_head_signed(store: Store, channel: str, entry: ChannelEntry, trusted: Sequence[TrustedKey]) -> None:
    """Raise Untrusted unless a trusted key has signed this very entry of this channel."""
    problems = []
    for key in trusted:
        name = signed_head_name(channel, entry.number, key.key_id)
        try:
            _check(store.get(name), name, key, channel, entry)
        except NotFound:
            continue
        except Untrusted as error:
            problems.append(str(error))
        else:
            return
    ours = ", ".join(key.key_id[:SHORT] for key in trusted)
    raise Untrusted(
        "; ".join(problems)
        or f"no trusted key ({ours}) has signed that release {entry.release_id} is number {entry.number} of channel "
        f"{channel!r} on {store.url}: let who holds such a key look why it is current, and run `codebooks sign "
        f"{entry.release_id}` where it should be"
    )


def _check(data: bytes, name: str, key: TrustedKey, channel: str, entry: ChannelEntry) -> None:
    payload = signed_payload(data, name, key)
    if payload != plain_json(_statement(channel, entry)):
        raise Untrusted(
            f"{name} by the key {key.key_id[:SHORT]} is not for this entry: it signs {_subject(payload)}, and the "
            f"log's number {entry.number} of channel {channel!r} is release {entry.release_id}; the log was changed or "
            "copied: restore it, or roll the channel back and sign its head"
        )


def _subject(payload: bytes) -> str:
    try:
        said = json.loads(payload)["predicate"]
        return f"release {said['release_id']!r:.200} as number {said['number']!r:.20} of {said['channel']!r:.80}"
    except (ValueError, LookupError, TypeError):
        return "something else"


def _statement(channel: str, entry: ChannelEntry) -> dict[str, Any]:
    said = {name: getattr(entry, name) for name in ("number", "release_id", "manifest_sha256")}
    subject = {"name": entry_name(channel, entry.number), "digest": {"sha256": digest_of(document_bytes(entry))}}
    return {
        "_type": STATEMENT,
        "subject": [subject],
        "predicateType": _PREDICATE,
        "predicate": {"channel": channel, **said},
    }
