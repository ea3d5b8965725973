"""The keys that sign releases and vouch for them: ed25519, or ECDSA on the NIST curves, as PEM files.

The library `cryptography` (extra `sign`) is imported when a key is first used: whoever signs nothing does without.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..keys import digest_of
from .config import PublishConfig

ENVIRONMENT = "env:"  # before the name of a variable that holds the PEM text
_PUBLIC, _PRIVATE = "-----BEGIN PUBLIC KEY-----", "PRIVATE KEY"
_KINDS = "ed25519, or EC on secp256r1, secp384r1 or secp521r1"
_CURVES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}  # each with the hash of its length


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A public key. pem: SubjectPublicKeyInfo, the one text of this key; key_id: the sha256 of it (64 hex)."""

    pem: str
    key_id: str

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Return whether a signature over a message was made with the private half of this key."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        key: Any = load_pem_public_key(self.pem.encode())
        try:
            key.verify(signature, message, *_hashing(key))
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key, which no text of this object shows. public: the half that readers trust."""

    public: TrustedKey
    sign: Callable[[bytes], bytes] = field(repr=False, compare=False)


def signers(config: PublishConfig) -> list[SigningKey]:
    """Return the keys that sign what is published, none where nothing is signed; errors as `read_signing_keys`."""
    return [] if config.sign is None else read_signing_keys(config.sign.key)


def read_signing_keys(references: Iterable[str]) -> list[SigningKey]:
    """Return private keys by where they lie: a path, or `env:NAME` for a variable that holds the PEM text.

    Raises ConfigError for a key that is not there, cannot be read, is encrypted or of another kind; the message names
    the place, never what lies there.
    """
    return [_signing_key(reference) for reference in references]


def read_trusted_keys(given: Iterable[str | os.PathLike[str]]) -> tuple[TrustedKey, ...]:
    """Return public keys, each given as the path of a PEM file or as its text, in order, without repetitions.

    Raises ConfigError for none at all, for a private key, and for what is no public key of a kind that signs releases.
    """
    if isinstance(given, str | bytes | os.PathLike):
        raise ConfigError(
            "trusted_keys is one key; give a list of public keys, each the path of a PEM file or its text"
        )
    found = tuple(dict.fromkeys(_trusted_key(each) for each in given))
    if not found:
        raise ConfigError("trusted_keys is empty, so no release could be opened; name a public key, or leave it out")
    return found


def _trusted_key(given: str | os.PathLike[str]) -> TrustedKey:
    text, place = os.fspath(given), "a key of trusted_keys"
    if _PRIVATE in text:
        raise ConfigError("a key of trusted_keys is a private key; give its public half (openssl pkey -pubout)")
    if _PUBLIC not in text:
        place, text = f"the trusted key {text!r:.200}", _text_at(text, f"trusted key {text!r:.200}")
    if _PRIVATE in text:
        raise ConfigError(f"{place} is a private key; give its public half (openssl pkey -pubout)")
    serialization = _serialization()
    try:
        key = serialization.load_pem_public_key(text.strip().encode() + b"\n")
    except Exception as error:  # cryptography raises half a dozen types for bytes that are no key
        raise ConfigError(
            f"{place} is no public key in PEM form; make one with `openssl pkey -in KEY.pem -pubout`"
        ) from error
    return _public(key, place)


def _signing_key(reference: str) -> SigningKey:
    place = f"the signing key {reference!r:.200}"
    if reference.startswith(ENVIRONMENT):
        name = reference.removeprefix(ENVIRONMENT)
        text = os.environ.get(name, "")
        if not text:
            raise ConfigError(
                f"{place}: the environment variable {name!r} is not set; put the PEM text of the key there"
            )
    else:
        text = _text_at(reference, f"signing key {reference!r:.200}")
    serialization = _serialization()
    try:
        key = serialization.load_pem_private_key(text.strip().encode() + b"\n", password=None)
    except TypeError:
        # The cause is left out of this and the next: it must not carry anything of the key into a log.
        raise ConfigError(
            f"{place} is encrypted with a password; give one without (openssl pkey -in KEY.pem -out PLAIN.pem) from a "
            "place that only the run can read"
        ) from None
    except Exception:  # noqa: BLE001  see `_trusted_key`
        raise ConfigError(
            f"{place} is no private key in PEM form; make one with `openssl genpkey -algorithm ed25519 -out KEY.pem`"
        ) from None
    public = _public(key.public_key(), place)
    return SigningKey(public, lambda message: bytes(key.sign(message, *_hashing(key.public_key()))))


def _text_at(path: str, what: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it holds bytes that are no PEM text"
        raise ConfigError(f"the {what} cannot be read ({why}); name the PEM file of a key on this machine") from None


def _public(key: Any, place: str) -> TrustedKey:
    """Return a public key under its id. Raises ConfigError for one of another kind."""
    serialization = _serialization()
    if _kind(key) is None:
        raise ConfigError(f"{place} is of the kind {type(key).__name__.strip('_')}; what signs releases is {_KINDS}")
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    pem = key.public_bytes(serialization.Encoding.PEM, form)
    # As the model-signing tools name keys, so that both speak of the same one.
    return TrustedKey(pem.decode(), digest_of(pem))


def _kind(key: Any) -> str | None:
    """Return `ed25519` or the name of a curve, None for any other public key."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    if isinstance(key, ed25519.Ed25519PublicKey):
        return "ed25519"
    return key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES else None


def _hashing(key: Any) -> tuple[Any, ...]:
    """Return the further arguments of `sign` and `verify` for a public key's kind; ed25519 hashes by itself."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    kind = _kind(key)
    return () if kind == "ed25519" else (ec.ECDSA(getattr(hashes, _CURVES[str(kind)])()),)


def _serialization() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError as error:
        raise ConfigError(
            "signatures need the package cryptography, which is not installed; run `pip install "
            "'visual-codebooks[sign]'`, or only `pip install cryptography`"
        ) from error
    return serialization
