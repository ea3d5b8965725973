"""A night that a gate refuses: what is written of it, and how a person lets that very release pass once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation.verdicts import verdict_of
from pipeline.release import read_head, read_manifest, read_table
from pipeline.release.channel import ChannelEntry
from pipeline.storage import open_store

pytestmark = pytest.mark.slow
FEW = "measures={without: [photo_recall, view_agreement, lidar, reconstruction, spread, hubness, near_duplicates]}"
STRICT = "gates.min_items=1000"


class Shop:
    def __init__(self, folder: Path, commands: Any, small: list[str]) -> None:
        self.folder, self.commands, self.small = folder, commands, small
        for number in range(14):
            pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")

    def night(self, run: str, items: int, *words: str, expect: int = 0) -> dict[str, Any]:
        rows = "".join(f"item-{number},{number}.png\n" for number in range(items))
        (self.folder / "catalogue.csv").write_text("item_id,image\n" + rows)
        source = f"catalogue.source={self.folder / 'catalogue.csv'}"
        return self.command("refresh", "--run", run, source, *self.small, FEW, *words, expect=expect)

    def command(self, *words: str, expect: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = self.commands.run(*words, f"store={self.folder / 'store'}", expect=expect)
        return found


def test_a_refused_release_is_let_pass_once(commands_here: Any, stages_here: Any, tmp_path: Path) -> None:
    shop = Shop(tmp_path, commands_here, stages_here.SMALL)
    shop.night("one", 12)
    refused = shop.night("two", 13, STRICT, expect=4)
    store = open_store(str(tmp_path / "store"))
    manifest = read_manifest(store, refused["release"])
    assert "gates.min_items: 13, limit 1000" in refused["error"]
    assert "--run two --allow min_items --reason TEXT" in refused["error"]
    written = json.loads(store.get("runs/two/result.json"))
    table = read_table(store, manifest, "verdicts").to_pylist()
    assert refused["verdicts"] == written["verdicts"] == table
    assert [verdict["check"] for verdict in table if not verdict["passed"]] == ["min_items"]
    assert not any(verdict_of(verdict).allowed for verdict in manifest.verdicts or ())

    # Not without a reason, not for another gate, and without either as before.
    assert "--reason" in shop.night("two", 13, STRICT, "--allow", "min_items", expect=2)["error"]
    assert "did you mean" in shop.night("two", 13, STRICT, "--allow", "min_item", "--reason", "x", expect=2)["error"]
    shop.night("two", 13, STRICT, "--allow", "min_recall", "--reason", "x", expect=4)
    shop.night("two", 13, STRICT, expect=4)
    before = read_head(store, "stable")
    assert before is not None
    assert before.number == 1

    let = shop.night("two", 13, STRICT, "--allow", "min_items", "--reason", "half the shop is closed")
    assert (let["published"], let["release"]) == (True, refused["release"])
    head = read_head(store, "stable")
    assert head is not None
    assert head.release_id == refused["release"]
    # Versions from before read the log on: its entry has no field that they do not know.
    assert set(json.loads(store.get("channels/stable/000000000002.json"))) == set(ChannelEntry.model_fields)
    lines = shop.command("releases")["releases"]
    assert [(line["verdict"], line.get("allowed")) for line in lines] == [
        ("passed", None), ("allowed", {"min_items": "half the shop is closed"}),
    ]  # fmt: skip
    assert "2: min_items was allowed: half the shop is closed" in shop.command("releases")["text"]
    assert [v["allowed"] for v in let["verdicts"] if not v["passed"]] == ["half the shop is closed"]

    # Once: the next night is judged anew. Told at once, the release itself says who let it pass.
    shop.night("three", 14, STRICT, expect=4)
    again = shop.night("four", 14, STRICT, "--allow", "min_items", "--reason", "still closed")
    assert again["published"]
    held = read_manifest(store, again["release"])
    assert [v["allowed"] for v in held.verdicts or () if not v["passed"]] == ["still closed"]
    gates = shop.command("history")["releases"][-1]["gates"]
    assert {gate["gate"]: gate["passed"] for gate in gates}["min_items"]
    # A person's rollback to what a gate has refused says so.
    three = json.loads(store.get("runs/three/result.json"))["release"]
    shop.command("rollback", "--to", three)
    assert shop.command("releases")["releases"][-1]["verdict"] == "refused"
    # What a person let pass stays so, on a rollback to it and on another channel.
    shop.command("rollback", "--to", refused["release"])
    shop.command("promote", "stable", "beside")
    for channel in ("stable", "beside"):
        line = shop.command("releases", "--channel", channel)["releases"][-1]
        assert (line["verdict"], line["allowed"]) == ("allowed", {"min_items": "half the shop is closed"})
