"""Signed releases: who made what a manifest lists, in a file that OpenSSF's model-signing tools read too.

`releases/<id>/signature-<first 12 hex of the key's id>.json` is a Sigstore bundle: a DSSE envelope around an in-toto
statement that names every file by its sha256, the manifest among them, relative to the store. One file a key, written
once beside the manifest, which cannot list it: the statement holds the manifest's own digest.
Sources: DSSE 1.0 (secure-systems-lab/dsse, protocol.md), in-toto Statement v1, OpenSSF model-signing-spec 1.0.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import IntegrityError, NotFound, Untrusted
from ..keys import SHORT, digest_of
from ..storage import Store
from .manifest import Manifest, manifest_name, read_hashed_manifest, release_folder
from .signing_keys import SigningKey, TrustedKey

_SIGNATURE = re.compile(r"signature-([0-9a-f]{12})\.json")
_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_FILES = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}  # each file is hashed as a whole
_OF_BUNDLE = ("config.json", "encoder.onnx", "weights.safetensors", "card.md")  # signed beside what the manifest lists


@dataclass(frozen=True, slots=True)
class Signed:
    """A release's signature that holds. key_id: whose; digests: of every signed file, the manifest's among them."""

    key_id: str
    name: str
    digests: Mapping[str, str]


def signature_name(release: str, key_id: str) -> str:
    """Return the name, on the store, of a key's signature of a release."""
    return f"{release_folder(release)}signature-{key_id[:SHORT]}.json"


def signatures_of(store: Store, release: str) -> list[str]:
    """Return the names of a release's signatures, whoever made them, from a listing."""
    folder = release_folder(release)
    names = [entry.name for entry in store.list(folder)]
    return [name for name in names if _SIGNATURE.fullmatch(name.removeprefix(folder))]


def sign_release(
    store: Store, release: str, keys: Sequence[SigningKey], *, expect_sha256: str | None = None
) -> list[str]:
    """Sign a release with each key and return the names of the signatures; one that is there already is left as it is.

    What is signed are the digests in the manifest and those of the bundle's files as they lie on the store; whoever
    signs a release of another process calls `verify_release` first. expect_sha256: of the manifest. Raises NotFound,
    IntegrityError where a signature of this key lies there that is not one of this manifest.
    """
    if not keys:
        return []
    manifest, digest = read_hashed_manifest(store, release, expect_sha256=expect_sha256)
    payload = plain_json(_statement(manifest, digest, dict(_bundle_digests(store, manifest))))
    names = []
    for key in keys:
        name = signature_name(release, key.public.key_id)
        data = enveloped(payload, key.sign(authenticated(payload)), key.public.key_id)
        if not store.put_if_absent(name, data):
            _checked(store.get(name), name, key.public, manifest, digest)
        names.append(name)
    return names


def check_signed(store: Store, manifest: Manifest, digest: str, trusted: Sequence[TrustedKey]) -> Signed:
    """Return the first signature of a release that a trusted key made and that fits its manifest.

    digest: the sha256 of the manifest's bytes as they were read. Raises Untrusted where there is none: the release is
    not signed, or by other keys, or what was signed is not what lies there.
    """
    problems = []
    for key in trusted:
        name = signature_name(manifest.release_id, key.key_id)
        try:
            return _checked(store.get(name), name, key, manifest, digest)
        except NotFound:
            continue
        except IntegrityError as error:
            problems.append(str(error))
    if problems:
        raise Untrusted("; ".join(problems))
    found = [
        name.rpartition("signature-")[2].removesuffix(".json") for name in signatures_of(store, manifest.release_id)
    ]
    ours = ", ".join(key.key_id[:SHORT] for key in trusted)
    raise Untrusted(
        f"release {manifest.release_id} on {store.url} is "
        + (f"signed by other keys ({', '.join(found)})" if found else "not signed")
        + f", and only the keys {ours} are trusted; roll the channel back to a release that one of them signed, or let "
        "who holds such a key run `codebooks sign` on it"
    )


def signed_problems(store: Store, manifest: Manifest, digest: str, trusted: Sequence[TrustedKey]) -> Iterator[str]:
    """Yield what is wrong with a release's signatures by trusted keys, and with the files that only they cover."""
    try:
        signed = check_signed(store, manifest, digest, trusted)
    except Untrusted as error:
        yield str(error)
        return
    for key in trusted:
        name = signature_name(manifest.release_id, key.key_id)
        try:
            _checked(store.get(name), name, key, manifest, digest)
        except NotFound:
            continue  # another trusted key has signed
        except IntegrityError as error:
            yield str(error)
    known = {*manifest.names(), manifest_name(manifest.release_id)}
    for name in sorted(signed.digests.keys() - known):
        try:
            found = digest_of(store.get(name))
        except NotFound:
            yield f"{name} is missing, and was signed"
            continue
        if found != signed.digests[name]:
            yield f"{name} has the sha256 {found}, {signed.name} says {signed.digests[name]}"


def _listed(manifest: Manifest, digest: str) -> dict[str, str]:
    """Return the digest of each file that a manifest lists, and its own."""
    files = [*(entry for entries in manifest.files.values() for entry in entries), *manifest.bundle_files()]
    listed = {entry.name: entry.sha256 for entry in files} | {part.name: part.sha256 for part in manifest.parts}
    return {**listed, manifest_name(manifest.release_id): digest}


def _bundle_digests(store: Store, manifest: Manifest) -> Iterator[tuple[str, str]]:
    listed = {entry.name for entry in manifest.bundle_files()}
    for file in _OF_BUNDLE:
        name = f"models/{manifest.model_id}/{file}"
        if name not in listed and store.exists(name):
            yield name, digest_of(store.get(name))


def _statement(manifest: Manifest, digest: str, beside: Mapping[str, str]) -> dict[str, Any]:
    """Return the in-toto statement: one subject, the digest of all digests in name order, as the tools want it."""
    digests = {**beside, **_listed(manifest, digest)}
    resources = [{"name": name, "algorithm": "sha256", "digest": digests[name]} for name in sorted(digests)]
    return {
        "_type": STATEMENT,
        "subject": [{"name": manifest.release_id, "digest": {"sha256": _root(digests)}}],
        "predicateType": _PREDICATE,
        "predicate": {"serialization": _FILES, "resources": resources},
    }


def _root(digests: Mapping[str, str]) -> str:
    return digest_of(b"".join(bytes.fromhex(digests[name]) for name in sorted(digests)))


def enveloped(payload: bytes, signature: bytes, key_id: str) -> bytes:
    """Return the one text of a signature's file."""
    return plain_json(
        {
            "mediaType": _BUNDLE,
            "verificationMaterial": {"publicKey": {"hint": key_id}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": base64.b64encode(payload).decode(),
                "payloadType": _PAYLOAD,
                "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": key_id}],
            },
        }
    )


def authenticated(payload: bytes) -> bytes:
    """Return what is signed of a payload: DSSE's PAE, which binds its type and length."""
    return f"DSSEv1 {len(_PAYLOAD)} {_PAYLOAD} {len(payload)} ".encode() + payload


def _checked(data: bytes, name: str, key: TrustedKey, manifest: Manifest, digest: str) -> Signed:
    """Return what a signature says. Raises IntegrityError unless this key made it, and for this manifest."""
    payload = signed_payload(data, name, key)
    try:
        statement = json.loads(payload)
        resources = statement["predicate"]["resources"]
        digests = {str(each["name"]): str(each["digest"]) for each in resources}
        beside = digests.keys() - _listed(manifest, digest).keys()
        whole = _statement(manifest, digest, {each: digests[each] for each in beside})
        fits = statement == whole and all(each.startswith(f"models/{manifest.model_id}/") for each in beside)
    except (ValueError, LookupError, TypeError, AttributeError):
        digests, fits = {}, False
    if not fits:
        said = digests.get(manifest_name(manifest.release_id))
        raise Untrusted(
            f"{name} by the key {key.key_id[:SHORT]} is not for this manifest: it signs "
            f"{'no manifest of this release' if said is None else f'one of the sha256 {said}'}, and "
            f"{manifest_name(manifest.release_id)} has {digest}; the release or its signature was changed, or belongs "
            "to another release: roll the channel back"
        )
    return Signed(key.key_id, name, digests)


def signed_payload(data: bytes, name: str, key: TrustedKey) -> bytes:
    """Return what a signature's file signs. Raises Untrusted unless this key made it, and nobody has changed it."""
    try:
        envelope = json.loads(data)["dsseEnvelope"]
        (one,) = envelope["signatures"]
        payload, signature = (base64.b64decode(text, validate=True) for text in (envelope["payload"], one["sig"]))
    except (ValueError, LookupError, TypeError, binascii.Error) as error:
        raise Untrusted(f"{name} is no signature ({error}); it is damaged: delete it and sign again") from error
    # Compared whole: a changed byte anywhere in the file is an error, not only in what is signed.
    if data != enveloped(payload, signature, key.key_id) or not key.verifies(authenticated(payload), signature):
        raise Untrusted(
            f"{name} was not made by the key {key.key_id[:SHORT]}, or was changed since; roll the channel back to "
            "another release"
        )
    return payload


def plain_json(value: Any) -> bytes:
    """Return the one JSON text of what is signed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
