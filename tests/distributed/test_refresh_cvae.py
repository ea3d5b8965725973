"""A model that is told the categories, the whole way: two nights, one item relabelled in between, and photo queries."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.images.render import render_catalogue
from pipeline.models import load_bundle
from pipeline.models.conditions import condition_of
from pipeline.parts import read_part
from pipeline.reader import Release, open_release
from pipeline.release import read_manifest, verify_release
from pipeline.release.tables import read_table
from pipeline.storage import Store, open_store

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SIZE = 16
TOLD = [
    "catalogue.category=category", "model.kind=cvae", "model.latent_dim=8", "model.channels=[8, 16]",
    f"images.size={SIZE}", "train.epochs=2", "train.batch_size=32", "encode.actors=1", "encode.shard_rows=40",
    "encode.rewrite_below=0",
]  # fmt: skip


def rewrite(table: Path, changed: dict[str, str]) -> None:
    """Give items other categories in the catalogue's table."""
    with table.open() as handle:
        rows = list(csv.DictReader(handle))
    for row in rows:
        row["category"] = changed.get(row["item_id"], row["category"])
    with table.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def spoil(photos: Path) -> None:
    """Overwrite every photo without a sign of it: who fetches one again finds no picture."""
    for path in photos.iterdir():
        before = path.stat()
        path.write_bytes(bytes(before.st_size))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@dataclass(frozen=True)
class Night:
    result: dict[str, Any]
    items: list[dict[str, Any]]
    means: dict[str, np.ndarray]  # by uri

    @staticmethod
    def read(store: Store, result: dict[str, Any]) -> Night:
        manifest = read_manifest(store, result["release"])
        verify_release(store, manifest.release_id).require()
        items = read_table(store, manifest, "items").to_pylist()
        parts = {name: read_part(store, name)["mean"].to_pylist() for name in {row["latents_part"] for row in items}}
        means = {row["uri"]: np.array(parts[row["latents_part"]][row["latents_row"]]) for row in items}
        return Night(result, items, means)


@dataclass(frozen=True)
class Nights:
    url: str
    store: Store
    first: Night
    second: Night
    relabelled: str
    photos: dict[str, bytes]  # as they were, by the end of the uri


@pytest.fixture(scope="module")
def nights(commands: Any, stages_here: Any, tmp_path_factory: pytest.TempPathFactory) -> Nights:
    """Two nights, the first on Ray, the second's stages in this process."""
    shop, url = tmp_path_factory.mktemp("shop"), str(tmp_path_factory.mktemp("store"))
    rendered = render_catalogue(shop, items=50, seed=5, size=(60, 75))
    usable = sorted({f"sku-{number:05d}" for number in range(50)} - set(rendered.broken))
    rewrite(rendered.table, {usable[1]: "", usable[2]: ""})
    arguments = ["refresh", f"store={url}", f"catalogue.source={rendered.table}", *TOLD]
    store = open_store(url)
    first = Night.read(store, commands.run(*arguments, "--run", "night-1"))
    photos = {path.name: path.read_bytes() for path in rendered.photos.iterdir()}
    one_photo = [item for item in usable[3:] if sum(row["item_id"] == item for row in first.items) == 1]
    spoil(rendered.photos)
    rewrite(rendered.table, {one_photo[0]: "umbrella"})
    with pytest.MonkeyPatch.context() as patch:
        stages_here.run_stages_here(patch)
        second = Night.read(store, commands.run(*arguments, "--run", "night-2"))
    return Nights(url, store, first, second, one_photo[0], photos)


def expected(nights: Nights, night: Night, row: dict[str, Any], category: str | None) -> np.ndarray:
    """The oracle: the bundle's own encoder, by torch, on the photo's kept pixels."""
    bundle = load_bundle(nights.store, night.result["plan"]["model_id"] or open_release(nights.url).model_id)
    pixels = read_part(nights.store, row["pixels_part"])["pixels"][row["pixels_row"]].as_py()
    image = torch.from_numpy(np.frombuffer(pixels, np.uint8).reshape(1, SIZE, SIZE, 3).copy())
    with torch.inference_mode():
        latents = bundle.model.encode(image.permute(0, 3, 1, 2).contiguous(), condition_of(bundle.labels, [category]))
    return np.asarray(latents.mean[0])


def test_the_first_night_tells_every_photo_its_category(nights: Nights) -> None:
    bundle = load_bundle(nights.store, open_release(nights.url).model_id)
    named = {row["category"] for row in nights.first.items} - {None}
    assert set(bundle.labels) <= named
    assert len(bundle.labels) >= 3
    assert sum(row["category"] is None for row in nights.first.items) >= 2
    for row in nights.first.items[:12]:
        wanted = expected(nights, nights.first, row, row["category"])
        np.testing.assert_allclose(nights.first.means[row["uri"]], wanted, atol=1e-5)
    # Negative control: encoded as if nobody knew the categories, latents are others.
    told = next(row for row in nights.first.items if row["category"] in bundle.labels)
    none = expected(nights, nights.first, told, None)
    assert np.abs(none - nights.first.means[told["uri"]]).max() > 1e-4


def test_the_second_night_encodes_the_relabelled_photo_and_fetches_none(nights: Nights) -> None:
    first, second = nights.first, nights.second
    counts = second.result["plan"]["counts"]
    assert (counts["relabelled"], counts["to_encode"], counts["to_fetch"]) == (1, 1, 0)
    assert (counts["added"], counts["changed"], counts["removed"]) == (0, 0, 0)
    assert second.result["published"]
    assert second.result["counts"]["refused"] == first.result["counts"]["refused"]
    before = {(row["item_id"], row["uri"]): row for row in first.items}
    after = {(row["item_id"], row["uri"]): row for row in second.items}
    assert before.keys() == after.keys()
    moved = [key for key in before if before[key] != after[key]]
    assert [item for item, _ in moved] == [nights.relabelled]
    old, new = before[moved[0]], after[moved[0]]
    assert {name for name in old if old[name] != new[name]} == {"category", "latents_part", "latents_row"}
    assert new["category"] == "umbrella"
    np.testing.assert_allclose(second.means[new["uri"]], expected(nights, second, new, "umbrella"), atol=1e-5)
    assert np.abs(second.means[new["uri"]] - first.means[new["uri"]]).max() > 1e-4


def photo_of(nights: Nights, row: dict[str, Any]) -> bytes:
    return nights.photos[row["uri"].rsplit("/", 1)[1]]


def test_a_query_by_a_photo_with_its_category_meets_the_photo_itself(nights: Nights) -> None:
    release: Release = open_release(nights.url)
    rows = [row for row in nights.second.items if row["category"] is not None and row["item_id"] != nights.relabelled]
    new = next(row for row in nights.second.items if row["item_id"] == nights.relabelled)
    none = next(row for row in nights.second.items if row["category"] is None)
    for row in (*rows[:4], new, none):
        found = release.encode_photo(photo_of(nights, row), category=row["category"])[0]
        np.testing.assert_allclose(found, nights.second.means[row["uri"]], atol=1e-4)
        best = release.similar_photo(photo_of(nights, row), k=1, category=row["category"])[0]
        assert best.score == pytest.approx(1.0, abs=1e-4)
    unseen = release.encode_photo(photo_of(nights, rows[0]), category="never heard of")
    np.testing.assert_array_equal(unseen, release.encode_photo(photo_of(nights, rows[0]), category="umbrella"))


def test_the_command_takes_a_category(nights: Nights, commands: Any, tmp_path: Path) -> None:
    row = nights.second.items[0]
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(photo_of(nights, row))
    for words, category in (
        (["--category", str(row["category"])], row["category"]),
        ([], None),
        (["--category", "x"], "x"),
    ):
        found = commands.run("search", str(photo), "-k", "3", *words, f"store={nights.url}")
        wanted = open_release(nights.url).similar_photo(photo.read_bytes(), k=3, category=category)
        assert [near["item_id"] for near in found["neighbours"]] == [near.item_id for near in wanted]
