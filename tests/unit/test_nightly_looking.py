"""Photos that a bundle with codes and a decoder looks at once more: each view and picture, photo by photo."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs.config import Config
from pipeline.encoding import Encoder
from pipeline.evaluation.nightly.asked import ROLE
from pipeline.evaluation.nightly.lines import nightly_measures
from pipeline.evaluation.nightly.sampling import hashes
from pipeline.evaluation.nightly.tonight import Looked, Tonight
from pipeline.images import ImagesConfig
from pipeline.images.reshot import drawn_reshot, reshot
from pipeline.index import IndexConfig, build_index
from pipeline.models import Bundle
from pipeline.models.kinds import build_model
from pipeline.models.vqvae2 import VQVAE2Config
from pipeline.quality import nightly
from pipeline.schema import changes_schema
from pipeline.storage import MemoryStore
from pipeline.tables import Night

COUNT, SIZE = 90, 16


@pytest.fixture(scope="module")
def shown() -> SimpleNamespace:
    """A night of COUNT photos in two parts, every third without pixels."""
    torch.manual_seed(0)
    config = VQVAE2Config.model_validate(
        {"top_quantizer": {"kind": "ema", "num_codes": 16}, "bottom_quantizer": {"kind": "ema", "num_codes": 8}}
    )
    model = build_model(config, image_size=SIZE).eval()
    bundle = Bundle("m", config, SIZE, ImagesConfig(size=SIZE).model_dump(mode="json"), model)
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 4, 4, 3), np.uint8).repeat(4, 1).repeat(4, 2)
    latents = Encoder(model, batch_size=30)(pixels, np.arange(COUNT))
    store = MemoryStore("memory://looking")
    names = [f"pixels/t/{part}.parquet" for part in range(2)]
    for part, name in enumerate(names):
        sink = io.BytesIO()
        own = pa.array([photo.tobytes() for photo in pixels[part * 45 : part * 45 + 45]], pa.binary(SIZE * SIZE * 3))
        pq.write_table(pa.table({"pixels": own}), sink)
        store.put_if_absent(name, sink.getvalue())
    numbers = np.arange(COUNT)
    items = pa.table(
        {
            "item_id": [f"item-{number:02d}" for number in numbers],
            "uri": [f"{number}.png" for number in numbers],
            "digest": [f"{number:064x}" for number in numbers],
            "pixels_part": pa.array(
                [None if number % 3 == 0 else names[number // 45] for number in numbers], pa.string()
            ).dictionary_encode(),
            "pixels_row": numbers % 45,
            "latents_part": pa.array(["latents/m/p.parquet"] * COUNT).dictionary_encode(),
            "latents_row": numbers,
            "kind": ["ab"[number % 2] for number in numbers],
        }
    )
    index = build_index(latents, IndexConfig(kind="flat")).index
    night = Night("one", "m", "cosine", items, latents, index, changes_schema().empty_table(), None)
    given = {"store": {"url": "memory://x"}, "catalogue": {"source": "c.csv", "category": "kind"}}
    asked = Config.model_validate({**given, "model": {"kind": "vqvae2"}})
    tonight = nightly.tonight_of(store, asked, items, bundle, night, None)
    return SimpleNamespace(tonight=tonight, model=model, pixels=pixels, codes=latents.codes)


def looked_at(tonight: Tonight) -> Looked:
    found = tonight.looked
    assert isinstance(found, Looked)
    return found


@pytest.mark.slow
def test_each_view_is_of_its_own_photo(shown: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nightly, "SECOND", 20)
    found = looked_at(shown.tonight)
    assert sorted(found.rows.tolist()) == [row for row in range(COUNT) if row % 3]
    assert (found.uniform, found.missing, len(found.second)) == (60, 30, len([r for r in first(shown, 20) if r % 3]))
    for place, row in enumerate(found.rows.tolist()):
        key = int(hashes([f"item-{row:02d}"], 0)[0])
        views: list[Any] = [reshot(shown.pixels[row], drawn_reshot(key, seed=0, view=view)) for view in (0, 1)]
        images = torch.from_numpy(np.stack([*views, shown.pixels[row]]).transpose(0, 3, 1, 2).copy())
        with torch.inference_mode():
            oracle = shown.model.encode(images)
            drawn = shown.model.reconstruct(images[2:])
        np.testing.assert_allclose(found.first.mean[place], oracle.mean[0], atol=1e-5)
        if place < len(found.second):
            np.testing.assert_allclose(found.second.mean[place], oracle.mean[1], atol=1e-5)
        assert found.mse is not None
        error = float(((drawn - images[2:].float() / 255) ** 2).mean())
        assert found.mse[place] == pytest.approx(error, rel=1e-4)


def first(shown: SimpleNamespace, count: int) -> list[int]:
    """Return the rows of the items with the lowest hashes."""
    rows: list[int] = shown.tonight.firsts[shown.tonight.order[:count]].tolist()
    return rows


def test_a_model_with_codes_and_a_decoder_has_all_lines_of_a_first_night(shown: SimpleNamespace) -> None:
    found = nightly_measures(shown.tonight)
    values = {one.name: one for one in found.found if one.category is None}
    assert set(found.left_out) == {"churn", "rekeyed", "drift", "drift_changed", "category", "likelihood"}
    top, bottom = (shown.codes[:, places] for places in shown.tonight.code_levels.values())
    assert top.shape[1] < bottom.shape[1]
    used = len(np.unique(top)) + len(np.unique(bottom))
    assert values["code_dead_share"].value == pytest.approx(1 - used / (16 + 8))
    perplexities = []
    for level in (top, bottom):
        shares = np.bincount(level.ravel()) / level.size
        perplexities.append(np.exp(-sum(share * np.log(share) for share in shares if share)))
    assert values["code_perplexity"].value == pytest.approx(np.mean(perplexities))
    assert values["reconstruction_mse"].n == 60
    assert nightly.measured_files(found, {"items": 90.0}).keys() == {"measures", ROLE}
