"""Delisted items: masked at once for every reader, k still comes back, and they come back when asked for."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from jobs.__main__ import main
from pipeline.errors import ConfigError, IntegrityError, NotFound, UnknownItem
from pipeline.reader import Release, open_release
from pipeline.release import delist, holders, read_delisted, relist
from pipeline.storage import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def opened(store: Store, tmp_path: Path, **how: Any) -> Release:
    return open_release(store.url, cache_dir=tmp_path / "cache", **how)


def test_masked_at_the_next_refresh_with_k_still_returned(maker: Any, store: Store, tmp_path: Path) -> None:
    made = maker.make_release(store, maker.some_photos(60))
    following = opened(store, tmp_path)
    pinned = opened(store, tmp_path, release_id=made.release_id)
    query = made.means("sku-007")
    near = [item for item, _ in maker.brute_force(made, "cosine", query, 8, left_out=["sku-007"])]
    gone = [near[0], near[2], near[3], "sku-of-another-release"]
    assert delist(store, [*gone, gone[0]], owner="legal", reason="recalled") == gone
    assert delist(store, gone, owner="legal", reason="recalled") == []
    for release in (following, pinned):
        maker.check(release.similar("sku-007", k=8), maker.brute_force(made, "cosine", query, 8, left_out=["sku-007"]))
        assert release.refresh() is False
    fresh = opened(store, tmp_path)
    expected = maker.brute_force(made, "cosine", query, 8, left_out=["sku-007", *gone])
    for release in (following, pinned, fresh):
        answer = release.similar("sku-007", k=8)
        assert len(answer) == 8
        maker.check(answer, expected)
        maker.check(release.search(query[:1], k=8)[0],
                    maker.brute_force(made, "cosine", query[:1], 8, left_out=gone))  # fmt: skip
        where = {"category": "Shoes"}
        shoes = maker.brute_force(
            made, "cosine", query, 5, left_out=["sku-007", *gone], keep=lambda photo: photo.category == "Shoes"
        )
        maker.check(release.similar("sku-007", k=5, where=where), shoes)
        assert gone[0] not in release
        assert len(release) == 57
        assert not set(gone) & set(release.item_ids())
        assert len(release.item_ids_from("sku-0", 30)) == 30
        for ask in (release.similar, release.attributes, lambda item, release=release: release.latents([item])):
            with pytest.raises(UnknownItem, match=r"is delisted by legal on .*: recalled"):
                ask(gone[0])
        with pytest.raises(UnknownItem, match="was never seen"):
            release.similar("sku-of-another-release")
    assert relist(store, [gone[0], "sku-never"]) == [gone[0]]
    following.refresh()
    maker.check(
        following.similar("sku-007", k=8), maker.brute_force(made, "cosine", query, 8, left_out=["sku-007", *gone[1:]])
    )
    assert set(read_delisted(store).why) == set(gone[1:])


def test_everything_but_one_item_may_be_delisted(maker: Any, store: Store, tmp_path: Path) -> None:
    made = maker.make_release(store, maker.some_photos(40))
    keys = sorted({photo.item_id for photo in made.photos})
    delist(store, keys[2:], owner="me", reason="")
    release = opened(store, tmp_path)
    assert [near.item_id for near in release.similar(keys[0], k=10)] == [keys[1]]


def test_a_moved_reader_and_a_copy_stay_masked(maker: Any, store: Store, tmp_path: Path) -> None:
    maker.make_release(store, maker.some_photos(12), run="mon")
    release = opened(store, tmp_path)
    delist(store, ["sku-003"], owner="me", reason="")
    maker.make_release(store, maker.some_photos(12, seed=2), run="tue")
    assert release.refresh() is True
    for one in (release, release.__copy__()):
        assert "sku-003" not in one
        assert all(near.item_id != "sku-003" for near in one.similar("sku-001", k=11))


def test_files_are_read_once(maker: Any, store: Store) -> None:
    delist(store, ["a", "b"], owner="me", reason="")
    known = read_delisted(store)
    assert read_delisted(store, known) is known
    (name,) = known.files
    store.put(name, json.dumps({**json.loads(store.get(name)), "until": "noon"}).encode())
    with pytest.raises(IntegrityError, match=f"{name} cannot be understood"):
        read_delisted(store)
    with pytest.raises(ConfigError, match="at least one item_id"):
        delist(store, [], owner="me", reason="")
    store.delete(name)
    with pytest.raises(ConfigError, match="'a b' is no owner"):
        delist(store, ["c"], owner="a b", reason="")


def test_by_command(maker: Any, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    place = f"store={store.url}"
    assert main(["delist", "a", "b", "--item", "x=y", place, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["items"] == ["a", "b", "x=y"]
    assert main(["delist", "--undo", "a", "--item", "x=y", place, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["items"] == ["a", "x=y"]
    assert set(read_delisted(store).why) == {"b"}
    assert main(["delist", place]) == 2


def test_a_reader_holds_the_release_that_it_has_open(maker: Any, store: Store, tmp_path: Path) -> None:
    first = maker.make_release(store, maker.some_photos(6), run="mon").release_id
    assert holders(store) == {}
    release = opened(store, tmp_path, lease=True)
    assert holders(store) == {first: ["reader (lease)"]}
    second = maker.make_release(store, maker.some_photos(6), run="tue").release_id
    assert release.refresh() is True
    assert holders(store) == {second: ["reader (lease)"]}
    assert release.refresh() is False  # and nothing is renewed so soon
    (entry,) = store.list("leases/")
    assert entry.name.endswith("/000001.json")
    sent = pickle.loads(pickle.dumps(release))
    assert sent.release_id == second
    assert holders(store) == {second: ["reader (lease)"] * 2}
    store.delete(f"releases/{second}/manifest.json")
    with pytest.raises(NotFound):
        opened(store, tmp_path, lease=True, release_id=second)
    assert holders(store) == {second: ["reader (lease)"] * 2}
