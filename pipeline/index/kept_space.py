"""Which space a release's vectors are in: fitted once, when a bundle first follows another, and then carried over."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import ConfigError, IntegrityError
from ..keys import SHORT, digest_of, key_of
from ..ordering import as_numpy, take_rows
from ..release import Manifest, ReleaseFile, read_file, read_table
from ..release.manifest import SPACE, read_document
from ..storage import Store
from .config import IndexConfig
from .gather import gather_latents
from .latents import LatentArrays
from .space import Space, check_rotates, fit_space, space_of

_PHOTOS = 20_000  # that a rotation is fitted to
_SEED = 0
_COLUMNS = ["item_id", "uri", "token", "latents_part", "latents_row"]


@dataclass(frozen=True, slots=True)
class KeptSpace:
    """The space of a release's vectors. space: None where they are as the model gave them; inputs: for the manifest."""

    space: Space | None = None
    inputs: dict[str, Any] = field(default_factory=dict)

    def rotated(self, latents: LatentArrays) -> LatentArrays:
        """Return the model's latents as the release has them."""
        return latents if self.space is None else self.space.rotated(latents)

    def files(self) -> dict[str, ReleaseFile]:
        """Return the file that the release keeps of it, by role."""
        return {} if self.space is None else {SPACE: ReleaseFile(self.space.data, ".npy")}


def release_space(store: Store, manifest: Manifest) -> Space | None:
    """Return the rotation of a release, None where its vectors are as the model gave them. Raises IntegrityError."""
    if SPACE not in manifest.files:
        return None
    entry = manifest.file(SPACE)
    return space_of(read_file(store, entry), entry.name, manifest.latent_dim)


def release_latents(
    store: Store, manifest: Manifest, items: pa.Table, *, columns: Sequence[str] = ("mean",)
) -> LatentArrays:
    """Return the latents of rows of a release's items as its index and its consumers have them; see `gather_latents`.

    Where the release is rotated, variances are left out: along other axes they would be covariances.
    """
    latents, space = gather_latents(store, items, columns=columns), release_space(store, manifest)
    return latents if space is None or not len(latents) else space.rotated(latents)


def kept_space(
    store: Store,
    items: pa.Table,
    latents: LatentArrays,
    parent: Manifest | None,
    *,
    model_id: str,
    index: IndexConfig,
    asked: bool,
) -> KeptSpace:
    """Return the space for tonight's vectors.

    The parent's own where it is of the same bundle, also when it is no longer asked for, as long as the metric allows:
    vectors of one bundle should not change axes.
    Where the bundle is a new one and `asked`, the rotation onto the parent's space, by up to 20,000 photos that both
    have, unchanged, drawn with a fixed seed; it is written beside the bundle, whoever was first decides, and it is not
    fitted again. latents: of the rows of items, as the model gave them. Raises ConfigError for a metric that
    sees axes, another dimension, or too few such photos.
    """
    if parent is not None and parent.model_id == model_id:
        space = release_space(store, parent)
        if space is None or not (asked or _rotates(index)):
            return KeptSpace()
        check_rotates(index)
        return KeptSpace(space, {SPACE: parent.inputs[SPACE]})
    if not asked:
        return KeptSpace()
    check_rotates(index)
    if parent is None:  # the first release: its space is the one that is kept
        return KeptSpace()
    before = release_space(store, parent)
    onto = {"model": parent.model_id, "space": None if before is None else before.digest}
    place = key_of({"format": 1, "metric": index.metric, "onto": onto, "photos": _PHOTOS, "seed": _SEED})[:SHORT]
    if latents.mean.shape[1] != parent.latent_dim:
        raise ConfigError(
            f"publish.keep_space cannot bring vectors of {latents.mean.shape[1]} dimensions into the space of release "
            f"{parent.release_id}, which has {parent.latent_dim}; train a model of the same size, or set "
            "publish.keep_space=false"
        )
    decision = f"models/{model_id}/space-{place}.json"
    if store.exists(decision):
        return _decided(store, decision, parent.latent_dim)
    mine, theirs = _in_both(items, read_table(store, parent, "items", columns=_COLUMNS))
    fit = fit_space(latents.mean[mine], release_latents(store, parent, theirs).mean, metric=index.metric)
    name = f"models/{model_id}/space-{fit.space.digest[:SHORT]}.npy"
    found = {"photos": fit.photos, "before": fit.before, "residual": fit.residual}
    document = {"onto": onto, "metric": index.metric, **found, "file": name, "sha256": fit.space.digest}
    store.put_if_absent(name, fit.space.data)
    store.put_if_absent(decision, json.dumps(document, sort_keys=True).encode())
    return _decided(store, decision, parent.latent_dim)


def _rotates(index: IndexConfig) -> bool:
    try:
        check_rotates(index)
    except ConfigError:
        return False
    return True


def _decided(store: Store, decision: str, dim: int) -> KeptSpace:
    """Return the space that a document beside a bundle names. Raises IntegrityError where its file is another one."""
    document = read_document(store.get(decision), decision)
    name, data = str(document["file"]), store.get(str(document["file"]))
    if digest_of(data) != document["sha256"]:
        raise IntegrityError(
            f"{name} on {store.url} has the sha256 {digest_of(data)}, {decision} says {document['sha256']}; restore it"
        )
    return KeptSpace(space_of(data, name, dim), {SPACE: document})


def _in_both(items: pa.Table, parent_items: pa.Table) -> tuple[np.ndarray, pa.Table]:
    """Return rows of items, and as many rows of the parent's: the same photos, unchanged, in the same order."""
    keys = [_keys(table) for table in (items, parent_items)]
    places = as_numpy(pc.index_in(keys[0], value_set=keys[1]), missing=-1).astype(np.int64)
    mine = np.flatnonzero(places >= 0)
    if len(mine) > _PHOTOS:
        mine = np.sort(np.random.default_rng(_SEED).choice(mine, _PHOTOS, replace=False))
    return mine, take_rows(parent_items, places[mine])


def _keys(table: pa.Table) -> pa.Array:
    """Return one text a photo: its key and its token, which changes when the photo does."""
    parts = [table[name].cast(pa.large_string()).combine_chunks() for name in ("item_id", "uri", "token")]
    whole = pc.binary_join_element_wise(*parts, pa.scalar("\x00", pa.large_string()))
    return whole.combine_chunks() if isinstance(whole, pa.ChunkedArray) else whole
