"""The table of addresses: what the application serves and what its OpenAPI document says are both made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from . import answers
from .answers import Answer
from .asked import (
    BESIDE,
    CATEGORY,
    CODES,
    LIMIT,
    MIN_QUANTILE,
    MIN_SCORE,
    PREFIX,
    WHERE,
    Asked,
    Basket,
    K,
    Parameter,
    VectorSearch,
)

_TEXT, _NUMBER, _WHOLE, _YES = ({"type": kind} for kind in ("string", "number", "integer", "boolean"))


def _list(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": dict(items)}


_NEAR = (K, WHERE, MIN_SCORE, MIN_QUANTILE)
_NEIGHBOURS = _list({"$ref": "#/components/schemas/Neighbour"})
_BESIDE = {
    "type": "object",
    "properties": {
        **dict.fromkeys(("release_id", "model_id", "metric"), _TEXT),
        "neighbours": {**_NEIGHBOURS, "type": ["array", "null"]},
        "error": {"type": ["string", "null"]},
    },
    "required": ["release_id", "model_id", "metric", "neighbours", "error"],
}
_SID = {"item_id": _TEXT, "codes": _list(_WHOLE), "suffix": _WHOLE, "token": _TEXT}
_SHOWN_PHOTO = {"type": "object", "properties": {"uri": _TEXT, "view": _WHOLE, "kept": _YES}}
_ENTRY = {
    "type": "object",
    "properties": {
        **dict.fromkeys(("release_id", "run", "reason", "created"), _TEXT),
        "number": _WHOLE,
        "current": _YES,
        "served": _YES,
    },
}


@dataclass(frozen=True, slots=True)
class Route:
    """One address. work: answers on a search thread; fields: of its JSON answer, None where it is a PNG picture;
    asked_for: fields that only an answer has whose request asks for them."""

    method: str
    path: str
    summary: str
    work: Callable[[Asked], Answer]
    fields: Mapping[str, Any] | None
    parameters: tuple[Parameter, ...] = ()
    body: type[BaseModel] | None = None
    asked_for: Mapping[str, Any] = field(default_factory=dict)
    photo: bool = False  # whether the body may be a photo as well

    @property
    def pattern(self) -> str:
        """The path as Starlette has it: a key may hold slashes."""
        return self.path.replace("{item_id}", "{item_id:path}")


ROUTES = (
    Route(
        "GET", "/similar/{item_id}", "The items nearest to an item, never the item itself.", answers.similar,
        {"item_id": _TEXT, "metric": _TEXT, "neighbours": _NEIGHBOURS}, (*_NEAR, BESIDE), None,
        {"beside": _BESIDE},
    ),
    Route(
        "POST", "/search", "The items nearest to each of some vectors, or to a photo sent as the body.", answers.search,
        {"metric": _TEXT, "answers": _list(_NEIGHBOURS)}, (*_NEAR, CATEGORY), VectorSearch, photo=True,
    ),
    Route(
        "POST", "/baskets", "The items nearest to several items together, none of these among them.", answers.baskets,
        {"item_ids": _list(_TEXT), "fusion": _TEXT, "metric": _TEXT, "neighbours": _NEIGHBOURS}, (), Basket,
    ),
    Route(
        "GET", "/sids", "The items whose semantic IDs begin with some codes, in order, and how many there are.",
        answers.sids, {"prefix": _list(_WHOLE), "levels": _list(_WHOLE), "sid_epoch": _WHOLE, "items": _WHOLE,
                       "sids": _list({"type": "object", "properties": _SID, "required": list(_SID)})}, (CODES, LIMIT),
    ),
    Route(
        "GET", "/sids/{item_id}", "An item's semantic ID; codes of two epochs do not compare.", answers.sid,
        {**_SID, "sid_epoch": _WHOLE},
    ),
    Route(
        "GET", "/items", "How many items there are, and the first whose keys begin with a prefix.", answers.items,
        {"items": _WHOLE, "item_ids": _list(_TEXT)}, (PREFIX, LIMIT),
    ),
    Route(
        "GET", "/items/{item_id}", "An item's attributes, and where its photos lie.", answers.item,
        {"item_id": _TEXT, "attributes": {"type": "object"}, "photos": _list(_SHOWN_PHOTO)},
    ),
    Route("GET", "/photos/{item_id}", "An item's photo as the encoder saw it, where its pixels are kept.",
          answers.picture, None),
    Route(
        "GET", "/releases", "The newest entries of the channel's log, newest first.", answers.releases,
        {"channel": _TEXT, "releases": _list(_ENTRY)}, (LIMIT,),
    ),
)  # fmt: skip
