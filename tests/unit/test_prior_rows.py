"""The photos of a release in the order of their codes, held out and told as the config says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.planning import release_photos
from pipeline.storage import open_store
from pipeline.training import PriorTrainConfig, read_codes
from pipeline.training.split import held_out


@pytest.fixture
def photos(maker: Any) -> list[Any]:
    rng = np.random.default_rng(0)
    made = maker.some_photos(60, seed=2)
    return [maker.Photo(**{**vars(photo), "codes": rng.integers(0, 9, 4)}) for photo in made]


def test_every_photo_meets_its_own_codes(maker: Any, photos: list[Any], tmp_path: Any):
    store = open_store(str(tmp_path))
    ordered = sorted(photos, key=lambda photo: (photo.item_id, photo.view))
    names = [part.name for part in maker.write_parts(store, ordered, maker.MODEL, "night")]
    assert len(names) > 1
    items = maker.items_table(ordered, names)
    shuffled = items.take(np.random.default_rng(1).permutation(len(items)))
    living = shuffled.slice(0, len(items) - 7)  # some rows of the parts live no more
    found = release_photos(living, PriorTrainConfig(validation=0.2), category="category")
    labels = found.labels()
    codes = read_codes(store, found.code_rows(labels))
    of = {photo.uri: photo for photo in photos}
    uris = found.items["uri"].to_pylist()
    assert sorted(uris) == sorted(living["uri"].to_pylist())
    assert all(np.array_equal(codes.codes[row].reshape(-1), of[uri].codes) for row, uri in enumerate(uris))
    assert labels == ("Bags", "Hats", "Shoes")
    row_of = {None: 0, "Bags": 2, "Hats": 3, "Shoes": 4}
    assert codes.category.tolist() == [row_of[of[uri].category] for uri in uris]
    assert found.categories().to_pylist() == [of[uri].category for uri in uris]
    assert np.array_equal(codes.held_out, held_out(found.items["item_id"], 0.2, 0))
    assert np.array_equal(codes.held_out, found.held_out)
    assert 0 < found.held_out.sum() < len(uris)
    # Labels of a prior trained on another release: what it does not know is unknown.
    assert set(found.conditions(("Shoes",)).tolist()) == {0, 1, 2}


def test_photos_may_be_split_by_a_column_and_none_held_out(maker: Any, photos: list[Any]):
    items = maker.items_table(photos, ["latents/m/a"] * 9)
    found = release_photos(items, PriorTrainConfig(validation=0.5, split_by="stock"), category=None)
    sides: dict[Any, set[bool]] = {}
    for stock, aside in zip(found.items["stock"].to_pylist(), found.held_out.tolist(), strict=True):
        sides.setdefault(stock, set()).add(aside)
    assert all(len(side) == 1 for side in sides.values())
    assert (found.labels(), found.categories(), found.conditions(())) == ((), None, None)
    assert not release_photos(items, PriorTrainConfig(validation=0), category=None).held_out.any()
    assert found.code_rows(())[0].category is None


@pytest.mark.parametrize(
    ("train", "category", "said"),
    [({"split_by": "brand"}, None, "prior.train.split_by is 'brand'"), ({}, "kind", "catalogue.category is 'kind'")],
)
def test_columns_that_the_release_has_not(
    maker: Any, photos: list[Any], train: dict[str, str], category: str | None, said: str
):
    items = maker.items_table(photos, ["latents/m/a"] * 9)
    with pytest.raises(ConfigError, match=f"{said}, and the release has no such column; it has: item_id, category"):
        release_photos(items, PriorTrainConfig(**train), category=category)
