"""What each address answers; all of this runs on the search threads, over one open release."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, RequestRefused, UnknownItem
from ..index import LatentArrays
from ..index.latents import Float32
from ..keys import plain_json
from ..reader import Neighbour, Release
from ..release import read_log
from ..storage import open_store
from .asked import Asked, Basket, VectorSearch

JSON = "application/json"
_PICTURES = ("jpeg", "png", "webp", "gif", "bmp", "tiff")
_OF_PHOTOS = ("k", "where", "min_score", "min_quantile", "category")
PHOTO_TYPES = (*(f"image/{kind}" for kind in _PICTURES), "application/octet-stream")


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer."""

    body: bytes
    status: int = 200
    media_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


def json_answer(values: Mapping[str, Any], release: Release | None, status: int = 200) -> Answer:
    """Return values as JSON, after the ids of the release and the model that they are of."""
    named = {
        "release_id": None if release is None else release.release_id,
        "model_id": None if release is None else release.model_id,
    }
    text = json.dumps(plain_json({**named, **values}), default=str, allow_nan=False)
    return Answer(text.encode(), status)


def similar(asked: Asked) -> Answer:
    """The items nearest to an item; what a second release says to the same, where that is asked for."""
    k, where, beside, limits = asked.k(), asked.where(), asked.beside(), asked.thresholds()
    found = asked.release.similar(asked.item_id, k, where=where, **limits)
    values = {"item_id": asked.item_id, **_shown(asked), "neighbours": _rows(found)}
    if beside is not None:
        named = {"release_id": beside.release_id, "model_id": beside.model_id, "metric": beside.manifest.metric}
        try:
            rows, error = _rows(beside.similar(asked.item_id, k, where=where, **limits)), None
        except (UnknownItem, ConfigError) as refused:  # it may lack the item or an attribute; the first has answered
            rows, error = None, str(refused)
        values["beside"] = {**named, "neighbours": rows, "error": error}
    return json_answer(values, asked.release)


def search(asked: Asked) -> Answer:
    """The items nearest to each of some vectors, or to a photo."""
    if asked.media_type in PHOTO_TYPES:
        return _by_photo(asked)
    if asked.media_type != JSON:
        raise RequestRefused(
            415, f"the body's Content-Type is {asked.media_type[:80]!r}; send vectors as {JSON}, or a photo's bytes as "
            f"{', '.join(PHOTO_TYPES)} (curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg'), not as a form"
        )  # fmt: skip
    if unused := [name for name in _OF_PHOTOS if name in asked.query]:
        raise RequestRefused(422, f"{unused[0]} belongs to a photo's query string; for vectors it stands in the body")
    body = asked.model(VectorSearch)
    asked.at_most("the number of vectors", len(body.vectors), asked.config.max_vectors, "--max-vectors")
    rows = asked.checked_k(body.k) * len(body.vectors)
    asked.at_most("k times the number of vectors", rows, asked.config.max_rows, "--max-rows")
    found = asked.release.search(
        _latents(asked.release, body),
        body.k,
        where=body.where,
        min_score=body.min_score,
        min_quantile=body.min_quantile,
    )
    return json_answer({**_shown(asked), "answers": [_rows(each) for each in found]}, asked.release)


def _latents(release: Release, body: VectorSearch) -> LatentArrays:
    """Return a body's vectors, with their variances where the release's metric compares them."""
    metric, uses = release.manifest.metric, "log_var" in release.opened.index.metric.needs
    if uses and body.log_vars is None:
        raise RequestRefused(
            422, f"the metric {metric!r} of this release compares log_var, and the body has vectors alone; send "
            '{"vectors": [[...]], "log_vars": [[...]]}, one list of each a query, or ask by item_id'
        )  # fmt: skip
    if not uses and body.log_vars is not None:
        raise RequestRefused(
            422, f"log_vars are given, and the metric {metric!r} of this release compares vectors alone; leave them out"
        )
    if body.log_vars is not None and len(body.log_vars) != len(body.vectors):
        raise RequestRefused(
            422, f"there are {len(body.vectors)} vectors and {len(body.log_vars)} log_vars; send one of each a query"
        )
    mean = _matrix(release, "vector", body.vectors)
    return LatentArrays(mean, None if body.log_vars is None else _matrix(release, "log_var", body.log_vars))


def _matrix(release: Release, what: str, rows: Sequence[Sequence[float]]) -> Float32:
    dim = release.manifest.latent_dim
    for number, row in enumerate(rows):
        if len(row) != dim:
            raise RequestRefused(
                422, f"{what} {number} has {len(row)} numbers, and latents of this release have {dim}; encode with "
                f"the model {release.model_id}"
            )  # fmt: skip
    with np.errstate(over="ignore"):  # a double beyond float32 is refused by the reader as not finite
        return np.array(rows, np.float64).astype(np.float32)


def _by_photo(asked: Asked) -> Answer:
    if not asked.photos:
        raise RequestRefused(
            501, f"release {asked.release.release_id} cannot be asked by photo here (the log says why); ask by item_id "
            "or by vectors"
        )  # fmt: skip
    found = asked.release.similar_photo(
        asked.body,
        asked.k(),
        where=asked.where(),
        category=asked.query.get("category"),
        max_pixels=asked.config.max_pixels,
        **asked.thresholds(),
    )
    return json_answer({**_shown(asked), "answers": [_rows(found)]}, asked.release)


def baskets(asked: Asked) -> Answer:
    """The items nearest to several items together."""
    if asked.media_type != JSON:
        raise RequestRefused(415, f"the body's Content-Type is {asked.media_type[:80]!r}; send {JSON}")
    body = asked.model(Basket)
    asked.at_most("the number of item_ids", len(body.item_ids), asked.config.max_basket, "--max-basket")
    found = asked.release.similar_to_many(
        body.item_ids, asked.checked_k(body.k), fusion=body.fusion, weights=body.weights, where=body.where
    )
    named = {"item_ids": body.item_ids, "fusion": body.fusion}
    return json_answer({**named, **_shown(asked), "neighbours": _rows(found)}, asked.release)


def sid(asked: Asked) -> Answer:
    """An item's semantic ID."""
    _check_sids(asked)
    found = asked.release.sid(asked.item_id)
    values = {"codes": found.codes, "suffix": found.suffix, "token": found.token, "sid_epoch": found.epoch}
    return json_answer({"item_id": asked.item_id, **values}, asked.release)


def sids(asked: Asked) -> Answer:
    """The items whose codes begin with a prefix, in the order of their semantic IDs."""
    _check_sids(asked)
    prefix, limit, opened = asked.codes(), asked.limit(), asked.release.opened
    table = opened.sids()
    numbers = table.items(prefix)  # of millions, so only what is answered becomes text
    numbers = numbers[~np.isin(numbers, opened.masked)]
    rows = [(opened.items.item_id(number), table.of(number)) for number in numbers[:limit].tolist()]
    listed = [
        {"item_id": item_id, "codes": found.codes, "suffix": found.suffix, "token": found.token}
        for item_id, found in rows
    ]
    told = {"prefix": prefix, "levels": table.sizes, "sid_epoch": table.epoch, "items": len(numbers)}
    return json_answer({**told, "sids": listed}, asked.release)


def _check_sids(asked: Asked) -> None:
    if "semantic_ids" not in asked.release.manifest.files:
        raise RequestRefused(
            404, f"release {asked.release.release_id} has no semantic IDs; ask for neighbours instead, or let whoever "
            "runs the refresh switch them on with semantic_ids=true"
        )  # fmt: skip


def item(asked: Asked) -> Answer:
    """An item's attributes, and where its photos lie."""
    attributes = asked.release.attributes(asked.item_id)
    photos = [
        {"uri": photo.uri, "view": photo.view, "kept": photo.pixels_part is not None}
        for photo in asked.release.photos(asked.item_id)
    ]
    return json_answer({"item_id": asked.item_id, "attributes": attributes, "photos": photos}, asked.release)


def items(asked: Asked) -> Answer:
    """The first items whose keys begin with a prefix."""
    found = asked.release.item_ids_from(asked.query.get("prefix", ""), asked.limit())
    return json_answer({"items": len(asked.release), "item_ids": found}, asked.release)


def picture(asked: Asked) -> Answer:
    """An item's photo as the encoder saw it, where its pixels are kept."""
    pixels = asked.release.pixels(asked.item_id)
    if pixels is None:
        raise RequestRefused(
            404, f"no pixels of item {asked.item_id!r} are kept on the store; /items/... says where its photos lie"
        )  # fmt: skip
    return Answer(png(pixels), media_type="image/png", headers={"Cache-Control": "private, max-age=300"})


def releases(asked: Asked) -> Answer:
    """The newest entries of the channel's log, newest first."""
    config = asked.config
    log = read_log(open_store(config.store_url, config.storage), config.channel, last=asked.limit())
    rows = [
        {
            **entry.model_dump(mode="json", include={"number", "release_id", "run", "reason", "created"}),
            "current": entry is log[-1],
            "served": entry.release_id == asked.release.release_id,
        }
        for entry in reversed(log)
    ]
    return json_answer({"channel": config.channel, "releases": rows}, asked.release)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Return uint8 RGB [h, w, 3] as a PNG file (RFC 2083: 8 bits, colour type 2, no filter)."""
    height, width, _ = pixels.shape
    lines = np.zeros((height, 1 + 3 * width), np.uint8)  # each begins with its filter, 0
    lines[:, 1:] = pixels.reshape(height, -1)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines.tobytes(), 6)),
        (b"IEND", b""),
    ]
    written = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def _shown(asked: Asked) -> dict[str, Any]:
    return {"metric": asked.release.manifest.metric}


def _rows(found: Sequence[Neighbour]) -> list[dict[str, Any]]:
    return [{"item_id": near.item_id, "score": near.score, "attributes": near.attributes} for near in found]
