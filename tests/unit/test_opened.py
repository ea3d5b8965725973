"""A shard between its two stages: what is packed for another process comes out as it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.encoding import ShardResult, Unanswered
from pipeline.encoding.opened import Opened, result_of, text_of
from pipeline.encoding.stages import row
from pipeline.encoding.unfit import Unfit
from pipeline.parts import FoundPart, PartFile

PART = PartFile(name="pixels/a/b.parquet", bytes=10, rows=4, sha256="0" * 64)
RESULT = ShardResult(3, PART, None, 5, 1, 4, False, (Unanswered(4, "missing", "gone"),))


def opened(places: list[int], categories: list[str | None] | None = None) -> Opened:
    random = np.random.default_rng(0)
    texts = [f"i{place}" for place in places]
    return Opened(
        result=RESULT,
        latents_name="latents/m/k.parquet",
        latents_key="k",
        photos=pa.table({name: pa.array(texts, pa.string()) for name in ("item_id", "uri", "token", "digest")}),
        pixels=[random.integers(0, 256, (6, side, side, 3), np.uint8) for side in (4, 7)],
        places=np.array(places, np.int64),
        rows=np.array(places, np.int64) * 10,
        categories=categories,
        unfit=(Unfit(7, "crashed", "it died twice"),),
        usable=len(places) + 1,
    )


@pytest.mark.parametrize("categories", [None, ["shoe", None, "hat"]])
def test_what_is_packed_comes_out_as_it_was(categories: list[str | None] | None) -> None:
    before = opened([4, 0, 2], categories)
    block = row(3, opened=before.pack())
    assert block.num_rows == 1
    after = Opened.unpack(block["opened"][0])
    for name in ("result", "latents_name", "latents_key", "categories", "unfit", "usable"):
        assert getattr(after, name) == getattr(before, name), name
    assert after.photos.equals(before.photos)
    assert after.rows.tolist() == [40, 0, 20]
    for left, right in zip(after.pixels, before.pixels, strict=True):
        assert (left[after.places] == right[before.places]).all()
        assert len(left) == 3, "photos that are not encoded do not travel"
        assert not left.flags.owndata
    # The control: in another order they are others.
    assert (after.pixels[0] != before.pixels[0][[0, 2, 4]]).any()


def test_a_shard_without_a_photo_travels_too() -> None:
    after = Opened.unpack(opened([]).pack()[0])
    assert [pixels.shape for pixels in after.pixels] == [(0, 4, 4, 3), (0, 7, 7, 3)]
    assert after.photos.num_rows == len(after.rows) == 0


def test_features_travel_in_place_of_pixels() -> None:
    features = np.arange(18, dtype=np.float32).reshape(6, 3)
    after = Opened.unpack(replace(opened([4, 0, 2]), pixels=[], features=features).pack()[0])
    assert after.pixels == []
    assert after.features is not None
    assert after.features[after.places].tolist() == features[[4, 0, 2]].tolist()
    empty = Opened.unpack(replace(opened([]), pixels=[], features=features).pack()[0]).features
    assert empty is not None
    assert empty.shape == (0, 3)
    assert Opened.unpack(opened([1]).pack()[0]).features is None


@pytest.mark.parametrize("latents", [None, PART, FoundPart(name="latents/a/b.parquet", bytes=3, rows=2)])
def test_a_result_is_text_and_back(latents: FoundPart | None) -> None:
    result = ShardResult(1, None, latents, 9, 0, 9, False)
    assert result_of(text_of(result)) == result
    assert type(result_of(text_of(result)).latents) is type(latents)
