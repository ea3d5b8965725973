"""The OpenAPI document, made of the same table that the application serves."""

from __future__ import annotations

from typing import Any

from .answers import JSON, PHOTO_TYPES
from .asked import EXPECTED
from .config import ServeConfig
from .routes import ROUTES, Route

_ERRORS = {
    401: "The service has a token, and the request another one or none.",
    404: "There is no such item or picture, or the release has no semantic IDs; the text says which, and of an "
    "item if it is quarantined, delisted or was never seen.",
    408: "The body came too slowly.",
    409: "The request expects another release or model than the one that answers.",
    413: "The body or the photo is larger than allowed.",
    415: "The body is of a type that is not read here.",
    422: "A value that cannot be used; the text names it and what to do.",
    429: "More requests are waiting than this process takes; try again after `Retry-After` seconds.",
    500: "A fault of the service or of the release's files.",
    501: "This service cannot encode photos.",
    503: "No release is open yet, the store does not answer, or the time for a request was over.",
}
_WITH_BODY = {408, 413, 415}
_ID_HEADERS = {
    name: {"description": f"The {what} that answers.", "schema": {"type": "string"}}
    for name, what in (("X-Release-Id", "release"), ("X-Model-Id", "model"))
}


def openapi_document(config: ServeConfig) -> dict[str, Any]:
    """Return the document, OpenAPI 3.1."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, config)
    for path, (media, summary) in QUICK.items():
        answers = {"200": {"description": summary, "content": {media: {}}, "headers": _ID_HEADERS}}
        if path == "/readyz":
            answers["503"] = _error(503)
        paths[path] = {"get": {"summary": summary, "responses": answers}}
        if path == "/metrics" and config.token is not None:
            answers["401"] = _error(401)
            paths[path]["get"]["security"] = [{"token": []}]
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Visual Codebooks",
            "version": "1",
            "description": f"Neighbours of products by their photos, from releases of the channel {config.channel}. "
            "Larger scores are nearer. Every answer names the release and the model that it comes from.",
        },
        "paths": paths,
        "components": {"schemas": _schemas()},
    }
    if config.token is not None:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return document


# path: (media type, what it is); these neither wait nor need a release.
QUICK = {
    "/": ("text/html", "A page to look at neighbours, search by photo and fill baskets."),
    "/healthz": (JSON, "That this process answers."),
    "/readyz": (JSON, "Whether a release is open: 200, else 503 with the reason."),
    "/metrics": ("text/plain", "Counts of all of the service's processes, for Prometheus."),
    "/openapi.json": (JSON, "This document."),
}


def _operation(route: Route, config: ServeConfig) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = []
    if "{item_id}" in route.path:
        schema = {"type": "string", "minLength": 1}
        parameters.append({"name": "item_id", "in": "path", "required": True, "schema": schema})
    for each in route.parameters:
        schema = dict(each.schema)
        if each.name == "k":
            schema["maximum"] = config.max_k
        told = {"content": {JSON: {"schema": schema}}} if schema["type"] == "object" else {"schema": schema}
        parameters.append({"name": each.name, "in": "query", **told, "description": each.means})
    for name, header in EXPECTED.items():
        means = f"Answer from this {name.removesuffix('_id')} or with 409."
        parameters.append({"name": name, "in": "query", "schema": {"type": "string"}, "description": means})
        parameters.append({"name": header, "in": "header", "schema": {"type": "string"}, "description": means})
    unused = _WITH_BODY if route.body is None else set()
    unused |= set() if config.token is not None else {401}
    unused |= set() if route.photo else {501}
    done: dict[str, Any] = {"description": route.summary, "content": _content(route), "headers": _ID_HEADERS}
    operation: dict[str, Any] = {
        "summary": route.summary,
        "parameters": parameters,
        "responses": {"200": done, **{str(status): _error(status) for status in _ERRORS if status not in unused}},
    }
    if config.token is not None:
        operation["security"] = [{"token": []}]
    if route.body is not None:
        named = {"$ref": f"#/components/schemas/{route.body.__name__}"}
        photos = {media: {"schema": {"type": "string", "format": "binary"}} for media in PHOTO_TYPES}
        content = {JSON: {"schema": named}, **(photos if route.photo else {})}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _content(route: Route) -> dict[str, Any]:
    if route.fields is None:
        return {"image/png": {"schema": {"type": "string", "format": "binary"}}}
    ids = {"release_id": {"type": "string"}, "model_id": {"type": "string"}}
    always = {**ids, **route.fields}
    properties = {**always, **route.asked_for}
    return {JSON: {"schema": {"type": "object", "properties": properties, "required": list(always)}}}


def _error(status: int) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Error"}
    return {"description": _ERRORS[status], "content": {JSON: {"schema": schema}}}


def _schemas() -> dict[str, Any]:
    bodies = {
        route.body.__name__: route.body.model_json_schema(ref_template="#/components/schemas/{model}")
        for route in ROUTES
        if route.body is not None
    }
    nullable = {"type": ["string", "null"]}
    return {
        **bodies,
        "Neighbour": {
            "type": "object",
            "properties": {
                "item_id": {"type": "string"},
                "score": {"type": "number"},
                "attributes": {"type": "object"},
            },
            "required": ["item_id", "score", "attributes"],
        },
        "Error": {
            "type": "object",
            "properties": {
                "error": {"type": "string"},
                "status": {"type": "integer"},
                "release_id": nullable,
                "model_id": nullable,
            },
            "required": ["error", "status", "release_id", "model_id"],
        },
    }
