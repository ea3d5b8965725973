"""Nights that are measured: what a release says of itself and against its parent, and where it keeps silent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from jobs.config import Config, config_values
from pipeline.errors import Unavailable
from pipeline.evaluation import nightly
from pipeline.evaluation.measured import Measured, measured_of, whole_catalogue
from pipeline.evaluation.nightly.config import LINE_NAMES
from pipeline.evaluation.nightly.lines import LINES
from pipeline.planning import measure_settings, release_config
from pipeline.quality.pictures import Pictures
from pipeline.release import read_manifest
from pipeline.release.tables import read_table
from pipeline.storage import open_store

KEPT, FETCHED = "images.keep=always", "images.keep=never"
ANY_KEY = "gates={max: {rekeyed_share: null}}"
ANY_CATEGORY = "gates={max_drop: {category_knn: null}, max: {drift_changed_auc: null}}"
ANY_RECALL = "gates={max_drop: {photo_recall: null}}"  # among twice as many items by so small a model
WITHOUT_HUBS = "measures={without: [hubness]}"
SHAPES = {"a": (4, 12), "b": (0, 16)}  # of a bright field on a dark photo: high and narrow, or wide


class Unreachable(Pictures):
    """Of photos whose server does not answer."""

    def read(self, items: pa.Table, rows: Sequence[int]) -> dict[int, np.ndarray]:
        if self.files is not None:
            raise Unavailable("busy")
        return super().read(items, rows)


class Shop:
    """A store and a catalogue of photos that noise tells apart."""

    def __init__(self, folder: Path, commands: Any, small: list[str]) -> None:
        self.folder, self.commands, self._small = folder, commands, small

    def draw(self, number: int) -> None:
        kind, dice = "ab"[number % 2], np.random.default_rng(number)
        pixels = np.full((16, 16, 3), 30, np.uint8)
        low, high = SHAPES[kind]
        field = dice.integers(90, 250, (4, 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)
        pixels[:, low:high] = field[:, low:high]
        Image.fromarray(pixels).save(self.folder / f"{number}.png")

    def night(self, run: str, photos: dict[int, str], *words: str) -> dict[str, Any]:
        rows = "".join(f"item-{number:03d},{photo},{'ab'[number % 2]}\n" for number, photo in photos.items())
        (self.folder / "catalogue.csv").write_text("item_id,image,kind\n" + rows)
        where = [f"store={self.folder / 'store'}", f"catalogue.source={self.folder / 'catalogue.csv'}"]
        found: dict[str, Any] = self.commands.run(
            "refresh", "--run", run, *where, "catalogue.category=kind", *self._small, *words
        )
        return found

    def table(self, release: str) -> list[Measured]:
        store = open_store(str(self.folder / "store"))
        return measured_of(read_table(store, read_manifest(store, release), "measures"))

    def recall(self, release: str) -> Measured:
        (found,) = [one for one in self.table(release) if (one.name, one.category) == ("photo_recall", None)]
        return found

    def manifest(self, release: str) -> Any:
        return read_manifest(open_store(str(self.folder / "store")), release)


@pytest.fixture
def shop(tmp_path: Path, commands_here: Any, stages_here: Any) -> Shop:
    made = Shop(tmp_path, commands_here, stages_here.SMALL)
    for number in range(125):
        made.draw(number)
    return made


@pytest.mark.slow
def test_a_night_says_what_it_is_and_what_changed(shop: Shop) -> None:
    photos = {number: f"{number}.png" for number in range(60)}
    first = shop.night("one", photos, KEPT)["release"]
    told = shop.manifest(first)
    assert {"photo_recall_low", "hub_skew", "score_q50", "coverage", "category_knn_high"} <= told.measures.keys()
    assert set(told.inputs["not_measured"]) == {
        "reconstruction", "churn", "rekeyed", "drift", "drift_changed", "code_use", "likelihood"
    }  # fmt: skip
    (shop.folder / "broken.png").write_bytes(b"no picture")
    photos = {number: f"{number}.png" for number in range(5, 125)} | {60: "0.png", 61: "0.png", 62: "broken.png"}
    second = shop.night("two", photos, KEPT, ANY_RECALL)["release"]
    found, manifest = shop.table(second), shop.manifest(second)
    assert whole_catalogue(found) == manifest.measures
    values = {one.name: one for one in found if one.category is None}
    assert values["recall"].value == 1.0, "also what follows from counts alone is in the table"
    assert values["neighbour_churn"].value == values["neighbour_displaced"].value > 0
    assert (values["neighbour_moved"].value, values["neighbour_missed"].value) == (0, 0)
    assert values["coverage"].value == 119 / 120
    assert values["coverage"].examples == ("item-062",)
    assert {one.category for one in found if one.name == "coverage"} == {None, "a", "b"}
    assert (values["largest_identical_group"].value, values["largest_identical_group"].examples) == (
        2,
        ("item-060", "item-061"),
    )
    assert (values["rekeyed_share"].value, values["rekeyed_share"].examples) == (1 / 56, ("item-060", "item-061"))
    assert values["drift_auc"].n == 27 + 28, "as many as unchanged ones of each category"
    assert values["photo_recall"].n == 119
    assert set(manifest.inputs["not_measured"]) == {"reconstruction", "drift_changed", "code_use", "likelihood"}
    others = {"recall", "quarantine_share", "not_finite_share", "removed_share", "items"}
    assert [one.name for one in found if one.name not in others and one.name not in str(nightly.__doc__)] == []


@pytest.mark.slow
def test_keys_that_were_re_assigned_and_a_parent_of_another_bundle(shop: Shop) -> None:
    shop.night("one", {number: f"{number}.png" for number in range(40)}, FETCHED)
    photos = {number: f"{18 - number if number in range(0, 20, 2) else number}.png" for number in range(40)}
    release = shop.night("two", photos, FETCHED, ANY_KEY)["release"]
    manifest = shop.manifest(release)
    assert shop.recall(release).n == 40, "of photos that are not kept, fetched once more"
    assert manifest.measures["rekeyed_share"] == 0.25, "10 pictures are at 10 items that had others"
    assert shop.night("again", photos, FETCHED, ANY_KEY)["reason"] == "nothing to do"
    other = shop.night(
        "three", photos, "model.read_out={dims: 3}", "train.when=missing", "measures={without: [hubness]}"
    )
    told = shop.manifest(other["release"])
    assert told.model_id != manifest.model_id
    assert "neighbour_churn" in told.measures
    assert not {"neighbour_moved", "neighbour_displaced", "score_q50_shift", "hub_skew"} & told.measures.keys()
    for line in ("drift_changed", "parent_scores"):
        assert "another bundle" in told.inputs["not_measured"][line], "said, not made up"


@pytest.mark.slow
def test_a_new_camera_is_told_by_the_photos_that_it_changed(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = {number: f"{number}.png" for number in range(100)}
    shop.night("one", photos, FETCHED, ANY_CATEGORY)
    for number in range(60):
        Image.open(shop.folder / f"{number}.png").rotate(90).save(shop.folder / f"{number}.png")
    monkeypatch.setattr("pipeline.quality.nightly.Pictures", Unreachable)
    release = shop.night("two", photos, FETCHED, ANY_CATEGORY)["release"]
    told = shop.manifest(release).measures
    assert told["drift_changed_auc_low"] > 0.5
    assert told["drift_changed_mmd_p"] < 0.05
    assert shop.recall(release).n == 40, "a busy server stops no night; the changed photos' pixels are not kept"


def test_the_default_is_in_no_key_and_a_wrong_line_is_named(tmp_path: Path) -> None:
    plain = {"store": {"url": str(tmp_path)}, "catalogue": {"source": "c.csv"}, "model": {"kind": "vae"}}
    config = Config.model_validate(plain)
    assert "measures" not in config_values(config)
    assert (measure_settings(config), set(release_config(config))) == ({}, {"index", "gates", "encode"})
    asked = Config.model_validate({**plain, "measures": {"queries": 50, "without": ["lidar"]}})
    assert release_config(asked)["measures"] == measure_settings(asked) == config_values(asked)["measures"]
    assert tuple(LINES) == LINE_NAMES
    with pytest.raises(ValueError, match=r"measures\.without\.0\n.*'photo_recall'"):
        Config.model_validate({**plain, "measures": {"without": ["photo_recal"]}})
