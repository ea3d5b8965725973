"""A channel's head that must be signed: what a reader refuses when a release is put there by others."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from jobs.__main__ import main
from pipeline.errors import ConfigError, Untrusted
from pipeline.reader import open_release
from pipeline.release import (
    entry_name,
    promote,
    read_head,
    read_signing_keys,
    rollback,
    sign_entry,
    sign_heads,
    sign_release,
)
from pipeline.release.signed_heads import signed_head_name
from pipeline.storage import Store, open_store


class Shop:
    """A store of two signed releases, one after the other on `stable`, both entries signed."""

    def __init__(self, maker: Any, folder: Path) -> None:
        self.store: Store = open_store(str(folder / "store"))
        key, pem = ed25519.Ed25519PrivateKey.generate(), serialization.Encoding.PEM
        private, public = folder / "a.pem", folder / "a.pub"
        private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
        self.private, self.public = str(private), str(public)
        self.keys = read_signing_keys([self.private])
        self.cache = folder / "cache"
        self.releases = []
        for run in ("one", "two"):
            self.releases.append(maker.make_release(self.store, maker.some_photos(5), run=run).release_id)
            sign_release(self.store, self.releases[-1], self.keys)
            sign_heads(self.store, self.releases[-1], self.keys)

    def open(self, channel: str = "stable", **terms: Any) -> Any:
        keys = [self.public]
        return open_release(
            self.store.url,
            channel=channel,
            cache_dir=self.cache,
            trusted_keys=keys,
            **{"trusted_channel": True, **terms},
        )

    def name(self, number: int, channel: str = "stable") -> str:
        return signed_head_name(channel, number, self.keys[0].public.key_id)


@pytest.fixture
def shop(maker: Any, tmp_path: Path) -> Shop:
    return Shop(maker, tmp_path)


def test_a_signed_release_that_others_put_back_is_refused(shop: Shop) -> None:
    release = shop.open()
    assert release.release_id == shop.releases[1]
    rollback(shop.store, "stable")  # by whoever can write to the store, and holds no key
    for opens in (release.refresh, shop.open):
        with pytest.raises(Untrusted, match=f"no trusted key .* {shop.releases[0]} is number 3 of channel 'stable'"):
            opens()
    assert release.release_id == shop.releases[1]
    # The negative control: the releases' own signatures do not see it.
    assert shop.open(trusted_channel=False).release_id == shop.releases[0]
    # The signature of an earlier entry of the same release says its number.
    assert shop.store.put_if_absent(shop.name(3), shop.store.get(shop.name(1)))
    with pytest.raises(Untrusted, match=f"signs release '{shop.releases[0]}' as number 1 of 'stable'"):
        shop.open()
    shop.store.delete(shop.name(3))
    assert main(["sign", shop.releases[0], f"store={shop.store.url}", "--key", shop.private]) == 0
    assert release.refresh()
    assert release.release_id == shop.releases[0]


def test_verify_asks_who_put_the_release_on_the_channel(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["verify", f"store={shop.store.url}", "--trusted-keys", shop.public, "--trusted-channel"]
    assert main(words) == 0
    assert "and so is its place on channel 'stable'" in capsys.readouterr().err
    rollback(shop.store, "stable")
    assert main(words[:-1]) == 0  # the negative control: the release itself is signed
    assert main(words) == 3
    assert f"{shop.releases[0]} is number 3 of channel 'stable'" in capsys.readouterr().err
    for wrong in (["verify", shop.releases[0], *words[1:]], [*words[:2], "--trusted-channel"]):
        assert main(wrong) == 2
        assert "give --trusted-keys FILE, and no RELEASE_ID" in capsys.readouterr().err


def test_a_head_that_goes_back_by_number_is_refused(shop: Shop) -> None:
    release = shop.open()
    sent = pickle.loads(pickle.dumps(release))
    shop.store.delete(entry_name("stable", 2))
    for each in (release, sent):
        with pytest.raises(Untrusted, match="goes back from number 2 to 1, and entries of a log are never deleted"):
            each.refresh()
        assert each.release_id == shop.releases[1]


def test_an_entry_of_another_channel_or_of_other_bytes_is_refused(shop: Shop) -> None:
    head = promote(shop.store, "stable", "canary")
    assert shop.store.put_if_absent(shop.name(1, "canary"), shop.store.get(shop.name(1)))
    with pytest.raises(Untrusted, match="is not for this entry"):
        shop.open("canary")
    shop.store.delete(shop.name(1, "canary"))
    assert sign_entry(shop.store, "canary", head, shop.keys) == [shop.name(1, "canary")]
    assert sign_entry(shop.store, "canary", head, shop.keys) == [shop.name(1, "canary")]
    assert shop.open("canary").release_id == head.release_id
    changed = shop.store.get(entry_name("canary", 1)).replace(b'"attempt":1', b'"attempt":2')
    shop.store.delete(entry_name("canary", 1))
    shop.store.put_if_absent(entry_name("canary", 1), changed)
    entry = read_head(shop.store, "canary")
    assert entry is not None
    assert entry.attempt == 2
    with pytest.raises(Untrusted, match="the log was changed or copied"):
        shop.open("canary")


def test_a_trusted_channel_wants_keys(shop: Shop) -> None:
    with pytest.raises(ConfigError, match="trusted_channel wants trusted_keys"):
        open_release(shop.store.url, trusted_channel=True)
