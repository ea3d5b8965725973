"""What a night's measures look at: its release, the one before, and what several of them compute together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ...index import Grouping, LatentArrays, nearest_exact
from ...index.means import at_length_one
from ...ordering import as_numpy, joined, ranks, run_starts, take_column
from ...storage import Store
from ...tables import Night
from ..measured import Measured
from .asked import AskedNeighbours, ask_neighbours, same_space
from .config import MeasuresConfig
from .sampling import hashes

Rows = NDArray[np.int64]
Float64 = NDArray[np.float64]

NEAR = 10  # neighbours of an item that a customer sees
OF_PHOTOS = ("added", "changed", "removed")  # changes of an item's photos, not of its labels


@dataclass(frozen=True, slots=True)
class LeftOut:
    """That a line is not measured tonight, and why, as a sentence for people."""

    why: str


Found = Sequence[Measured] | LeftOut


@dataclass(frozen=True, slots=True)
class Looked:
    """Photos that were looked at once more. rows [m]: of items, those of the uniform sample first.

    uniform: how many these are; the others make up the frequent categories. first: latents of a re-shot view of each;
    second: of another one of the first `len(second)`. mse: float64 [m], of the photos' reconstruction, or None.
    missing: photos asked for whose pixels could not be had.
    """

    rows: Rows
    uniform: int
    first: LatentArrays
    second: LatentArrays
    mse: Float64 | None
    missing: int = 0


@dataclass(frozen=True)
class Tonight:
    """A night and what its measures share. look: sees photos once more, or says why there are none to see.

    catalogue: item_id (and the category) of every photo that was asked for, sorted by item_id. code_levels: positions
    among a photo's codes by level, of a model that has some; num_codes: of all codebooks together.
    told: the model is told categories, so that another label alone moves a photo.
    prior: returns the nats per code, float64 [n], of rows of items and their codes [n, cells].
    """

    config: MeasuresConfig
    store: Store
    night: Night
    catalogue: pa.Table
    look: Callable[[Tonight], Looked | LeftOut]
    code_levels: Mapping[str, Rows]
    num_codes: int = 0
    told: bool = False
    prior: Callable[[Rows, NDArray[np.int32]], Float64] | LeftOut = LeftOut("the model has no codes")

    @cached_property
    def looked(self) -> Looked | LeftOut:
        """The photos that were looked at once more, in the space of tonight's vectors, or why none."""
        looked, space = self.look(self), self.night.space
        if space is None or isinstance(looked, LeftOut):
            return looked
        return replace(looked, first=space.rotated(looked.first), second=space.rotated(looked.second))

    @cached_property
    def firsts(self) -> Rows:
        """The rows of items' first photos, int64 [items]."""
        return np.flatnonzero(run_starts(self.night.items["item_id"]))

    @cached_property
    def item_ids(self) -> pa.ChunkedArray:
        """The key of each item, by its number."""
        return take_column(self.night.items["item_id"], self.firsts)

    @cached_property
    def groups(self) -> Grouping:
        """The item number of each row."""
        return Grouping(np.cumsum(run_starts(self.night.items["item_id"])) - 1)

    @cached_property
    def order(self) -> Rows:
        """Item numbers in the order of their hashes, int64 [items]."""
        # Chunk by chunk: as Python's texts the ids of ten million items take a gigabyte.
        found = [hashes(chunk.to_pylist(), self.config.seed) for chunk in self.item_ids.chunks]
        return np.argsort(np.concatenate([np.empty(0, np.uint64), *found]), kind="stable")

    @cached_property
    def sample(self) -> Rows:
        """The first photos of the items that stand for the catalogue, int64 [s] rows."""
        return self.firsts[self.order[: self.config.sample]]

    @cached_property
    def sample_near(self) -> Rows:
        """The NEAR nearest of each sampled photo among the others, int64 [s, <= NEAR] positions in `sample`."""
        chosen = self.night.latents.take(self.sample)
        return nearest_exact(self.night.index.metric, chosen, chosen, NEAR, exclude=np.arange(len(chosen)))[0]

    @cached_property
    def asked(self) -> AskedNeighbours:
        """The nearest items of the asked items, as the reader answers."""
        chosen = np.sort(self.order[: self.config.queries])
        return ask_neighbours(self.night.index, self.groups, chosen, NEAR)

    @cached_property
    def _labelled(self) -> tuple[Rows, list[str]]:
        column = self.night.items[str(self.night.category)].cast(pa.string())
        return ranks(column)

    @property
    def labels(self) -> Rows | None:
        """The number of each row's category, -1 for none; None where the catalogue names none."""
        named = self.night.category is not None and self.night.category in self.night.items.column_names
        return self._labelled[0] if named and self.night.items.num_rows else None

    @property
    def kinds(self) -> list[str]:
        """The categories by number."""
        return [] if self.labels is None else self._labelled[1]

    @property
    def same_space(self) -> bool:
        """Whether scores of the parent are scores of tonight."""
        return self.night.parent is not None and same_space(self.night)

    @cached_property
    def fresh(self) -> NDArray[np.bool_]:
        """Whether an item's photos may have other latents than in the parent, bool [items].

        They are others, or the model is told their categories and these are others; else labels say nothing.
        """
        moving = (*OF_PHOTOS, "relabelled") if self.told else OF_PHOTOS
        return sum((self.change_counts(change) for change in moving), np.zeros(len(self.firsts), np.int64)) > 0

    def change_counts(self, change: str) -> Rows:
        """Return how many photos of each item have this change, int64 [items]."""
        named = self.night.changes["item_id"].filter(pc.equal(self.night.changes["change"], change))
        numbers = self.numbers_of(named)
        return np.bincount(numbers[numbers >= 0], minlength=len(self.firsts)).astype(np.int64)

    def numbers_of(self, item_ids: pa.ChunkedArray) -> Rows:
        """Return the item numbers of item_ids [n], -1 for those that do not live."""
        found = pc.index_in(item_ids.cast(pa.large_string()), value_set=self._known_ids)
        return as_numpy(found, missing=-1).astype(np.int64)

    @cached_property
    def _known_ids(self) -> pa.Array:
        return joined(self.item_ids)

    def names(self, rows: Rows) -> tuple[str, ...]:
        """Return the item_ids of rows."""
        return tuple(take_column(self.night.items["item_id"], np.asarray(rows, np.int64)).to_pylist())

    def vectors(self, rows: Rows) -> Float64:
        """Return what distances are taken between, float64 [n, d]: means, for cosine their directions."""
        return self.directed(self.night.latents.mean[rows])

    def directed(self, means: NDArray[np.float32]) -> Float64:
        """Return means [n, d] as `vectors` does."""
        wide = means.astype(np.float64)
        return at_length_one(wide) if self.night.index.metric.name.startswith("cosine") else wide
