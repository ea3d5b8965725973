"""Signed releases: who may vouch for one, what a reader refuses, and what the signature's bytes are."""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from jobs.__main__ import main
from jobs.config import Config, config_values
from pipeline.errors import ConfigError, IntegrityError, Untrusted
from pipeline.reader import open_release
from pipeline.release import (
    manifest_name,
    read_manifest,
    read_signing_keys,
    read_trusted_keys,
    sign_release,
    signature_name,
    verify_release,
)
from pipeline.storage import Store, open_store


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def key_files(folder: Path, name: str, key: Any = None) -> tuple[str, str]:
    """Write a private key and its public half as PEM files; return their paths."""
    key = key or ed25519.Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return str(private), str(public)


def made(maker: Any, store: Store, run: str = "night", seed: int = 0) -> str:
    release: str = maker.make_release(store, maker.some_photos(8, seed=seed), run=run).release_id
    return release


def overwrite(store: Store, name: str, data: bytes) -> None:
    store.delete(name)
    assert store.put_if_absent(name, data)


def test_a_signed_release_opens_and_what_is_signed_is_the_standard_form(
    maker: Any, store: Store, tmp_path: Path
) -> None:
    release, (private, public) = made(maker, store), key_files(tmp_path, "a")
    (name,) = sign_release(store, release, read_signing_keys([private]))
    assert sign_release(store, release, read_signing_keys([private])) == [name]  # again: nothing changes
    opened = open_release(store.url, trusted_keys=[public, Path(public)])
    assert opened.similar("sku-001", 3)
    again = pickle.loads(pickle.dumps(opened))
    assert again.similar("sku-001", 3) == opened.similar("sku-001", 3)
    assert verify_release(store, release, trusted=read_trusted_keys([public])).problems == ()

    # Everything below from the published formats alone: DSSE, in-toto, OpenSSF model signing.
    bundle = json.loads(store.get(name))
    pem = Path(public).read_bytes()
    assert bundle["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert bundle["verificationMaterial"]["publicKey"]["hint"] == hashlib.sha256(pem).hexdigest()
    envelope = bundle["dsseEnvelope"]
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"]
    assert kind == "application/vnd.in-toto+json"
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)
    serialization.load_pem_public_key(pem).verify(base64.b64decode(envelope["signatures"][0]["sig"]), signed)
    statement = json.loads(payload)
    resources = statement["predicate"]["resources"]
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://model_signing/signature/v1.0"
    names = [each["name"] for each in resources]
    assert names == sorted(names)
    assert set(names) == {*read_manifest(store, release).names(), manifest_name(release)}
    root = hashlib.sha256()
    for each in resources:
        digest = hashlib.sha256(store.get(each["name"])).digest()
        assert (each["algorithm"], each["digest"]) == ("sha256", digest.hex())
        root.update(digest)
    assert statement["subject"] == [{"name": release, "digest": {"sha256": root.hexdigest()}}]


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_keys_on_the_curves_of_the_tools_sign_too(maker: Any, store: Store, tmp_path: Path, curve: Any) -> None:
    release, key = made(maker, store), ec.generate_private_key(curve)
    private, public = key_files(tmp_path, "ec", key)
    (name,) = sign_release(store, release, read_signing_keys([private]))
    assert open_release(store.url, trusted_keys=[public]).release_id == release
    envelope = json.loads(store.get(name))["dsseEnvelope"]
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"].encode()
    hashed = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}[curve.key_size]
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    key.public_key().verify(
        signature, b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload), ec.ECDSA(hashed)
    )


def test_what_a_reader_with_trusted_keys_refuses(maker: Any, store: Store, tmp_path: Path) -> None:
    release, other = made(maker, store, "one"), made(maker, store, "two", seed=1)
    (ours, trusted), (theirs, strange) = key_files(tmp_path, "ours"), key_files(tmp_path, "theirs")
    with pytest.raises(Untrusted, match=f"{other} on .* is not signed"):
        open_release(store.url, trusted_keys=[trusted])
    (foreign,) = sign_release(store, other, read_signing_keys([theirs]))
    with pytest.raises(Untrusted, match="signed by other keys") as caught:
        open_release(store.url, trusted_keys=[trusted])
    assert foreign.partition("signature-")[2].removesuffix(".json") in str(caught.value)
    assert open_release(store.url, trusted_keys=[trusted, strange]).release_id == other  # one of them is enough
    assert open_release(store.url).release_id == other  # the negative control: nobody asked who made it

    # By the other key, under our key's name; and our own, of another release.
    key_id = read_trusted_keys([trusted])[0].key_id
    store.put_if_absent(signature_name(other, key_id), store.get(foreign))
    with pytest.raises(Untrusted, match="was not made by the key"):
        open_release(store.url, trusted_keys=[trusted])
    (mine,) = sign_release(store, release, read_signing_keys([ours]))
    overwrite(store, signature_name(other, key_id), store.get(mine))
    with pytest.raises(Untrusted, match="is not for this manifest: it signs no manifest of this release"):
        open_release(store.url, trusted_keys=[trusted])
    with pytest.raises(IntegrityError, match="is not for this manifest"):
        sign_release(store, other, read_signing_keys([ours]))

    # A manifest that was changed after it was signed, and that no channel holds to its digest.
    changed = json.loads(store.get(manifest_name(release)))
    changed["measures"] = {"recall": 1.0}
    overwrite(store, manifest_name(release), json.dumps(changed).encode())
    with pytest.raises(Untrusted, match=r"it signs one of the sha256 [0-9a-f]{64}, and .* has [0-9a-f]{64}"):
        open_release(store.url, release_id=release, trusted_keys=[trusted])
    assert open_release(store.url, release_id=release).release_id == release  # without keys nobody could tell


def test_a_refresh_to_an_unsigned_release_keeps_the_signed_one(maker: Any, store: Store, tmp_path: Path) -> None:
    private, public = key_files(tmp_path, "a")
    first = made(maker, store, "one")
    sign_release(store, first, read_signing_keys([private]))
    release = open_release(store.url, trusted_keys=[public])
    second = made(maker, store, "two", seed=1)
    with pytest.raises(Untrusted, match="not signed"):
        release.refresh()
    assert release.release_id == first
    sign_release(store, second, read_signing_keys([private]))
    assert release.refresh()
    assert release.release_id == second


def test_any_changed_byte_of_a_signature_is_refused(maker: Any, store: Store, tmp_path: Path) -> None:
    release, (private, public) = made(maker, store), key_files(tmp_path, "a")
    (name,) = sign_release(store, release, read_signing_keys([private]))
    data, trusted = store.get(name), read_trusted_keys([public])
    for place in range(0, len(data), 97):
        overwrite(store, name, data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        (problem,) = verify_release(store, release, trusted=trusted).problems
        assert name in problem, place
    overwrite(store, name, data[:-1])
    with pytest.raises(Untrusted, match=r"signature-[0-9a-f]{12}\.json is no signature"):
        open_release(store.url, trusted_keys=[public])


def test_keys_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private, public = key_files(tmp_path, "a")
    rsa_private, rsa_public = key_files(tmp_path, "rsa", rsa.generate_private_key(65537, 1024))
    locked = tmp_path / "locked.pem"
    locked.write_bytes(
        ed25519.Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    for reference, said in [
        (public, "is no private key in PEM form; make one with `openssl genpkey"),
        (str(tmp_path / "none.pem"), "cannot be read"),
        (str(locked), "is encrypted"),
        (rsa_private, "what signs releases is ed25519, or EC"),
        ("env:NO_SUCH_VARIABLE", "'NO_SUCH_VARIABLE' is not set"),
    ]:
        with pytest.raises(ConfigError, match=said):
            read_signing_keys([reference])
    for given, said in [
        ([], "is empty"),
        (public, "is one key; give a list"),
        ([private], "is a private key; give its public half"),
        ([Path(private).read_text()], "is a private key; give its public half"),
        ([rsa_public], "what signs releases is ed25519, or EC"),
        ([tmp_path / "none.pub"], "cannot be read"),
        ([__file__], "is no public key"),
    ]:
        with pytest.raises(ConfigError, match=said) as caught:
            read_trusted_keys(given)
        assert Path(private).read_text().splitlines()[1] not in str(caught.value)
    text = Path(private).read_text()
    monkeypatch.setenv("SIGNING", text)
    (key,) = read_signing_keys(["env:SIGNING"])
    assert key.public == read_trusted_keys([Path(public).read_text()])[0]
    assert text.splitlines()[1] not in repr(key)


SMALLEST = {
    "store": {"url": "s"},
    "catalogue": {"source": "c.parquet", "item_id": "i", "image": "m"},
    "model": {"kind": "vae"},
}


def test_keys_are_in_no_frozen_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    private, _ = key_files(tmp_path, "a")
    signed = Config.model_validate({**SMALLEST, "publish": {"sign": {"key": private}}})
    assert signed.publish.sign is not None
    assert signed.publish.sign.key == (private,)
    plain = config_values(Config.model_validate(SMALLEST))
    assert config_values(signed) == plain
    assert plain["publish"] == {"channel": "stable"}  # as before there were signatures
    pem = Path(private).read_text()
    assert main(["verify", f"store={tmp_path}", f"publish.sign.key={json.dumps(pem)}"]) == 2
    said = capsys.readouterr()
    assert "must name where the key lies" in said.err
    assert pem.splitlines()[1] not in said.err + said.out


def test_signing_and_verifying_from_the_command_line(
    maker: Any, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release = made(maker, store)
    (old, old_public), (new, new_public) = key_files(tmp_path, "old"), key_files(tmp_path, "new")
    where = f"store={store.url}"
    assert main(["verify", "--trusted-keys", old_public, where]) == 3
    assert "is not signed" in capsys.readouterr().err
    assert main(["sign", release, where]) == 2
    assert "publish.sign.key" in capsys.readouterr().err
    assert main(["sign", release, where, f"publish.sign.key=[{old},{new}]"]) == 0
    assert main(["verify", "--trusted-keys", old_public, "--trusted-keys", new_public, where]) == 0
    assert "signed by one of 2 trusted keys" in capsys.readouterr().err
    # A file that the release rests on and no channel holds to a digest: signed, so a changed byte of it is found.
    assert main(["sign", "night-ffffffffffff", where, "--key", old]) == 2
    assert "no channel of" in capsys.readouterr().err
    part = read_manifest(store, release).parts[0].name
    overwrite(store, part, store.get(part)[:-1] + b"!")
    assert main(["sign", release, where, "--key", new]) == 3
    assert part in capsys.readouterr().err
