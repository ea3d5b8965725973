"""Nights whose index is one of codes, or chosen by measuring: what is published, kept, asked and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.config import Config
from pipeline.planning import release_config
from pipeline.reader import open_release
from pipeline.release import read_manifest, verify_release
from pipeline.storage import open_store

pytestmark = pytest.mark.slow


def test_nights_of_codes_and_of_a_choice(
    tmp_path: Path, commands_here: Any, stages_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages_here.run_stages_here(monkeypatch)
    for number in range(30):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")

    def night(run: str, items: int, *words: str, expect: int = 0) -> Any:
        rows = "".join(f"item-{number:02d},{number}.png\n" for number in range(items))
        (tmp_path / "catalogue.csv").write_text("item_id,image\n" + rows)
        where = [f"store={tmp_path / 'store'}", f"catalogue.source={tmp_path / 'catalogue.csv'}"]
        return commands_here.run("refresh", "--run", run, *where, *stages_here.SMALL, *words, expect=expect)

    store = open_store(str(tmp_path / "store"))
    asked = ("index.kind=flat_codes", "index.target_recall=0.9")
    night("n1", 28, *asked)
    first = open_release(store.url, cache_dir=tmp_path / "cache")
    assert first.manifest.index_kind == "flat_codes"
    assert verify_release(store, first.manifest.release_id).problems == ()
    near = [found.item_id for found in first.similar("item-03", k=27)]
    assert len(near) == len(set(near)) == 27

    night("n2", 29, "index.kind=auto", "index.target_recall=0.9")
    second = read_manifest(store, open_release(store.url, cache_dir=tmp_path / "cache").manifest.release_id)
    assert second.index_parameters["chosen"]
    assert second.config["index"]["kind"] == "auto"
    assert f"{second.index_kind}.recall_low" in second.index_parameters
    page = store.get(second.file("report").name).decode()
    assert "index, why" in page

    night("n3", 30, "index.kind=auto", "index.memory_gib=0.000000001", expect=2)
    assert open_release(store.url, cache_dir=tmp_path / "cache").manifest.run == "n2", "the channel stays"


def test_memory_is_a_part_of_what_auto_makes_and_of_nothing_else() -> None:
    def index_of(**index: Any) -> dict[str, Any]:
        values = {
            "store": {"url": "x"},
            "catalogue": {"source": "c.csv", "item_id": "i", "image": "u"},
            "model": {"kind": "vae"},
        }
        found: dict[str, Any] = release_config(Config.model_validate({**values, "index": index}))["index"]
        return found

    assert index_of(kind="flat", memory_gib=2.0) == index_of(kind="flat")
    assert "latency_p99_ms" not in index_of()
    assert index_of(kind="auto", memory_gib=2.0) != index_of(kind="auto")
