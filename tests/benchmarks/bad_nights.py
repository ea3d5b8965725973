"""A small shop whose nights go well or badly, and what can go wrong in one; for `bench_bad_nights.py`.

Photos are files, so that a night may change one; items are rows of a CSV. What no catalogue can bring about (an index
whose rows are mixed up, weights of another bundle, a dead codebook) is done to the code that a night calls.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from beside import tests_module
from nights_here import answered
from PIL import Image

import jobs.building
import pipeline.encoding.actors
import pipeline.index.nightly
from pipeline.images.render import render_products

Rows = dict[str, tuple[str, str]]  # (photo, category) by item_id
PLACEHOLDER = Image.fromarray(np.full((28, 28), 200, np.uint8))


@dataclass
class Shop:
    """A store, its photos and what stands in its catalogue tonight. spare: photos of items that nobody has yet."""

    folder: Path
    settings: list[str]
    rows: Rows = field(default_factory=dict)
    spare: Rows = field(default_factory=dict)
    dice: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def photo(self, item: str) -> Path:
        return self.folder / self.rows[item][0]

    def drawn(self, share: float) -> list[str]:
        items = sorted(self.rows)
        return [str(item) for item in self.dice.choice(items, round(share * len(items)), replace=False)]

    def night(
        self, run: str, *words: str, broken: Callable[[pytest.MonkeyPatch], None] | None = None
    ) -> dict[str, Any]:
        """Run a night in this process and return its JSON object, with `exit_code`."""
        lines = "".join(f"{item},{photo},{category}\n" for item, (photo, category) in sorted(self.rows.items()))
        (self.folder / "catalogue.csv").write_text("item_id,image,category\n" + lines)
        given = [
            f"store={self.folder / 'store'}", f"catalogue.source={self.folder / 'catalogue.csv'}",
            "catalogue.category=category", *self.settings, *words,
        ]  # fmt: skip
        err = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(err):
            tests_module("stages_here").run_stages_here(patch)
            if broken is not None:
                broken(patch)
            code, found = answered(["refresh", "--run", run, *given, "--json"])
        if code not in (0, 4):
            raise SystemExit(f"night {run}: exit {code}\n{err.getvalue()[-4000:]}")
        return {**found, "exit_code": code}

    @contextlib.contextmanager
    def tried(self) -> Iterator[Shop]:
        """Lend the shop for a night, and put its store and photos back as they were."""
        kept = self.folder.with_name(self.folder.name + "-kept")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(self.folder, kept)  # with the times of the photos, which are their tokens
        try:
            yield replace(self, rows=dict(self.rows), spare=dict(self.spare))
        finally:
            shutil.rmtree(self.folder)
            kept.rename(self.folder)


def open_shop(folder: Path, data: Path | None, items: int, settings: list[str]) -> Shop:
    """Return a shop of so many items, and as many spare ones: Fashion-MNIST's where it is, else rendered ones."""
    photos = folder / "photos"
    photos.mkdir(parents=True)
    shop, count = Shop(folder, settings), 2 * items
    if data is not None:
        table = pq.read_table(data / "fashion-mnist" / "train.parquet").slice(0, count)
        drawn = zip(table["image"].to_pylist(), table["category"].to_pylist(), strict=True)
    else:
        drawn = ((photo, product.category) for product, photo in render_products(count, seed=0, size=(48, 60)))
    for number, (photo, category) in enumerate(drawn):
        name = f"photos/{number:05d}.png"
        (folder / name).write_bytes(photo)
        (shop.rows if number < items else shop.spare)[f"item-{number:05d}"] = (name, category)
    return shop


def churn(shop: Shop, gone: int, come: int, reshot: int) -> None:
    """An honest night: some items leave, others come, some photos are taken again a little brighter or darker."""
    for item in shop.drawn(gone / len(shop.rows)):
        del shop.rows[item]
    for item in sorted(shop.spare)[:come]:
        shop.rows[item] = shop.spare.pop(item)
    for item in shop.drawn(reshot / len(shop.rows)):
        _altered(shop, [item], lambda pixels: pixels * shop.dice.uniform(0.9, 1.1))


def season(shop: Shop, leaving: str, coming: str, count: int) -> None:
    """Items of one category leave, and as many of another come."""
    for item in [item for item, (_, category) in sorted(shop.rows.items()) if category == leaving][:count]:
        del shop.rows[item]
    for item in [item for item, (_, category) in sorted(shop.spare.items()) if category == coming][:count]:
        shop.rows[item] = shop.spare.pop(item)


def missing(shop: Shop) -> None:
    for item in shop.drawn(0.3):
        del shop.rows[item]


def corrupt(shop: Shop) -> None:
    for item in shop.drawn(0.05):
        shop.photo(item).write_bytes(shop.photo(item).read_bytes()[:100])


def placeholder(shop: Shop) -> None:
    for item in shop.drawn(0.1):
        PLACEHOLDER.save(shop.photo(item))


def shuffled_categories(shop: Shop) -> None:
    categories = shop.dice.permutation([category for _, category in shop.rows.values()])
    shop.rows = {
        item: (photo, str(category)) for (item, (photo, _)), category in zip(shop.rows.items(), categories, strict=True)
    }


def rotated(shop: Shop) -> None:
    category = sorted({category for _, category in shop.rows.values()})[0]
    items = [item for item, (_, own) in shop.rows.items() if own == category]
    _altered(shop, items, np.rot90)


def new_camera(shop: Shop) -> None:
    _altered(shop, shop.drawn(0.15), lambda pixels: pixels * 0.5)


def new_camera_for_newcomers(shop: Shop) -> None:
    come = sorted(shop.spare)[: round(0.1 * len(shop.rows))]
    for item in come:
        shop.rows[item] = shop.spare.pop(item)
    _altered(shop, come, lambda pixels: pixels * 0.5)


def reassigned(shop: Shop) -> None:
    items = sorted(shop.rows)
    moved = [*items[1:], items[0]]
    shop.rows = {item: shop.rows[other] for item, other in zip(items, moved, strict=True)}


def _altered(shop: Shop, items: list[str], how: Callable[[Any], Any]) -> None:
    for item in items:
        pixels = np.asarray(Image.open(shop.photo(item)), np.float64)
        Image.fromarray(np.clip(how(pixels), 0, 255).astype(np.uint8)).save(shop.photo(item))


def scrambled_index(patch: pytest.MonkeyPatch) -> None:
    build = pipeline.index.nightly.build_index
    mixed = np.random.default_rng(0)
    patch.setattr(
        pipeline.index.nightly, "build_index",
        lambda latents, *a, **k: build(latents.take(mixed.permutation(len(latents.mean))), *a, **k),
    )  # fmt: skip


def swapped_bundle(patch: pytest.MonkeyPatch) -> None:
    """The weights are another bundle's, under tonight's name."""
    _loading(patch, _randomised)


def collapsed_codebook(patch: pytest.MonkeyPatch) -> None:
    _loading(patch, lambda model: [rows.copy_(rows[:1].expand_as(rows)) for rows in _codebooks(model)])


def _loading(patch: pytest.MonkeyPatch, spoil: Callable[[torch.nn.Module], Any]) -> None:
    for module in (jobs.building, pipeline.encoding.actors):
        load = module.load_bundle

        def loaded(store: Any, model_id: str, load: Any = load) -> Any:
            bundle = load(store, model_id)
            with torch.no_grad():
                spoil(bundle.model)
            return bundle

        patch.setattr(module, "load_bundle", loaded)


def _randomised(model: torch.nn.Module) -> None:
    dice = torch.Generator().manual_seed(1)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point() and tensor.ndim > 1:
            tensor.copy_(torch.randn(tensor.shape, generator=dice) * tensor.std())


def _codebooks(model: torch.nn.Module) -> list[torch.Tensor]:
    found = [rows for name, rows in model.named_buffers() if name.endswith("codebook")]
    assert found, "the model has no codebook"
    return found
