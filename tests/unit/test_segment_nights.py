"""Whole nights above `index.segment_rows`: what the commands write, carry over, say and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.reader import open_release
from pipeline.release import read_manifest, verify_release
from pipeline.storage import open_store

pytestmark = pytest.mark.slow


def test_nights_of_segments(
    tmp_path: Path, commands_here: Any, stages_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages_here.run_stages_here(monkeypatch)
    for number in range(48):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")

    def night(run: str, items: range, *words: str) -> Any:
        rows = "".join(f"item-{number:02d},{number}.png\n" for number in items)
        (tmp_path / "catalogue.csv").write_text("item_id,image\n" + rows)
        where = [f"store={tmp_path / 'store'}", f"catalogue.source={tmp_path / 'catalogue.csv'}"]
        asked = ["index.segment_rows=16", "tables.neighbours=3"]
        return commands_here.run("refresh", "--run", run, *where, *asked, *stages_here.SMALL, *words)

    store = open_store(str(tmp_path / "store"))

    def head() -> Any:
        return open_release(store.url, cache_dir=tmp_path / "cache")

    night("n1", range(40))
    first = head()
    assert first.manifest.format == 3
    assert [entry.rows for entry in first.manifest.files["index"]] == [14, 13, 13]
    night("n2", range(1, 42))
    second = head()
    parameters = second.manifest.index_parameters
    assert (parameters["segments_carried"], parameters["rows_written"]) == (3, 2)
    assert second.manifest.files["index"][:3] == first.manifest.files["index"]
    assert second.manifest.counts["added"] == 2
    assert second.manifest.counts["removed"] == 1
    assert second.manifest.counts["relabelled"] == 0
    near = [found.item_id for found in second.similar("item-03", k=40)]
    assert sorted(near) == sorted(f"item-{number:02d}" for number in range(1, 42) if number != 3)
    assert verify_release(store, second.manifest.release_id).problems == ()
    said = commands_here.run("diff", first.release_id, second.release_id, f"store={store.url}")
    assert "neighbours of" in str(said)
    night("n4", range(1, 12), "gates.max_removed=1")  # fewer than a segment holds: one file again
    last = read_manifest(store, head().release_id)
    assert last.format == 1
    assert verify_release(store, last.release_id).problems == ()
    many = "gates={max_drop: {photo_recall: null}}"  # four times as many items, among which a photo is harder to find
    night("n5", range(1, 44), "index.kind=ivf_sq8", "index.target_recall=0.8", many)
    codes = head()
    assert codes.manifest.format == 3
    assert len(codes.manifest.files["features"]) == len(codes.manifest.files["index"]) == 3
    assert len(codes.similar("item-05", k=41)) == 41
