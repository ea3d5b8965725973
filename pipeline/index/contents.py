"""What an open release holds, by key: attributes, photos, latents, semantic IDs, tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .asked import listed_keys
from .opened import OpenedRelease, StoredPhoto
from .sids import SemanticId, SidTable

ItemKey = str | int | np.integer[Any] | UUID  # what names an item: see `stored_item_id`


class Contents:
    """The part of a reader that looks things up; each method asks the release that is open when it is called."""

    def _now(self) -> OpenedRelease:
        raise NotImplementedError

    def __len__(self) -> int:
        """Return the number of items, delisted ones not among them."""
        opened = self._now()
        return len(opened.items) - len(opened.masked)

    def __contains__(self, item_id: object) -> bool:
        """Return whether the release holds an item. Raises ConfigError for what is no key, so that none is missed."""
        return self._now().holds(item_id)

    def item_ids(self) -> list[str]:
        """Return every item's key, in order."""
        opened = self._now()
        return opened.shown(opened.items.item_ids())

    def item_ids_from(self, prefix: str, limit: int) -> list[str]:
        """Return the first keys that begin with a prefix, in order, `limit` at most."""
        opened = self._now()
        return opened.shown(opened.items.item_ids_from(prefix, limit + len(opened.masked)))[:limit]

    def attributes(self, item_id: ItemKey) -> dict[str, Any]:
        """Return an item's attributes. Raises UnknownItem."""
        opened = self._now()
        return opened.items.attributes_of(opened.find(item_id))

    def photos(self, item_id: ItemKey) -> list[StoredPhoto]:
        """Return an item's photos, in order: where each lies, and where its pixels are kept. Raises UnknownItem."""
        return self._now().photos(item_id)

    def pixels(self, item_id: ItemKey) -> NDArray[np.uint8] | None:
        """Return an item's first kept photo, uint8 RGB [size, size, 3]; None where no pixels of it are kept.

        These are the pixels that the encoder saw; they are read from the store, and expire before releases do. Raises
        UnknownItem.
        """
        return self._now().pixels(item_id)

    def latents(self, item_ids: Iterable[ItemKey]) -> pa.Table:
        """Return the latents of items, one row a photo, in the order asked; the parts that hold them are fetched whole.

        Columns: item_id, uri, view, mean [d], and log_var [d] or codes [h * w] where the model has them. Raises
        UnknownItem.
        """
        return self._now().latents(listed_keys(item_ids))

    def sid(self, item_id: ItemKey) -> SemanticId:
        """Return an item's semantic ID. Raises UnknownItem; ConfigError where the release has no semantic IDs."""
        opened = self._now()
        return opened.sids().of(opened.find(item_id))

    def items(self, prefix: Sequence[int]) -> list[str]:
        """Return the items whose codes begin with these, in the order of their semantic IDs; [] is all of them.

        The same as a condition of a question: where={"sid_prefix": prefix}. Errors as `sid`.
        """
        opened = self._now()
        return opened.shown([opened.items.item_id(item) for item in opened.sids().items(prefix).tolist()])

    def sids(self) -> SidTable:
        """Return the semantic IDs of all items, for other tools: `matrix`, `ordered`, `words`. Errors as `sid`."""
        return self._now().sids()

    def table(self, role: str) -> pa.Table:
        """Return a further table of the release, whole: `vectors`, `neighbours`, `sid_items`, `sid_retired`, `sid_map`.

        Raises ConfigError where the release has no such table.
        """
        return self._now().table(role)
