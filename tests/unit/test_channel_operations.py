"""Promoting, looking back, verifying and comparing releases, by library and by command."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.__main__ import main
from pipeline.errors import ConfigError, IntegrityError, NotFound
from pipeline.index.moved import moved_neighbours
from pipeline.release import (
    diff_releases,
    history,
    history_text,
    live_at,
    parse_moment,
    promote,
    read_head,
    read_log,
    read_manifest,
    verify_release,
)
from pipeline.release.channel import entry_name
from pipeline.release.manifest import document_bytes
from pipeline.storage import Store, open_store
from pipeline.storage.cache import FileCache
from pipeline.storage.memory import SPACES, MemoryStore


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


class Counting(MemoryStore):
    """Counts what is read of the store."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.read: Counter[str] = Counter()

    def fetch(self, name: str, **limits: Any) -> Any:
        self.read[name] += 1
        return super().fetch(name, **limits)


def answered(capsys: pytest.CaptureFixture[str], *words: str, expect: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    code = main([*words, "--json"])
    taken = capsys.readouterr()
    assert code == expect, taken
    found: dict[str, Any] = json.loads(taken.out)
    return found


def test_promote_reads_every_byte_first(maker: Any, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    place = f"store={store.url}"
    first = maker.make_release(store, maker.some_photos(12), run="mon", channel="canary").release_id
    second = maker.make_release(store, maker.some_photos(12, seed=1), run="tue", channel="canary").release_id
    found = answered(capsys, "promote", "canary", "stable", "--release", first, place)
    assert (found["release"], found["number"], found["before"], found["published"]) == (first, 1, None, True)
    index = read_manifest(store, second).file("index")
    whole = store.get(index.name)
    store.put(index.name, bytes([whole[0] ^ 1]) + whole[1:])
    broken = answered(capsys, "promote", "canary", "stable", place, expect=3)
    assert index.name in json.dumps(broken)
    assert [entry.release_id for entry in read_log(store, "stable")] == [first]
    store.put(index.name, whole)
    assert answered(capsys, "promote", "canary", "stable", place)["before"] == first
    assert answered(capsys, "promote", "canary", "stable", place)["reason"] == "nothing to do"
    assert [entry.reason for entry in read_log(store, "stable")] == ["promote", "promote"]
    with pytest.raises(NotFound, match="never had the release 'nope'"):
        promote(store, "canary", "stable", release="nope")
    answered(capsys, "promote", "empty", "stable", place, expect=3)


def long_log(store: Store, maker: Any, nights: int) -> list[datetime]:
    """Publish one release and repeat its entry once a day."""
    maker.make_release(store, maker.some_photos(4), counts={"items": 4}, measures={"recall": 0.987654})
    head = read_head(store, "stable")
    assert head is not None
    times = [datetime(2026, 1, 1, 3, tzinfo=UTC) + timedelta(days=night) for night in range(nights)]
    for number, created in enumerate(times, 1):
        line = head.model_copy(update={"number": number, "created": created, "run": f"run-{number}"})
        store.put(entry_name("stable", number), document_bytes(line))
    return times


def test_the_newest_lines_are_read_and_no_others(maker: Any) -> None:
    store = Counting("memory://history")
    try:
        times = long_log(store, maker, 200)
        store.read.clear()
        found = history(store, "stable", last=3, holders={found_id(store): ["ranking"]})
        assert [told.entry.number for told in found.told] == [198, 199, 200]
        assert (found.left_out, found.told[-1].current, found.told[0].current) == (197, True, False)
        assert sum(name.startswith("channels/") for name in store.read) == 3
        assert "0.9877" in history_text(found)
        assert "ranking" in history_text(found)
        store.read.clear()
        for number in (1, 77, 200):
            for moment in (times[number - 1], times[number - 1] + timedelta(hours=23)):
                (told,) = live_at(store, "stable", moment).told
                assert (told.entry.number, told.current) == (number, number == 200)
        assert max(store.read.values()) <= 6
        assert sum(store.read.values()) <= 6 * 10  # log2(200) < 8, the entry and its manifest
        with pytest.raises(NotFound, match="had no release yet"):
            live_at(store, "stable", times[0] - timedelta(seconds=1))
    finally:
        SPACES.pop("history", None)


def found_id(store: Store) -> str:
    head = read_head(store, "stable")
    assert head is not None
    return head.release_id


def test_moments_are_utc_where_no_zone_is_named() -> None:
    expected = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)
    assert parse_moment("2026-11-21T02:00") == parse_moment("2026-11-21T03:00+01:00") == expected
    with pytest.raises(ConfigError, match="'yesterday' is no time"):
        parse_moment("yesterday")


def test_any_flipped_byte_is_found_and_its_file_named(maker: Any) -> None:
    store = MemoryStore("memory://flipped")
    try:
        release = maker.make_release(store, maker.some_photos(60)).release_id
        manifest = read_manifest(store, release)
        assert verify_release(store, release).problems == ()
        digest = found_digest(store)
        generator = np.random.default_rng(0)
        named = [entry for entries in manifest.files.values() for entry in entries] + list(manifest.parts)
        names = [entry.name for entry in named] + [f"releases/{release}/manifest.json"]
        for name in names:
            whole = store.get(name)
            places = {0, 1, 4, 8, len(whole) - 1, len(whole) - 5, *generator.integers(len(whole), size=12).tolist()}
            for place in sorted(places):
                data = bytearray(whole)
                data[place] ^= 1 << int(generator.integers(8))
                store.put(name, bytes(data))
                with pytest.raises(IntegrityError, match=name.replace(".", r"\.")):
                    verify_release(store, release, expect_sha256=digest).require()
            store.put(name, whole[:-1])
            with pytest.raises(IntegrityError, match=name.replace(".", r"\.")):
                verify_release(store, release, expect_sha256=digest).require()
            store.put(name, whole)
        # A sample reads less, and still misses no absent file.
        part = manifest.parts[0]
        assert verify_release(store, release, share=0.2, seed=1).bytes < verify_release(store, release).bytes
        store.delete(part.name)
        for seed in range(5):
            assert verify_release(store, release, share=0.2, seed=seed).problems == (f"{part.name} is missing",)
        with pytest.raises(ConfigError, match="share to read is 0"):
            verify_release(store, release, share=0)
    finally:
        SPACES.pop("flipped", None)


def found_digest(store: Store) -> str:
    head = read_head(store, "stable")
    assert head is not None
    return head.manifest_sha256


def test_verify_by_command(maker: Any, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    release = maker.make_release(store, maker.some_photos(6)).release_id
    place = f"store={store.url}"
    assert answered(capsys, "verify", place)["release"] == release
    assert answered(capsys, "verify", release, place)["files"] == 4
    sampled = answered(capsys, "verify", release, place, "--sample", "0.2", "--seed", "3")
    assert (sampled["seed"], sampled["listed"]) == (3, 4)
    name = f"releases/{release}/manifest.json"
    store.put(name, store.get(name).replace(b'"vae"', b'"VAE"'))  # still a manifest, and no longer the published one
    assert name in json.dumps(answered(capsys, "verify", release, place, expect=3))


def photos_of(maker: Any, *, night: int) -> list[Any]:
    rows = [photo for photo in maker.some_photos(30, seed=5) if photo.view == 0]
    if night == 1:
        return rows
    kept = rows[1:]  # sku-000 is removed
    kept[0] = maker.Photo(**{**fields(kept[0]), "uri": "s3://photos/another.jpg"})  # sku-001: another photo
    kept.append(maker.Photo(**{**fields(kept[1]), "view": 1, "uri": "s3://photos/second.jpg"}))  # sku-002: one more
    kept[2] = maker.Photo(**{**fields(kept[2]), "category": "New"})  # sku-003: only another attribute
    kept.append(maker.Photo(**{**fields(rows[4]), "item_id": "sku-900", "uri": "s3://photos/900.jpg"}))
    return kept


def fields(photo: Any) -> dict[str, Any]:
    return {name: getattr(photo, name) for name in photo.__dataclass_fields__}


def test_diff_tells_each_sort_of_change(maker: Any, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    first = maker.make_release(store, photos_of(maker, night=1), run="mon", measures={"recall": 0.99}).release_id
    second = maker.make_release(store, photos_of(maker, night=2), run="tue", measures={"recall": 0.97}).release_id
    before, after = read_manifest(store, first), read_manifest(store, second)
    found = diff_releases(store, before, after)
    assert (found.added, found.removed) == (("sku-900",), ("sku-000",))
    assert found.changed == ("sku-001", "sku-002")
    assert found.relabelled == ("sku-003",)
    assert (found.same, found.attributes) == (26, {"category": 1})
    assert found.measures == {"recall": (0.99, 0.97)}
    same = diff_releases(store, before, before)
    assert (same.same, same.added, same.changed, same.attributes, same.measures) == (30, (), (), {}, {})
    answer = answered(capsys, "diff", first, second, f"store={store.url}", "-k", "5")
    assert answer["added"] == ["sku-900"]
    assert answer["neighbours"]["asked"] == 29


def test_moved_neighbours_by_brute_force(maker: Any, store: Store, tmp_path: Path) -> None:
    made = [maker.make_release(store, photos_of(maker, night=night), run=f"night-{night}") for night in (1, 2)]
    before, after = (read_manifest(store, one.release_id) for one in made)
    cache = FileCache(tmp_path / "cache")
    found = moved_neighbours(store, cache, before, after, k=5)
    assert found is not None
    common = sorted({photo.item_id for photo in made[0].photos} & {photo.item_id for photo in made[1].photos})
    near = [
        {
            item: [name for name, _ in maker.brute_force(one, before.metric, one.means(item), 5, left_out=[item])]
            for item in common
        }
        for one in made
    ]
    lost = sum(len(set(near[0][item]) - set(near[1][item])) for item in common)
    assert found.moved == pytest.approx(lost / (5 * len(common)))
    assert found.nearest_moved == pytest.approx(np.mean([near[0][item][0] != near[1][item][0] for item in common]))
    assert lost > 0
    still = moved_neighbours(store, cache, before, before, k=5)
    assert still is not None
    assert (still.moved, still.nearest_moved, still.untouched) == (0, 0, 1)
