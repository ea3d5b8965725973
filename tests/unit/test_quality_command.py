"""`codebooks evaluate --table`, as a user runs it: the real command on a rendered catalogue, its stages without Ray."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.images.render import render_catalogue
from pipeline.quality import table
from pipeline.storage import open_store

pytestmark = pytest.mark.slow

SMALL = [
    "catalogue.category=category", "model.kind=vae", "model.latent_dim=8", "model.channels=[8, 16]", "images.size=16",
    "train.epochs=1", "train.batch_size=32", "encode.actors=1", "encode.shard_rows=100",
]  # fmt: skip


@pytest.fixture
def rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors of fewer designs than a table has, rendered once for all commands; that they repeat says test_quality."""
    few = functools.partial(table.factor_photos, designs=12)
    monkeypatch.setattr(table, "factor_photos", functools.cache(few))


@pytest.mark.usefixtures("rendered_once")
def test_a_runs_model_is_compared_and_a_retry_says_the_same(commands_here: Any, tmp_path: Path) -> None:
    catalogue = render_catalogue(tmp_path / "catalogue", items=90, seed=3).table
    store_url = str(tmp_path / "store")
    place = [f"store={store_url}", f"catalogue.source={catalogue}", *SMALL]
    asked = ["evaluate", "--run", "night", "--table", "--photos", "60", *place]
    first = commands_here.run(*asked)
    assert (first["run"], first["published"], first["reason"]) == ("night", False, "evaluated")
    assert first["counts"]["items"] > 60
    quality = first["quality"]
    assert quality["release"] == first["release"]
    assert quality["photos"]["known"] + quality["photos"]["asked"] == 60
    assert quality["rows"][0]["model_id"] == quality["model_id"] == first["model_id"]
    names = [row["name"] for row in quality["rows"]]
    assert {"raw pixels", "PCA-10", "HOG + PCA-10", "random weights"} <= set(names)
    assert all(name in first["text"] for name in names)
    store = open_store(store_url)
    assert json.loads(store.get("runs/night/quality.json")) == quality
    assert b"The run's model beside the best baseline" in store.get(first["quality_page"]).replace(b"&#39;", b"'")

    own = first["model_id"]
    again = commands_here.run(*asked, "--beside", own[:10])
    assert again["quality"] == quality, "the model itself is no second row, and numbers repeat"
    refused = commands_here.run(*asked, "--beside", "0" * 64, expect=2)
    assert own[:12] in refused["error"]
