"""The disasters of the runbook (cluster/README.md), rehearsed on a real store: a lost file, a bad release live, a
damaged channel log, a bundle that must not be used any more. Each ends with a channel whose release is whole."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import IntegrityError
from pipeline.reader import open_release
from pipeline.release import read_head, read_manifest, verify_release
from pipeline.storage import open_store

pytestmark = pytest.mark.slow


@dataclass
class Shop:
    """A store with three nights on `stable`, of 12, 13 and 14 items.

    releases: of these nights, the oldest first. cache: a reader's.
    """

    folder: Path
    cache: Path
    commands: Any
    small: list[str]
    releases: list[str]

    @property
    def store(self) -> Any:
        return open_store(str(self.folder / "store"))

    def night(self, run: str, items: int, *words: str, expect: int = 0) -> dict[str, Any]:
        rows = "".join(f"item-{number},{number}.png\n" for number in range(items))
        (self.folder / "catalogue.csv").write_text("item_id,image\n" + rows)
        source = f"catalogue.source={self.folder / 'catalogue.csv'}"
        return self.command("refresh", "--run", run, source, *self.small, *words, expect=expect)

    def command(self, *words: str, expect: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = self.commands.run(*words, f"store={self.folder / 'store'}", expect=expect)
        return found

    def path(self, name: str) -> Path:
        return self.folder / "store" / name

    def entry(self, number: int) -> Path:
        return self.path(f"channels/stable/{number:012d}.json")

    def current(self) -> str:
        """Return the release that the channel names, which must be whole, byte for byte, and answer."""
        head = read_head(self.store, "stable")
        assert head is not None
        assert verify_release(self.store, head.release_id, expect_sha256=head.manifest_sha256).problems == ()
        release = open_release(str(self.folder / "store"), cache_dir=self.cache)
        assert release.similar("item-1", k=3)
        return head.release_id


@pytest.fixture(scope="module")
def three_nights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("shop")
    for number in range(18):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder, []


@pytest.fixture
def shop(three_nights: tuple[Path, list[str]], commands_here: Any, stages_here: Any, tmp_path: Path) -> Shop:
    folder, releases = three_nights
    shop = Shop(folder, tmp_path, commands_here, stages_here.SMALL, releases)
    if not releases:  # by the first test: the stages run here only inside of one
        for run, items in (("one", 12), ("two", 13), ("three", 14)):
            releases.append(shop.night(run, items)["release"])
        shutil.copytree(folder / "store", folder / "saved")
    shutil.rmtree(folder / "store")  # at one place for all: a run has frozen where its store lies
    shutil.copytree(folder / "saved", folder / "store")
    return shop


def test_a_lost_file_of_the_current_release(shop: Shop) -> None:
    manifest = read_manifest(shop.store, shop.releases[-1])
    shop.path(manifest.file("index").name).unlink()
    with pytest.raises(IntegrityError, match="open another release"):
        open_release(str(shop.folder / "store"), cache_dir=shop.cache)
    # A night on which nothing changed does not look, so waiting for it does not help.
    assert shop.night("four", 14)["reason"] == "nothing to do"
    assert shop.command("rollback")["release"] == shop.releases[1]
    assert shop.current() == shop.releases[1]
    made = shop.night("five", 14)
    assert made["published"]
    assert shop.current() == made["release"]


@pytest.mark.parametrize("role", ["items", "manifest"])
def test_a_lost_table_or_manifest_stops_the_night_and_a_rollback_mends_it(shop: Shop, role: str) -> None:
    name = f"releases/{shop.releases[-1]}/manifest.json"
    if role == "items":
        name = read_manifest(shop.store, shop.releases[-1]).file("items").name
    shop.path(name).unlink()
    refused = shop.night("four", 15, expect=3)
    assert shop.releases[-1] in refused["error"]
    shop.command("rollback")
    made = shop.night("five", 15)
    assert shop.current() == made["release"]


@pytest.mark.parametrize("kind", ["latents", "pixels"])
def test_a_lost_part_is_made_anew_on_a_channel_of_its_own_and_taken_over(shop: Shop, kind: str) -> None:
    manifest = read_manifest(shop.store, shop.releases[-1])
    lost = manifest.parts[0].name
    if kind == "pixels":
        lost = str(next(shop.path("pixels").rglob("*.parquet")).relative_to(shop.path("")))
    shop.path(lost).unlink()
    assert lost in shop.night("four", 15, expect=3)["error"]
    # Older releases name the part too, so no rollback mends it.
    mended = shop.night("mend", 15, "publish.channel=mend")
    assert mended["model_id"] == manifest.model_id  # encoded, not trained
    shop.command("rollback", "--channel", "stable", "--to", mended["release"])
    assert shop.current() == mended["release"]
    assert shop.night("five", 16)["published"]
    shop.current()


def test_a_bad_release_is_rolled_back_and_not_published_again_by_a_retry(shop: Shop) -> None:
    assert shop.command("rollback")["release"] == shop.releases[1]
    again = shop.night("three", 14)
    assert (again["published"], again["release"]) == (True, shop.releases[2])  # what it did then; nothing is done now
    assert shop.current() == shop.releases[1]
    assert shop.command("rollback", "--to", shop.releases[2])["release"] == shop.releases[2]  # undone
    assert shop.current() == shop.releases[2]


def test_a_refused_release_is_put_live_by_a_person_who_judged_it(shop: Shop) -> None:
    refused = shop.night("four", 15, "gates.min_items=1000", expect=4)
    assert shop.current() == shop.releases[2]
    assert shop.command("rollback", "--to", refused["release"])["release"] == refused["release"]
    assert shop.current() == refused["release"]


def test_a_damaged_newest_entry_is_deleted_and_written_again(shop: Shop) -> None:
    shop.entry(3).write_bytes(b"{")
    for refused in (shop.night("four", 15, expect=3), shop.command("releases", expect=3)):
        assert "channels/stable/000000000003.json is not a channel entry" in refused["error"]
        assert "delete it" in refused["error"]
    shop.entry(3).unlink()
    assert shop.current() == shop.releases[1]
    shop.command("rollback", "--to", shop.releases[2])
    assert shop.current() == shop.releases[2]
    assert json.loads(shop.entry(3).read_bytes())["release_id"] == shop.releases[2]
    assert shop.night("four", 15)["published"]


def test_a_damaged_older_entry_stops_commands_and_no_night(shop: Shop) -> None:
    shop.entry(2).write_bytes(b"{")
    assert "delete it" in shop.command("rollback", expect=3)["error"]
    assert shop.current() == shop.releases[2]
    assert shop.night("four", 15)["published"]
    shop.entry(2).unlink()
    assert shop.command("rollback")["release"] == shop.releases[2]


def test_a_bundle_that_must_not_be_used_any_more(shop: Shop) -> None:
    revoked = read_manifest(shop.store, shop.releases[-1]).model_id
    assert "--retrain" in shop.night("four", 14, "train.seed=1", expect=2)["error"]
    made = shop.night("five", 14, "train.seed=1", "--retrain")
    assert made["model_id"] != revoked
    assert read_manifest(shop.store, made["release"]).counts["photos"] == 14  # all of them anew
    with pytest.raises(IntegrityError, match=revoked[:12]):
        open_release(str(shop.folder / "store"), cache_dir=shop.cache, expect_model=revoked)
    for folder in ("models", "latents"):
        shutil.rmtree(shop.path(f"{folder}/{revoked}"))
    assert shop.current() == made["release"]
    assert shop.night("six", 15, "train.seed=1")["published"]
    # A config of before would make the deleted bundle anew, and says so instead of doing what nobody asked for.
    said = shop.night("seven", 16, expect=2)["error"]
    assert "TRAINS A NEW MODEL" in said
    assert "--retrain" in said
    assert not shop.path(f"models/{revoked}").exists()
    shop.current()


def test_a_lost_bundle_file_says_what_to_do(shop: Shop) -> None:
    model = read_manifest(shop.store, shop.releases[-1]).model_id
    weights = shop.path(f"models/{model}/weights.safetensors")
    kept = weights.read_bytes()
    weights.unlink()
    assert "restore it, or train anew" in shop.night("four", 15, expect=3)["error"]
    weights.write_bytes(kept)
    assert shop.night("five", 15)["published"]
