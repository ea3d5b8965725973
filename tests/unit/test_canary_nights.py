"""A new bundle is made beside the live one, on the canary channel, and takes its place when it keeps gates.promote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.reader import open_release
from pipeline.release import read_head, read_manifest
from pipeline.storage import open_store

pytestmark = pytest.mark.slow
FEW = "measures={without: [photo_recall, view_agreement, lidar, reconstruction, spread, hubness, near_duplicates]}"
BESIDE, NEW = "publish.canary=canary", "model.read_out={dims: 5}"


def test_a_new_bundle_beside_the_live_one(commands_here: Any, stages_here: Any, tmp_path: Path) -> None:
    for number in range(16):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    place = str(tmp_path / "store")

    def command(*words: str, expect: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = commands_here.run(*words, f"store={place}", expect=expect)
        return found

    def night(run: str, items: int, *words: str, expect: int = 0) -> dict[str, Any]:
        rows = "".join(f"item-{number},{number}.png\n" for number in range(items))
        (tmp_path / "catalogue.csv").write_text("item_id,image\n" + rows)
        source = f"catalogue.source={tmp_path / 'catalogue.csv'}"
        return command("refresh", "--run", run, source, *stages_here.SMALL, FEW, BESIDE, *words, expect=expect)

    def head(channel: str) -> tuple[int, str]:
        entry = read_head(store, channel)
        assert entry is not None
        return entry.number, entry.release_id

    store = open_store(place)
    one = night("one", 12)
    assert head("stable") == (1, one["release"])
    two = night("two", 12, NEW, "--retrain")
    assert two["published"]
    assert (head("stable"), head("canary")) == ((1, one["release"]), (1, two["release"]))
    assert "codebooks promote canary stable" in two["text"]
    assert read_manifest(store, two["release"]).parent == one["release"], "it is judged beside the live one"

    # Both go on: nights of either bundle carry over what is theirs.
    three, four = night("three", 13), night("four", 13, NEW)
    assert (head("stable"), head("canary")) == ((2, three["release"]), (2, four["release"]))
    assert three["model_id"] == one["model_id"] != four["model_id"] == two["model_id"]
    assert [made["plan"]["counts"]["to_encode"] for made in (three, four)] == [1, 1]
    for channel, made in (("stable", three), ("canary", four)):
        opened = open_release(place, channel=channel, expect_model=made["model_id"], cache_dir=tmp_path / "cache")
        assert len(opened.similar("item-1", k=3)) == 3

    strict = "gates.promote.min={items: 1000}"
    refused = command("promote", "canary", "stable", strict, expect=4)
    assert "gates.promote.min.items: 13, limit 1000" in refused["error"]
    assert [v["check"] for v in refused["verdicts"] if not v["passed"]] == ["promote.min.items"]
    assert "max_dorp" in command("promote", "canary", "stable", "gates.promote.max_dorp={recall: 0}", expect=2)["error"]
    wrong = ("--allow", "promote.min.item", "--reason", "tried")
    assert "did you mean" in command("promote", "canary", "stable", strict, *wrong, expect=2)["error"]
    assert head("stable")[0] == 2
    let = command("promote", "canary", "stable", strict, "--allow", "promote.min.items", "--reason", "tried for a week")
    assert (let["published"], head("stable")) == (True, (3, four["release"]))
    last = command("releases")["releases"][-1]
    assert (last["verdict"], last["allowed"]) == ("allowed", {"promote.min.items": "tried for a week"})

    # From now on the new bundle's nights are the live ones, and the old config's go beside it.
    five = night("five", 14, NEW)
    assert head("stable") == (4, five["release"])

    # A bundle a night: those that train wait on the canary, `--live` goes on serving.
    beside = night("six", 15, NEW, "train.when=always")
    assert head("canary") == (3, beside["release"])
    served = night("seven", 15, NEW, "train.when=always", "--live")
    assert (head("stable"), served["model_id"]) == ((5, served["release"]), four["model_id"])
    other = night("eight", 16, "train.when=always", "--live", expect=2)
    assert "model.read_out" in other["error"]
