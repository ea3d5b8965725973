"""Nights that are measured: what a release says of itself and against its parent, and where it keeps silent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.config import Config, config_values
from pipeline.evaluation.measured import Measured, measured_of, whole_catalogue
from pipeline.evaluation.nightly.config import LINE_NAMES
from pipeline.evaluation.nightly.lines import LINES
from pipeline.planning import measure_settings, release_config
from pipeline.release import read_manifest
from pipeline.release.tables import read_table
from pipeline.storage import open_store

SHAPES = {"a": (4, 12), "b": (0, 16)}  # of a bright field on a dark photo: high and narrow, or wide


class Shop:
    """A store and a catalogue of photos that noise tells apart."""

    def __init__(self, folder: Path, commands: Any, small: list[str]) -> None:
        self.folder, self.commands, self._small = folder, commands, small

    def draw(self, number: int, *, salt: int = 0) -> None:
        kind = "ab"[number % 2]
        dice = np.random.default_rng([number, salt])
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
            "refresh", "--run", run, *where, "catalogue.category=kind", *self._small, "images.keep=always", *words
        )
        return found

    def table(self, release: str) -> list[Measured]:
        store = open_store(str(self.folder / "store"))
        return measured_of(read_table(store, read_manifest(store, release), "measures"))

    def manifest(self, release: str) -> Any:
        return read_manifest(open_store(str(self.folder / "store")), release)


@pytest.fixture
def shop(tmp_path: Path, commands_here: Any, stages_here: Any) -> Shop:
    made = Shop(tmp_path, commands_here, stages_here.SMALL)
    for number in range(60):
        made.draw(number)
    return made


def test_a(shop):
    photos = {number: f"{number}.png" for number in range(50)}
    one = shop.night("one", photos)
    for m in shop.table(one["release"]): print(m)
    print(shop.manifest(one["release"]).inputs)
    photos |= {number: f"{number}.png" for number in range(50, 60)}
    two = shop.night("two", photos)
    for m in shop.table(two["release"]): print(m)
    print(shop.manifest(two["release"]).inputs)
    assert 0
