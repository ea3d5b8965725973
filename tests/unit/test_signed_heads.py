"""A channel's head that must be signed: what a reader refuses when a release is put there by others."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from jobs.__main__ import main
from pipeline.errors import ConfigError, IntegrityError, NotFound, Untrusted
from pipeline.reader import open_release
from pipeline.release import (
    SeenHeads,
    entry_name,
    promote,
    publish,
    published_digest,
    read_head,
    read_log,
    read_signing_keys,
    rollback,
    sign_entry,
    sign_heads,
    sign_release,
)
from pipeline.release.signed_heads import signed_head_name
from pipeline.storage import StorageOptions, Store, open_store


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
            trusted_keys=keys,
            **{"trusted_channel": True, "cache_dir": self.cache, **terms},
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


def test_verify_asks_who_put_the_release_on_the_channel(
    shop: Shop, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "machine"))
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
    # Readers of this machine and `verify` remember the same.
    for number in (3, 2):
        shop.store.delete(entry_name("stable", number))
    shop.open(trusted_channel=False, cache_dir=None)
    with pytest.raises(Untrusted, match="goes back from number 2 to 1"):
        shop.open(cache_dir=None)
    assert main(words[:-1]) == 0  # the negative control: it asks for no signed channel, and its head is whole
    capsys.readouterr()
    assert main(words) == 3
    assert "goes back from number 2 to 1" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "machine")  # as the message tells
    assert main(words) == 0


def test_a_head_that_goes_back_by_number_is_refused(shop: Shop) -> None:
    release = shop.open()
    sent = pickle.loads(pickle.dumps(release))
    shop.store.delete(entry_name("stable", 2))
    for each in (release, sent):
        with pytest.raises(Untrusted, match="goes back from number 2 to 1, and entries of a log are never deleted"):
            each.refresh()
        assert each.release_id == shop.releases[1]


def test_a_reader_opened_anew_sees_that_the_log_was_cut(shop: Shop, tmp_path: Path) -> None:
    shop.open()
    held = {number: shop.store.get(entry_name("stable", number)) for number in (1, 2)}
    shop.store.delete(entry_name("stable", 2))
    with pytest.raises(Untrusted, match=r"back from number 2 to 1, .*seen number 2, .*delete the folder (\S+)") as cut:
        shop.open()
    assert shop.releases[1] in str(cut.value)
    # The negative controls: a machine that has not seen the newest entry, and a reader that asks for no signed channel.
    assert shop.open(cache_dir=tmp_path / "elsewhere").release_id == shop.releases[0]
    assert shop.open(trusted_channel=False).release_id == shop.releases[0]
    shop.store.delete(entry_name("stable", 1))
    with pytest.raises(Untrusted, match="back from number 2 to 0"):
        shop.open()
    with pytest.raises(NotFound, match="has no release yet"):
        shop.open(trusted_channel=False)
    for number, data in held.items():
        shop.store.put_if_absent(entry_name("stable", number), data)
    assert shop.open().release_id == shop.releases[1]
    shop.store.delete(entry_name("stable", 2))
    shutil.rmtree(str(cut.value).rpartition("delete the folder ")[2])  # as it says, where that was on purpose
    assert shop.open().release_id == shop.releases[0]


def test_a_log_that_was_cut_and_written_on_is_seen_too(shop: Shop, tmp_path: Path) -> None:
    shop.open()
    shop.store.delete(entry_name("stable", 2))
    shop.store.delete(shop.name(2))
    for _ in range(2):  # number 2 once more, then 3, both signed
        sign_entry(shop.store, "stable", rollback_to(shop, shop.releases[0]), shop.keys)
    with pytest.raises(Untrusted, match=r"number 2 of channel 'stable' .* is another entry than it was") as other:
        shop.open()
    assert "delete the folder" in str(other.value)
    assert shop.open(cache_dir=tmp_path / "elsewhere").release_id == shop.releases[0]
    shop.store.delete(entry_name("stable", 2))
    with pytest.raises(Untrusted, match=r"channels/stable/0+2\.json is gone from"):
        shop.open()


def rollback_to(shop: Shop, release: str) -> Any:
    head = read_head(shop.store, "stable")
    assert head is not None
    digest = published_digest(shop.store, release)
    assert digest is not None
    return publish(shop.store, "stable", expected_head=head.number, release_id=release, manifest_sha256=digest,
                   run="again", attempt=1, reason="rollback")  # fmt: skip


def test_what_was_seen_goes_up_only_and_is_of_one_store_and_channel(shop: Shop, tmp_path: Path) -> None:
    seen, log = SeenHeads(tmp_path / "seen"), read_log(shop.store, "stable")
    entries = [log[0].model_copy(update={"number": number}) for number in range(1, 31)]
    assert seen.newest(shop.store, "stable") is None
    for entry in [*entries[5:], entries[2]]:  # the last by one that has listed the log long ago
        seen.keep(shop.store, "stable", entry)
    newest = seen.newest(shop.store, "stable")
    assert newest is not None
    assert (newest.number, newest.store, newest.release_id) == (30, shop.store.url, log[0].release_id)
    assert len(list((tmp_path / "seen" / "heads").rglob("*.json"))) < 12
    assert seen.newest(shop.store, "canary") is None
    assert seen.newest(open_store(str(tmp_path / "another")), "stable") is None
    with pytest.raises(Untrusted, match=r"number 30 of channel 'stable' .* is another entry than it was"):
        seen.keep(shop.store, "stable", log[1].model_copy(update={"number": 30}))
    (file,) = (tmp_path / "seen" / "heads").rglob("*30.json")
    file.write_bytes(file.read_bytes().replace(b'"number":30', b'"number":31'))
    with pytest.raises(IntegrityError, match=r"30\.json tells of number 31 .* delete it"):
        seen.newest(shop.store, "stable")
    file.write_bytes(b"{")
    with pytest.raises(IntegrityError, match=r"30\.json is not what a reader remembers .* delete it"):
        seen.newest(shop.store, "stable")


def test_a_bucket_of_the_same_name_on_another_server_is_another_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the server is named: by the option, or by either variable."""
    seen, folders = SeenHeads(tmp_path), set()
    for number, variable in enumerate([None, "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"], 9000):
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            monkeypatch.delenv(name, raising=False)
        if variable is not None:
            monkeypatch.setenv(variable, f"http://localhost:{number}")
        folders.add(seen.folder(open_store("s3://shop/visual"), "stable"))
    asked = StorageOptions(endpoint="http://localhost:9001")
    assert len(folders) == 3
    assert seen.folder(open_store("s3://shop/visual", asked), "stable") in folders


def test_a_reader_that_looks_while_another_sees_more_is_not_refused(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is read after what is remembered of it: the other way round the other's number would look like a cut."""
    shop.open()
    newest = SeenHeads.newest

    def while_another_sees_more(seen: SeenHeads, store: Store, channel: str) -> Any:
        found = newest(seen, store, channel)
        monkeypatch.undo()
        entry = rollback(shop.store, "stable")
        sign_entry(shop.store, "stable", entry, shop.keys)
        seen.keep(store, channel, entry)
        return found

    monkeypatch.setattr(SeenHeads, "newest", while_another_sees_more)
    assert shop.open().release_id == shop.releases[0]


def test_a_cache_folder_that_cannot_remember_is_said(shop: Shop) -> None:
    shop.open(trusted_channel=False)
    (shop.cache / "heads").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"cannot keep what this reader must remember of channel 'stable'"):
        shop.open()


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
