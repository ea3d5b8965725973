"""Published schemas, read strictly: a field that nobody knows is refused, not dropped in silence."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import ConfigError, InputError

from .manifest_model import Document, Problem, place

_RAY_GROUP = "ray.io/"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a megabyte of schema takes seconds without the C one


def load_crds(folder: Path) -> dict[tuple[str, str], Document]:
    """Return the closed schemas of all custom resources below a folder, by (apiVersion, kind), without deprecated ones.

    Raises InputError when the folder holds none.
    """
    found: dict[tuple[str, str], Document] = {}
    for path in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")]):
        for document in yaml.load_all(path.read_text(), Loader=_LOADER):
            if isinstance(document, dict) and document.get("kind") == "CustomResourceDefinition":
                spec = document["spec"]
                for version in spec["versions"]:
                    if version.get("served", True) and not version.get("deprecated"):
                        name = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
                        found[name] = closed(version["schema"]["openAPIV3Schema"])
    if not found:
        raise InputError(f"{folder} holds no CustomResourceDefinition; name the folder with KubeRay's crd/bases/*.yaml")
    return found


def closed(schema: Any) -> Any:
    """Return a schema that refuses fields which it does not name, as the API server's strict decoding does.

    Objects that say `x-kubernetes-preserve-unknown-fields` stay open. `nullable` and int-or-string become what JSON
    schema calls them. metadata, which the API server knows better than the resource, stays open at the top.
    """
    closing = _closed(schema)
    if isinstance(closing, dict) and isinstance(closing.get("properties"), dict):
        for name, kind in (("apiVersion", "string"), ("kind", "string"), ("metadata", "object")):
            closing["properties"][name] = {"type": kind}
    return closing


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    result = dict(schema)
    for name in ("properties", "patternProperties"):
        if isinstance(result.get(name), dict):
            result[name] = {key: _closed(member) for key, member in result[name].items()}
    for name in ("items", "additionalProperties", "not"):
        if isinstance(result.get(name), dict):
            result[name] = _closed(result[name])
    for name in ("allOf", "anyOf", "oneOf"):
        if isinstance(result.get(name), list):
            result[name] = [_closed(member) for member in result[name]]
    if result.pop("x-kubernetes-int-or-string", False):
        result.pop("anyOf", None)
        result["type"] = ["integer", "string"]
    open_ = result.get("x-kubernetes-preserve-unknown-fields")
    if "properties" in result and "additionalProperties" not in result and not open_:
        result["additionalProperties"] = False
    if result.pop("nullable", False) and isinstance(result.get("type"), str):
        result["type"] = [result["type"], "null"]
    return result


def custom_problems(documents: Sequence[Document], crds: Mapping[tuple[str, str], Document]) -> Iterator[Problem]:
    """Yield what the schemas of custom resources refuse; a kind of the operator's group without a schema is one."""
    for document in documents:
        name = (str(document.get("apiVersion")), str(document.get("kind")))
        if name in crds:
            yield from schema_problems(document, crds[name], place(document))
        elif name[0].startswith(_RAY_GROUP):
            kinds = ", ".join(sorted(f"{version} {kind}" for version, kind in crds))
            yield Problem(place(document), f"{name[0]} {name[1]} is no kind of the operator's; there are {kinds}")


def schema_problems(document: Any, schema: Any, where: str) -> Iterator[Problem]:
    """Yield what a JSON schema refuses of a document, each with its path."""
    validator = importlib.import_module("jsonschema").Draft7Validator(schema)
    for error in sorted(validator.iter_errors(document), key=lambda error: list(map(str, error.absolute_path))):
        path = ".".join(str(part) for part in error.absolute_path)
        text = error.message if len(error.message) <= 300 else f"{error.message[:300]}..."
        yield Problem(f"{where} {path}".rstrip(), text)


def core_problems(documents: Sequence[Document], version: str) -> Iterator[Problem]:
    """Yield what Kubernetes' own schemas refuse of its own kinds, unknown fields too. version: as 1.32.

    Raises ConfigError when kubernetes-validate, which brings the schemas, is not installed.
    """
    try:
        validate = importlib.import_module("kubernetes_validate.utils")
    except ImportError as error:
        raise ConfigError(
            "the schemas of Kubernetes' own kinds come with kubernetes-validate: run `pip install "
            "kubernetes-validate`, or leave out --kubernetes to go without"
        ) from error
    for document in documents:
        if str(document.get("apiVersion")).startswith(_RAY_GROUP):
            continue
        try:
            validate.validate(document, version, strict=True)
        except validate.ValidationError as error:
            path = ".".join(str(part) for part in getattr(error, "path", []) or [])
            yield Problem(f"{place(document)} {path}".rstrip(), str(getattr(error, "message", error)))
        except (validate.SchemaNotFoundError, validate.InvalidSchemaError, validate.VersionNotSupportedError) as error:
            yield Problem(place(document), f"Kubernetes {version} has no such kind ({error})")


def launcher_problems(values: Any) -> Iterator[Problem]:
    """Yield what Ray's own schema refuses of a file for its cluster launcher, `ray up FILE`."""
    folder = Path(str(importlib.import_module("ray.autoscaler").__file__)).parent
    schema = json.loads((folder / "ray-schema.json").read_text())
    yield from schema_problems(values, schema, "cluster")
    kinds = values.get("available_node_types", {}) if isinstance(values, dict) else {}
    head = values.get("head_node_type") if isinstance(values, dict) else None
    if kinds and head not in kinds:
        yield Problem("cluster", f"head_node_type is {head!r}; available_node_types are {', '.join(kinds)}")
    for name, kind in kinds.items() if isinstance(kinds, dict) else ():
        least, most = kind.get("min_workers", 0), kind.get("max_workers", 0)
        if least > most:
            yield Problem(f"cluster available_node_types.{name}", f"min_workers {least} is above max_workers {most}")
