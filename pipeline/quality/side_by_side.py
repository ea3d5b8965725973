"""Releases of one catalogue side by side: the neighbours of the same products in each model's space, on one page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from ..images import ImagesConfig
from ..index import LatentArrays, SearchIndex
from ..index.kept_space import release_latents
from ..index.segments import index_of
from ..release import Manifest
from ..release.tables import read_file, read_table
from ..report import NeighbourRow, Picture, ReportData, render_page
from ..storage import Store
from .pictures import Pictures
from .release_page import category_lines

_QUERIES = 8
_NEIGHBOURS = 10
_ITEMS, _WIDTH = 3, 46  # for people: items, and letters of one space's column
_OVERFETCH = 40  # photos asked for so that ten distinct other items are among them


@dataclass(frozen=True, slots=True)
class Space:
    """A release, opened whole: latents are one row a row of items, in their order."""

    manifest: Manifest
    items: pa.Table
    latents: LatentArrays
    index: SearchIndex

    @property
    def name(self) -> str:
        """Return what the space is called: its model's kind and the first digits of its id."""
        return f"{self.manifest.model_kind} {self.manifest.model_id[:8]}"


class Near(Protocol):
    """A neighbour as a reader gives it."""

    @property
    def item_id(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def attributes(self) -> dict[str, Any]: ...


class Asked(Protocol):
    """What is asked of an open release."""

    @property
    def manifest(self) -> Manifest: ...
    def item_ids(self) -> list[str]: ...
    def attributes(self, item_id: str, /) -> dict[str, Any]: ...
    def similar(self, item_id: str, /, k: int = ...) -> Sequence[Near]: ...


def open_space(store: Store, manifest: Manifest) -> Space:
    """Return a release's space. Meant for releases that fit into memory."""
    items = read_table(store, manifest, "items")
    index = index_of(manifest, partial(read_file, store), items.select)
    return Space(manifest, items, release_latents(store, manifest, items, columns=index.metric.needs), index)


def side_by_side_page(store: Store, manifests: Sequence[Manifest], *, size: int, category: str | None) -> bytes:
    """Return a page of some photos with their nearest ten in each release's space, one row a space.

    manifests: of releases of one catalogue with pixels of one size, whose rows are those of the first that the others
    have too. category: the column by which a neighbour is marked as of the query's own.
    """
    pictures = Pictures(store, ImagesConfig(size=size))
    spaces = [open_space(store, manifest) for manifest in manifests]
    queries = _rows_of_all(spaces)
    shown: list[NeighbourRow] = []
    for rows in queries:
        for space, row in zip(spaces, rows, strict=True):
            near = neighbours_of(row, space.items, space.latents, space.index)
            pixels = pictures.read(space.items, [row, *(found for found, _ in near)])
            found = neighbour_rows(space.items, [row], [near], pixels, category=category)
            shown += [NeighbourRow(query=each.query.under(space.name), neighbours=each.neighbours) for each in found]
    facts = [(space.name, _told(space)) for space in spaces]
    return render_page(ReportData(title="The same products in two spaces", facts=facts, neighbours=shown))


def side_by_side_lines(left: Asked, right: Asked) -> Iterator[str]:
    """Yield the five nearest items of three items, with what they are, in two spaces, for people."""
    ids = left.item_ids()
    yield f"  {_space_name(left):<{_WIDTH}}{_space_name(right)}"
    for item_id in ids[:: max(1, len(ids) // _ITEMS)][:_ITEMS]:
        yield f"{item_id}  {_shown_as(left.attributes(item_id))}"
        pairs = zip(left.similar(item_id, k=5), right.similar(item_id, k=5), strict=False)
        yield from (f"  {_line(one):<{_WIDTH}}{_line(other)}" for one, other in pairs)
    measured = [release.manifest.measures.get("category_precision_at_10") for release in (left, right)]
    if None not in measured:
        yield (
            "of a photo's ten nearest are of its own category: "
            f"{measured[0]:.0%} with {left.manifest.model_kind}, {measured[1]:.0%} with {right.manifest.model_kind}"
        )


def _space_name(release: Asked) -> str:
    return f"{release.manifest.model_kind}, {release.manifest.latent_dim} numbers a photo"


def _line(near: Near) -> str:
    return f"{near.score:6.3f}  {near.item_id}  {_shown_as(near.attributes)}"


def _shown_as(attributes: dict[str, object]) -> str:
    return " ".join(str(attributes[name]) for name in ("colour", "pattern", "category") if name in attributes)


def _rows_of_all(spaces: Sequence[Space]) -> list[list[int]]:
    """Return the rows of the chosen photos in every space."""
    places = [{pair: row for row, pair in enumerate(_photos(space.items))} for space in spaces]
    first = spaces[0].items
    photos = _photos(first)
    chosen = np.random.default_rng(0).choice(first.num_rows, size=min(_QUERIES, first.num_rows), replace=False)
    pairs = [photos[row] for row in sorted(chosen.tolist())]
    return [[place[pair] for place in places] for pair in pairs if all(pair in place for place in places)]


def _photos(items: pa.Table) -> list[tuple[str, str]]:
    return list(zip(items["item_id"].to_pylist(), items["uri"].to_pylist(), strict=True))


def _told(space: Space) -> str:
    manifest = space.manifest
    measured = "; ".join(category_lines(manifest.measures)) or "no category named"
    return f"{manifest.latent_dim} dimensions, {manifest.metric}; {measured}"


def neighbours_of(row: int, items: pa.Table, latents: LatentArrays, index: SearchIndex) -> list[tuple[int, float]]:
    """Return (row, score) of the ten nearest photos of other items, the best photo of each item, nearest first."""
    ids, scores = index.search(latents.take([row]), min(_OVERFETCH, items.num_rows))
    own = items["item_id"][row].as_py()
    best: dict[str, tuple[int, float]] = {}
    for found, score in zip(ids[0].tolist(), scores[0].tolist(), strict=True):
        if found < 0:
            break
        item = items["item_id"][found].as_py()
        if item != own and item not in best:
            best[item] = (found, score)
    return list(best.values())[:_NEIGHBOURS]


def neighbour_rows(
    items: pa.Table,
    shown: Sequence[int],
    found: Sequence[Sequence[tuple[int, float]]],
    pixels: dict[int, np.ndarray],
    *,
    category: str | None,
) -> list[NeighbourRow]:
    """Return the grid: a query and its neighbours; those without pixels are left out."""
    rows = []
    for query, near in zip(shown, found, strict=True):
        if query not in pixels:
            continue
        label = items[category][query].as_py() if category else None
        pictures = []
        for row, score in near:
            if row in pixels:
                other = items[category][row].as_py() if category else None
                detail = f"{score:.3f}" if other is None else f"{other}, {score:.3f}"
                same = None if label is None or other is None else other == label
                pictures.append(Picture(pixels[row], items["item_id"][row].as_py(), detail, same))
        caption = items["item_id"][query].as_py()
        rows.append(NeighbourRow(Picture(pixels[query], caption, str(label or ""), None), pictures))
    return rows
