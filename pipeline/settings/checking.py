"""From plain dicts to a frozen config: unknown names refused with a near spelling, errors in plain words."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ..errors import ConfigError
from ..storage.names import is_utf8
from ..storage.options import NO_SECRETS
from ..storage.secrets import MASK, masked, names_secret
from .sources import Merged, Path_, Source

C = TypeVar("C", bound=BaseModel)


def check_and_build(merged: Merged, config: type[C]) -> C:
    """Return the validated config. Raises ConfigError that names every wrong key, its place and what is allowed."""
    problems = [problem for source in merged.sources for problem in _unknown_names(source, config)]
    problems += [problem for source in merged.sources for problem in _no_text(source.values, source, ())]
    if problems:
        raise ConfigError(_listed(problems))
    values = _settle_kinds(merged, config)
    try:
        return config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_listed(_explain(error, merged, config))) from error


def fields_of(annotation: Any) -> dict[str, Any]:
    """Return the names and annotations of a config, or of all members of a union of configs; {} for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        # `annotation` of a field leaves out its metadata, and with it the discriminator, which is not needed here.
        return {name: field.annotation for name, field in annotation.model_fields.items()}
    found: dict[str, Any] = {}
    if typing.get_origin(annotation) not in (list, tuple, dict, set, frozenset, Mapping):
        for member in typing.get_args(annotation):
            fields = fields_of(member)
            both = {name: found[name] | fields[name] for name in fields if name in found}
            found = {**fields, **found, **both}
    return found


def _listed(problems: list[str]) -> str:
    return "the config cannot be used:\n" + "\n".join(f"  {problem}" for problem in problems)


def _unknown_names(source: Source, config: type[BaseModel]) -> Iterator[str]:
    def walk(values: Mapping[Any, Any], annotation: Any, path: Path_) -> Iterator[str]:
        known = fields_of(annotation)
        for name, value in values.items():
            here = (*path, str(name))
            if name not in known:
                hint = NO_SECRETS if names_secret(here[-1]) else _near(here, known, config)
                yield f"{'.'.join(here)}: unknown name, from {source.where(here)}; {hint}"
            elif isinstance(value, dict) and fields_of(known[name]):
                yield from walk(value, known[name], here)

    return walk(source.values, config, ())


def _no_text(value: Any, source: Source, path: Path_) -> Iterator[str]:
    """YAML can write what no file name or table can hold: a NUL character, halves of characters, and nothing at all."""
    if isinstance(value, dict):
        for name, member in value.items():
            yield from _no_text(member, source, (*path, str(name)))
    elif isinstance(value, list):
        for member in value:
            yield from _no_text(member, source, path)
    elif value == "":
        where = ".".join(path)
        yield f"{where}: it is empty, from {source.where(path)}; write a value, or take it out to have the default"
    elif isinstance(value, str) and (chr(0) in value or not is_utf8(value)):
        where = ".".join(path)
        yield f"{where}: it holds a NUL or half a character, from {source.where(path)}; write it as UTF-8 text"


def _near(path: Path_, known: Mapping[str, Any], config: type[BaseModel]) -> str:
    """Return the most helpful hint: a name spelled alike, the same name in another section, or all names."""
    close = get_close_matches(path[-1], list(known), n=1)
    if close:
        return f"did you mean {'.'.join((*path[:-1], close[0]))!r}?"
    elsewhere = next((other for other in _all_paths(config, ()) if other[-1] == path[-1]), None)
    if elsewhere:
        return f"did you mean {'.'.join(elsewhere)!r}?"
    return f"allowed: {', '.join(sorted(known))}"


def _all_paths(annotation: Any, path: Path_) -> Iterator[Path_]:
    for name, member in fields_of(annotation).items():
        yield (*path, name)
        yield from _all_paths(member, (*path, name))


def _settle_kinds(merged: Merged, config: type[BaseModel]) -> dict[str, Any]:
    """Return the values without a preset's keys that the chosen kind does not have.

    A preset is written for one kind; `model.kind=vqvae` on top of it means that kind's own defaults. Keys that the user
    set for another kind are refused: they would be lost without a word.
    """
    values = dict(merged.values)
    problems: list[str] = []
    for section, annotation in fields_of(config).items():
        kinds = _members_by_kind(annotation)
        chosen = values.get(section)
        if not kinds or not isinstance(chosen, dict):
            continue
        kind = chosen.get("kind", _default_kind(config, section))
        if not isinstance(kind, str) or kind not in kinds:
            continue
        keep = {"kind": kind}
        for name, value in chosen.items():
            source = _source_of(merged, (section, name))
            if name in fields_of(kinds[kind]):
                keep[name] = value
            elif source is None or not source.weak:
                owners = ", ".join(other for other, member in kinds.items() if name in fields_of(member))
                place = source.where((section, name)) if source else "somewhere"
                chosen_by = merged.where((section, "kind")) if "kind" in chosen else "the default"
                problems.append(
                    f"{section}.{name}: only {owners} has it, and {section}.kind is {kind!r} "
                    f"({chosen_by}); take it out of {place}"
                )
        values[section] = keep
    if problems:
        raise ConfigError(_listed(problems))
    return values


def _default_kind(config: type[BaseModel], section: str) -> str | None:
    """Return the kind that a section without one has: that of the section's default, None where it must be named."""
    field = config.model_fields[section]
    return None if field.is_required() else getattr(field.get_default(call_default_factory=True), "kind", None)


def _source_of(merged: Merged, path: Path_) -> Source | None:
    return next((source for known, source in merged.origins.items() if known[: len(path)] == path), None)


def _members_by_kind(annotation: Any) -> dict[str, type[BaseModel]]:
    """Return the members of a union of configs that `kind` tells apart, by kind; {} for anything else."""
    found: dict[str, type[BaseModel]] = {}
    members = [annotation, *typing.get_args(annotation)]
    for member in members:
        if isinstance(member, type) and issubclass(member, BaseModel) and "kind" in member.model_fields:
            kinds = typing.get_args(member.model_fields["kind"].annotation)
            found.update({kind: member for kind in kinds if isinstance(kind, str)})
        elif member is not annotation:
            found.update(_members_by_kind(member))
    return found


def _explain(error: ValidationError, merged: Merged, config: type[BaseModel]) -> list[str]:
    """Return one line a wrong key, in the order of the config."""
    problems: dict[Path_, list[str]] = {}
    given: dict[Path_, Any] = {}
    for detail in error.errors(include_url=False):
        path = _path(detail["loc"], config)
        problem = _plain(dict(detail))
        if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
            path = (*path, "kind")
            kinds = ", ".join(repr(kind) for kind in _members_by_kind(_annotation(config, path[:-1])))
            problem = f"{'is missing' if detail['type'] == 'union_tag_not_found' else 'is unknown'}; allowed: {kinds}"
        if problem not in problems.setdefault(path, []):
            problems[path].append(problem)
        if detail["type"] not in ("missing", "union_tag_not_found"):
            given[path] = _value_at(merged.values, path)
    lines = []
    for path, found in problems.items():
        value = f", given {_shown(path, given[path])}" if path in given and not isinstance(given[path], dict) else ""
        place = f" ({merged.where(path)})" if path in given and merged.where(path) else ""
        lines.append(f"{'.'.join(path) or 'config'}: {' or '.join(found)}{value}{place}")
    return lines


def _shown(path: Path_, value: Any) -> str:
    secret = any(names_secret(name) or name == "webhook" for name in path)
    return MASK if secret else masked(repr(value))


def _plain(detail: dict[str, Any]) -> str:
    expected = detail.get("ctx", {}).get("expected")
    if detail["type"] == "missing":
        return "is missing"
    if detail["type"] == "literal_error":
        near = get_close_matches(str(detail["input"]), [name.strip("'") for name in _split(expected)], n=1)
        return f"allowed: {expected}" + (f" (did you mean {near[0]!r}?)" if near else "")
    if detail["type"] in ("model_type", "model_attributes_type"):
        return "must be a section of settings"
    if detail["type"] == "extra_forbidden":  # a name of a section that another kind has
        return "is not there for this kind; take it out"
    text = str(detail["msg"]).removeprefix("Value error, ")
    return text.replace("Input should be", "must be").replace("String should", "must").replace("unable to", "cannot")


def _split(expected: Any) -> list[str]:
    return str(expected).replace(" or ", ", ").split(", ")


def _path(location: tuple[int | str, ...], config: type[BaseModel]) -> Path_:
    """Return pydantic's location without the names of union members, which are no part of the file."""
    annotation: Any = config
    path: list[str] = []
    for member in location:
        known = fields_of(annotation)
        if isinstance(member, int):
            path.append(str(member))
        elif member in known:
            path.append(member)
            annotation = known[member]
    return tuple(path)


def _annotation(config: type[BaseModel], path: Path_) -> Any:
    annotation: Any = config
    for name in path:
        annotation = fields_of(annotation)[name]
    return annotation


def _value_at(values: Any, path: Path_) -> Any:
    for name in path:
        if isinstance(values, dict):
            values = values.get(name)
        elif isinstance(values, list) and name.isdigit() and int(name) < len(values):
            values = values[int(name)]
    return values
