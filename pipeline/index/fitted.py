"""What is fitted to a catalogue once and then kept with the bundle: a metric's weights, and a kind's trained parts.

    models/<model_id>/index-<hash>.npz   `metric`: JSON; `index`: an empty trained FAISS index, where the kind has one

Segments of one index have to agree on them, so no night fits them anew: the next ones are those after it, by number,
and are made only when a measured recall says so.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import IntegrityError, NotFound
from ..keys import SHORT, digest_of, key_of, portable
from ..storage import Store
from .codes import photos_with_code
from .config import IndexConfig
from .faiss_module import load_faiss
from .filling import train
from .kinds import KINDS, check_installed, enough_rows, rows_to_train
from .latents import Float32, LatentArrays
from .metric import Metric
from .metrics import PHOTOS_FITTED, WITH_CODE, fitted_metric, metric_of_index
from .space import Space

Facts = Mapping[str, int | str]


@dataclass(frozen=True, slots=True)
class Origin:
    """What latents are of, where not of all photos as their parts have them. sample: of the catalogue, as plain JSON;
    rotation: that they have been through, where a release keeps another bundle's space."""

    sample: Any = None
    rotation: Space | None = None


AS_STORED = Origin()


@dataclass(frozen=True, slots=True)
class Fitted:
    """A space of an index: what two segments must share to be searched as one.

    metric_name, facts: the metric, and what its weights follow from, as in a manifest. kind: a row of the table.
    trained: an empty trained FAISS index as bytes, None where nothing is trained. number: how often it was fitted; new:
    whether just now. rotation: that latents on the store go through first, where a release keeps another's space.
    """

    model_id: str
    metric_name: str
    facts: Facts
    kind: str
    build: tuple[int, ...] = ()
    trained: bytes | None = None
    number: int = 1
    new: bool = False
    rotation: Space | None = None

    @property
    def metric(self) -> Metric:
        """The metric, with its weights."""
        return metric_of_index(self.metric_name, self.facts, int(self.facts.get(PHOTOS_FITTED, 0)))

    @property
    def space(self) -> str:
        """The key of the space (64 hex): vectors of two of them never share an index."""
        trained = None if self.trained is None else digest_of(self.trained)
        turned = [] if self.rotation is None else [self.rotation.digest]
        asked = [1, self.model_id, self.metric_name, dict(self.facts), self.kind, list(self.build), trained, *turned]
        return key_of(asked)

    def features(self, latents: LatentArrays) -> Float32:
        """Return the features of latents as they lie on the store, float32 [n, f]."""
        turned = latents if self.rotation is None else self.rotation.rotated(latents)
        return self.metric.item_features(turned)

    def empty_index(self, width: int, config: IndexConfig) -> Any:
        """Return the empty FAISS index of this space, ready to be added to."""
        if self.trained is not None:
            return load_faiss().deserialize_index(np.frombuffer(self.trained, np.uint8))
        return _empty(self.metric, self.kind, width, 0, config)


def fit(
    store: Store,
    model_id: str,
    kind: str,
    latents: LatentArrays,
    config: IndexConfig,
    *,
    rows: int,
    number: int = 1,
    origin: Origin = AS_STORED,
) -> Fitted:
    """Return what is fitted of a kind for a bundle: what lies on the store, else fitted now; whoever is first decides.

    latents: of the whole catalogue, rotated already, of which a seeded sample is trained on; rows: of a segment, by
    which cells are counted. number: 1, or one more than that which no longer serves. Raises IntegrityError for a
    damaged file.
    """
    rotation = origin.rotation
    check_installed(kind)
    build = (config.m, config.ef_construction) if KINDS[kind].by_unseen else ()
    fits_metric = config.metric in ("codes", "codes_hamming") or config.mask == "catalogue_median"
    if not KINDS[kind].lossy and not fits_metric:
        name = fitted_metric(config.metric, config.mask, latents).name
        return Fitted(model_id, name, {}, kind, build, rotation=rotation)
    asked = [1, config.metric, config.mask, kind, config.seed, config.segment_rows, number, origin.sample]
    asked += [] if rotation is None else [rotation.digest]
    name = f"models/{model_id}/index-{key_of(portable(asked))[:SHORT]}.npz"
    try:
        return replace(_read(store.get(name), name, model_id, kind, build, number), rotation=rotation)
    except NotFound:
        pass
    metric = fitted_metric(config.metric, config.mask, latents)
    facts: dict[str, int | str] = {}
    if metric.name == "codes":
        facts = {WITH_CODE: ",".join(map(str, photos_with_code(latents).tolist())), PHOTOS_FITTED: len(latents)}
    trained = _trained(metric, kind, latents, rows, config) if KINDS[kind].lossy else None
    data = _written(metric.name, facts, trained)
    if store.put_if_absent(name, data):
        return Fitted(model_id, metric.name, facts, kind, build, trained, number, new=True, rotation=rotation)
    return replace(_read(store.get(name), name, model_id, kind, build, number), rotation=rotation)


def _empty(metric: Metric, kind: str, width: int, rows: int, config: IndexConfig) -> Any:
    faiss = load_faiss()
    geometry = faiss.METRIC_L2 if metric.geometry == "l2" else faiss.METRIC_INNER_PRODUCT
    return KINDS[kind].make(width, geometry, rows, config)


def _trained(metric: Metric, kind: str, latents: LatentArrays, rows: int, config: IndexConfig) -> bytes:
    wanted = rows_to_train(rows)
    drawn = np.random.default_rng(config.seed).permutation(len(latents))[:wanted]
    features: Float32 = metric.item_features(latents.take(np.sort(drawn)))
    index = _empty(metric, kind, features.shape[1], rows, config)
    if not index.is_trained:
        train(kind, index, enough_rows(features), metric, config)
    data: bytes = load_faiss().serialize_index(index).tobytes()
    return data


def _written(metric: str, facts: Facts, trained: bytes | None) -> bytes:
    out = io.BytesIO()
    text = json.dumps({"metric": metric, "facts": dict(facts)}, sort_keys=True).encode()
    held = {"metric": np.frombuffer(text, np.uint8)}
    if trained is not None:
        held["index"] = np.frombuffer(trained, np.uint8)
    np.savez(out, allow_pickle=False, **held)
    return out.getvalue()


def _read(data: bytes, name: str, model_id: str, kind: str, build: tuple[int, ...], number: int) -> Fitted:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as held:
            said = json.loads(held["metric"].tobytes())
            trained = held["index"].tobytes() if "index" in held.files else None
        fitted = Fitted(model_id, said["metric"], said["facts"], kind, build, trained, number)
    except Exception as error:
        raise IntegrityError(
            f"{name} cannot be read as the trained parts of an index ({error}); restore it, or train another bundle"
        ) from error
    if KINDS[kind].lossy and trained is None:
        raise IntegrityError(f"{name} holds no trained parts of kind {kind!r}; restore it")
    return fitted
